"""Is a prepared dataset fit for training? Every picture and mask is read as training reads it, and every fault gets a name.

`check_dataset` reads all files: missing, unreadable, of different sizes, labels out of range, a wrong `reduce_zero_label`, and counts
classes. `shared_pictures` finds pictures that two splits have in common. `quick_check` is the part that costs about a second; a
training run makes it first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Mapping, NamedTuple, Sequence

import numpy as np
from PIL import Image

from jseg.data.build import build_dataset
from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.files import list_files
from jseg.data.datasets.wrappers import leaves, locate
from jseg.data.io import check_labels, check_pair, read_image, read_mask
from jseg.data.transforms import LoadAnnotations
from jseg.errors import DataError, JsegError

__all__ = ["Fault", "DatasetReport", "check_dataset", "classes_of_pictures", "quick_check", "shared_pictures"]

KINDS = ("missing", "unreadable", "size", "label", "zero label", "duplicate", "classes", "pipeline")
_EXIF_ORIENTATION = 0x0112


class Fault(NamedTuple):
    """One fault: one of KINDS, and a line that names the files and the cure."""

    kind: str
    text: str


@dataclass
class DatasetReport:
    """What was found in one split.

    Attributes:
        name: of the split.
        classes: K names.
        pictures: how many were read.
        faults: what must be put right.
        notes: what may be intended.
        sizes: (height, width) -> pictures.
        pixels: (K,) int64, pixels of each class as training sees them.
        pictures_with: (K,) int64, pictures in which each class occurs.
        ignored: pixels that count nowhere.
        hashes: digest of a picture's pixels -> its path.
        seconds: taken.
    """

    name: str
    classes: tuple[str, ...]
    pictures: int = 0
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    pictures_with: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self):
        self.pixels, self.pictures_with = np.zeros((2, len(self.classes)), np.int64)

    @property
    def ok(self) -> bool:
        """True without faults."""
        return not self.faults

    def summary(self) -> dict[str, Any]:
        """Everything but the hashes, as JSON takes it."""
        sizes = {f"{w}x{h}": count for (h, w), count in self.sizes.most_common()}
        return {"split": self.name, "pictures": self.pictures, "faults": [fault._asdict() for fault in self.faults], "notes": self.notes,
                "sizes": sizes, "ignored_pixels": self.ignored, "seconds": round(self.seconds, 2),
                "classes": [{"name": name, "pixels": int(n), "pictures": int(k)}
                            for name, n, k in zip(self.classes, self.pixels, self.pictures_with)]}


class _Reading(NamedTuple):
    """How the masks of one plain dataset are read."""

    num_classes: int
    ignore_index: int
    reduce_zero_label: bool
    label_map: dict[int, int] | None
    color_map: dict | None


class _Sample(NamedTuple):
    name: str
    img_path: str
    seg_map_path: str | None
    extras: dict[str, str]
    part: int


class _Found(NamedTuple):
    """What one sample gave: faults, size (h, w), value -> pixels of the file, label -> pixels of training, digest of the picture."""

    faults: list[Fault]
    size: tuple[int, int] | None
    values: dict[int, int]
    labels: dict[int, int]
    digest: str


def check_dataset(dataset, *, name: str = "dataset", workers: int = 1, progress: bool = False, need_masks: bool = True) -> DatasetReport:
    """Read every picture and mask of a dataset.

    Args:
        dataset: a dataset or a wrapper of datasets; its pipeline is run on one sample only.
        name: what the report calls it.
        workers: processes.
        progress: show a bar on stderr.
        need_masks: whether a dataset without masks is a fault.
    Raises:
        ConvertError: a worker process was killed.
    """
    from jseg.data.prepare.parallel import map_items  # not for quick_check

    began = time.perf_counter()
    report = DatasetReport(name, tuple(dataset.classes))
    parts = _plain_parts(dataset, report)
    samples: list[_Sample] = []
    for number, part in enumerate(parts):
        pairs = _pairs_of(part, report, need_masks)
        _note_lone_masks(part, pairs, report)
        samples += [_sample(part, number, pair) for pair in pairs]
    values = [Counter() for _ in parts]
    empty = []
    for sample, found in map_items(_inspect, tuple(map(_reading, parts)), samples, workers=workers, title=name, progress=progress):
        _add(report, sample, found)
        values[sample.part].update(found.values)
        if found.labels and set(found.labels) <= {parts[sample.part].ignore_index}:
            empty.append(sample.img_path)
    for part, seen in zip(parts, values):
        _judge_zero_label(report, part, seen, whole=True)
    if empty:
        report.notes.append(f"{len(empty)} of {len(samples)} masks hold ignored pixels only: {_some(empty)}")
    never = [report.classes[k] for k in np.flatnonzero(report.pixels == 0)] if report.pixels.any() else []
    if never:
        report.notes.append(f"{len(never)} of {len(report.classes)} classes never occur: {_some(never, 10)}")
    if report.ok and samples:
        _run_pipeline(report, parts[0])
    report.seconds = time.perf_counter() - began
    return report


def shared_pictures(reports: Sequence[DatasetReport]) -> list[Fault]:
    """Find training pictures that occur in another split, by their pixels, whatever the files are called.

    Two splits for evaluation are not compared: many configs test on the validation pictures.
    """
    faults = []
    for first in (report for report in reports if report.name == "train"):
        for second in (report for report in reports if report is not first):
            both = [f"{first.hashes[digest]} = {second.hashes[digest]}" for digest in first.hashes if digest in second.hashes]
            if both:
                faults.append(Fault("duplicate", f"{len(both)} pictures are in {first.name} and in {second.name}: {_some(both)}; "
                                    f"results on {second.name} would be too good: take them out of one (ignore_file)"))
    return faults


def quick_check(cfg: Mapping, *, samples: int = 32, limit_s: float = 0.5, splits: Sequence[str] = ("train", "val"),
                datasets: Mapping[str, Any] | None = None) -> list[str]:
    """Find what would spoil a training run, within about `limit_s` seconds a split plus the time to list the files.

    Every picture must have its mask; of `samples` pictures, drawn by the config's seed, size and labels are checked.

    Args:
        cfg: a whole config.
        samples: pictures a split.
        limit_s: stop reading masks after this time; at least two are read.
        splits: those without a block in the config are passed over.
        datasets: of splits that are built already; their files are then listed once.
    Returns:
        notes: what may be intended.
    Raises:
        ConfigError: a data block is wrong.
        DataError: lists every fault.
    """
    reports, trained = [], set()
    for split in splits:
        if cfg.get(f"{split}_dataloader") is None:
            continue
        dataset = datasets[split] if datasets and split in datasets else build_dataset(cfg, split)
        report = DatasetReport(split, tuple(dataset.classes))
        parts = _plain_parts(dataset, report)
        pairs = [(part, number, pair) for number, part in enumerate(parts) for pair in _pairs_of(part, report, split != "test")]
        chosen = np.random.default_rng([cfg.get("seed") or 0, samples]).permutation(len(pairs))[:samples]
        _look(report, parts, [_sample(*pairs[i]) for i in chosen], limit_s)
        reports.append(report)
        both = [pair[0] for _, _, pair in pairs if pair[0] in trained]
        if both:
            report.notes.append(f"{len(both)} of {len(pairs)} pictures are training pictures: {_some(both)}")
        trained |= {pair[0] for _, _, pair in pairs} if split == "train" else set()
    for report in reports[1:]:
        if report.classes != reports[0].classes:
            reports[0].faults.append(Fault("classes", f"{reports[0].name} has the classes {_some(reports[0].classes)}, {report.name} has "
                                           f"{_some(report.classes)}; give both the same metainfo.classes"))
    faults = [f"{report.name}: {fault.text}" for report in reports for fault in report.faults]
    if faults:
        more = [f"and {len(faults) - 10} more faults; `jseg data check` lists all"] if len(faults) > 10 else []
        raise DataError("\n".join(faults[:10] + more))
    return [f"{report.name}: {note}" for report in reports for note in report.notes]


def classes_of_pictures(dataset, *, workers: int | None = None, progress: bool = True) -> list[list[int]]:
    """Read every mask: the labels that occur in each sample, sorted, ignored pixels left out.

    Raises:
        DataError: a mask is missing, unreadable or holds a label out of range; the text names it.
    """
    from jseg.data.prepare.parallel import default_workers, map_items

    parts = leaves(dataset)
    numbers = {id(part): i for i, part in enumerate(parts)}
    items = []
    for index in range(len(dataset)):
        part, local = locate(dataset, index)
        paths = part.info(local)
        if paths["seg_map_path"] is None:
            raise DataError(f"{type(part).__name__}: {paths['img_path']} has no mask: classes cannot be balanced without masks")
        items.append(_Sample(paths["seg_map_path"], paths["img_path"], paths["seg_map_path"], {}, numbers[id(part)]))
    classes = []
    for item, found in map_items(_inspect_mask, tuple(map(_reading, parts)), items, workers=workers or default_workers(),
                                 title="classes", progress=progress):
        if found.faults:
            raise DataError(found.faults[0].text)
        classes.append(sorted(set(found.labels) - {parts[item.part].ignore_index}))
    return classes


# ---- files ----------------------------------------------------------------------------------------------------------------


def _reading(part: SegDataset) -> _Reading:
    return _Reading(len(part.classes), part.ignore_index, part.reduce_zero_label, part.label_map, part.color_map)


def _plain_parts(dataset, report: DatasetReport) -> list[SegDataset]:
    """The plain datasets in a dataset; what is no SegDataset cannot be looked into."""
    parts = leaves(dataset)
    report.notes += [f"{type(part).__name__} is no SegDataset and was not checked" for part in parts if not isinstance(part, SegDataset)]
    return [part for part in parts if isinstance(part, SegDataset)]


def _pairs_of(part: SegDataset, report: DatasetReport, need_masks: bool) -> list[tuple[str, str | None]]:
    """List a plain dataset's complete pairs; what is missing goes into the report."""
    pairs, missing = part.scan()
    report.faults += [Fault("missing", text) for text in missing]
    if pairs and pairs[0][1] is None and not need_masks and "depth_map_path" in part.data_prefix:
        report.notes.append(f"{type(part).__name__} has depth maps and no labels: nothing here can be trained on it")
    elif pairs and pairs[0][1] is None and need_masks:
        report.faults.append(Fault("missing", f"{type(part).__name__} has no masks to learn from or compare with: data_prefix.seg_map_path "
                                   "is not set"))
    return pairs


