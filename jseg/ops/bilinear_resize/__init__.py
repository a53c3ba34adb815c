"""The bilinear_resize kernel; the public function is `op.bilinear_resize`."""
