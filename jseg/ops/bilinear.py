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

WINDOW = 4  # neighbouring sources that a `Resampling` names one by one

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
    """A resampling of one axis with few sources per output: y[o] = sum over t of weights[o, t] * x[index[o, t]].

    One bilinear resize has two sources per output; two of them in a row have three or, where the first one shrinks,
    more; where windows of a slide overlap, each has its own.

    Args:
        index: (size_out, T) int32, in [0, size_in).
        weights: (size_out, T) float64, T >= 2, none below zero; each row sums to 1. The kernels take them as float32.
        size_in: sources.
    """

    index: np.ndarray
    weights: np.ndarray
    size_in: int

    def __repr__(self) -> str:  # in messages that are made with every call
        return f"Resampling({self.size_in} to {self.size_out})"

    @classmethod
    def of_terms(cls, index: np.ndarray, weights: np.ndarray, size_in: int) -> "Resampling":
        """Add up weights of equal sources and leave out those of weight zero; arguments as the class, any T.

        Outputs whose sources lie within `WINDOW` neighbours get so many neighbours, all of them the same number.
        """
        real = weights != 0
        first = np.where(real, index, size_in).min(1).astype(np.int32)
        span = max(int((np.where(real, index, -1).max(1) - first).max()) + 1, 2)
        rows = np.broadcast_to(np.arange(len(index))[:, None], index.shape)
        if span <= WINDOW:
            total = np.zeros((len(index), span))
            np.add.at(total, (rows[real], (index - first[:, None])[real]), weights[real])
            return cls(np.minimum(first[:, None] + np.arange(span, dtype=np.int32), size_in - 1), total, size_in)
        order = np.argsort(np.where(real, index, size_in), axis=1, kind="stable")  # those of weight zero come last
        index, weights, real = (np.take_along_axis(values, order, 1) for values in (index, weights, real))
        fresh = real.copy()
        fresh[:, 1:] &= index[:, 1:] != index[:, :-1]
        place = np.maximum(np.cumsum(fresh, 1) - 1, 0)
        taps = int(place.max()) + 1
        total = np.zeros((len(index), taps))
        np.add.at(total, (rows[real], place[real]), weights[real])
        sources = np.repeat(first[:, None], taps, 1)
        sources[rows[fresh], place[fresh]] = index[fresh]
        return cls(sources, total, size_in)

    @classmethod
    def from_matrix(cls, matrix: np.ndarray) -> "Resampling":
        """Read a matrix (size_out, size_in) whose rows sum to 1."""
        return cls.of_terms(np.broadcast_to(np.arange(matrix.shape[1], dtype=np.int32), matrix.shape), matrix,
                            matrix.shape[1])

    def after(self, inner: "Resampling") -> "Resampling":
        """The two in a row: this one's sources are the outputs of `inner`."""
        index, weights = inner.index[self.index], self.weights[:, :, None] * inner.weights[self.index]
        return self.of_terms(*(values.reshape(self.size_out, -1) for values in (index, weights)), inner.size_in)

    def part(self, outputs: slice, sources: slice) -> "Resampling":
        """Some of the outputs, from some of the sources: all that have a weight there."""
        index = np.clip(self.index[outputs] - sources.start, 0, sources.stop - sources.start - 1)
        return Resampling(index.astype(np.int32), self.weights[outputs], sources.stop - sources.start)

    @property
    def size_out(self) -> int:
        """Outputs."""
        return len(self.index)

    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The first and the last source with a weight of each output, (size_out,)."""
        real = self.weights != 0
        return np.where(real, self.index, self.size_in).min(1), np.where(real, self.index, -1).max(1)

    def with_taps(self, taps: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and float32 weights with neighbours of weight zero added: (size_out, taps), C order."""
        more = np.arange(1, taps - self.index.shape[1] + 1)
        index = np.concatenate([self.index, np.minimum(self.index[:, -1:] + more, self.size_in - 1)], 1)
        weights = np.pad(self.weights, ((0, 0), (0, len(more))))
        return np.ascontiguousarray(index, np.int32), np.ascontiguousarray(weights, np.float32)

    def matrix(self) -> np.ndarray:
        """(size_out, size_in) float32."""
        dense = np.zeros((self.size_out, self.size_in), np.float32)
        np.add.at(dense, (np.arange(self.size_out)[:, None], self.index), self.weights.astype(np.float32))
        return dense


@functools.lru_cache(maxsize=64)
def resampling(size_in: int, size_out: int, align_corners: bool = False) -> Resampling:
    """One resize as a `Resampling`. Arguments as `resize_taps`."""
    lower, upper, fraction = resize_taps(size_in, size_out, align_corners)
    return Resampling(np.stack([lower, upper], 1), np.stack([1 - fraction, fraction], 1), size_in)