def _sample(part: SegDataset, number: int, pair: tuple[str, str | None]) -> _Sample:
    return _Sample(pair[0], *pair, part.extra_files(pair[0]), number)


def _note_lone_masks(part: SegDataset, pairs: Sequence[tuple[str, str | None]], report: DatasetReport) -> None:
    """Note masks without a picture where all pictures of a folder are meant, not those of a list."""
    if not pairs or pairs[0][1] is None or part.ann_file or part.ignore_file or part.indices is not None or getattr(part, "split", None):
        return
    folder = os.path.join(part.data_root, part.data_prefix["seg_map_path"])
    used = {mask for _, mask in pairs}
    lone = [name for name in list_files(folder, part.seg_map_suffix) if os.path.join(folder, name) not in used]
    if lone and folder != os.path.join(part.data_root, part.data_prefix["img_path"]):
        report.notes.append(f"{folder}: {len(lone)} masks have no picture: {_some(lone)}")


# ---- one sample -----------------------------------------------------------------------------------------------------------


def _inspect(readings: tuple[_Reading, ...], sample: _Sample) -> _Found:
    """Read one sample whole; module level, for worker processes."""
    faults: list[Fault] = []
    size, digest = None, ""
    img = _attempt(faults, read_image, sample.img_path)
    if img is not None:
        size = img.shape[:2]
        digest = hashlib.blake2b(np.ascontiguousarray(img).data, digest_size=16, key=str(size).encode()).hexdigest()
    for key, path in sample.extras.items():
        extra = _attempt(faults, read_mask if key == "depth_map_path" else read_image, path)
        if img is not None and extra is not None and extra.shape[:2] != size:
            (h, w), (eh, ew) = size, extra.shape[:2]
            faults.append(Fault("size", f"{sample.img_path} is {w}x{h} (width x height) but {path} is {ew}x{eh}"))
    if sample.seg_map_path is None:
        return _Found(faults, size, {}, {}, digest)
    found = _inspect_mask(readings, sample, size)
    return _Found(faults + found.faults, size, found.values, found.labels, digest)


