"""Samples become a batch: channel order, normalisation, padding, stacking;
on NumPy arrays, inside the loader's workers.

Meaning as mmsegmentation 1.2.2, mmseg/models/data_preprocessor.py and mmseg/utils/misc.py (Apache-2.0): normalise
first, then pad bottom and right, so that `pad_val` is a value on the normalised scale. Deviations:
- pictures of different sizes are padded to the largest of the batch in testing too (mmseg refuses them);
- without `size` and `size_divisor` training pads to the largest picture (mmseg fails an assertion);
- `test_cfg: {resize_divisor: 32}` resizes the picture to multiples instead of padding it: the rule of SegNeXt's
  authors;
- in testing labels keep their own size (the size predictions are compared at).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Mapping, Sequence

import cv2
import numpy as np

from jseg.data.transforms.base import resize_to
from jseg.errors import DataError
from jseg.registry import Registry
from jseg.rules import COUNT, SIZE, fields

__all__ = ["Batch", "ClsDataPreprocessor", "PREPROCESSORS", "SegDataPreProcessor", "padding_faults"]

PREPROCESSORS = Registry("data preprocessor")  # what `data_preprocessor: {type: ...}` may name

_TEST_CFG = {"size": SIZE, "size_divisor": COUNT, "resize_divisor": COUNT}
NOT_META = ("label_map", "color_map", "mix_results")


@dataclass
class Batch:
    """One step's worth of data.

    Shape:
        images: (N, C, H, W) float32, normalised; C is 3 unless the pipeline has LoadBands.
        labels: (N, H, W) int32 in training; (N, h, w) in testing, the largest label map's size; None without masks.
            (N,) for classifiers.
        metas: N dicts of what the pipeline noted (img_path, seg_map_path, ori_shape, scale_factor, flip, ...) and
            img_shape (before padding), pad_shape, padding_size (left, right, top, bottom), label_shape (rows and
            columns of `labels` that are real), index, epoch.
    """

    images: np.ndarray
    labels: np.ndarray | None
    metas: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)


@PREPROCESSORS.register()
class SegDataPreProcessor:
    """Normalise, pad and stack.

    Args:
        mean, std: per channel on the pictures' own scale (0..255), in the order the model sees (RGB with `bgr_to_rgb`);
            both or none; as many as the pictures have channels.
        bgr_to_rgb, rgb_to_bgr: reverse three channels; at most one.
        size: (h, w) in pixels that training pictures are padded to.
        size_divisor: pad training pictures to multiples of this instead.
        pad_val: value of padded pixels, on the normalised scale.
        seg_pad_val: label of padded pixels.
        test_cfg: one of {size: [h, w]}, {size_divisor: d}, {resize_divisor: d}; None or empty: no padding in testing.
    Raises:
        ValueError: contradictory or impossible arguments.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
                 bgr_to_rgb: bool = False, rgb_to_bgr: bool = False, size: Sequence[int] | None = None,
                 size_divisor: int | None = None, pad_val: float = 0,
                 seg_pad_val: int = 255, test_cfg: dict | None = None):
        if (mean is None) != (std is None):
            raise ValueError("mean and std belong together: give both or none")
        if mean is not None and (not len(mean) or len(mean) != len(std)):
            raise ValueError(f"mean and std need one value per channel each, got {list(mean)} and {list(std)}")
        if std is not None and min(std) <= 0:
            raise ValueError(f"std must be positive, got {list(std)}")
        if bgr_to_rgb and rgb_to_bgr:
            raise ValueError("bgr_to_rgb and rgb_to_bgr reverse the same channels: set one")
        if (bgr_to_rgb or rgb_to_bgr) and mean is not None and len(mean) != 3:
            raise ValueError(f"bgr_to_rgb and rgb_to_bgr reverse 3 channels, mean has {len(mean)} values; LoadBands "
                             "gives the file's order (RGB): leave them out")
        if size is not None and size_divisor is not None:
            raise ValueError("size and size_divisor exclude each other: give one")
        self.mean = None if mean is None else np.asarray(mean, np.float32)
        self.std = None if std is None else np.asarray(std, np.float32)
        self.reverse = bgr_to_rgb or rgb_to_bgr
        self.size = None if size is None else _pair(size)
        self.size_divisor, self.pad_val, self.seg_pad_val = size_divisor, float(pad_val), int(seg_pad_val)
        self.test_cfg = _read_test_cfg(test_cfg)
        values = np.arange(256, dtype=np.float32)
        self._tables = [(values - m) / s for m, s in zip(self.mean, self.std)] if mean is not None else [values]

    def batch(self, samples: Sequence[dict], training: bool,
              allocate: Callable[[tuple, tuple | None], tuple] | None = None) -> Batch:
        """Stack samples.

        Args:
            samples: outputs of a dataset, `img` (H, W, C) uint8 or float32, of one C.
            training: selects `size`/`size_divisor` or `test_cfg`, and whether labels share the pictures' padding.
            allocate: (images_shape, labels_shape or None) -> (float32 array, int32 array or None) to write into;
                default: new arrays.
        Raises:
            DataError: some samples have masks and others none, a training picture and its mask differ in size, or a
                picture has other channels than the first or `mean`.
        """
        channels = self._channels(samples)
        images = [self._resized(sample["img"]) if not training else sample["img"] for sample in samples]
        labels = [sample.get("gt_seg_map") for sample in samples]
        bare = [sample["img_path"] for sample, label in zip(samples, labels) if label is None]
        if bare and len(bare) < len(samples):
            raise DataError(
                f"{bare[0]}: no mask, while other pictures of its batch have one; give every picture a mask")
        h, w = self._padded_size([image.shape[:2] for image in images], training)
        label_size = None
        if not bare:
            label_size = (h, w) if training else tuple(np.max([label.shape for label in labels], axis=0).tolist())
        shapes = (len(samples), channels, h, w), None if label_size is None else (len(samples), *label_size)
        out, out_labels = (allocate or _new_arrays)(*shapes)
        metas = []
        for i, (sample, image, label) in enumerate(zip(samples, images, labels)):
            if training and label is not None and label.shape != image.shape[:2]:
                raise DataError(f"{sample['img_path']}: after the pipeline the picture is {image.shape[:2]} and its "
                                f"label map {label.shape}; put LoadAnnotations before the transforms that change sizes")
            self.fill(out[i], image)
            if label is not None:
                _fill_label(out_labels[i], label, self.seg_pad_val)
            metas.append(self._meta(sample, image.shape[:2], (h, w), None if label is None else label.shape))
        return Batch(out, out_labels, metas)

    def _channels(self, samples: Sequence[dict]) -> int:
        """The channels of all pictures of a batch."""
        shapes = [sample["img"].shape for sample in samples]
        wanted = len(self.mean) if self.mean is not None else 3 if self.reverse else shapes[0][-1]
        for sample, shape in zip(samples, shapes):
            if len(shape) != 3 or shape[2] != wanted:
                stated = "data_preprocessor.mean" if self.mean is not None else "the first of its batch"
                raise DataError(f"{sample.get('img_path', 'picture')}: after the pipeline the picture is {shape} "
                                f"(rows, columns, channels), but {stated} has {wanted} channels; 'jseg data stats "
                                "CONFIG' prints mean and std of all of them")
        return wanted

    def _padded_size(self, sizes: list[tuple[int, int]], training: bool) -> tuple[int, int]:
        """The batch's (h, w): the largest picture, then the fixed size or the multiple that the mode asks for."""
        h, w = (max(side) for side in zip(*sizes))
        size = self.size if training else self.test_cfg.get("size")
        divisor = self.size_divisor if training else self.test_cfg.get("size_divisor")
        if size is not None:
            h, w = max(h, size[0]), max(w, size[1])
        if divisor:
            h, w = -(-h // divisor) * divisor, -(-w // divisor) * divisor
        return h, w

    def _resized(self, image: np.ndarray) -> np.ndarray:
        """Enlarge to the next multiple of `resize_divisor`, bilinear; unchanged without it."""
        divisor = self.test_cfg.get("resize_divisor")
        h, w = image.shape[:2]
        if not divisor or (h % divisor == 0 and w % divisor == 0):
            return image
        return resize_to(image, (-(-w // divisor) * divisor, -(-h // divisor) * divisor), "bilinear")

    def fill(self, out: np.ndarray, image: np.ndarray) -> None:
        """Write one picture (h, w, C) into out (C, H, W): planes, normalised, padded bottom and right."""
        if image.ndim != 3 or image.shape[2] != len(out):
            raise ValueError(f"a picture must be (H, W, {len(out)}), got {image.shape}")
        h, w = image.shape[:2]
        for channel in range(len(out)):
            source = len(out) - 1 - channel if self.reverse else channel
            if image.dtype == np.uint8:
                table = self._tables[channel if self.mean is not None else 0]
                plane = cv2.LUT(cv2.extractChannel(image, source), table)  # (h, w) float32
            else:
                plane = image[..., source].astype(np.float32)
                plane = plane if self.mean is None else (plane - self.mean[channel]) / self.std[channel]
            out[channel, :h, :w] = plane
        out[:, h:] = self.pad_val
        out[:, :h, w:] = self.pad_val

    def _meta(self, sample: dict, img_shape: tuple, pad_shape: tuple, label_shape: tuple | None) -> dict[str, Any]:
        meta = {key: value for key, value in sample.items() if key not in NOT_META
                and not isinstance(value, np.ndarray)}
        meta.update(img_shape=tuple(img_shape), pad_shape=tuple(pad_shape), label_shape=label_shape,
                    padding_size=(0, pad_shape[1] - img_shape[1], 0, pad_shape[0] - img_shape[0]))
        return meta


@PREPROCESSORS.register()
class ClsDataPreprocessor(SegDataPreProcessor):
    """Normalise and stack pictures of one size, each with a class (mmpretrain's words).

    Args:
        mean, std: see `SegDataPreProcessor`.
        to_rgb: reverse three channels.
    """

    def __init__(self, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, to_rgb: bool = False):
        super().__init__(mean, std, bgr_to_rgb=to_rgb)

    def batch(self, samples: Sequence[dict], training: bool,
              allocate: Callable[[tuple, tuple | None], tuple] | None = None) -> Batch:
        """Stack samples.

        Args:
            samples: outputs of a dataset, `img` (H, W, C) uint8 or float32 of one shape, `gt_label` a class number.
            training: of no effect.
            allocate: see `SegDataPreProcessor.batch`.
        Raises:
            DataError: pictures of different sizes or channels.
        """
        channels, size = self._channels(samples), samples[0]["img"].shape[:2]
        images, labels = (allocate or _new_arrays)((len(samples), channels, *size), (len(samples),))
        metas = []
        for i, sample in enumerate(samples):
            if sample["img"].shape[:2] != size:
                found = sample["img"].shape[:2]
                raise DataError(f"{sample['img_path']}: after the pipeline the picture is {found} and the first of its "
                                f"batch {size}; end the pipeline with RandomResizedCrop or CenterCrop")
            self.fill(images[i], sample["img"])
            labels[i] = sample["gt_label"]
            metas.append(self._meta(sample, size, size, None))
        return Batch(images, labels, metas)


def _new_arrays(images_shape: tuple, labels_shape: tuple | None) -> tuple[np.ndarray, np.ndarray | None]:
    return np.empty(images_shape, np.float32), None if labels_shape is None else np.empty(labels_shape, np.int32)


def _fill_label(out: np.ndarray, label: np.ndarray, pad: int) -> None:
    h, w = label.shape
    out[:h, :w] = label
    out[h:] = pad
    out[:h, w:] = pad


def _pair(size: Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int) or len(size) != 2:
        raise ValueError(f"size must be [height, width], got {size!r}")
    return int(size[0]), int(size[1])


def padding_faults(cfg: Mapping, where: str = "test_cfg") -> list[str]:
    """List what is wrong with a preprocessor's `test_cfg`; empty when nothing is."""
    faults = fields(cfg, _TEST_CFG, where, "test_cfg")
    given = [key for key in _TEST_CFG if cfg.get(key) is not None]
    if len(given) > 1:
        faults.append(f"{where}: takes one of {', '.join(_TEST_CFG)}, got {', '.join(given)}")
    return faults


def _read_test_cfg(cfg: Mapping | None) -> dict:
    faults = padding_faults(cfg or {})
    if faults:
        raise ValueError("\n".join(faults))
    cfg = {key: value for key, value in (cfg or {}).items() if value is not None}
    return {**cfg, "size": tuple(cfg["size"])} if "size" in cfg else cfg
