"""RandomResizedCrop, CenterCrop, RandomErasing: what classifiers are trained and evaluated on.

Words: mmpretrain 1.2 mmpretrain/datasets/transforms/processing.py (Apache-2.0). Papers: Szegedy et al., "Going Deeper
with Convolutions", CVPR 2015 (crops); Zhong et al., "Random Erasing", AAAI 2020, as timm 1.0's timm/data
(Apache-2.0) does both. Deviations: the picture is written as float32 where noise was put into it, so that the noise is
not cut at 0 and 255 (as timm's, which comes after the normalisation).
"""

from __future__ import annotations

import math
from numbers import Integral
from typing import Sequence

import numpy as np
from PIL import Image

from jseg.data.transforms.base import INTERPOLATIONS, Transform, number_pair, probability, resize_to
from jseg.data.transforms.pillow_resize import FILTERS
from jseg.registry import TRANSFORMS, nearest

__all__ = ["CenterCrop", "RandomErasing", "RandomResizedCrop"]


def _sides(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """(height, width) from one number or two."""
    return number_pair((value, value) if isinstance(value, Integral) else value, name)


@TRANSFORMS.register()
class RandomResizedCrop(Transform):
    """Cut a random rectangle and resize it.

    Args:
        scale: (height, width) of the result in pixels, or one number for both.
        crop_ratio_range: share of the picture's area, drawn evenly.
        aspect_ratio_range: width over height, drawn evenly in its logarithm.
        max_attempts: draws; then the largest rectangle of an allowed shape in the middle is taken.
        interpolation: bilinear, bicubic or another of the backend's; a list of them to draw from.
        backend: "pillow", which averages over the pixels that fall into one, or "cv2", which does not and is faster.
    """

    def __init__(self, scale: int | Sequence[int], crop_ratio_range: Sequence[float] = (0.08, 1.0),
                 aspect_ratio_range: Sequence[float] = (3 / 4, 4 / 3), max_attempts: int = 10,
                 interpolation: str | Sequence[str] = "bilinear", backend: str = "cv2"):
        self.scale = _sides(scale, "scale")
        self.crop_ratio_range = number_pair(crop_ratio_range, "crop_ratio_range", integer=False)
        self.aspect_ratio_range = number_pair(aspect_ratio_range, "aspect_ratio_range", integer=False)
        if self.crop_ratio_range[0] > self.crop_ratio_range[1] or self.crop_ratio_range[1] > 1:
            raise ValueError(f"crop_ratio_range must be two rising shares up to 1, got {crop_ratio_range!r}")
        if self.aspect_ratio_range[0] > self.aspect_ratio_range[1] or max_attempts < 1:
            raise ValueError(f"needs a rising aspect_ratio_range and max_attempts >= 1, got {aspect_ratio_range!r} and "
                             f"{max_attempts}")
        if backend not in ("cv2", "pillow"):
            raise ValueError(f"backend is {backend!r}; accepted: cv2, pillow")
        known = INTERPOLATIONS if backend == "cv2" else FILTERS
        self.interpolations = [interpolation] if isinstance(interpolation, str) else list(interpolation)
        for name in self.interpolations or [None]:
            if name not in known:
                raise ValueError(f"interpolation {name!r} is unknown{nearest(str(name), known)} (known: "
                                 f"{', '.join(known)})")
        self.max_attempts, self.backend = max_attempts, backend

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"box": [top, left, height, width], "interpolation": name}."""
        h, w = sample["img"].shape[:2]
        box = self._drawn_box(h, w, rng) or self._middle_box(h, w)
        place = int(rng.integers(len(self.interpolations))) if len(self.interpolations) > 1 else 0
        return {"box": box, "interpolation": self.interpolations[place]}

    def _drawn_box(self, h: int, w: int, rng: np.random.Generator) -> list[int] | None:
        low, high = (math.log(ratio) for ratio in self.aspect_ratio_range)
        for _ in range(self.max_attempts):
            area = h * w * rng.uniform(*self.crop_ratio_range)
            ratio = math.exp(rng.uniform(low, high))
            wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < wide <= w and 0 < tall <= h:
                return [int(rng.integers(h - tall + 1)), int(rng.integers(w - wide + 1)), tall, wide]
        return None

    def _middle_box(self, h: int, w: int) -> list[int]:
        low, high = self.aspect_ratio_range
        tall, wide = h, w
        if w / h < low:
            tall = max(1, round(w / low))
        elif w / h > high:
            wide = max(1, round(h * high))
        return [(h - tall) // 2, (w - wide) // 2, tall, wide]

    def apply(self, sample: dict, params: dict) -> dict:
        """Cut and resize by `params`."""
        top, left, tall, wide = params["box"]
        img = np.ascontiguousarray(sample["img"][top:top + tall, left:left + wide])
        size, how = self.scale[::-1], params["interpolation"]
        if self.backend == "cv2":
            img = resize_to(img, size, how)
        else:
            img = np.asarray(Image.fromarray(img).resize(size, FILTERS[how]))
        return {**sample, "img": img, "img_shape": self.scale}


@TRANSFORMS.register()
class CenterCrop(Transform):
    """Cut the middle of the picture; a side that is too short is padded with zeros first.

    Args:
        crop_size: (height, width) in pixels, or one number for both.
    """

    def __init__(self, crop_size: int | Sequence[int]):
        self.crop_size = _sides(crop_size, "crop_size")

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = sample["img"]
        lacks = [max(0, wanted - side) for wanted, side in zip(self.crop_size, img.shape)]
        if any(lacks):
            img = np.pad(img, [(lack // 2, lack - lack // 2) for lack in lacks] + [(0, 0)] * (img.ndim - 2))
        top, left = (round((side - wanted) / 2) for wanted, side in zip(self.crop_size, img.shape))
        img = np.ascontiguousarray(img[top:top + self.crop_size[0], left:left + self.crop_size[1]])
        return {**sample, "img": img, "img_shape": self.crop_size}


@TRANSFORMS.register()
class RandomErasing(Transform):
    """Overwrite one random rectangle.

    Args:
        erase_prob: of doing it, 0..1.
        min_area_ratio, max_area_ratio: share of the picture's area, drawn evenly.
        aspect_range: height over width, drawn evenly in its logarithm.
        mode: "rand" for normal noise of `fill_color` and `fill_std` in every value, "const" for `fill_color`.
        fill_color, fill_std: one value per channel in the picture's order (b, g, r), on its scale; a number serves all.
        max_attempts: draws of a rectangle that lies in the picture; then nothing is overwritten.
    """

    def __init__(self, erase_prob: float = 0.5, min_area_ratio: float = 0.02, max_area_ratio: float = 1 / 3,
                 aspect_range: Sequence[float] = (0.3, 10 / 3), mode: str = "const",
                 fill_color: float | Sequence[float] = (128, 128, 128), fill_std: float | Sequence[float] = 0,
                 max_attempts: int = 10):
        self.erase_prob = probability(erase_prob, "erase_prob")
        if not 0 < min_area_ratio <= max_area_ratio < 1:
            raise ValueError(f"needs 0 < min_area_ratio <= max_area_ratio < 1, got {min_area_ratio} and "
                             f"{max_area_ratio}")
        if mode not in ("rand", "const"):
            raise ValueError(f"mode is {mode!r}; accepted: rand, const")
        self.aspect_range = number_pair(aspect_range, "aspect_range", integer=False)
        self.areas, self.mode, self.max_attempts = (min_area_ratio, max_area_ratio), mode, max_attempts
        self.fill_color, self.fill_std = (np.asarray(value, np.float32) for value in (fill_color, fill_std))

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"box": [top, left, height, width] or None, "seed": of the noise}."""
        h, w = sample["img"].shape[:2]
        low, high = (math.log(ratio) for ratio in self.aspect_range)
        if rng.random() >= self.erase_prob:
            return {"box": None, "seed": 0}
        for _ in range(self.max_attempts):
            area, ratio = rng.uniform(*self.areas) * h * w, math.exp(rng.uniform(low, high))
            tall, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < tall < h and 0 < wide < w:
                box = [int(rng.integers(h - tall + 1)), int(rng.integers(w - wide + 1)), tall, wide]
                return {"box": box, "seed": int(rng.integers(1 << 31))}
        return {"box": None, "seed": 0}

    def apply(self, sample: dict, params: dict) -> dict:
        """Overwrite `params["box"]`."""
        if params["box"] is None:
            return sample
        top, left, tall, wide = params["box"]
        img = sample["img"].astype(np.float32)
        fill = np.broadcast_to(self.fill_color, (tall, wide, img.shape[2]))
        if self.mode == "rand":
            noise = np.random.default_rng(params["seed"]).standard_normal(fill.shape, dtype=np.float32)
            fill = fill + noise * self.fill_std
        img[top:top + tall, left:left + wide] = fill
        return {**sample, "img": img}
