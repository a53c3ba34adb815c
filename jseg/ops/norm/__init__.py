"""The norm kernel; the public function is `op.norm`."""
