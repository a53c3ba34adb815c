"""The pointwise kernel; the public function is `op.pointwise`."""
