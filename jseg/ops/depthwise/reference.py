"""Depthwise convolution in NumPy float64, forward and backward, written to be read. See op.py for the meaning."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])


def forward(x, weight, bias=None, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation=None):
    """x (N, C, H, W), weight (C, 1, kh, kw), bias (C,) -> (N, C, H', W')."""
    z = _linear(x, weight, bias, stride, padding, dilation)
    return z * _phi(z) if activation == "gelu" else z


def backward(dout, x, weight, bias=None, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), activation=None) -> dict:
    """Gradients of sum(dout * forward(...)) by input name."""
    g = dout
    if activation == "gelu":
        z = _linear(x, weight, bias, stride, padding, dilation)
        g = dout * (_phi(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi))
    padded = _pad(x, padding)
    dpadded, dweight = np.zeros_like(padded), np.zeros_like(weight)
    for i, j, rows, columns in _taps(weight, g.shape, stride, dilation):
        dpadded[:, :, rows, columns] += weight[None, :, 0, i, j, None, None] * g
        dweight[:, 0, i, j] = (padded[:, :, rows, columns] * g).sum((0, 2, 3))
    (top, left), (h, w) = padding, x.shape[2:]
    grads = {"x": dpadded[:, :, top:top + h, left:left + w], "weight": dweight}
    return grads if bias is None else {**grads, "bias": g.sum((0, 2, 3))}


def _linear(x, weight, bias, stride, padding, dilation):
    padded = _pad(x, padding)
    size = [(padded.shape[2 + i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    out = np.zeros((*x.shape[:2], *size))
    for i, j, rows, columns in _taps(weight, out.shape, stride, dilation):
        out += weight[None, :, 0, i, j, None, None] * padded[:, :, rows, columns]
    return out if bias is None else out + bias[None, :, None, None]


def _pad(x, padding):
    (top, left) = padding
    return np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))


def _taps(weight, out_shape, stride, dilation):
    """Each tap (i, j) with the slices of the padded input that it meets."""
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            top, left = i * dilation[0], j * dilation[1]
            yield (i, j, slice(top, top + (out_shape[2] - 1) * stride[0] + 1, stride[0]),
                   slice(left, left + (out_shape[3] - 1) * stride[1] + 1, stride[1]))


def _phi(z):
    return 0.5 * (1 + _erf(z / math.sqrt(2)))
