"""Positions of a map's cells as sines and cosines of many wavelengths.

Papers: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sec. 3.5; Carion et al., "End-to-End Object Detection
with Transformers" (DETR), ECCV 2020, sec. A.4. Upstream: mmdetection 3.x mmdet/models/layers/positional_encoding.py
(Apache-2.0), whose words and arithmetic these are.

Deviation: every cell counts; there is no mask of padded cells, because pictures of one batch have one size here.
"""

from __future__ import annotations

import functools
import math

import jittor as jt
import numpy as np

from jseg.errors import ConfigError

__all__ = ["SinePositionalEncoding"]


class SinePositionalEncoding:
    """Fixed positions, the same for every picture; nothing is learned.

    Args:
        num_feats: values for each of row and column; even.
        temperature: ratio of the longest wavelength to the shortest.
        normalize: count rows and columns as shares of the map, times `scale`, instead of as numbers.
        scale: see `normalize`, in radians.
        eps: keeps the share finite.
        offset: added to the row's or column's number before it becomes a share.
    Raises:
        ConfigError: an odd or empty `num_feats`.
    """

    def __init__(self, num_feats: int, temperature: int = 10000, normalize: bool = False, scale: float = 2 * math.pi,
                 eps: float = 1e-6, offset: float = 0.0):
        if num_feats < 2 or num_feats % 2:
            raise ConfigError(f"positional_encoding: num_feats is {num_feats}; accepted: an even number, half of the "
                              "tokens' width")
        self.words = num_feats, float(temperature), bool(normalize), float(scale), float(eps), float(offset)

    @property
    def channels(self) -> int:
        """Width of the positions."""
        return 2 * self.words[0]

    def __call__(self, size: tuple[int, int]) -> jt.Var:
        """Positions of the cells of an (H, W) map, row by row: (1, H * W, 2 * num_feats), without gradient."""
        return jt.array(_sine_table(tuple(size), *self.words)).stop_grad()


@functools.lru_cache(maxsize=32)
def _sine_table(size: tuple[int, int], num_feats: int, temperature: float, normalize: bool, scale: float, eps: float,
               offset: float) -> np.ndarray:
    """(1, H * W, 2 * num_feats) float32: the row's values, then the column's, sines and cosines by turns."""
    wavelength = temperature ** (2 * (np.arange(num_feats) // 2) / num_feats)
    axes = []
    for length in size:
        place = np.arange(1, length + 1, dtype=np.float64)
        place = (place + offset) / (length + eps) * scale if normalize else place
        angle = place[:, None] / wavelength
        angle[:, 0::2], angle[:, 1::2] = np.sin(angle[:, 0::2]), np.cos(angle[:, 1::2])
        axes.append(angle)
    rows, columns = (np.broadcast_to(a, (*size, num_feats)) for a in (axes[0][:, None], axes[1][None]))
    return np.concatenate([rows, columns], 2).reshape(1, size[0] * size[1], 2 * num_feats).astype(np.float32)
