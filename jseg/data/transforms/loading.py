"""LoadImageFromFile, LoadAnnotations, PackSegInputs: the first and the last steps of a pipeline.

Upstream: mmcv/transforms/loading.py (MMCV 2.1), mmseg/datasets/transforms/loading.py and formatting.py (MMSegmentation
1.2.2). Deviations: files are read by `jseg.data.io` (its docstring lists what differs); `backend_args`, `color_type`
and `imdecode_backend` accept only upstream's defaults, so that a config asking for another backend does not get this
one silently; masks with more than 256 values stay int32 instead of wrapping; PackSegInputs changes nothing, batches are
made by the loader.
"""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

from jseg.data.io import SCALES, read_image, read_mask
from jseg.data.transforms.base import Transform
from jseg.errors import DataError
from jseg.registry import TRANSFORMS

__all__ = ["LoadImageFromFile", "LoadAnnotations", "PackSegInputs", "reduce_zero"]


def _only(name: str, value: Any, accepted: Any) -> None:
    if value is not None and value != accepted:
        raise ValueError(f"{name} accepts {accepted!r} only, got {value!r}; leave it out")


@TRANSFORMS.register()
class LoadImageFromFile(Transform):
    """Read `sample["img_path"]` into `img`, and note `img_shape` and `ori_shape` (h, w).

    Args:
        to_float32: give float32 instead of uint8 (values stay 0..255).
        color_type, imdecode_backend, backend_args: MMCV's; only "color", "cv2" and None.
        scale: what becomes of 16-bit samples: "bits" keeps their upper eight bits, "max" makes the largest of each
            picture 255, for data of 10, 12 or 14 bits.
    Raises:
        DataError: see `jseg.data.io.read_image`.
    """

    on_bare_pictures, reads_pictures = False, True

    def __init__(self, to_float32: bool = False, color_type: str = "color", imdecode_backend: str = "cv2", *,
                 backend_args: None = None, scale: str = "bits"):
        if scale not in SCALES:
            raise ValueError(f"scale is {scale!r}; accepted: {', '.join(SCALES)}")
        _only("color_type", color_type, "color")
        _only("imdecode_backend", imdecode_backend, "cv2")
        _only("backend_args", backend_args, None)
        self.to_float32, self.scale = to_float32, scale

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        img = read_image(sample["img_path"], scale=self.scale)
        shape = img.shape[:2]
        return {**sample, "img": img.astype(np.float32) if self.to_float32 else img, "img_shape": shape,
                "ori_shape": shape}


@TRANSFORMS.register()
class LoadAnnotations(Transform):
    """Read `sample["seg_map_path"]` into `gt_seg_map` (H, W), uint8 or (16-bit files) int32.

    The dataset says in the sample what the mask means: `reduce_zero_label` (this transform is the only one that applies
    it), `label_map` {old index: new index}, applied after it, and `color_map` {(r, g, b): index} for coloured masks.

    Args:
        reduce_zero_label: must agree with the dataset's flag; leave it out (upstream deprecates it here too). It
            decides only for samples that carry no flag.
        imdecode_backend, backend_args: MMCV's; only "pillow" and None.
    Raises:
        DataError: see `jseg.data.io.read_mask`; or the two zero-label flags contradict each other.
    """

    on_bare_pictures = False

    def __init__(self, reduce_zero_label: bool | None = None, backend_args: None = None,
                 imdecode_backend: str = "pillow"):
        _only("imdecode_backend", imdecode_backend, "pillow")
        _only("backend_args", backend_args, None)
        self.reduce_zero_label = reduce_zero_label

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        path = sample["seg_map_path"]
        mask = read_mask(path, sample.get("color_map"))
        flag = sample.get("reduce_zero_label", self.reduce_zero_label)
        if self.reduce_zero_label is not None and bool(flag) != self.reduce_zero_label:
            raise DataError(f"{path}: LoadAnnotations says reduce_zero_label: {self.reduce_zero_label}, the dataset "
                            f"says {flag}; set it on the dataset only")
        if flag:
            mask = reduce_zero(mask, path)
        if sample.get("label_map"):
            old = mask
            mask = old.copy()
            for old_index, new_index in sample["label_map"].items():
                mask[old == old_index] = new_index
        return {**sample, "gt_seg_map": mask}


def reduce_zero(mask: np.ndarray, path: str = "mask") -> np.ndarray:
    """Make label 0 the ignored 255 and shift the others down by one; 255 stays 255.

    Raises:
        DataError: a label above 255, which would become 255 or lie beyond it.
    """
    if mask.dtype != np.uint8 and mask.max(initial=0) > 255:
        raise DataError(f"{path}: reduce_zero_label with label {mask.max()}: 255 marks ignored pixels, so labels above "
                        "it cannot be shifted; write the masks with labels from 0 and switch reduce_zero_label off")
    reduced = mask - 1  # of an unsigned 0: 255
    reduced[(mask == 0) | (mask == 255)] = 255
    return reduced


@TRANSFORMS.register()
class PackSegInputs(Transform):
    """Marks the end of a pipeline, as in MMSegmentation's configs; changes nothing.

    Args:
        meta_keys: accepted and unused: every entry of the sample but its arrays reaches the batch's metas.
    """

    on_bare_pictures = False

    def __init__(self, meta_keys: Sequence[str] = ()):
        self.meta_keys = tuple(meta_keys)

    def apply(self, sample: dict, params: dict) -> dict:
        """See the class."""
        return sample
