"""Draw outlines and decode run lengths: annotations of COCO, LabelMe, YOLO and PASCAL in Detail as masks."""

from __future__ import annotations

import re
from typing import Any, Sequence

import numpy as np
from PIL import Image, ImageDraw

from jseg.errors import DataError

__all__ = ["checked_points", "checked_size", "decode_rle", "fill_polygons", "polygon_inside"]

MOST_POINTS = 100_000  # of one outline
MOST_SIDE = 65_535     # pixels
_FAR = 1e8             # pixels; beyond 2^31 the coordinates of Pillow overflow without a word


def checked_size(height: Any, width: Any, name: str) -> tuple[int, int]:
    """(height, width) of a picture as an annotation file quotes them; a DataError where they are no sides of a
    picture.
    """
    sides = [0, 0]  # what is no number stays 0
    for place, side in enumerate((height, width)):
        if isinstance(side, (int, float)) and abs(side) < 1e9 or isinstance(side, str) and re.fullmatch(
            "[0-9]{1,9}", side):
            sides[place] = int(side)
    if not all(1 <= side <= MOST_SIDE for side in sides):
        raise DataError(f"{name}: a picture of height {height!r} and width {width!r}; accepted are whole numbers from "
                        f"1 to {MOST_SIDE}")
    return sides[0], sides[1]


def checked_points(points: Any, name: str) -> list[tuple[float, float]]:
    """Outline as (x, y) floats in pixels; a DataError where it is no list of pairs of numbers, has absurd ones, or too
    many.
    """
    try:
        checked = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: an outline that is no list of (x, y) numbers ({error})") from error
    if len(checked) > MOST_POINTS:
        raise DataError(f"{name}: an outline of {len(checked)} points; accepted are up to {MOST_POINTS}")
    far = next((value for point in checked for value in point if not abs(value) <= _FAR), None)
    if far is not None:
        raise DataError(f"{name}: an outline with the coordinate {far}; accepted are pixels from -{_FAR:.0e} to "
                        f"{_FAR:.0e}")
    return checked


def decode_rle(segment: Any, size: tuple[int, int], name: str) -> np.ndarray:
    """Decode COCO's run lengths, compressed (text) or not (numbers).

    Args:
        segment: `{"size": [height, width], "counts": ...}`; runs go down the columns and begin with zeros.
        size: (height, width) of the picture.
        name: for messages.
    Returns:
        (H, W) bool
    Raises:
        DataError: it is no such segment, or not of the picture's size.
    """
    try:
        counts, (height, width) = segment["counts"], segment["size"]
        runs = _unpack(counts) if isinstance(counts, (str, bytes)) else [int(run) for run in counts]
    except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{name}: not a run-length mask ({type(error).__name__}: {error})") from error
    if (height, width) != tuple(size) or sum(runs) != height * width or min(runs, default=0) < 0:
        raise DataError(f"{name}: a run-length mask of {width}x{height} with {sum(runs)} pixels does not fit the "
                        f"picture of {size[1]}x{size[0]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack(text: str | bytes) -> list[int]:
    """COCO's text form: groups of five bits, low ones first, sign in the last;
    from the third on differences to the run before last.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    at = 0
    while at < len(data):
        value, shift = 0, 0
        while True:
            group = data[at] - 48
            if not 0 <= group < 64 or shift > 60:
                raise ValueError(f"character {data[at]!r} in run lengths"
                                 if shift <= 60 else "a run of more than 2^60 pixels")
            value |= (group & 31) << shift
            at, shift = at + 1, shift + 5
            if not group & 32:
                break
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def fill_polygons(polygons: Sequence[Sequence[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    """Fill outlines.

    Args:
        polygons: each a list of at least three (x, y) in pixels, fractions allowed; see `checked_points`.
        size: (height, width).
    Returns:
        (H, W) bool
    """
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=1, outline=1)
    return np.asarray(canvas)


def polygon_inside(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres lie inside of one outline (even-odd rule).

    Coordinates count from the picture's corner, so that pixel (0, 0) has its centre at (0.5, 0.5), as in COCO and YOLO
    files. Areas are those of the outline, without the rim that `fill_polygons` adds.

    Args:
        points: (x, y) in pixels; see `checked_points`.
        size: (height, width).
    Returns:
        (H, W) bool
    """
    height, width = size
    outline = np.asarray(points, np.float64).reshape(-1, 2)
    turns = np.zeros((height, width + 1), np.uint8)
    for (x, y), (next_x, next_y) in zip(outline, np.roll(outline, -1, axis=0)):
        low, high = np.clip(np.ceil(np.sort([y, next_y]) - 0.5), 0, height).astype(int)
        rows = np.arange(low, high)
        if len(rows):
            crossing = x + (rows + 0.5 - y) * (next_x - x) / (next_y - y)
            np.bitwise_xor.at(turns, (rows, np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)), 1)
    return np.bitwise_xor.accumulate(turns, axis=1)[:, :width].astype(bool)
