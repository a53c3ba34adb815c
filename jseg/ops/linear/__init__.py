"""The linear kernel; the public function is `op.linear`."""
