"""Which source pixels make an output pixel of a bilinear resize, and the resize as two small matrices.

Positions are those of PyTorch's `F.interpolate(mode="bilinear", antialias=False)`, rounded to float32 as its CPU code
does.
"""

from __future__ import annotations

import functools

import numpy as np

__all__ = ["resize_matrix", "resize_taps"]


def resize_taps(out_size: int, in_size: int, align_corners: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which two inputs make each output of a bilinear resize along one axis.

    Args:
        out_size, in_size: lengths in pixels, each >= 1.
        align_corners: map corner centres to corner centres instead of corner edges to corner edges.
    Returns:
        (out_size,) arrays: index of the lower neighbour, index of the upper one, and the upper one's weight (float32,
        0..1).
    Raises:
        ValueError: a length below 1.
    """
    if out_size < 1 or in_size < 1:
        raise ValueError(f"resize: sizes must be at least 1 pixel, got {in_size} -> {out_size}")
    index = np.arange(out_size, dtype=np.float32)
    if align_corners:
        scale = np.float32(in_size - 1) / np.float32(out_size - 1) if out_size > 1 else np.float32(0)
        position = index * scale
    else:
        scale = np.float32(in_size) / np.float32(out_size)
        position = np.maximum((index + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    low = np.minimum(position.astype(np.int64), in_size - 1)
    high = np.minimum(low + 1, in_size - 1)
    return low, high, np.clip(position - low.astype(np.float32), 0, 1).astype(np.float32)


@functools.lru_cache(maxsize=32)
def resize_matrix(out_size: int, in_size: int, align_corners: bool = False) -> np.ndarray:
    """The linear map of a bilinear resize along one axis; arguments as `resize_taps`.

    Returns:
        (out_size, in_size) float32, read-only; rows sum to 1.
    """
    low, high, fraction = resize_taps(out_size, in_size, align_corners)
    matrix = np.zeros((out_size, in_size), np.float32)
    rows = np.arange(out_size)
    matrix[rows, low] += 1 - fraction
    matrix[rows, high] += fraction
    matrix.setflags(write=False)
    return matrix
