"""The attention kernel; the public function is `op.attention`."""
