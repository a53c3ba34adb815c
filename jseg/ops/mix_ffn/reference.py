"""mix_ffn in NumPy float64, forward and backward."""

import numpy as np

from jseg.ops.pointwise.reference import gelu, gelu_slope


def _filter(u, weight):
    """Depthwise 3x3 correlation with zero padding: u (N, E, H, W), weight (E, 1, 3, 3)."""
    h, w = u.shape[2:]
    padded = np.pad(u, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(padded[:, :, i:i + h, j:j + w] * weight[:, 0, i, j, None, None] for i in range(3) for j in range(3))


def _product(weight, x):
    return np.einsum("dc,nchw->ndhw", weight[:, :, 0, 0], x)


def forward(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b):
    """y, as `op.mix_ffn`."""
    u = _product(fc1_w, x) + fc1_b[:, None, None]
    g = gelu(_filter(u, dw_w) + dw_b[:, None, None])
    return _product(fc2_w, g) + fc2_b[:, None, None]


def backward(dout, x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b):
    """Gradients of sum(dout * y)."""
    h, w = x.shape[2:]
    u = _product(fc1_w, x) + fc1_b[:, None, None]
    a = _filter(u, dw_w) + dw_b[:, None, None]
    da = _product(fc2_w.swapaxes(0, 1), dout) * gelu_slope(a)
    du = _filter(da, dw_w[:, :, ::-1, ::-1])
    padded = np.pad(u, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = [(da * padded[:, :, i:i + h, j:j + w]).sum((0, 2, 3)) for i in range(3) for j in range(3)]
    return {"x": _product(fc1_w.swapaxes(0, 1), du), "fc1_w": np.einsum("nehw,nchw->ec", du, x)[:, :, None, None],
            "fc1_b": du.sum((0, 2, 3)), "dw_w": np.stack(taps, 1).reshape(dw_w.shape), "dw_b": da.sum((0, 2, 3)),
            "fc2_w": np.einsum("ndhw,nehw->de", dout, gelu(a))[:, :, None, None], "fc2_b": dout.sum((0, 2, 3))}
