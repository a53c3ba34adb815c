"""Colours of classes that can be told apart, and palettes from files.

Distance is the Euclidean one in CIELAB (D65), in which about 2 is the least that eyes notice side by side and 20 to 30
are needed to name two colours as different from memory. `spread_colours` takes a first colour, then again and again
the one of a fixed grid that is farthest from all taken before, from black and from white: the first n colours do not
depend on how many are asked for.
"""

from __future__ import annotations

import colorsys
import functools
import os
import re
from typing import Sequence

import cv2
import numpy as np

from jseg.errors import DataError
from jseg.registry import nearest
from jseg.text import read_text

__all__ = ["spread_colours", "colour_distance", "read_palette"]

_FIRST = (230, 70, 50)  # RGB
_STEP = 15              # of the grid of candidates, 0 to 255
_FARTHEST_OF = 1000
_DARKEST, _LIGHTEST = 25.0, 92.0  # L* of candidates: letters and outlines must show on them


@functools.lru_cache(maxsize=8)
def spread_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return `count` RGB colours, 0 to 255, each as far from those before it as it can be; the same every time.

    Beyond `_FARTHEST_OF` the hues turn by the golden angle instead, and colours may come near to each other or repeat.
    """
    axis = np.arange(0, 256, _STEP, dtype=np.uint8)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)  # (18^3, 3) RGB
    lab = _lab(grid)
    usable = (lab[:, 0] >= _DARKEST) & (lab[:, 0] <= _LIGHTEST)
    grid, lab = grid[usable], lab[usable]
    gap = np.min([np.linalg.norm(lab - other, axis=1) for other in _lab([_FIRST, (0, 0, 0), (255, 255, 255)])], axis=0)
    taken = [_FIRST]
    while len(taken) < min(count, _FARTHEST_OF):
        best = int(np.argmax(gap))
        taken.append(tuple(int(value) for value in grid[best]))
        gap = np.minimum(gap, np.linalg.norm(lab - lab[best], axis=1))
    for i in range(len(taken), count):
        shade = colorsys.hsv_to_rgb((0.12 + i * 0.61803398875) % 1.0, 0.65, (0.95, 0.7, 0.82)[i % 3])
        taken.append(tuple(round(255 * channel) for channel in shade))
    return tuple(taken[:count])


def colour_distance(palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Distances in CIELAB between all colours of a palette (K, 3) RGB: (K, K) float64."""
    lab = _lab(palette)
    return np.linalg.norm(lab[:, None] - lab[None], axis=2)


def read_palette(path: str | os.PathLike, classes: Sequence[str]) -> np.ndarray:
    """Read colours from a text file.

    Args:
        path: one colour per line, `#e0463c` or `224 70 60` (0 to 255), alone (the lines are the classes in their order)
            or followed by the name of its class (in any order). Empty lines and those after `//` are passed over.
        classes: the K names.
    Returns:
        (K, 3) uint8 RGB.
    Raises:
        DataError: a line that is no colour, an unknown class, or a class without colour; the text names the line.
    """
    found: dict[str, tuple[int, ...]] = {}
    lines = [(number, line.partition("//")[0].strip())
             for number, line in enumerate(read_text(path, what="palette").splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    for place, (number, line) in enumerate(lines):
        colour, name = _colour_line(line, f"{path}:{number}")
        if not name and place >= len(classes):
            raise DataError(f"{path}:{number}: colour {place + 1} of a model of {len(classes)} classes; leave it out")
        name = name or classes[place]
        if name not in classes:
            raise DataError(f"{path}:{number}: no class {name!r}{nearest(name, classes)}; the model has "
                            f"{', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}")
        found[name] = colour
    missing = [name for name in classes if name not in found]
    if missing:
        raise DataError(f"{path}: no colour for {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; give "
                        f"one line for each of the {len(classes)} classes")
    return np.array([found[name] for name in classes], np.uint8)


def _colour_line(line: str, where: str) -> tuple[tuple[int, ...], str]:
    """(red, green, blue) and the name after it, perhaps empty."""
    match = re.match(r"#([0-9a-fA-F]{6})(?:\s+(.*))?$|(\d+)[\s,]+(\d+)[\s,]+(\d+)(?:[\s,]+(.*))?$", line)
    colour = ()
    if match:
        colour = tuple(bytes.fromhex(match[1])) if match[1] else tuple(int(match[i]) for i in (3, 4, 5))
    if not colour or max(colour) > 255:
        raise DataError(f"{where}: expected a colour such as '#e0463c road' or '224 70 60 road' (0 to 255), got "
                        f"{line[:60]!r}")
    return colour, (match[2] or match[6] or "").strip()


def _lab(colours: Sequence[Sequence[int]]) -> np.ndarray:
    """RGB 0 to 255 as CIELAB, (n, 3) float64."""
    rgb = np.asarray(colours, np.float32).reshape(1, -1, 3) / 255
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[0].astype(np.float64)
