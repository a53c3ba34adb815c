"""Numbers for training on a user's pictures, from the pictures themselves: scale, crop, length, weights of classes."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple, Sequence

import numpy as np

from jseg.data.datasets.folder import validation_names

__all__ = ["Sizes", "class_weights", "choose_sizes", "length_of_run", "split_seed"]

MOST_LONG_SIDE = 1024          # longer pictures are made smaller
LEAST_CROP, MOST_CROP = 64, 512
DIVISOR = 32                   # of the crop's sides: what backbones divide by
EPOCHS, LEAST_ITERS, MOST_ITERS = 40, 300, 8000
EVALUATIONS = 6
SEEDS = 50                     # divisions that are tried


class Sizes(NamedTuple):
    """In pixels: `scale` (long, short side) that pictures are brought to, `crop` (h, w), `resized` whether pictures for
    evaluation are brought to `scale` too."""

    scale: tuple[int, int]
    crop: tuple[int, int]
    resized: bool


def choose_sizes(sizes: Counter, crop: Sequence[int] | None = None) -> Sizes:
    """Scale and crop for pictures of these sizes.

    Args:
        sizes: (height, width) -> pictures.
        crop: (h, w) that the user or the model wants; None for half a picture's area or more, up to 512 x 512.
    """
    heights, widths = (np.repeat([size[i] for size in sizes], list(sizes.values())) for i in (0, 1))
    height, width = float(np.median(heights)), float(np.median(widths))
    shrink = min(1.0, MOST_LONG_SIDE / max(height, width))
    if crop is not None:  # a picture is not smaller than the crop
        shrink = max(shrink, min(1.0, crop[0] / height, crop[1] / width))
    height, width = round(height * shrink), round(width * shrink)
    sides = crop or [_crop_side(side) for side in (height, width)]
    scale = max(height, width), min(height, width)
    same = len(sizes) == 1 and next(iter(sizes)) in {(height, width)}
    return Sizes(scale, (int(sides[0]), int(sides[1])), not same)


def _crop_side(side: int) -> int:
    return min(max(side // DIVISOR * DIVISOR, LEAST_CROP), MOST_CROP)


def length_of_run(pictures: int, batch_size: int) -> tuple[int, int]:
    """(iterations, iterations between evaluations): 40 passes over the pictures, at least 300 and at most 8000
    iterations."""
    iters = min(max(EPOCHS * math.ceil(pictures / batch_size), LEAST_ITERS), MOST_ITERS)
    iters = math.ceil(iters / 50) * 50
    return iters, math.ceil(iters / EVALUATIONS / 10) * 10


def class_weights(pixels: Sequence[int]) -> list[float]:
    """Weights of the loss that let rare classes count: the square root of median frequency over frequency, 0.2 to 5; 1
    for a class that does not occur."""
    counts = np.asarray(pixels, np.float64)
    there = counts > 0
    median = float(np.median(counts[there])) if there.any() else 1.0
    weights = np.where(there, np.sqrt(median / np.maximum(counts, 1)), 1.0)
    return [round(float(weight), 2) for weight in np.clip(weights, 0.2, 5.0)]


def split_seed(names: Sequence[str], pictures_of: Sequence[Sequence[int]], split: dict) -> int:
    """The first seed with which every class occurs in both parts, where one of the first 50 does so; else the one with
    most such classes.

    Args:
        names: of the pictures, as `validation_names` takes them.
        pictures_of: for each class the numbers of the pictures that hold it.
        split: `{val_ratio}` or `{folds, fold}`.
    """
    wanted = [set(numbers) for numbers in pictures_of if len(numbers) > 1]
    best, best_seed = -1, 0
    for seed in range(SEEDS):
        chosen = validation_names(names, {**split, "seed": seed})
        val = {number for number, name in enumerate(names) if name in chosen}
        score = sum(bool(numbers & val) and bool(numbers - val) for numbers in wanted)
        if score > best:
            best, best_seed = score, seed
        if score == len(wanted):
            break
    return best_seed
