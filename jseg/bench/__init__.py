"""Measurements: kernels and whole models against the plain path, PyTorch and runtimes of ONNX files,
machine limits, cold start, the page they make.

Every side of a comparison is a process of its own (`jseg_side`, and tests/parity/torch_side.py of the repository) that
answers requests on its standard input, so that peak memory is its own and PyTorch and Jittor never meet. The process
that asks imports neither.
"""
