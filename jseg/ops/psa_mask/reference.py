"""The mask operator of PSANet in NumPy float64, forward and backward. See op.py for the meaning."""

import numpy as np


def forward(x, mask_size, kind):
    """x (N, mh * mw, H, W) -> (N, H * W, H, W)."""
    n, _, h, w = x.shape
    y = np.zeros((n, h * w, h * w))
    for channel, position, other in _moves(mask_size, h, w):
        place = (other, position) if kind == "collect" else (position, other)
        y[:, place[0], place[1]] = x[:, channel, position // w, position % w]
    return y.reshape(n, h * w, h, w)


def backward(dout, x, mask_size, kind) -> dict:
    """Gradient of sum(dout * y) for x."""
    n, _, h, w = x.shape
    dout, dx = dout.reshape(n, h * w, h * w), np.zeros_like(x)
    for channel, position, other in _moves(mask_size, h, w):
        place = (other, position) if kind == "collect" else (position, other)
        dx[:, channel, position // w, position % w] = dout[:, place[0], place[1]]
    return {"x": dx}


def _moves(mask_size, h, w):
    """(channel, position, other position) of every weight whose other end lies on the map."""
    rows, columns = mask_size
    for r, c, down, right in np.ndindex(rows, columns, h, w):
        below, beside = down + r - (rows - 1) // 2, right + c - (columns - 1) // 2
        if 0 <= below < h and 0 <= beside < w:
            yield r * columns + c, down * w + right, below * w + beside
