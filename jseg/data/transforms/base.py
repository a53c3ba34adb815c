"""What all transforms share: the draw/apply contract and the checks of their arguments.

A sample is a dict: `img` (H, W, 3) uint8 BGR, or (H, W, C) uint8 or float32 of `LoadBands`, `gt_seg_map` (H, W) uint8
or int32 (absent when only predicting), `img_path`, `seg_map_path`, and the shapes and factors that transforms note down
(`ori_shape`, `img_shape`, `pad_shape` as (h, w), `scale_factor` as (w, h), `flip`, `flip_direction`).

Names, arguments, defaults and meaning are those of MMSegmentation 1.2.2 and MMCV 2.1 (Apache-2.0); each file lists what
differs. Two things differ everywhere: a transform never changes its input, and arguments may be lists where upstream
wants tuples, because YAML has no tuples. As upstream, `scale` and `size` are (width, height), `crop_size` is (height,
width).

On one machine with one OpenCV the pixels equal upstream's to the bit. OpenCV itself rounds bicubic resizing and HSV
differently on processors with other vector instructions, so pictures (never masks) may differ a little between
machines.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Callable, Sequence

import cv2
import numpy as np

__all__ = ["Transform", "INTERPOLATIONS", "by_fours", "channel_values", "check_uint8", "number_pair", "numbers",
           "probability", "resize_to"]

INTERPOLATIONS = {"nearest": cv2.INTER_NEAREST, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC,
                  "area": cv2.INTER_AREA, "lanczos": cv2.INTER_LANCZOS4}


class Transform:
    """One step of a pipeline, in two halves: all its randomness, then a pure function of sample and parameters.

    A transform without randomness leaves `draw` as it is. Parameters are plain numbers, lists and None, so that they
    can be written to JSON and replayed.

    `on_bare_pictures` is False for steps that read, need or pack files: a picture given as an array goes without them.
    `reads_pictures` is True for the step whose `scale` says how 16-bit pictures are read.
    """

    on_bare_pictures = True
    reads_pictures = False

    def draw(self, sample: dict, rng: np.random.Generator) -> dict[str, Any]:
        """Choose the parameters for one sample; the only place that may use `rng`."""
        return {}

    def apply(self, sample: dict, params: dict[str, Any]) -> dict:
        """Return the transformed sample; `sample` and its arrays stay as they are."""
        raise NotImplementedError(f"{type(self).__name__} must define apply(sample, params)")

    def __call__(self, sample: dict, rng: np.random.Generator | None = None) -> dict:
        """`apply(sample, draw(sample, rng))`; `rng` may be left out for transforms without randomness."""
        return self.apply(sample, self.draw(sample, rng))


def numbers(value: Any) -> bool:
    """Whether `value` is a list or tuple of numbers."""
    return isinstance(value, (list, tuple)) and all(isinstance(v, Real) for v in value)


def number_pair(value: Any, name: str, *, integer: bool = True, positive: bool = True) -> tuple:
    """Check that `value` is two numbers and return them as a tuple; ValueError naming the argument otherwise."""
    kind = Integral if integer else Real
    good = isinstance(value, (list, tuple)) and len(value) == 2 and all(
        isinstance(v, kind) and not isinstance(v, bool) and (v > 0 or not positive) for v in value)
    if not good:
        wanted = ("positive " if positive else "") + ("integers" if integer else "numbers")
        raise ValueError(f"{name} must be two {wanted}, got {value!r}")
    return tuple(value)


def probability(value: Any, name: str = "prob") -> float:
    """Check that `value` is a number in 0..1 and return it as a float; ValueError naming the argument otherwise."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number in 0..1, got {value!r}")
    return float(value)


def check_uint8(sample: dict, who: str) -> np.ndarray:
    """Return the sample's picture; TypeError unless it is uint8, for transforms that only have a meaning there."""
    img = sample["img"]
    if img.dtype != np.uint8:
        raise TypeError(
            f"{who} takes uint8 pictures, got {img.dtype}: put it before Normalize and leave to_float32 off")
    return img


def channel_values(value: float | Sequence[float], img: np.ndarray, name: str) -> tuple:
    """One value per channel of a picture: a single one is repeated; ValueError for another count."""
    count = 1 if img.ndim == 2 else img.shape[2]
    values = (value,) * count if isinstance(value, Real) else tuple(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values, but the picture has {count} channels; give one value, or "
                         "one per channel")
    return values


def by_fours(img: np.ndarray, change: Callable[[np.ndarray, slice], np.ndarray]) -> np.ndarray:
    """Apply an OpenCV function that takes at most four channels to a picture of any number.

    Args:
        img: (H, W) or (H, W, C).
        change: (channels (H, W, c), their slice of C) -> (h, w, c) or, of one channel, (h, w).
    Returns:
        (h, w) or (h, w, C).
    """
    if img.ndim == 2 or 2 <= img.shape[2] <= 4:
        return change(img, slice(None))
    parts = []
    for first in range(0, img.shape[2], 4):
        part = slice(first, first + 4)
        out = change(np.ascontiguousarray(img[..., part]), part)
        parts.append(out if out.ndim == 3 else out[..., None])
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def resize_to(array: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resize (H, W) or (H, W, C) to `size` = (width, height) with OpenCV."""
    return by_fours(array, lambda part, _: cv2.resize(part, size, interpolation=INTERPOLATIONS[interpolation]))
