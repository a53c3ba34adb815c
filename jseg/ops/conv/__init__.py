"""The convolution kernel; the public function is `op.conv`."""
