"""Resizing by nearest pixels, and by a factor; `ops.bilinear_resize` is the bilinear one to a given size."""

from __future__ import annotations

import functools

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.ops.bilinear import resize_matrix

__all__ = ["nearest_resize", "resize_by_factor"]


def resize_by_factor(x: jt.Var, factor: float) -> jt.Var:
    """Bilinear resize by a factor: PyTorch's `F.interpolate(scale_factor=factor, mode="bilinear")`, whose pixels are
    1 / factor apart also where that does not divide the size.

    Shape:
        x: (N, C, H, W) -> (N, C, floor(factor H), floor(factor W)), each side at least 1
    """
    size = tuple(max(int(side * factor), 1) for side in x.shape[2:])
    if all(out == side * factor for out, side in zip(size, x.shape[2:])):
        return ops.bilinear_resize(x, size)
    n, c, h, w = x.shape
    down, across = (jt.array(resize_matrix(side, out, step=1 / factor).astype(np.float32)).stop_grad()
                    for side, out in zip((h, w), size))
    x = nn.matmul(x.reshape(n * c * h, w), across.transpose(1, 0)).reshape(n * c, h, size[1])
    return nn.matmul(down, x).reshape(n, c, *size)


def nearest_resize(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """Each output pixel takes the input pixel at floor(index * in / out): PyTorch's `F.interpolate(mode="nearest")`.

    Whole multiples of the input's size are a broadcast, other sizes two products with matrices of one 1 per row;
    Jittor's own operator gathers, and scatters on the way back.

    Args:
        size: (H, W) of the result in pixels, each >= 1.
    Shape:
        x: (N, C, h, w) -> (N, C, H, W)
    """
    (n, c, h, w), (height, width) = x.shape, size
    if (height, width) == (h, w):
        return x
    if height % h == 0 and width % w == 0:
        down, right = height // h, width // w
        return x.reshape(n, c, h, 1, w, 1).broadcast((n, c, h, down, w, right)).reshape(n, c, height, width)
    # nn.matmul, not jt.matmul: `jseg flops` watches the latter and would take these sparse matrices for dense ones
    if width != w:
        across = jt.array(_nearest_matrix(width, w).T.copy()).cast(x.dtype).stop_grad()  # (w, W)
        x = nn.matmul(x.reshape(n * c * h, w), across).reshape(n, c, h, width)  # (N, C, h, W)
    if height != h:
        down = jt.array(_nearest_matrix(height, h)).cast(x.dtype).stop_grad()  # (H, h)
        x = nn.matmul(down, x.reshape(n * c, h, width)).reshape(n, c, height, width)  # (N, C, H, W)
    return x


@functools.lru_cache(maxsize=32)
def _nearest_matrix(out_size: int, in_size: int) -> np.ndarray:
    """(out_size, in_size) float32, one 1 per row; positions in float32 as PyTorch computes them."""
    position = np.arange(out_size, dtype=np.float32) * (np.float32(in_size) / np.float32(out_size))
    return np.eye(in_size, dtype=np.float32)[np.minimum(position.astype(np.int64), in_size - 1)]
