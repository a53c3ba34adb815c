"""From the colours or ids in a published mask to class indices, by table lookup;
what a table lacks is an error with its place.

All readers here are called with (bytes of the file, its name for messages) and return an (H, W) uint8 mask. They work
on strips of rows: a painted mask of 10,000 x 10,000 pixels in a PNG file needs little more memory than the 100 MB of
its indices.
"""

from __future__ import annotations

from typing import Callable, Iterable, Mapping

import cv2
import numpy as np

from jseg.data.io import read_image, read_mask
from jseg.data.prepare.strips import Strips, decode
from jseg.errors import DataError

__all__ = ["ColorTable", "IndexTable", "Threshold"]

_STRIP = 1 << 20  # pixels looked up at once
_SHOWN = 5


class _Table:
    """Lookup of codes (non-negative integers) in a table of index + 1, and 0 where nothing is known;
    the table itself is not pickled.
    """

    unknown: int | None
    _table: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_table": None}

    def _build(self) -> np.ndarray:
        raise NotImplementedError

    def _spell(self, code: int) -> str:
        return str(code)

    def _codes(self, strip: np.ndarray) -> np.ndarray:
        return strip

    def look_up(self, strips: Iterable[np.ndarray], size: tuple[int, int], name: str, what: str,
                cure: str) -> np.ndarray:
        """Map a picture of `size` (height, width), given in strips of rows (rows, W[, 3]), to (H, W) uint8.

        Raises:
            DataError: codes the table lacks, at most five, each with its count and first place.
        """
        if self._table is None:
            self._table = self._build()
        out = np.empty(size, np.uint8)
        found: dict[int, list[int]] = {}  # code -> [count, first row, first column]
        top = 0
        for strip in _thin(strips, size[1]):
            value = self._quick(strip) if strip.dtype == np.uint8 and strip.ndim == 2 else None
            out[top:top + len(strip)] = self._searched(strip, top, found) if value is None else value
            top += len(strip)
        if found:
            rows = [f"{self._spell(code)} at {n} pixel{'s' if n != 1 else ''}, first at row {y}, column {x}"
                    for code, (n, y, x) in sorted(found.items(), key=lambda kv: -kv[1][0])]
            more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
            raise DataError(f"{name}: {what}: {'; '.join(rows[:_SHOWN])}{more}. {cure}")
        return out

    def _searched(self, strip: np.ndarray, top: int, found: dict[int, list[int]]) -> np.ndarray:
        """Map one strip, whose first row is `top`; what is unknown goes into `found`, or gets the index asked for."""
        codes = self._codes(strip)  # (rows, W)
        inside = np.clip(codes, 0, len(self._table) - 1)
        value = self._table[inside]
        bad = (value == 0) | (inside != codes)
        value -= 1
        if bad.any():
            if self.unknown is None:
                _count_unknown(found, codes, bad, top)
            value[bad] = 0 if self.unknown is None else self.unknown
        return value

    def _quick(self, mask: np.ndarray) -> np.ndarray | None:
        """Map (H, W) uint8 by OpenCV's table; None if a value is unknown."""
        table = np.zeros(256, np.int16)
        known = min(len(self._table), 256)
        table[:known] = self._table[:known]
        if cv2.LUT(mask, (table == 0).astype(np.uint8)).any():
            return None
        return cv2.LUT(mask, np.maximum(table - 1, 0).astype(np.uint8))


def _thin(strips: Iterable[np.ndarray], width: int) -> Iterable[np.ndarray]:
    """Cut strips into such of at most _STRIP pixels (and at least a row)."""
    rows = max(_STRIP // max(width, 1), 1)
    for strip in strips:
        for top in range(0, len(strip), rows):
            yield strip[top:top + rows]


def _count_unknown(found: dict[int, list[int]], codes: np.ndarray, bad: np.ndarray, top: int) -> None:
    places = np.flatnonzero(bad.ravel())
    values, first, counts = np.unique(codes.ravel()[places], return_index=True, return_counts=True)
    for value, at, count in zip(values.tolist(), places[first].tolist(), counts.tolist()):
        row, column = divmod(at, codes.shape[1])
        found.setdefault(value, [0, top + row, column])[0] += count


class ColorTable(_Table):
    """Read a mask painted in known colours.

    Args:
        colors: (r, g, b) -> index, 0..255.
        unknown: index of all other colours; None makes them an error.
    """

    def __init__(self, colors: Mapping[tuple[int, int, int], int], unknown: int | None = None):
        self.colors, self.unknown = {tuple(color): index for color, index in colors.items()}, unknown

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Decode and look up; (H, W) uint8."""
        picture = Strips.read(data, name)
        return self._indices(picture.strips, (picture.height, picture.width), name)

    def indices(self, img: np.ndarray, name: str) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (H, W) uint8."""
        return self._indices((img,), img.shape[:2], name)

    def _indices(self, strips: Iterable[np.ndarray], size: tuple[int, int], name: str) -> np.ndarray:
        known = f"{', '.join(map(str, list(self.colors)[:8]))}{', ...' if len(self.colors) > 8 else ''}"
        return (self.look_up(strips, size, name, "colour not in the colour map",
                             f"Known are {known}: the mask was smoothed, or saved as JPEG, or belongs to another "
                             "dataset"))

    def _build(self) -> np.ndarray:
        table = np.zeros(1 << 24, np.int16)  # of its 32 MB only the pages of known colours take memory
        for (r, g, b), index in self.colors.items():
            table[(r << 16) | (g << 8) | b] = index + 1
        return table

    def _codes(self, strip: np.ndarray) -> np.ndarray:
        codes = strip[..., 2].astype(np.int32)
        for channel in (1, 0):
            codes <<= 8
            codes |= strip[..., channel]
        return codes

    def _spell(self, code: int) -> str:
        return f"({code >> 16}, {code >> 8 & 255}, {code & 255})"


class IndexTable(_Table):
    """Read a mask of ids and change them to class indices.

    Args:
        ids: id in the file -> index, 0..255.
        unknown: index of all other ids; None makes them an error.
        reader: from the bytes of a file to an (H, W) integer array.
    """

    def __init__(self, ids: Mapping[int, int], unknown: int | None = None,
                 reader: Callable[[bytes], np.ndarray] = read_mask):
        self.ids, self.unknown, self.reader = dict(ids), unknown, reader

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Decode and look up; (H, W) uint8."""
        return self.indices(decode(self.reader, data, name), name)

    def indices(self, mask: np.ndarray, name: str) -> np.ndarray:
        """(H, W) integers -> (H, W) uint8."""
        low, high = min(self.ids), max(self.ids)
        return self.look_up((np.ascontiguousarray(mask),), mask.shape, name, "label not known",
                            f"Known are {len(self.ids)} ids from {low} to {high}: the "
                            "file belongs to another dataset, or has been converted already")

    def _build(self) -> np.ndarray:
        table = np.zeros(max(self.ids) + 2, np.int16)
        for key, index in self.ids.items():
            table[key] = index + 1
        return table


class Threshold:
    """Read a black-and-white mask: 1 where the grey (or blue) value is at least `level`, else 0;
    smoothed and JPEG masks do too.
    """

    def __init__(self, level: int = 128):
        self.level = level

    def __call__(self, data: bytes, name: str) -> np.ndarray:
        """Decode and compare; (H, W) uint8."""
        return (decode(read_image, data, name)[..., 0] >= self.level).astype(np.uint8)
