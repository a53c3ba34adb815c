"""The adamw kernel; the public function is `op.adamw`."""
