"""The readout kernel; the public function is `op.readout`."""
