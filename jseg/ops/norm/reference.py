"""norm in NumPy float64, forward and backward."""

import numpy as np

from jseg.ops.pointwise.reference import gelu, gelu_slope


def _sets(x, over, groups):
    """x as an array whose `axes` are the values of one set of statistics,
    and the shape the statistics are reported in.
    """
    n, c, h, w = x.shape
    if over == "group":
        return x.reshape(n, groups, -1), (2,), (n, groups)
    return (x, (0, 2, 3), (c,)) if over == "batch" else (x, (1,), (n, h * w))


def _normalised(x, over, groups, eps):
    values, axes, shape = _sets(x, over, groups)
    mean, variance = values.mean(axes, keepdims=True), values.var(axes, keepdims=True)
    rstd = 1 / np.sqrt(variance + eps)
    return ((values - mean) * rstd).reshape(x.shape), mean.reshape(shape), variance.reshape(shape), rstd


def _before_activation(x_hat, weight, bias, residual):
    z = x_hat * weight[:, None, None] + bias[:, None, None]
    return z if residual is None else z + residual


def forward(x, weight, bias, *, over, groups=1, eps=1e-5, activation=None, residual=None):
    """(y, mean, variance), as `op.norm`."""
    x_hat, mean, variance, _ = _normalised(x, over, groups, eps)
    z = _before_activation(x_hat, weight, bias, residual)
    return np.maximum(z, 0) if activation == "relu" else gelu(z) if activation == "gelu" else z, mean, variance


def backward(dout, x, weight, bias, *, over, groups=1, eps=1e-5, activation=None, residual=None):
    """Gradients of sum(dout * y)."""
    x_hat, _, _, rstd = _normalised(x, over, groups, eps)
    z = _before_activation(x_hat, weight, bias, residual)
    dz = dout * (z > 0) if activation == "relu" else dout * gelu_slope(z) if activation == "gelu" else dout
    g, axes, _ = _sets(dz * weight[:, None, None], over, groups)
    values = x_hat.reshape(g.shape)
    dx = (g - g.mean(axes, keepdims=True) - values * (g * values).mean(axes, keepdims=True)) * rstd
    grads = {"x": dx.reshape(x.shape), "weight": (dz * x_hat).sum((0, 2, 3)), "bias": dz.sum((0, 2, 3))}
    return grads if residual is None else {**grads, "residual": dz}
