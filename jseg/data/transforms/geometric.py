"""RandomCrop, RandomFlip, RandomRotate, RandomCutOut, Pad: what moves, drops or adds pixels in picture and mask alike.

Upstream: mmseg/datasets/transforms/transforms.py (MMSegmentation 1.2.2), mmcv/transforms/processing.py and
mmcv/image/geometric.py (MMCV 2.1). CutOut: DeVries and Taylor, 2017.
Deviations: a single `pad_val` of RandomRotate fills all channels (upstream hands the bare number to OpenCV, which
fills blue and leaves 0 in green and red); RandomRotate updates `img_shape` when `auto_bound` changes the size;
RandomFlip takes the integers 0 and 1 as `prob`; RandomCutOut takes n_holes as a list, and equal bounds; Pad notes
`pad_shape` as (h, w).
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Mapping, Sequence

import cv2
import numpy as np

from jseg.data.transforms.base import Transform, by_fours, channel_values, number_pair, numbers, probability
from jseg.registry import TRANSFORMS, nearest

__all__ = ["RandomCrop", "RandomFlip", "RandomRotate", "RandomCutOut", "Pad"]

_CROP_TRIES = 10


@TRANSFORMS.register()
class RandomCrop(Transform):
    """Cut a random rectangle; a side shorter than the rectangle is kept whole.

    Args:
        crop_size: (height, width) in pixels, or one integer for both.
        cat_max_ratio: in 0..1. Below 1, rectangles are drawn anew, up to 10 times, until two or more classes are in it
            and the most frequent holds less than this share of the labelled pixels; the last one drawn is then taken as
            it is. Samples without a mask take the first.
        ignore_index: the label that does not count as a class.
    """

    def __init__(self, crop_size: int | Sequence[int], cat_max_ratio: float = 1.0, ignore_index: int = 255):
        self.crop_size = number_pair((crop_size, crop_size) if isinstance(crop_size, Integral) else crop_size,
                                     "crop_size")
        self.cat_max_ratio = probability(cat_max_ratio, "cat_max_ratio")
        self.ignore_index = ignore_index

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"box": [top, bottom, left, right]} in pixels, bottom and right excluded."""
        shape, mask = sample["img"].shape[:2], sample.get("gt_seg_map")
        box = self._box(shape, rng)
        if self.cat_max_ratio < 1 and mask is not None:
            for _ in range(_CROP_TRIES):
                if self._mixed(mask[box[0]:box[1], box[2]:box[3]]):
                    break
                box = self._box(shape, rng)
        return {"box": box}

    def _box(self, shape: tuple[int, int], rng: np.random.Generator) -> list[int]:
        top, left = (int(rng.integers(max(have - want, 0) + 1)) for have, want in zip(shape, self.crop_size))
        return [top, top + self.crop_size[0], left, left + self.crop_size[1]]

    def _mixed(self, mask: np.ndarray) -> bool:
        if mask.dtype == np.uint8:
            counts = np.bincount(mask.ravel(), minlength=256)
            if 0 <= self.ignore_index <= 255:
                counts[self.ignore_index] = 0
        else:
            counts = np.unique(mask[mask != self.ignore_index], return_counts=True)[1]
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio

    def apply(self, sample: dict, params: dict) -> dict:
        """Cut out `params["box"]`."""
        top, bottom, left, right = params["box"]
        out = dict(sample)
        for key in ("img", "gt_seg_map"):
            if sample.get(key) is not None:
                out[key] = sample[key][top:bottom, left:right].copy()
        out["img_shape"] = out["img"].shape[:2]
        return out


_FLIP_AXES = {"horizontal": (1,), "vertical": (0,), "diagonal": (0, 1)}


