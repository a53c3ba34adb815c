"""The upsample_argmax kernel; the public function is `op.upsample_argmax`."""
