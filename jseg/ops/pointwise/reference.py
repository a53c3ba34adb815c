"""pointwise in NumPy float64, forward and backward."""

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[float])


def gelu(x: np.ndarray) -> np.ndarray:
    """Exact GELU: x times the normal distribution function."""
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """Derivative of `gelu`."""
    return 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _per_channel(values):
    return 1.0 if values is None else values[:, None, None]


def _per_picture(factor):
    return 1.0 if factor is None else factor[:, None, None, None]


def _product(x, weight, bias):
    y = np.einsum("dc,nchw->ndhw", weight.reshape(weight.shape[:2]), x)
    return y if bias is None else y + bias[:, None, None]


def _branch(u, activation, gate, residual, residual_scale):
    """What `scale` and `factor` multiply."""
    t = gelu(u) if activation == "gelu" else u
    t = t if gate is None else t * gate
    return t if residual is None else t + residual * _per_channel(residual_scale)


def forward(x, weight, bias=None, *, activation=None, gate=None, residual=None, residual_scale=None, scale=None,
            factor=None, shortcut=None, input_scale=None, input_shift=None):
    """y, as `op.pointwise`."""
    x = x if input_scale is None else x * input_scale[:, None, None] + input_shift[:, None, None]
    y = _branch(_product(x, weight, bias), activation, gate, residual,
                residual_scale) * _per_channel(scale) * _per_picture(factor)
    return y if shortcut is None else y + shortcut


def backward(dout, x, weight, bias=None, *, activation=None, gate=None, residual=None, residual_scale=None,
             scale=None, factor=None, shortcut=None, input_scale=None, input_shift=None):
    """Gradients of sum(dout * y)."""
    used = x if input_scale is None else x * input_scale[:, None, None] + input_shift[:, None, None]
    u = _product(used, weight, bias)
    dt = dout * _per_channel(scale) * _per_picture(factor)
    da = dt if gate is None else dt * gate
    du = da * gelu_slope(u) if activation == "gelu" else da
    dused = np.einsum("dc,ndhw->nchw", weight.reshape(weight.shape[:2]), du)
    grads = {"x": dused * _per_channel(input_scale),
             "weight": np.einsum("ndhw,nchw->dc", du, used).reshape(weight.shape),
             "bias": du.sum((0, 2, 3)), "gate": dt * (gelu(u) if activation == "gelu" else u),
             "residual": dt * _per_channel(residual_scale), "scale":
             (dout * _per_picture(factor) * _branch(u, activation, gate, residual, residual_scale)).sum((0, 2, 3)),
             "shortcut": dout, "input_scale": (dused * x).sum((0, 2, 3)), "input_shift": dused.sum((0, 2, 3))}
    if residual is not None:
        grads["residual_scale"] = (dt * residual).sum((0, 2, 3))
    return grads
