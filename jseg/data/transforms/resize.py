"""Resize, ResizeShortestEdge, RandomResize, RandomChoiceResize, ResizeToMultiple.

Upstream: mmcv/transforms/processing.py and mmcv/image/geometric.py (MMCV 2.1), mmseg/datasets/transforms/transforms.py
(MMSegmentation 1.2.2). Pictures are resized by OpenCV (bilinear by default), masks with nearest neighbour.
Deviations: no boxes, key points or depth maps, no Pillow backend; the arguments that upstream's random resizes pass on
(`keep_ratio`, `interpolation`, `max_size`) are named instead of `**kwargs`; an integer among RandomChoiceResize's
`scales` means (s, s) for Resize, where upstream fails or takes it for a factor.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Sequence

import numpy as np

from jseg.data.transforms.base import INTERPOLATIONS, Transform, number_pair, numbers, resize_to
from jseg.registry import TRANSFORMS, nearest

__all__ = ["Resize", "ResizeShortestEdge", "RandomResize", "RandomChoiceResize", "ResizeToMultiple", "rescaled_size"]


def _interpolation(name: str) -> str:
    if name not in INTERPOLATIONS:
        raise ValueError(f"interpolation {name!r} is unknown{nearest(name, INTERPOLATIONS)} (known: "
                         f"{', '.join(INTERPOLATIONS)})")
    return name


def _scaled(size: tuple[int, int], factor: tuple[float, float]) -> tuple[int, int]:
    return int(size[0] * float(factor[0]) + 0.5), int(size[1] * float(factor[1]) + 0.5)


def rescaled_size(size: tuple[int, int], scale: tuple[int, int]) -> tuple[int, int]:
    """The largest size of the same proportions within `scale`:
    its longer side bounds the longer side, its shorter the shorter.

    Args:
        size: (width, height) of the picture.
        scale: two bounds in pixels, in either order.
    """
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return _scaled(size, (factor, factor))


def _resized(sample: dict, size: tuple[int, int], interpolation: str, **notes) -> dict:
    """Resize picture and mask to `size` = (width, height) and note what was done."""
    h, w = sample["img"].shape[:2]
    if min(size) < 1:
        raise ValueError(f"resizing a picture of {w}x{h} (width x height) to {size[0]}x{size[1]} leaves nothing; raise "
                         "scale")
    img = resize_to(sample["img"], size, interpolation)
    out = {**sample, **notes, "img": img, "img_shape": img.shape[:2], "scale_factor": (size[0] / w, size[1] / h)}
    if sample.get("gt_seg_map") is not None:
        out["gt_seg_map"] = resize_to(sample["gt_seg_map"], size, "nearest")
    return out


@TRANSFORMS.register()
class Resize(Transform):
    """Resize picture and mask to a size or by a factor.

    Args:
        scale: (width, height) in pixels, or one integer for both; wins over `scale_factor`.
        scale_factor: a factor for both sides or (for width, for height), used without `scale`.
        keep_ratio: keep the proportions: the picture becomes as large as fits `scale`, its longer side within the
            larger number and its shorter side within the smaller, whatever the order.
        interpolation: of the picture: nearest, bilinear, bicubic, area or lanczos. Masks always take the nearest.
    """

    def __init__(self, scale: int | Sequence[int] | None = None, scale_factor: float | Sequence[float] | None = None,
                 keep_ratio: bool = False, *, interpolation: str = "bilinear"):
        if scale is None and scale_factor is None:
            raise ValueError("one of scale (width, height) and scale_factor is needed")
        self.scale = None if scale is None else _as_scale(scale)
        if isinstance(scale_factor, Real):
            scale_factor = (scale_factor, scale_factor)
        self.scale_factor = None if scale_factor is None else number_pair(scale_factor, "scale_factor", integer=False)
        self.keep_ratio = keep_ratio
        self.interpolation = _interpolation(interpolation)

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class; `params["scale"]`, (width, height), replaces the constructor's where present."""
        size = sample["img"].shape[1::-1]
        scale = params.get("scale") or self.scale or _scaled(size, self.scale_factor)
        scale = tuple(int(v) for v in scale)
        target = rescaled_size(size, scale) if self.keep_ratio else scale
        return _resized(sample, target, self.interpolation, scale=scale, keep_ratio=self.keep_ratio)


def _as_scale(scale: int | Sequence[int], name: str = "scale") -> tuple[int, int]:
    return number_pair((scale, scale) if isinstance(scale, Integral) else scale, name)


@TRANSFORMS.register()
class ResizeShortestEdge(Transform):
    """Resize picture and mask, keeping proportions, until the shorter side has
    a given length and the longer one is bounded.

    Args:
        scale: the shorter side in pixels; of two numbers, the smaller.
        max_size: bound on the longer side, in pixels; it wins over `scale`.
    """

    def __init__(self, scale: int | Sequence[int], max_size: int):
        self.scale = _as_scale(scale)
        if max_size is None or max_size < 1:
            raise ValueError(f"max_size must be at least 1 pixel, got {max_size!r}")
        self.max_size = max_size

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class; `params["scale"]` replaces the constructor's where present."""
        h, w = sample["img"].shape[:2]
        short = min(params.get("scale") or self.scale) * 1.0
        factor = short / min(h, w)
        new_h, new_w = (short, factor * w) if h < w else (factor * h, short)
        if max(new_h, new_w) > self.max_size:
            factor = self.max_size * 1.0 / max(new_h, new_w)
            new_h, new_w = new_h * factor, new_w * factor
        scale = int(new_w + 0.5), int(new_h + 0.5)
        return _resized(sample, rescaled_size((w, h), scale), "bilinear", scale=scale, keep_ratio=True)


