"""Rotary positions of the patches of a picture: queries and keys are turned by angles that follow from the place.

Papers: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", Neurocomputing 2024; Simeoni et al.,
"DINOv3", arXiv 2508.10104 (rows and columns as shares of the picture, from -1 to 1).
Upstream: transformers 5.24 models/dinov3_vit/modeling_dinov3_vit.py (Apache-2.0), whose arithmetic this is.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jittor as jt
import numpy as np

__all__ = ["Rotary", "rotary_positions", "turn_last"]


class Rotary(NamedTuple):
    """Cosines and sines of the angles, (1, P, 1, 1, D) each, without gradient."""

    cosine: jt.Var
    sine: jt.Var


def rotary_positions(size: tuple[int, int], width: int, *, base: float = 100.0, stretch: float = 1.0) -> Rotary:
    """The angles of a grid of patches.

    Args:
        size: (h, w) of the grid; P = h * w.
        width: D of a head, a multiple of 4.
        base: ratio of the longest wavelength to the shortest.
        stretch: factor on the places, which training draws.
    """
    table = jt.array(_turning_table(tuple(size), width, base, stretch)).stop_grad()
    table = table.reshape(2, 1, -1, 1, 1, width)
    return Rotary(table[0], table[1])


@functools.lru_cache(maxsize=16)
def _turning_table(size: tuple[int, int], width: int, base: float, stretch: float) -> np.ndarray:
    """(2, h * w, width) float32: cosines and sines; the row's angles, the column's, and both again."""
    frequency = base ** -(np.arange(width // 4) * 4 / width)  # (D / 4,)
    angles = [((np.arange(side) + 0.5) / side * 2 - 1)[:, None] * frequency * (2 * np.pi * stretch) for side in size]
    rows, columns = (np.broadcast_to(x, (*size, width // 4)) for x in (angles[0][:, None], angles[1][None]))
    angle = np.tile(np.concatenate([rows, columns], 2).reshape(-1, width // 2), 2)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def turn_last(x: jt.Var, rotary: Rotary) -> jt.Var:
    """The last P tokens turned, those before them as they are. Shape: (N, L, K, G, D) -> same."""
    first = x.shape[1] - rotary.cosine.shape[1]
    patches, half = x[:, first:], x.shape[4] // 2
    swapped = jt.concat([-patches[:, :, :, :, half:], patches[:, :, :, :, :half]], 4)
    return jt.concat([x[:, :first], patches * rotary.cosine + swapped * rotary.sine], 1)
