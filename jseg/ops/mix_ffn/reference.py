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


def _per_channel(values):
    return 1.0 if values is None else values[:, None, None]


def _per_picture(factor):
    return 1.0 if factor is None else factor[:, None, None, None]


def _affine(x, scale, shift):
    return x if scale is None else x * scale[:, None, None] + shift[:, None, None]


def _hidden(x, fc1_w, fc1_b, dw_w, dw_b):
    """fc1's result and the depthwise filter's."""
    u = _product(fc1_w, x) + fc1_b[:, None, None]
    return u, _filter(u, dw_w) + dw_b[:, None, None]


def forward(x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b, *, scale=None, factor=None, shortcut=None, input_scale=None,
            input_shift=None):
    """y, as `op.mix_ffn`."""
    _, a = _hidden(_affine(x, input_scale, input_shift), fc1_w, fc1_b, dw_w, dw_b)
    y = (_product(fc2_w, gelu(a)) + fc2_b[:, None, None]) * _per_channel(scale) * _per_picture(factor)
    return y if shortcut is None else y + shortcut


def backward(dout, x, fc1_w, fc1_b, dw_w, dw_b, fc2_w, fc2_b, *, scale=None, factor=None, shortcut=None,
             input_scale=None, input_shift=None):
    """Gradients of sum(dout * y)."""
    h, w = x.shape[2:]
    used = _affine(x, input_scale, input_shift)
    u, a = _hidden(used, fc1_w, fc1_b, dw_w, dw_b)
    g, kept = gelu(a), dout * _per_picture(factor)
    dout_scaled = kept * _per_channel(scale)
    da = _product(fc2_w.swapaxes(0, 1), dout_scaled) * gelu_slope(a)
    du = _filter(da, dw_w[:, :, ::-1, ::-1])
    padded = np.pad(u, ((0, 0), (0, 0), (1, 1), (1, 1)))
    taps = [(da * padded[:, :, i:i + h, j:j + w]).sum((0, 2, 3)) for i in range(3) for j in range(3)]
    dused = _product(fc1_w.swapaxes(0, 1), du)
    return {"x": dused * _per_channel(input_scale), "fc1_w": np.einsum("nehw,nchw->ec", du, used)[:, :, None, None],
            "fc1_b": du.sum((0, 2, 3)), "dw_w": np.stack(taps, 1).reshape(dw_w.shape), "dw_b": da.sum((0, 2, 3)),
            "fc2_w": np.einsum("ndhw,nehw->de", dout_scaled, g)[:, :, None, None], "fc2_b": dout_scaled.sum((0, 2, 3)),
            "scale": (kept * (_product(fc2_w, g) + fc2_b[:, None, None])).sum((0, 2, 3)), "shortcut": dout,
            "input_scale": (dused * x).sum((0, 2, 3)), "input_shift": dused.sum((0, 2, 3))}
