"""The layer_norm kernel; the public function is `op.layer_norm`."""
