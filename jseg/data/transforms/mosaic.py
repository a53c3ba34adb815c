"""RandomMosaic: four samples become one.

Upstream: mmseg/datasets/transforms/transforms.py (MMSegmentation 1.2.2), with its MultiImageMixDataset. Mosaic: YOLOv4,
2020. Deviations: whether a sample becomes a mosaic is decided when the other samples are chosen (`extra_indices`), so
that they are loaded only if they are used; upstream loads three for every sample.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from jseg.data.transforms.base import Transform, number_pair, probability, resize_to
from jseg.registry import TRANSFORMS

__all__ = ["RandomMosaic"]

_EXTRA = 3


@TRANSFORMS.register()
class RandomMosaic(Transform):
    """Paste the sample and three others around a random centre, each resized to fit `img_scale` and cut at the border.

    The caller asks `extra_indices` first, loads the samples it names, puts them (as far transformed as this one) into
    `sample["mix_results"]` and calls the transform; the entry is taken out again. Without it the sample passes
    unchanged. The sample itself goes to the upper left, the others to upper right, lower left and lower right.

    Args:
        prob: of making a mosaic, 0..1.
        img_scale: (height, width) of one part in pixels; the result is twice as high and wide.
        center_ratio_range: (least, largest) place of the centre in units of `img_scale`, within 0..2.
        pad_val: value of pixels that no part covers.
        seg_pad_val: label of such pixels.
    """

    def __init__(self, prob: float, img_scale: Sequence[int] = (640, 640),
                 center_ratio_range: Sequence[float] = (0.5, 1.5), pad_val: float = 0, seg_pad_val: int = 255):
        self.prob = probability(prob)
        self.img_scale = number_pair(img_scale, "img_scale")
        self.center_ratio_range = number_pair(center_ratio_range, "center_ratio_range", integer=False, positive=False)
        if not 0 <= self.center_ratio_range[0] <= self.center_ratio_range[1] <= 2:
            raise ValueError(f"center_ratio_range must be (least, largest) within 0..2, got {center_ratio_range!r}")
        self.pad_val = pad_val
        self.seg_pad_val = seg_pad_val

    def extra_indices(self, length: int, rng: np.random.Generator) -> list[int]:
        """Decide whether to make a mosaic, and name the three other samples of a dataset of `length`:
        3 indices or none.
        """
        if rng.random() >= self.prob:
            return []
        return [int(index) for index in rng.integers(length, size=_EXTRA)]

    def draw(self, sample: dict, rng: np.random.Generator) -> dict:
        """Draw {"center": [x, y] in pixels of the result}, or None when there are no samples to mix."""
        if not sample.get("mix_results"):
            return {"center": None}
        return {"center": [int(float(rng.uniform(*self.center_ratio_range)) * side) for side in self.img_scale[::-1]]}

    def apply(self, sample: dict, params: dict) -> dict:
        """Assemble the mosaic around `params["center"]`."""
        out = {key: value for key, value in sample.items() if key != "mix_results"}
        if params["center"] is None:
            return out
        if len(sample["mix_results"]) != _EXTRA:
            raise ValueError(f"RandomMosaic needs {_EXTRA} samples in mix_results, got {len(sample['mix_results'])}")
        parts = [sample, *sample["mix_results"]]
        out["img"] = self._assemble([part["img"] for part in parts], params["center"], self.pad_val, "bilinear")
        out["img_shape"] = out["ori_shape"] = out["img"].shape[:2]
        if sample.get("gt_seg_map") is not None:
            masks = [part["gt_seg_map"] for part in parts]
            out["gt_seg_map"] = self._assemble(masks, params["center"], self.seg_pad_val, "nearest")
        return out

    def _assemble(self, parts: list[np.ndarray], center: Sequence[int], pad: float, interpolation: str) -> np.ndarray:
        high, wide = self.img_scale
        x, y = center
        canvas = np.full((2 * high, 2 * wide, *parts[0].shape[2:]), pad, dtype=np.result_type(*parts))
        for place, part in enumerate(parts):
            h, w = part.shape[:2]
            ratio = min(high / h, wide / w)
            part = resize_to(part, (int(w * ratio), int(h * ratio)), interpolation)
            h, w = part.shape[:2]
            right, lower = place % 2 == 1, place >= 2
            cols = min(w, 2 * wide - x if right else x)  # columns of the part that are inside the canvas
            rows = min(h, 2 * high - y if lower else y)
            left, top = (x if right else x - cols), (y if lower else y - rows)
            from_x, from_y = (0 if right else w - cols), (0 if lower else h - rows)
            canvas[top:top + rows, left:left + cols] = part[from_y:from_y + rows, from_x:from_x + cols]
        return canvas
