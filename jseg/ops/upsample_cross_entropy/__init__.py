"""The upsample_cross_entropy kernel; the public function is `op.upsample_cross_entropy`."""
