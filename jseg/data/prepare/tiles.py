"""Where the tiles of a large picture lie, and cutting them.

Two rules place them. "published" is what the scripts do with which the Potsdam, Vaihingen and LEVIR-CD numbers were
made: tiles stand side by side, whatever stride those scripts are given, and the last one is moved back to end at the
border. "overlap" is a true stride.
"""

from __future__ import annotations

from typing import Iterable, Iterator, NamedTuple

import numpy as np

from jseg.errors import ConvertError

__all__ = ["Box", "Tiling", "bands", "pad_to"]


class Box(NamedTuple):
    """A tile: rows top <= y < bottom, columns left <= x < right, in pixels."""

    top: int
    bottom: int
    left: int
    right: int


class Tiling(NamedTuple):
    """Tiles of `height` x `width` pixels at multiples of `step_y` and `step_x`; the last ones end at the border."""

    height: int
    width: int
    step_y: int
    step_x: int

    @classmethod
    def published(cls, size: int) -> "Tiling":
        """Square tiles side by side."""
        return cls.overlapping(size, size, 0)

    @classmethod
    def overlapping(cls, height: int, width: int, overlap: int) -> "Tiling":
        """Tiles that share `overlap` pixels with the next.

        Raises:
            ConvertError: a size below 1, or an overlap that is negative or not smaller than the tile.
        """
        if min(height, width) < 1 or not 0 <= overlap < min(height, width):
            raise ConvertError(f"tiles of {width}x{height} (width x height) with an overlap of {overlap}: sizes must "
                               "be at least 1 and the overlap from 0 to less than the smaller side")
        return cls(height, width, height - overlap, width - overlap)

    def boxes(self, height: int, width: int) -> Iterator[Box]:
        """Yield the tiles of a picture, row by row; a picture smaller than a tile gives
        one box of its own size in that direction.
        """
        for top in starts(height, self.height, self.step_y):
            for left in starts(width, self.width, self.step_x):
                yield Box(top, min(top + self.height, height), left, min(left + self.width, width))


def bands(strips: Iterator[np.ndarray], spans: Iterable[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Yield the rows top <= y < bottom of each span, from strips of rows that are read once and not kept.

    Args:
        strips: (rows, W, ...) arrays that follow each other; a picture has at least one.
        spans: (top, bottom) in pixels, sorted, without gaps between them; they may overlap.
    """
    strip = next(strips)
    band, start, stop = strip[:0], 0, 0  # the last band and its span
    for top, bottom in spans:
        old, band = band[top - start:], np.empty((bottom - top, *strip.shape[1:]), strip.dtype)
        band[:len(old)] = old
        row = stop
        while row < bottom:
            if not len(strip):
                strip = next(strips)
            count = min(len(strip), bottom - row)
            band[row - top:row - top + count] = strip[:count]
            strip, row = strip[count:], row + count
        yield band
        start, stop = top, bottom


def starts(length: int, tile: int, step: int) -> list[int]:
    """First pixels of the tiles along one side."""
    places = list(range(0, max(length - tile, 0) + 1, step))
    if places[-1] + tile < length:
        places.append(length - tile)
    return places


def pad_to(array: np.ndarray, height: int, width: int, value: int) -> np.ndarray:
    """Fill up below and to the right with `value` to at least height x width; larger sides stay."""
    h, w = array.shape[:2]
    missing = max(height - h, 0), max(width - w, 0)
    if missing == (0, 0):
        return array
    return np.pad(array, [(0, missing[0]), (0, missing[1]), *[(0, 0)] * (array.ndim - 2)], constant_values=value)
