"""conv in NumPy float64; it is for inference and has no gradient."""

import numpy as np


def _pair(value):
    return (value, value) if isinstance(value, int) else value


def forward(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, scale=None, residual=None,
            activation=None, way="auto"):
    """y, as `op.conv`, tap by tap."""
    (down, right), (top, left), (rows, columns) = _pair(stride), _pair(padding), _pair(dilation)
    (n, c), (d, each, kh, kw) = x.shape[:2], weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left))).reshape(n, groups, c // groups, x.shape[2] + 2 * top,
                                                                     x.shape[3] + 2 * left)
    weight = weight.reshape(groups, d // groups, each, kh, kw)
    height, width = (x.shape[3] - rows * (kh - 1) - 1) // down + 1, (x.shape[4] - columns * (kw - 1) - 1) // right + 1
    y = np.zeros((n, groups, d // groups, height, width))
    for u in range(kh):
        for v in range(kw):
            part = x[:, :, :, u * rows:u * rows + down * (height - 1) + 1:down,
                     v * columns:v * columns + right * (width - 1) + 1:right]
            y += np.einsum("gdc,ngchw->ngdhw", weight[..., u, v], part)
    y = y.reshape(n, d, height, width)
    for value, by in ((scale, np.multiply), (bias, np.add)):
        y = y if value is None else by(y, value[:, None, None])
    y = y if residual is None else y + residual
    return np.maximum(y, 0) if activation == "relu" else y
