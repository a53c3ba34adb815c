"""PillowResize: a picture resized by Pillow, to a size by the rules of Hugging Face's image processors.

Source: transformers 5.24 image_transforms.py, image_processing_backends.py and models/dpt/image_processing_pil_dpt.py
(Apache-2.0), with their rounding. Pillow averages over all pixels that fall into one when it makes a picture smaller;
OpenCV's resize in `Resize` does not, so a model sees other pictures with either.
"""

from __future__ import annotations

from numbers import Integral
from typing import Sequence

import numpy as np
from PIL import Image

from jseg.data.transforms.base import Transform, number_pair, resize_to
from jseg.registry import TRANSFORMS, nearest

__all__ = ["FILTERS", "PillowResize"]

FILTERS = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS,
            "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX,
            "hamming": Image.Resampling.HAMMING}


@TRANSFORMS.register()
class PillowResize(Transform):
    """Resize picture and mask; one of `size` and `shortest_edge` is needed.

    Args:
        size: (height, width) in pixels.
        keep_ratio: with `size`, keep the proportions: of the two factors take the one nearer to 1.
        multiple_of: with `size`, round both sides to multiples of this.
        shortest_edge: keep the proportions and make the shorter side this long, in pixels.
        longest_edge: with `shortest_edge`, a bound on the longer side, which wins.
        size_divisor: enlarge both sides of the result to multiples of this.
        interpolation: of the picture: nearest, lanczos, bilinear, bicubic, box or hamming. Masks always take the
            nearest.
    """

    def __init__(self, size: Sequence[int] | None = None, *, keep_ratio: bool = False, multiple_of: int = 1,
                 shortest_edge: int | None = None, longest_edge: int | None = None, size_divisor: int = 1,
                 interpolation: str = "bilinear"):
        if (size is None) == (shortest_edge is None):
            raise ValueError("PillowResize: give size (height, width) or shortest_edge")
        for name, value in (("multiple_of", multiple_of), ("shortest_edge", shortest_edge or 1),
                            ("longest_edge", longest_edge or 1), ("size_divisor", size_divisor)):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"PillowResize: {name} must be a whole number above 0, got {value!r}")
        if interpolation not in FILTERS:
            raise ValueError(f"interpolation {interpolation!r} is unknown{nearest(interpolation, FILTERS)} (known: "
                             f"{', '.join(FILTERS)})")
        self.size = None if size is None else number_pair(size, "size")
        self.keep_ratio, self.multiple_of, self.size_divisor = keep_ratio, multiple_of, size_divisor
        self.shortest_edge, self.longest_edge, self.interpolation = shortest_edge, longest_edge, interpolation

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) that a picture of `size` (height, width) gets."""
        found = self._by_edge(*size) if self.size is None else self._by_size(size)
        return tuple(-(-side // self.size_divisor) * self.size_divisor for side in found)

    def _by_size(self, size: tuple[int, int]) -> tuple[int, int]:
        factors = [wanted / side for wanted, side in zip(self.size, size)]
        if self.keep_ratio:
            factors = [factors[1] if abs(1 - factors[1]) < abs(1 - factors[0]) else factors[0]] * 2
        return tuple(round(factor * side / self.multiple_of) * self.multiple_of for factor, side in zip(factors, size))

    def _by_edge(self, height: int, width: int) -> tuple[int, int]:
        short, exact = self.shortest_edge, None
        if self.longest_edge is not None and max(height, width) / min(height, width) * short > self.longest_edge:
            exact = self.longest_edge * float(min(height, width)) / max(height, width)
            short = int(round(exact))
        if min(height, width) == short:
            return height, width
        long = int((short if exact is None else exact) * max(height, width) / min(height, width))
        return (long, short) if width < height else (short, long)

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = sample["img"]
        if img.dtype != np.uint8:
            raise TypeError(f"PillowResize takes uint8 pictures, got {img.dtype}: leave to_float32 off")
        h, w = img.shape[:2]
        new_h, new_w = self.target((h, w))
        if min(new_h, new_w) < 1:
            raise ValueError(f"resizing a picture of {w}x{h} (width x height) to {new_w}x{new_h} leaves nothing; raise "
                             "size")
        resized = np.asarray(Image.fromarray(img).resize((new_w, new_h), FILTERS[self.interpolation]))
        out = {**sample, "img": resized, "img_shape": (new_h, new_w), "scale_factor": (new_w / w, new_h / h)}
        if sample.get("gt_seg_map") is not None:
            out["gt_seg_map"] = resize_to(sample["gt_seg_map"], (new_w, new_h), "nearest")
        return out
