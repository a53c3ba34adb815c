"""Convolution for inference, with fewer multiplications where that pays; see op.py."""