@TRANSFORMS.register()
class RandomFlip(Transform):
    """Mirror picture and mask; notes `flip` and `flip_direction` (None when not flipped).

    Args:
        prob: in 0..1, shared evenly among the directions; or one for each direction, with a sum of at most 1.
        direction: horizontal, vertical, diagonal (both at once), or a list of these.
        swap_seg_labels: pairs of labels to exchange in flipped masks, such as left and right arm.
    """

    def __init__(self, prob: float | Sequence[float], direction: str | Sequence[str] = "horizontal",
                 swap_seg_labels: Sequence[Sequence[int]] | None = None):
        self.directions = [direction] if isinstance(direction, str) else list(direction)
        for name in self.directions:
            if name not in _FLIP_AXES:
                raise ValueError(f"direction {name!r} is unknown{nearest(name, _FLIP_AXES)} (known: "
                                 f"{', '.join(_FLIP_AXES)})")
        if isinstance(prob, (list, tuple)):
            self.probs = [probability(p, "each of prob") for p in prob]
            if isinstance(direction, str) or len(self.probs) != len(self.directions) or sum(self.probs) > 1 + 1e-9:
                raise ValueError(
                    f"prob {prob!r} must have one value per direction {direction!r} and a sum of at most 1")
        else:
            self.probs = [probability(prob) / len(self.directions)] * len(self.directions)
        self.swap_seg_labels = [number_pair(p, "each of swap_seg_labels", positive=False)
                                for p in swap_seg_labels or ()]

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"direction": its name, or None for no flip}."""
        at = rng.random()
        for bound, name in zip(np.cumsum(self.probs), self.directions):
            if at < bound:
                return {"direction": name}
        return {"direction": None}

    def apply(self, sample: dict, params: dict) -> dict:
        """Flip along `params["direction"]`."""
        direction = params["direction"]
        out = {**sample, "flip": direction is not None, "flip_direction": direction}
        if direction is None:
            return out
        out["img"] = np.ascontiguousarray(np.flip(sample["img"], _FLIP_AXES[direction]))
        if sample.get("gt_seg_map") is not None:
            mask = np.flip(sample["gt_seg_map"], _FLIP_AXES[direction])
            swapped = mask.copy()
            for a, b in self.swap_seg_labels:
                swapped[mask == a] = b
                swapped[mask == b] = a
            out["gt_seg_map"] = swapped
            out["swap_seg_labels"] = self.swap_seg_labels or None
        return out


@TRANSFORMS.register()
class RandomRotate(Transform):
    """Rotate picture (bilinear) and mask (nearest) by a random angle.

    Args:
        prob: of rotating, 0..1.
        degree: (least, largest) angle in degrees, clockwise positive; one number d means (-d, d).
        pad_val: what the uncovered corners of the picture get: one value, or one per channel (b, g, r).
        seg_pad_val: the label they get.
        center: (x, y) in pixels; None means the picture's.
        auto_bound: enlarge the result until no corner is cut off; not together with `center`.
    """

    def __init__(self, prob: float, degree: float | Sequence[float], pad_val: float | Sequence[float] = 0,
                 seg_pad_val: int = 255, center: Sequence[float] | None = None, auto_bound: bool = False):
        self.prob = probability(prob)
        if isinstance(degree, Real):
            if degree <= 0:
                raise ValueError(f"degree must be above 0, or two numbers (least, largest), got {degree!r}")
            degree = (-degree, degree)
        self.degree = number_pair(degree, "degree", integer=False, positive=False)
        self.pad_val = pad_val if isinstance(pad_val, Real) else tuple(pad_val)
        self.seg_pad_val = seg_pad_val
        self.center = None if center is None else number_pair(center, "center", integer=False, positive=False)
        if center is not None and auto_bound:
            raise ValueError("auto_bound and center exclude each other: the enlarged picture is rotated about its own "
                             "centre")
        self.auto_bound = auto_bound

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"degree": clockwise, or None for no rotation}."""
        rotate, degree = rng.random() < self.prob, float(rng.uniform(min(self.degree), max(self.degree)))
        return {"degree": degree if rotate else None}

    def apply(self, sample: dict, params: dict) -> dict:
        """Rotate by `params["degree"]`."""
        if params["degree"] is None:
            return dict(sample)
        img, mask = sample["img"], sample.get("gt_seg_map")
        matrix, size = self._matrix(img.shape[:2], params["degree"])
        fill = channel_values(self.pad_val, img, "pad_val")
        turned = by_fours(img, lambda part, own: cv2.warpAffine(part, matrix, size, flags=cv2.INTER_LINEAR,
                                                                borderValue=fill[own]))
        out = {**sample, "img": turned, "img_shape": turned.shape[:2]}
        if mask is not None:
            out["gt_seg_map"] = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST,
                                               borderValue=self.seg_pad_val)
        return out

    def _matrix(self, shape: tuple[int, int], degree: float) -> tuple[np.ndarray, tuple[int, int]]:
        """The (2, 3) matrix and the result's (width, height)."""
        h, w = shape
        center = self.center or ((w - 1) * 0.5, (h - 1) * 0.5)
        matrix = cv2.getRotationMatrix2D(center, -degree, 1.0)
        if self.auto_bound:
            cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
            new_w, new_h = h * sin + w * cos, h * cos + w * sin
            matrix[0, 2] += (new_w - w) * 0.5
            matrix[1, 2] += (new_h - h) * 0.5
            w, h = int(np.round(new_w)), int(np.round(new_h))
        return matrix, (w, h)


