"""Draw outlines and decode run lengths: annotations of COCO, LabelMe and PASCAL in Detail as masks."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from PIL import Image, ImageDraw

from jseg.errors import DataError

__all__ = ["decode_rle", "fill_polygons"]


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
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{name}: not a run-length mask ({type(error).__name__}: {error})") from error
    if (height, width) != tuple(size) or sum(runs) != height * width or min(runs, default=0) < 0:
        raise DataError(f"{name}: a run-length mask of {width}x{height} with {sum(runs)} pixels does not fit the picture of {size[1]}x{size[0]}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _unpack(text: str | bytes) -> list[int]:
    """COCO's text form: groups of five bits, low ones first, sign in the last; from the third on differences to the run before last."""
    data = text.encode("ascii") if isinstance(text, str) else text
    runs: list[int] = []
    at = 0
    while at < len(data):
        value, shift = 0, 0
        while True:
            group = data[at] - 48
            if not 0 <= group < 64:
                raise ValueError(f"character {data[at]!r} in run lengths")
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
        polygons: each a list of at least three (x, y) in pixels, fractions allowed.
        size: (height, width).
    Returns:
        (H, W) bool
    """
    canvas = Image.new("1", size[::-1])
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=1, outline=1)
    return np.asarray(canvas)