def _inspect_mask(readings: tuple[_Reading, ...], sample: _Sample, size: tuple[int, int] | None = None) -> _Found:
    """Read one mask and compare it with its picture's size (h, w), if given."""
    reading, path, faults = readings[sample.part], sample.seg_map_path, []
    mask = _attempt(faults, read_mask, path, reading.color_map)
    if mask is None:
        return _Found(faults, size, {}, {}, "")
    if size is not None:
        _collect(faults, "size", check_pair, np.broadcast_to(np.uint8(0), size), mask, sample.img_path, path)
    values = _histogram(mask)
    labels: Counter = Counter()
    for value, count in values.items():
        labels[_as_trained(value, reading)] += count
    if any(not 0 <= label < reading.num_classes and label != reading.ignore_index for label in labels):
        _collect(faults, "label", _name_labels, path, reading)
    return _Found(faults, size, values, dict(labels), "")


def _attempt(faults: list[Fault], read, path: str, *arguments):
    """Read a file; a DataError becomes a fault and None."""
    try:
        return read(path, *arguments)
    except DataError as error:
        text = str(error)
        wrong_colours = ": colour not in the colour map: " in text or ": the mask is coloured " in text
        faults.append(Fault("label" if wrong_colours else "unreadable", text))
    return None


def _collect(faults: list[Fault], kind: str, check, *arguments) -> None:
    try:
        check(*arguments)
    except DataError as error:
        faults.append(Fault(kind, str(error)))


