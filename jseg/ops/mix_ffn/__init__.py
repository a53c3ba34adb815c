"""The mix_ffn kernel; the public function is `op.mix_ffn`."""