def _resizer(resize_type: str, keep_ratio: bool, interpolation: str,
             max_size: int | None) -> Resize | ResizeShortestEdge:
    """Build what a random resize hands its drawn scale to."""
    if resize_type == "Resize":
        if max_size is not None:
            raise ValueError("max_size belongs to resize_type: ResizeShortestEdge; Resize has none")
        return Resize(1, keep_ratio=keep_ratio, interpolation=interpolation)
    if resize_type == "ResizeShortestEdge":
        if max_size is None:
            raise ValueError("resize_type: ResizeShortestEdge needs max_size")
        return ResizeShortestEdge(1, max_size)
    known = ("Resize", "ResizeShortestEdge")
    raise ValueError(f"resize_type {resize_type!r} is unknown{nearest(resize_type, known)} (known: {', '.join(known)})")


@TRANSFORMS.register()
class RandomResize(Transform):
    """Resize to a random scale.

    Args:
        scale: (width, height), multiplied by a ratio drawn evenly from `ratio_range`; or two such pairs, between which
            width and height are drawn evenly, each for itself, bounds included.
        ratio_range: (least, largest) ratio; needed with one pair, refused with two.
        resize_type: Resize or ResizeShortestEdge.
        keep_ratio, interpolation: handed to Resize.
        max_size: handed to ResizeShortestEdge.
    """

    def __init__(self, scale: Sequence, ratio_range: Sequence[float] | None = None, resize_type: str = "Resize", *,
                 keep_ratio: bool = False, interpolation: str = "bilinear", max_size: int | None = None):
        if numbers(scale):
            self.scale = number_pair(scale, "scale")
            if ratio_range is None:
                raise ValueError(f"scale {scale!r} needs ratio_range, the (least, largest) ratio it is multiplied by")
            self.ratio_range = number_pair(ratio_range, "ratio_range", integer=False)
            if self.ratio_range[0] > self.ratio_range[1]:
                raise ValueError(f"ratio_range must be (least, largest), got {ratio_range!r}")
        else:
            if not isinstance(scale, (list, tuple)) or len(scale) != 2 or ratio_range is not None:
                raise ValueError("scale must be (width, height) with ratio_range, or two such pairs without, got "
                                 f"{scale!r} and ratio_range {ratio_range!r}")
            self.scale = tuple(number_pair(pair, "each pair of scale") for pair in scale)
            self.ratio_range = None
        self.resize = _resizer(resize_type, keep_ratio, interpolation, max_size)

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"scale": [width, height]}."""
        if self.ratio_range is not None:
            low, high = self.ratio_range
            ratio = float(rng.random()) * (high - low) + low
            return {"scale": [int(self.scale[0] * ratio), int(self.scale[1] * ratio)]}
        return {"scale": [int(rng.integers(min(side), max(side) + 1)) for side in zip(*self.scale)]}

    def apply(self, sample: dict, params: dict) -> dict:
        """Resize to `params["scale"]`."""
        return self.resize.apply(sample, params)


@TRANSFORMS.register()
class RandomChoiceResize(Transform):
    """Resize to one of several scales, each as likely.

    Args:
        scales: a list of scales: (width, height), or one integer each, meaning (s, s) for Resize and the shorter side
            for ResizeShortestEdge. A flat list [512, 640] is two integer scales, as in MMSegmentation's configs; one
            (width, height) pair is written [[512, 640]].
        resize_type: Resize or ResizeShortestEdge.
        keep_ratio, interpolation: handed to Resize.
        max_size: handed to ResizeShortestEdge.
    """

    def __init__(self, scales: Sequence, resize_type: str = "Resize", *, keep_ratio: bool = False,
                 interpolation: str = "bilinear", max_size: int | None = None):
        if isinstance(scales, tuple) and numbers(scales):
            scales = [scales]  # upstream: a bare tuple is one (width, height)
        if not isinstance(scales, (list, tuple)) or not scales:
            raise ValueError(f"scales must be a non-empty list, got {scales!r}")
        self.scales = [_as_scale(scale, "each of scales") for scale in scales]
        self.resize = _resizer(resize_type, keep_ratio, interpolation, max_size)

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"scale_idx": which, "scale": [width, height]}."""
        index = int(rng.integers(len(self.scales)))
        return {"scale_idx": index, "scale": list(self.scales[index])}

    def apply(self, sample: dict, params: dict) -> dict:
        """Resize to `params["scale"]` and note `scale_idx`."""
        return {**self.resize.apply(sample, params), "scale_idx": params["scale_idx"]}


@TRANSFORMS.register()
class ResizeToMultiple(Transform):
    """Enlarge picture and mask so that both sides are multiples of a number; notes `img_shape` and `pad_shape`.

    Args:
        size_divisor: the number, or (for the width, for the height).
        interpolation: of the picture; None means bilinear.
    """

    def __init__(self, size_divisor: int | Sequence[int] = 32, interpolation: str | None = None):
        self.size_divisor = _as_scale(size_divisor, "size_divisor")
        self.interpolation = _interpolation(interpolation or "bilinear")

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        size = tuple(math.ceil(side / divisor) * divisor
                     for side, divisor in zip(sample["img"].shape[1::-1], self.size_divisor))
        img = resize_to(sample["img"], size, self.interpolation)
        out = {**sample, "img": img, "img_shape": img.shape[:2], "pad_shape": img.shape[:2]}
        if sample.get("gt_seg_map") is not None:
            out["gt_seg_map"] = resize_to(sample["gt_seg_map"], size, "nearest")
        return out