def _name_labels(path: str, reading: _Reading) -> None:
    """Raise the DataError that training would raise for this mask."""
    sample = {"seg_map_path": path, "reduce_zero_label": reading.reduce_zero_label, "label_map": reading.label_map,
              "color_map": reading.color_map}
    check_labels(LoadAnnotations().apply(sample, {})["gt_seg_map"], reading.num_classes, reading.ignore_index, path)


def _histogram(mask: np.ndarray) -> dict[int, int]:
    if mask.dtype == np.uint8:
        counts = np.bincount(mask.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(mask, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def _as_trained(value: int, reading: _Reading) -> int:
    """What LoadAnnotations makes of one value."""
    if reading.reduce_zero_label:
        value = 255 if value in (0, 255) else value - 1
    return (reading.label_map or {}).get(value, value)


def _shown_size(path: str) -> tuple[int, int]:
    """(h, w) of a picture as `read_image` gives it, from its header where Pillow knows the format."""
    try:
        with Image.open(path) as picture:
            w, h = picture.size
            turned = picture.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            return (w, h) if turned else (h, w)
    except Exception:  # damaged or of a rare kind: the full reader knows, or says why not
        return read_image(path).shape[:2]


# ---- the whole ------------------------------------------------------------------------------------------------------------


def _look(report: DatasetReport, parts: Sequence[SegDataset], samples: Sequence[_Sample], limit_s: float) -> None:
    """Check sizes and masks of some samples, as many as the time allows."""
    readings, began = tuple(map(_reading, parts)), time.perf_counter()
    values = [Counter() for _ in parts]
    for done, sample in enumerate(samples):
        if sample.seg_map_path is None or (done >= 2 and time.perf_counter() - began > limit_s):
            break
        faults: list[Fault] = []
        size = _attempt(faults, _shown_size, sample.img_path)
        found = _inspect_mask(readings, sample, size)
        _add(report, sample, found._replace(faults=faults + found.faults))
        values[sample.part].update(found.values)
    for part, seen in zip(parts, values):
        _judge_zero_label(report, part, seen, whole=False)


def _add(report: DatasetReport, sample: _Sample, found: _Found) -> None:
    report.pictures += 1
    report.faults += found.faults
    if found.size is not None:
        report.sizes[found.size] += 1
    for label, count in found.labels.items():
        if 0 <= label < len(report.classes):
            report.pixels[label] += count
            report.pictures_with[label] += 1
        else:
            report.ignored += count
    if found.digest:
        other = report.hashes.setdefault(found.digest, sample.img_path)
        if other != sample.img_path:
            report.notes.append(f"{other} and {sample.img_path} show the same pixels")


def _judge_zero_label(report: DatasetReport, part: SegDataset, values: Mapping[int, int], whole: bool) -> None:
    """Tell from the values in the files whether `reduce_zero_label` is set as they need it.

    Args:
        values: value -> pixels in the mask files of `part`.
        whole: all files were read; else what never occurs proves nothing.
    """
    known = part.METAINFO.get("classes", part.classes)
    count, name, void = len(known), type(part).__name__, 255 in values or part.ignore_index in values
    real = [value for value in values if value not in (255, part.ignore_index, *part.VOID_LABELS)]
    if not real or part.color_map:
        return
    share = 100 * values.get(0, 0) / sum(values.values())
    if not part.reduce_zero_label:
        if max(real) == count:
            start = "from 0" if 0 in values else "from 1"
            cure = f"0 means unlabelled and {count} is {known[-1]!r}: set reduce_zero_label: true"
            if 0 in values and not part.REDUCE_ZERO_LABEL:
                cure = f"either {cure}; or {count} means unlabelled: set ignore_index: {count}"
            strangers = [fault for fault in report.faults if _only_label(fault, count)]
            report.faults = [fault for fault in report.faults if not _only_label(fault, count)]
            example = f" ({len(strangers)} hold {count}, such as {strangers[0].text.split(': label')[0]})" if strangers else ""
            report.faults.append(Fault("zero label", f"{name}: reduce_zero_label is false, but the masks run {start} to {count} for "
                                       f"{count} classes{example}; {cure}"))
        elif part.REDUCE_ZERO_LABEL and not void:
            report.faults.append(Fault("zero label", f"{name}: reduce_zero_label is false, but the published masks have 0 for unlabelled "
                                       f"and 1 for {known[0]!r} ({share:.1f} % of the pixels are 0); set reduce_zero_label: true"))
        return
    if 0 not in values or max(real) >= count:
        return
    text = (f"{name}: reduce_zero_label is true, but no mask holds {count}, which would be {known[-1]!r}, and 0 ({share:.1f} % of the "
            f"pixels) is ignored")
    if part.REDUCE_ZERO_LABEL and not void:  # as published; the last class is only rare
        return
    if whole:
        why = ", while 255 marks unlabelled pixels already" if void else ""
        report.faults.append(Fault("zero label", f"{text}{why}; if 0 is {known[0]!r}, set reduce_zero_label: false"))
    else:
        report.notes.append(f"{text}; right only if 0 means unlabelled and that class is rare")


def _only_label(fault: Fault, value: int) -> bool:
    """True for the out-of-range fault of a mask in which `value` is the only stranger."""
    return fault.kind == "label" and f"label out of range: {value} at " in fault.text and "; and " not in fault.text and \
        fault.text.count(", first at row") == 1


def _run_pipeline(report: DatasetReport, part: SegDataset) -> None:
    """Run the first sample through the dataset's own pipeline."""
    try:
        part.get(0, np.random.default_rng(0))
    except JsegError as error:
        report.faults.append(Fault("pipeline", str(error)))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
