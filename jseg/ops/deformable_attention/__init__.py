"""The deformable_attention kernel; the public function is `op.deformable_attention`."""
