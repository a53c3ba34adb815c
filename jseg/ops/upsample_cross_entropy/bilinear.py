"""Bilinear resampling as two taps an axis: the tap table (NumPy) and the plain Jittor path.

The positions are PyTorch's `F.interpolate(mode="bilinear", antialias=False)`: with `align_corners` the outer pixel
centres coincide, otherwise the outer pixel edges do. They are computed in float64, PyTorch's CPU code computes them in
float32; the weights differ by a few float32 roundings of the position.
"""

from __future__ import annotations

import jittor as jt
import numpy as np

__all__ = ["bilinear_taps", "resize_bilinear"]


def bilinear_taps(size_in: int, size_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source indices and weight of every output position on one axis.

    Args:
        size_in: source pixels, >= 1. size_out: output pixels, >= 1.
    Returns:
        lower (size_out,) int32 and upper (size_out,) int32, both in [0, size_in), and fraction (size_out,) float64 in
        [0, 1): value = source[lower] * (1 - fraction) + source[upper] * fraction.
    """
    position = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = position * ((size_in - 1) / (size_out - 1) if size_out > 1 else 0.0)
    else:
        position = np.maximum((position + 0.5) * (size_in / size_out) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.int32), size_in - 1)
    fraction = np.where(lower < size_in - 1, position - lower, 0.0)
    return lower, np.minimum(lower + 1, size_in - 1).astype(np.int32), fraction


def resize_bilinear(x: jt.Var, size: tuple[int, int], align_corners: bool = False) -> jt.Var:
    """Resize by plain framework operations, differentiable; up and down, without antialiasing.

    Shape:
        x: (N, C, h, w) float -> (N, C, H, W) with (H, W) = size
    """
    n, c, h, w = x.shape
    if (h, w) == tuple(size):
        return x
    y0, y1, fy = bilinear_taps(h, size[0], align_corners)
    x0, x1, fx = bilinear_taps(w, size[1], align_corners)
    rows, columns = jt.array(fy.astype(np.float32)).cast(x.dtype), jt.array(fx.astype(np.float32)).cast(x.dtype)
    rows = rows.reshape(1, 1, size[0], 1)
    columns = columns.reshape(1, 1, 1, size[1])

    def take(source: jt.Var, index: np.ndarray, axis: int) -> jt.Var:
        shape = list(source.shape)
        shape[axis] = len(index)
        names = [f"i{i}" for i in range(4)]
        names[axis] = f"@e0(i{axis})"
        return source.reindex(shape, names, extras=[jt.array(index)])

    x = take(x, x0, 3) * (1 - columns) + take(x, x1, 3) * columns  # (N, C, h, W)
    return take(x, y0, 2) * (1 - rows) + take(x, y1, 2) * rows  # (N, C, H, W)
