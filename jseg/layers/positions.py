"""Learned positions of a grid of tokens, resized to another grid.

Facts: bicubic as PyTorch's `F.interpolate(mode="bicubic", align_corners=False, antialias=False)` (Keys, 1981, with a =
-0.75), bilinear as `ops.bilinear_resize`. Both are two small matrix products, with a gradient.
"""

from __future__ import annotations

import functools

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.ops.bilinear import resize_matrix

__all__ = ["cubic_matrix", "resize_positions"]


def resize_positions(x: jt.Var, grid: tuple[int, int], size: tuple[int, int], *, mode: str = "bicubic") -> jt.Var:
    """Resize positions to another grid.

    Args:
        grid, size: (h, w) of the positions, and (H, W) wanted.
        mode: "bicubic" or "bilinear".
    Shape:
        x: (1, h * w, C) -> (1, H * W, C)
    Raises:
        ConfigError: another mode.
    """
    if mode not in ("bicubic", "bilinear"):
        raise ConfigError(f"interpolate_mode is {mode!r}; accepted: 'bicubic', 'bilinear'")
    if tuple(grid) == tuple(size):
        return x
    matrix, (h, w), (height, width), c = cubic_matrix if mode == "bicubic" else resize_matrix, grid, size, x.shape[2]
    x = nn.matmul(_float32_var(matrix(h, height)), x.reshape(h, w * c))  # (H, w * C)
    x = x.reshape(height, w, c).transpose(1, 0, 2).reshape(w, height * c)
    x = nn.matmul(_float32_var(matrix(w, width)), x).reshape(width, height, c)
    return x.transpose(1, 0, 2).reshape(1, height * width, c)


def _float32_var(matrix: np.ndarray) -> jt.Var:
    return jt.array(matrix.astype(np.float32))


@functools.lru_cache(maxsize=32)
def cubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The linear map of a bicubic resize along one axis: (size_out, size_in), float64, rows sum to 1."""
    a, matrix = -0.75, np.zeros((size_out, size_in))
    position = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    low = np.floor(position).astype(np.int64)
    for tap in (-1, 0, 1, 2):
        d = np.abs(position - (low + tap))
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        np.add.at(matrix, (np.arange(size_out), np.clip(low + tap, 0, size_in - 1)), np.where(d <= 1, near, far))
    return matrix
