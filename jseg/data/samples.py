"""One sample of a dataset, read as training reads it: its faults as data, its size, and which labels its mask holds."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from jseg.data.io import check_pair, read_image, read_mask
from jseg.data.labels import LabelError, check_labels
from jseg.data.transforms import LoadAnnotations, LoadBands
from jseg.errors import DataError
from jseg.files import open_regular

__all__ = ["KINDS", "Fault", "Found", "Reading", "Sample", "histogram", "inspect_mask", "inspect_sample",
           "look_at_sample", "shown_size"]

KINDS = ("missing", "unreadable", "size", "label", "zero label", "duplicate", "classes", "pipeline")
_EXIF_ORIENTATION = 0x0112


class Fault(NamedTuple):
    """One fault: one of KINDS, a line that names the files and the cure, and where one file has it, that file and its
    odd labels."""

    kind: str
    text: str
    path: str = ""
    values: tuple[int, ...] = ()


class Reading(NamedTuple):
    """How the masks of one plain dataset are read."""

    num_classes: int
    ignore_index: int
    reduce_zero_label: bool
    label_map: dict[int, int] | None
    color_map: dict | None
    bands: LoadBands | None = None

    @classmethod
    def of(cls, part) -> "Reading":
        """The reading of a SegDataset."""
        reader = part.pipeline.reader
        return cls(len(part.classes), part.ignore_index, part.reduce_zero_label, part.label_map, part.color_map,
                   reader if isinstance(reader, LoadBands) else None)


class Sample(NamedTuple):
    """The files of one sample; `part` is the number of its plain dataset."""

    name: str
    img_path: str
    seg_map_path: str | None
    extras: dict[str, str]
    part: int

    @classmethod
    def of(cls, part, number: int, pair: tuple[str, str | None]) -> "Sample":
        """A sample of the SegDataset `part`, which has this number."""
        return cls(pair[0], *pair, part.extra_files(pair[0]), number)


class Found(NamedTuple):
    """What one sample gave: faults, size (h, w), value -> pixels of the file, label -> pixels of training, digest of
    the picture."""

    faults: list[Fault]
    size: tuple[int, int] | None
    values: dict[int, int]
    labels: dict[int, int]
    digest: str


def inspect_sample(readings: tuple[Reading, ...], sample: Sample) -> Found:
    """Read one sample whole; module level, for worker processes."""
    faults: list[Fault] = []
    size, digest = None, ""
    bands = readings[sample.part].bands
    img = _attempt(faults, bands.read if bands else read_image, sample.img_path)
    if img is not None:
        size = img.shape[:2]
        digest = hashlib.blake2b(np.ascontiguousarray(img).data, digest_size=16, key=str(size).encode()).hexdigest()
    for key, path in sample.extras.items():
        extra = _attempt(faults, read_mask if key == "depth_map_path" else read_image, path)
        if img is not None and extra is not None and extra.shape[:2] != size:
            (h, w), (eh, ew) = size, extra.shape[:2]
            faults.append(Fault("size", f"{sample.img_path} is {w}x{h} (width x height) but {path} is {ew}x{eh}", path))
    if sample.seg_map_path is None:
        return Found(faults, size, {}, {}, digest)
    found = inspect_mask(readings, sample, size)
    return Found(faults + found.faults, size, found.values, found.labels, digest)


def look_at_sample(readings: tuple[Reading, ...], sample: Sample) -> Found:
    """Read one sample's mask, and of its picture the size alone."""
    faults: list[Fault] = []
    bands = readings[sample.part].bands
    size = _attempt(faults, (lambda path: bands.stored(path).shape[:2]) if bands else shown_size, sample.img_path)
    found = inspect_mask(readings, sample, size)
    return found._replace(faults=faults + found.faults)


def inspect_mask(readings: tuple[Reading, ...], sample: Sample, size: tuple[int, int] | None = None) -> Found:
    """Read one mask and compare it with its picture's size (h, w), if given."""
    reading, path, faults = readings[sample.part], sample.seg_map_path, []
    mask = _attempt(faults, read_mask, path, reading.color_map)
    if mask is None:
        return Found(faults, size, {}, {}, "")
    if size is not None:
        _collect(faults, "size", path, check_pair, np.broadcast_to(np.uint8(0), size), mask, sample.img_path, path)
    values = histogram(mask)
    labels: Counter = Counter()
    for value, count in values.items():
        labels[_as_trained(value, reading)] += count
    if any(not 0 <= label < reading.num_classes and label != reading.ignore_index for label in labels):
        _collect(faults, "label", path, _name_labels, path, reading)
    return Found(faults, size, values, dict(labels), "")


def _attempt(faults: list[Fault], read, path: str, *arguments):
    """Read a file; a DataError becomes a fault and None."""
    try:
        return read(path, *arguments)
    except DataError as error:
        faults.append(Fault("label" if error.kind in ("label", "coloured") else "unreadable", str(error), path))
    return None


def _collect(faults: list[Fault], kind: str, path: str, check, *arguments) -> None:
    try:
        check(*arguments)
    except DataError as error:
        faults.append(Fault(kind, str(error), path, tuple(error.values) if isinstance(error, LabelError) else ()))


def _name_labels(path: str, reading: Reading) -> None:
    """Raise the LabelError that training would raise for this mask."""
    sample = {"seg_map_path": path, "reduce_zero_label": reading.reduce_zero_label, "label_map": reading.label_map,
              "color_map": reading.color_map}
    check_labels(LoadAnnotations().apply(sample, {})["gt_seg_map"], reading.num_classes, reading.ignore_index, path)


def histogram(mask: np.ndarray) -> dict[int, int]:
    """Value -> pixels of a mask (H, W)."""
    if mask.dtype == np.uint8:
        counts = np.bincount(mask.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def _as_trained(value: int, reading: Reading) -> int:
    """What LoadAnnotations makes of one value."""
    if reading.reduce_zero_label:
        value = 255 if value in (0, 255) else value - 1
    return (reading.label_map or {}).get(value, value)


def shown_size(path: str) -> tuple[int, int]:
    """(h, w) of a picture as `read_image` gives it, from its header where Pillow knows the format."""
    try:
        with open_regular(path, what="picture") as file, Image.open(file) as picture:
            w, h = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return (w, h) if turned else (h, w)
    except Exception:  # damaged or of a rare kind: the full reader knows, or says why not
        return read_image(path).shape[:2]
