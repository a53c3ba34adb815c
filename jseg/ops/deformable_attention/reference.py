"""deformable_attention in NumPy float64, forward and backward."""

import numpy as np


def _taps(points, sizes):
    """For each point and each of its four pixels that exist: where it is in the arrays,
    the pixel, its factor and the factor's slopes.
    """
    first = np.cumsum([0, *(h * w for h, w in sizes)])
    for place in np.ndindex(points.shape[:5]):
        h, w = sizes[place[3]]
        x, y = points[place][0] * w - 0.5, points[place][1] * h - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for i in (0, 1):
            for j in (0, 1):
                if 0 <= top + i < h and 0 <= left + j < w:
                    down, right = 1 - abs(y - top - i), 1 - abs(x - left - j)
                    yield (place, first[place[3]] + (top + i) * w + left + j, down * right,
                           (w * (2 * j - 1) * down, h * (2 * i - 1) * right))


def forward(value, points, weights, *, sizes):
    """Weighted sums (N, Q, G, D), as `op.deformable_attention`."""
    y = np.zeros((*points.shape[:3], value.shape[3]))
    for (n, q, g, m, p), cell, factor, _ in _taps(points, sizes):
        y[n, q, g] += weights[n, q, g, m, p] * factor * value[n, cell, g]
    return y


def backward(dout, value, points, weights, *, sizes):
    """Gradients by name."""
    found = {"value": np.zeros_like(value), "points": np.zeros_like(points), "weights": np.zeros_like(weights)}
    for (n, q, g, m, p), cell, factor, slopes in _taps(points, sizes):
        weight, product = weights[n, q, g, m, p], dout[n, q, g] @ value[n, cell, g]
        found["value"][n, cell, g] += weight * factor * dout[n, q, g]
        found["weights"][n, q, g, m, p] += factor * product
        found["points"][n, q, g, m, p] += weight * product * np.array(slopes)
    return found
