"""The point_sample kernel; the public function is `op.point_sample`."""