@TRANSFORMS.register()
class RandomCutOut(Transform):
    """Overwrite random rectangles of the picture, and of the mask if asked.

    Args:
        prob: of doing it, 0..1.
        n_holes: how many rectangles, or (least, most).
        cutout_shape: (width, height) of a rectangle in pixels, or a list of such pairs to draw from.
        cutout_ratio: the same as shares of the picture's width and height; exactly one of the two is given.
        fill_in: written into the picture, one value per channel (b, g, r); three equal ones serve any number.
        seg_fill_in: label written into the mask, 0..255; None leaves the mask alone.
    """

    def __init__(self, prob: float, n_holes: int | Sequence[int], cutout_shape: Sequence | None = None,
                 cutout_ratio: Sequence | None = None, fill_in: Sequence[float] = (0, 0, 0),
                 seg_fill_in: int | None = None):
        self.prob = probability(prob)
        self.n_holes = number_pair((n_holes, n_holes) if isinstance(n_holes, Integral) else n_holes, "n_holes",
                                   positive=False)
        if not 0 <= self.n_holes[0] <= self.n_holes[1]:
            raise ValueError(f"n_holes must be at least 0, or (least, most), got {n_holes!r}")
        if (cutout_shape is None) == (cutout_ratio is None):
            raise ValueError("exactly one of cutout_shape (pixels) and cutout_ratio (shares) is needed")
        self.with_ratio = cutout_ratio is not None
        given = cutout_ratio if self.with_ratio else cutout_shape
        given = [given] if numbers(given) else given
        name = "cutout_ratio" if self.with_ratio else "cutout_shape"
        self.candidates = [number_pair(pair, name, integer=not self.with_ratio) for pair in given]
        if seg_fill_in is not None and not (isinstance(seg_fill_in, Integral) and 0 <= seg_fill_in <= 255):
            raise ValueError(f"seg_fill_in must be a label 0..255 or null, got {seg_fill_in!r}")
        self.fill_in = tuple(fill_in)
        self.seg_fill_in = seg_fill_in

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"holes": [[left, top, index of the candidate], ...]}."""
        h, w = sample["img"].shape[:2]
        count = int(rng.integers(self.n_holes[0], self.n_holes[1] + 1)) if rng.random() < self.prob else 0
        return {"holes": [[int(rng.integers(w)), int(rng.integers(h)), int(rng.integers(len(self.candidates)))]
                          for _ in range(count)]}

    def apply(self, sample: dict, params: dict) -> dict:
        """Overwrite `params["holes"]`."""
        out = dict(sample)
        if not params["holes"]:
            return out
        out["img"] = img = sample["img"].copy()
        fill_mask = self.seg_fill_in is not None and sample.get("gt_seg_map") is not None
        if fill_mask:
            out["gt_seg_map"] = sample["gt_seg_map"].copy()
        h, w = img.shape[:2]
        fill = channel_values(self.fill_in[0] if len(set(self.fill_in)) == 1 else self.fill_in, img, "fill_in")
        for left, top, index in params["holes"]:
            wide, high = self.candidates[index]
            if self.with_ratio:
                wide, high = int(wide * w), int(high * h)
            img[top:top + high, left:left + wide] = fill
            if fill_mask:
                out["gt_seg_map"][top:top + high, left:left + wide] = self.seg_fill_in
        return out


_BORDERS = {"constant": cv2.BORDER_CONSTANT, "edge": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101,
            "symmetric": cv2.BORDER_REFLECT}


@TRANSFORMS.register()
class Pad(Transform):
    """Add pixels at the right and the bottom; notes `pad_shape` and `img_shape` (h, w).

    Args:
        size: (width, height) to pad to; a picture that is larger stays as it is.
        size_divisor: pad both sides to multiples of this instead.
        pad_to_square: pad to the longer side first; not together with `size`.
        pad_val: for the picture (the mask then gets 255), or {img: value or (b, g, r), seg: label}.
        padding_mode: constant, edge, reflect or symmetric.
    """

    def __init__(self, size: Sequence[int] | None = None, size_divisor: int | None = None, pad_to_square: bool = False,
                 pad_val: float | Mapping = 0, padding_mode: str = "constant"):
        if (size is not None) + (size_divisor is not None) != 1 and not (pad_to_square and size is None):
            raise ValueError(f"one of size (width, height) and size_divisor is needed, got {size!r} and "
                             f"{size_divisor!r}")
        if pad_to_square and size is not None:
            raise ValueError("pad_to_square and size exclude each other")
        if padding_mode not in _BORDERS:
            raise ValueError(f"padding_mode {padding_mode!r} is unknown{nearest(padding_mode, _BORDERS)} "
                             f"(known: {', '.join(_BORDERS)})")
        values = pad_val if isinstance(pad_val, Mapping) else {"img": pad_val}
        if set(values) - {"img", "seg"}:
            raise ValueError(f"pad_val has the keys img and seg, got {sorted(values)}")
        self.size = None if size is None else number_pair(size, "size")
        self.size_divisor = size_divisor
        self.pad_to_square = pad_to_square
        img_val = values.get("img", 0)
        self.img_val = img_val if isinstance(img_val, Real) else tuple(img_val)
        self.seg_val = values.get("seg", 255)
        self.border = _BORDERS[padding_mode]

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        h, w = sample["img"].shape[:2]
        want_h, want_w = self.size[::-1] if self.size else (h, w)
        if self.pad_to_square:
            want_h = want_w = max(h, w)
        if self.size_divisor is not None:
            want_h, want_w = (math.ceil(side / self.size_divisor) * self.size_divisor for side in (want_h, want_w))
        add = max(want_h - h, 0), max(want_w - w, 0)
        fill = channel_values(self.img_val, sample["img"], "pad_val")
        img = by_fours(sample["img"], lambda part, own: cv2.copyMakeBorder(part, 0, add[0], 0, add[1], self.border,
                                                                           value=fill[own]))
        out = {**sample, "img": img, "img_shape": img.shape[:2], "pad_shape": img.shape[:2]}
        if sample.get("gt_seg_map") is not None:
            out["gt_seg_map"] = cv2.copyMakeBorder(sample["gt_seg_map"], 0, add[0], 0, add[1], self.border,
                                                   value=self.seg_val)
        return out
