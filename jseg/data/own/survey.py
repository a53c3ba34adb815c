"""Every mask of a user read once: how it is coded, which values it holds, on how many pixels, in which pictures."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Sequence

import numpy as np

from jseg.data.decode import opened
from jseg.data.io import read_image, read_mask
from jseg.data.samples import histogram, shown_size
from jseg.errors import DataError
from jseg.files import read_regular

__all__ = ["Survey", "survey_masks"]

MOST_COLOURS = 256   # of a mask: more are a photograph, or colours mixed by smoothing or JPEG
MOST_VALUES = 1024
_FEW = 64            # masks that one process reads sooner than others start
_SHOWN = 5


class _Mask(NamedTuple):
    name: str  # of the mask's file, as `map_items` shows it
    image: str


class _Found(NamedTuple):
    kind: str  # "index" or "rgb"
    size: tuple[int, int]
    values: dict[Any, int]  # value or (r, g, b) -> pixels
    palette: dict[int, tuple[int, int, int]]
    fault: str


@dataclass
class Survey:
    """What the masks hold.

    Attributes:
        kind: "index" (values) or "rgb" (colours).
        pixels: value, or (r, g, b) -> pixels in all masks.
        pictures: value -> numbers of the pairs that hold it.
        sizes: (height, width) -> pictures.
        palette: value -> colour of a palette file.
    """

    kind: str = "index"
    pixels: Counter = field(default_factory=Counter)
    pictures: dict[Any, list[int]] = field(default_factory=dict)
    sizes: Counter = field(default_factory=Counter)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)


def survey_masks(pairs: Sequence[tuple[str, str]], *, workers: int | None = None, progress: bool = True) -> Survey:
    """Read masks and the sizes of their pictures.

    Args:
        pairs: (picture, mask) paths, at least one.
        workers: processes; None takes one per core where that is worth their start.
        progress: show a bar on stderr.
    Raises:
        DataError: lists what is unreadable, of another size than its picture, or no mask.
    """
    from jseg.data.prepare.parallel import default_workers, map_items
    items = [_Mask(mask, image) for image, mask in pairs]
    workers = workers or (1 if len(items) < _FEW else default_workers())
    survey, faults, kinds = Survey(), [], {}
    for number, (item, found) in enumerate(map_items(_read, None, items, workers=workers, title="masks",
                                                     progress=progress)):
        if found.fault:
            faults.append(found.fault)
            continue
        kinds.setdefault(found.kind, item.name)
        survey.sizes[found.size] += 1
        survey.palette = survey.palette or found.palette
        for value, count in found.values.items():
            survey.pixels[value] += count
            survey.pictures.setdefault(value, []).append(number)
        if len(survey.pixels) > MOST_VALUES:
            faults.append(f"{item.name}: with it the masks have more than {MOST_VALUES} values; masks of classes "
                          "have few: give the masks, not pictures or instance numbers")
            break
    if not faults and len(kinds) > 1:
        survey = _as_colours(survey, kinds)
        if survey is None:
            faults.append(f"some masks hold class numbers ({kinds['index']}) and some colours ({kinds['rgb']}); give "
                          "folders of one kind")
    if faults:
        more = f"\nand {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise DataError("\n".join(faults[:_SHOWN]) + more)
    survey.kind = "rgb" if "rgb" in kinds else "index"
    return survey


def _as_colours(survey: Survey, kinds: dict) -> Survey | None:
    """Coloured masks of which some are grey throughout, such as one that is black: values as colours; None where the
    values are no greys of the coloured ones."""
    colours = {value for value in survey.pixels if isinstance(value, tuple)}
    greys = {value: (value,) * 3 for value in survey.pixels if not isinstance(value, tuple)}
    if not set(greys.values()) <= colours | {(0, 0, 0), (255, 255, 255)}:
        return None
    for value, colour in greys.items():
        survey.pixels[colour] += survey.pixels.pop(value)
        survey.pictures[colour] = sorted({*survey.pictures.get(colour, ()), *survey.pictures.pop(value)})
    return survey


def _read(context: None, item: _Mask) -> _Found:
    """Read one mask; module level, for worker processes."""
    try:
        size = shown_size(item.image)
        try:
            mask = read_mask(item.name)
            kind, values = "index", histogram(mask)
        except DataError as error:
            if error.kind != "coloured":
                raise
            mask = read_image(item.name)
            kind, values = "rgb", _colours(mask)
        if mask.shape[:2] != tuple(size):
            (h, w), (mh, mw) = size, mask.shape[:2]
            return _Found("", size, {}, {}, f"{item.image} is {w}x{h} (width x height) but its mask {item.name} is "
                                            f"{mw}x{mh}; resize the mask with nearest neighbour")
        if len(values) > MOST_COLOURS:
            return _Found("", size, {}, {}, f"{item.name}: {len(values)} different "
                          f"{'colours' if kind == 'rgb' else 'values'}; this is no mask of classes, or one that was "
                          "smoothed or saved as JPEG: export it as PNG without smoothing")
        return _Found(kind, tuple(size), values, _palette(item.name) if kind == "index" else {}, "")
    except DataError as error:
        return _Found("", (0, 0), {}, {}, str(error))


def _colours(bgr: np.ndarray) -> dict[tuple[int, int, int], int]:
    codes = bgr[..., 2].astype(np.int32) << 16 | bgr[..., 1].astype(np.int32) << 8 | bgr[..., 0]
    values, counts = np.unique(codes, return_counts=True)
    return {(code >> 16, code >> 8 & 255, code & 255): count for code, count in zip(values.tolist(), counts.tolist())}


def _palette(path: str) -> dict[int, tuple[int, int, int]]:
    """Colours of a palette file by index; empty for grey ones."""
    with opened(read_regular(os.fspath(path), what="mask")) as picture:
        flat = picture.getpalette("RGB") if picture.mode == "P" else None
    return {i // 3: tuple(flat[i:i + 3]) for i in range(0, len(flat), 3)} if flat else {}
