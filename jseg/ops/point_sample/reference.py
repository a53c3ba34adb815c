"""point_sample in NumPy float64, forward and backward."""

import numpy as np


def _taps(shape, points, mode, align_corners):
    """(picture, row, column, point, weight) of every pixel that counts for a point."""
    _, _, h, w = shape
    for n, rows in enumerate(points):
        for p, (across, down) in enumerate(rows):
            y, x = (down * (h - 1), across * (w - 1)) if align_corners else (down * h - 0.5, across * w - 0.5)
            if mode == "nearest":
                found = [(int(np.rint(y)), int(np.rint(x)), 1.0)]
            else:
                top, left = int(np.floor(y)), int(np.floor(x))
                found = [(top + i, left + j, (1 - abs(y - top - i)) * (1 - abs(x - left - j))) for i in (0, 1)
                         for j in (0, 1)]
            for row, column, weight in found:
                if 0 <= row < h and 0 <= column < w:
                    yield n, row, column, p, weight


def forward(x, points, *, mode="bilinear", align_corners=False):
    """Sampled values (N, C, P), as `op.point_sample`."""
    y = np.zeros((*x.shape[:2], points.shape[1]))
    for n, row, column, p, weight in _taps(x.shape, points, mode, align_corners):
        y[n, :, p] += weight * x[n, :, row, column]
    return y


def backward(dy, x, points, *, mode="bilinear", align_corners=False):
    """Gradients by name."""
    dx = np.zeros_like(x)
    for n, row, column, p, weight in _taps(x.shape, points, mode, align_corners):
        dx[n, :, row, column] += weight * dy[n, :, p]
    return {"x": dx}
