"""linear in NumPy float64, forward and backward."""

from jseg.ops.pointwise.reference import gelu, gelu_slope


def _product(x, weight, bias):
    y = x @ weight.T
    return y if bias is None else y + bias


def _per_picture(factor, x):
    return 1.0 if factor is None else factor.reshape(-1, *[1] * (x.ndim - 1))


def forward(x, weight, bias=None, *, activation=None, factor=None, shortcut=None):
    """y, as `op.linear`."""
    z = _product(x, weight, bias)
    y = (gelu(z) if activation == "gelu" else z) * _per_picture(factor, x)
    return y if shortcut is None else y + shortcut


def backward(dout, x, weight, bias=None, *, activation=None, factor=None, shortcut=None):
    """Gradients of sum(dout * y)."""
    slope = dout * _per_picture(factor, x)
    slope = slope * gelu_slope(_product(x, weight, bias)) if activation == "gelu" else slope
    rows = slope.reshape(-1, slope.shape[-1])
    return {"x": slope @ weight, "weight": rows.T @ x.reshape(-1, x.shape[-1]), "bias": rows.sum(0), "shortcut": dout}
