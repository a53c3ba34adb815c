"""Bilinear resizing along one axis: which source pixels make an output pixel.
The one arithmetic of every operator here.

Positions are those of PyTorch's `F.interpolate(mode="bilinear", antialias=False)`: with `align_corners` the centres of
the outer pixels coincide, otherwise their edges do. They are computed in float64, as `include/bilinear.h` and
`include/cuda_bilinear.cuh` do; PyTorch's CPU code computes them in float32, so weights differ by a few float32
roundings of the position.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

__all__ = ["Resampling", "resampling", "resize_matrix", "resize_taps"]


def resize_taps(size_in: int, size_out: int, align_corners: bool = False, step: float | None = None) -> tuple[
    np.ndarray, np.ndarray, np.ndarray]:
    """The two sources of every output: value = source[lower] * (1 - fraction) + source[upper] * fraction.

    Args:
        size_in, size_out: lengths in pixels, each >= 1.
        align_corners: map corner centres to corner centres instead of corner edges to corner edges.
        step: source pixels per output pixel without `align_corners`; None for size_in / size_out.
    Returns:
        (size_out,) arrays: lower and upper index, int32, in [0, size_in), and fraction, float64, in [0, 1).
    Raises:
        ValueError: a length below 1.
    """
    if size_out < 1 or size_in < 1:
        raise ValueError(f"resize: sizes must be at least 1 pixel, got {size_in} -> {size_out}")
    position = np.arange(size_out, dtype=np.float64)
    if align_corners:
        position = position * ((size_in - 1) / (size_out - 1) if size_out > 1 else 0.0)
    else:
        position = np.maximum((position + 0.5) * (size_in / size_out if step is None else step) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.int32), size_in - 1)
    fraction = np.where(lower < size_in - 1, position - lower, 0.0)
    return lower, np.minimum(lower + 1, size_in - 1).astype(np.int32), fraction


@functools.lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, align_corners: bool = False, step: float | None = None) -> np.ndarray:
    """The resize as a matrix (size_out, size_in), float64, read-only; rows sum to 1. Arguments as `resize_taps`."""
    lower, upper, fraction = resize_taps(size_in, size_out, align_corners, step)
    matrix, rows = np.zeros((size_out, size_in)), np.arange(size_out)
    matrix[rows, lower] += 1 - fraction
    matrix[rows, upper] += fraction
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True, eq=False, repr=False)
class Resampling:
    """A resampling of one axis with few sources per output:
    y[o] = sum over t of weights[o, t] * x[min(first[o] + t, size_in - 1)].

    One bilinear resize has two sources per output; two of them in a row have three or, where the first one shrinks,
    more.

    Args:
        first: (size_out,) int32, not falling, in [0, size_in).
        weights: (size_out, T) float32, T >= 2; each row sums to 1.
        size_in: sources.
    """

    first: np.ndarray
    weights: np.ndarray
    size_in: int

    def __repr__(self) -> str:  # in messages that are made with every call
        return f"Resampling({self.size_in} to {self.size_out})"

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Resampling":
        """Read a matrix (size_out, size_in) whose rows sum to 1 and whose non-zeros lie together and move forwards.

        Raises:
            ValueError: the first source of an output lies before that of the output before it.
        """
        used = matrix != 0
        first, size_in = used.argmax(1), matrix.shape[1]
        if (np.diff(first) < 0).any():
            raise ValueError("Resampling: sources must move forwards")
        taps = max(int((size_in - used[:, ::-1].argmax(1) - first).max()), 2)
        at = first[:, None] + np.arange(taps)
        weights = np.where(at < size_in, np.take_along_axis(matrix, np.minimum(at, size_in - 1), 1), 0.0)
        return cls(first.astype(np.int32), weights.astype(np.float32), size_in)

    @property
    def size_out(self) -> int:
        """Outputs."""
        return len(self.first)

    def with_taps(self, taps: int) -> np.ndarray:
        """The weights with zeros added: (size_out, taps), C order."""
        return np.ascontiguousarray(np.pad(self.weights, ((0, 0), (0, taps - self.weights.shape[1]))))

    def matrix(self) -> np.ndarray:
        """(size_out, size_in) float32."""
        dense = np.zeros((self.size_out, self.size_in), np.float32)
        at = np.minimum(self.first[:, None] + np.arange(self.weights.shape[1]), self.size_in - 1)
        np.add.at(dense, (np.arange(self.size_out)[:, None], at), self.weights)
        return dense


@functools.lru_cache(maxsize=64)
def resampling(size_in: int, size_out: int, align_corners: bool = False) -> Resampling:
    """One resize as a `Resampling`. Arguments as `resize_taps`."""
    lower, _, fraction = resize_taps(size_in, size_out, align_corners)
    return Resampling(lower, np.stack([1 - fraction, fraction], 1).astype(np.float32), size_in)
