"""RandAugment: a few operations drawn from a fixed set, of one strength.

Paper: Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", CVPRW 2020.
Words: mmpretrain 1.2 mmpretrain/datasets/transforms/auto_augment.py; operations, their ranges and the draw are those of
timm 1.0 timm/data/auto_augment.py (both Apache-2.0), where `rand-m9-mstd0.5-inc1` is the default here; they are done by
Pillow, as there. Deviation: draws come from the sample's own generator.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from jseg.data.transforms.base import Transform, channel_values, check_uint8, probability
from jseg.data.transforms.pillow_resize import FILTERS
from jseg.registry import TRANSFORMS, nearest

__all__ = ["POLICIES", "RandAugment"]

TOP_LEVEL = 10.0  # the level at which each range below ends
_Draw = Callable[[float, float], Any]  # (level / TOP_LEVEL, sign) -> argument of the operation
_Op = Callable[[Image.Image, Any, dict], Image.Image]


def _affine(img: Image.Image, matrix: Sequence[float], fill: dict) -> Image.Image:
    return img.transform(img.size, Image.Transform.AFFINE, tuple(matrix), **fill)


def _solarize_add(img: Image.Image, add: int) -> Image.Image:
    table = [min(255, value + add) if value < 128 else value for value in range(256)]
    return img.point(table * len(img.getbands()))


def _posterize(img: Image.Image, bits: int) -> Image.Image:
    """Keep the upper bits of every value; 0 gives black (newer Pillows refuse it)."""
    kept = 256 - (1 << 8 - bits)
    return img.point([value & kept for value in range(256)] * len(img.getbands()))


def _enhance(kind: type) -> _Op:
    return lambda img, factor, fill: kind(img).enhance(factor)


# name -> (argument from the level, what is done)
_OPS: dict[str, tuple[_Draw, _Op]] = {
    "AutoContrast": (lambda share, sign: None, lambda img, _, fill: ImageOps.autocontrast(img)),
    "Equalize": (lambda share, sign: None, lambda img, _, fill: ImageOps.equalize(img)),
    "Invert": (lambda share, sign: None, lambda img, _, fill: ImageOps.invert(img)),
    "Rotate": (lambda share, sign: sign * share * 30.0, lambda img, angle, fill: img.rotate(angle, **fill)),
    "Posterize": (lambda share, sign: 4 - int(share * 4),
                  lambda img, bits, fill: _posterize(img, bits)),
    "Solarize": (lambda share, sign: 256 - min(256, int(share * 256)),
                 lambda img, limit, fill: ImageOps.solarize(img, limit)),
    "SolarizeAdd": (lambda share, sign: min(128, int(share * 110)), lambda img, add, fill: _solarize_add(img, add)),
    "Shear x": (lambda share, sign: sign * share * 0.3,
                lambda img, by, fill: _affine(img, (1, by, 0, 0, 1, 0), fill)),
    "Shear y": (lambda share, sign: sign * share * 0.3,
                lambda img, by, fill: _affine(img, (1, 0, 0, by, 1, 0), fill)),
    "Translate x": (lambda share, sign: sign * share * 0.45,
                    lambda img, by, fill: _affine(img, (1, 0, by * img.size[0], 0, 1, 0), fill)),
    "Translate y": (lambda share, sign: sign * share * 0.45,
                    lambda img, by, fill: _affine(img, (1, 0, 0, 0, 1, by * img.size[1]), fill)),
    **{name: (lambda share, sign: max(0.1, 1.0 + sign * share * 0.9), _enhance(kind)) for name, kind in (
        ("Color", ImageEnhance.Color), ("Contrast", ImageEnhance.Contrast), ("Brightness", ImageEnhance.Brightness),
        ("Sharpness", ImageEnhance.Sharpness))}}
POLICIES = {"timm_increasing": ("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd",
                                "Color", "Contrast", "Brightness", "Sharpness", "Shear x", "Shear y", "Translate x",
                                "Translate y")}


@TRANSFORMS.register()
class RandAugment(Transform):
    """Apply `num_policies` operations, drawn with replacement, each with probability `prob`.

    Args:
        policies: "timm_increasing", whose operations all grow with the level.
        num_policies: operations per picture.
        magnitude_level: strength, 0 to 10.
        magnitude_std: spread of the strength, drawn anew for each operation; the result is cut to 0 to 10.
        prob: of each drawn operation.
        fill_color: of places from outside the picture, one value per channel (b, g, r), 0 to 255.
        interpolation: of rotations, shears and shifts: nearest, bilinear or bicubic, or a list to draw from.
    """

    def __init__(self, policies: str = "timm_increasing", num_policies: int = 2, magnitude_level: float = 9,
                 magnitude_std: float = 0.5, prob: float = 0.5, fill_color: float | Sequence[float] = (104, 116, 124),
                 interpolation: str | Sequence[str] = ("bilinear", "bicubic")):
        if policies not in POLICIES:
            raise ValueError(f"policies is {policies!r}{nearest(str(policies), POLICIES)} (known: "
                             f"{', '.join(POLICIES)})")
        if num_policies < 0 or not 0 <= magnitude_level <= TOP_LEVEL or magnitude_std < 0:
            raise ValueError(f"needs num_policies >= 0, 0 <= magnitude_level <= 10 and magnitude_std >= 0, got "
                             f"{num_policies}, {magnitude_level} and {magnitude_std}")
        self.names, self.num_policies, self.prob = POLICIES[policies], num_policies, probability(prob)
        self.magnitude_level, self.magnitude_std, self.fill_color = magnitude_level, magnitude_std, fill_color
        self.interpolations = [interpolation] if isinstance(interpolation, str) else list(interpolation)
        for name in self.interpolations or [None]:
            if name not in ("nearest", "bilinear", "bicubic"):
                raise ValueError(f"interpolation {name!r} is unknown (known: nearest, bilinear, bicubic)")

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"steps": [[name, argument, interpolation], ...]} of the operations that are done."""
        steps = []
        for _ in range(self.num_policies):
            name, done = self.names[int(rng.integers(len(self.names)))], rng.random() < self.prob
            level = float(np.clip(rng.normal(self.magnitude_level, self.magnitude_std), 0, TOP_LEVEL))
            sign = -1.0 if rng.random() < 0.5 else 1.0
            place = int(rng.integers(len(self.interpolations)))
            if done:
                steps.append([name, _OPS[name][0](level / TOP_LEVEL, sign), self.interpolations[place]])
        return {"steps": steps}

    def apply(self, sample: dict, params: dict) -> dict:
        """Do `params["steps"]` in order."""
        if not params["steps"]:
            return sample
        img = check_uint8(sample, "RandAugment")
        if img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(f"RandAugment's operations are of pictures of 3 channels, and the picture has "
                             f"{img.shape[2:]}")
        colour = tuple(int(value) for value in channel_values(self.fill_color, img, "fill_color"))[::-1]
        picture = Image.fromarray(np.ascontiguousarray(img[..., ::-1]))  # RGB: "Color" and "Contrast" weigh channels
        for name, argument, how in params["steps"]:
            picture = _OPS[name][1](picture, argument, {"fillcolor": colour, "resample": FILTERS[how]})
        return {**sample, "img": np.ascontiguousarray(np.asarray(picture)[..., ::-1])}
