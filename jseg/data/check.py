"""Is a prepared dataset fit for training? Every picture and mask is read as training reads it,
and every fault gets a name.

`check_dataset` reads all files: missing, unreadable, of different sizes, labels out of range, a wrong
`reduce_zero_label`, and counts classes. `shared_pictures` finds pictures that two splits have in common. `quick_check`
is the part that costs about a second; a training run makes it first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.data.build import build_dataset
from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.files import list_files
from jseg.data.datasets.image_folder import ImageFolder
from jseg.data.datasets.wrappers import leaves
from jseg.data.io import picture_note
from jseg.data.labels import void_cure
from jseg.data.samples import KINDS, Fault, Found, Reading, Sample, inspect_sample, look_at_sample
from jseg.errors import DataError, JsegError

__all__ = ["KINDS", "Fault", "DatasetReport", "check_dataset", "quick_check", "shared_pictures"]

_SURE_S = 5.0  # reading more masks for this long before saying of a whole split that none of them holds a class


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
        return {"split": self.name, "pictures": self.pictures, "faults": [fault._asdict() for fault in self.faults],
                "notes": self.notes, "sizes": sizes, "ignored_pixels": self.ignored, "seconds": round(self.seconds, 2),
                "classes": [{"name": name, "pixels": int(n), "pictures": int(k)}
                            for name, n, k in zip(self.classes, self.pixels, self.pictures_with)]}


def check_dataset(dataset, *, name: str = "dataset", workers: int = 1, progress: bool = False,
                  need_masks: bool = True) -> DatasetReport:
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
    samples: list[Sample] = []
    for number, part in enumerate(parts):
        pairs = _pairs_of(part, report, need_masks)
        _note_lone_masks(part, pairs, report)
        samples += [Sample.of(part, number, pair) for pair in pairs]
    values = [Counter() for _ in parts]
    empty = []
    for sample, found in map_items(inspect_sample, tuple(map(Reading.of, parts)), samples, workers=workers, title=name,
                                   progress=progress):
        _add_sample(report, sample, found)
        values[sample.part].update(found.values)
        if found.labels and set(found.labels) <= {parts[sample.part].ignore_index}:
            empty.append(sample.img_path)
    for part, seen in zip(parts, values):
        _judge_zero_label(report, part, seen, whole=True)
    _judge_ignored_class(report, parts, values)
    if empty:
        report.notes.append(f"{len(empty)} of {len(samples)} masks hold ignored pixels only: {_first_names(empty)}")
    never = [report.classes[k] for k in np.flatnonzero(report.pixels == 0)] if report.pixels.any() else []
    if never:
        report.notes.append(f"{len(never)} of {len(report.classes)} classes never occur: {_first_names(never, 10)}")
    _note_odd_samples(report, [sample.img_path for sample in samples[:8]
                               if Reading.of(parts[sample.part]).bands is None])
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
            both = [f"{first.hashes[digest]} = {second.hashes[digest]}"
                    for digest in first.hashes if digest in second.hashes]
            if both:
                faults.append(Fault("duplicate",
                                    f"{len(both)} pictures are in {first.name} and in {second.name}: "
                                    f"{_first_names(both)}; results on {second.name} would be too good: take them out "
                                    "of one (ignore_file)"))
    return faults


def quick_check(cfg: Mapping, *, samples: int = 32, limit_s: float = 0.5, splits: Sequence[str] = ("train", "val"),
                datasets: Mapping[str, Any] | None = None) -> list[str]:
    """Find what would spoil a training run, within about `limit_s` seconds per split plus the time to list the files.

    Every picture must have its mask; of `samples` pictures, drawn by the config's seed, size and labels are checked.
    Where all of them hold nothing but class 0 and ignored pixels, more are read, for at most 5 s, before that is called
    a fault.

    Args:
        cfg: a whole config.
        samples: pictures per split.
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
        pairs = [(part, number, pair) for number, part in enumerate(parts)
                 for pair in _pairs_of(part, report, split != "test")]
        order = np.random.default_rng([cfg.get("seed") or 0, samples]).permutation(len(pairs))
        _look(report, parts, [Sample.of(*pairs[i]) for i in order], samples, limit_s)
        reports.append(report)
        both = [pair[0] for _, _, pair in pairs if pair[0] in trained]
        if both:
            report.notes.append(f"{len(both)} of {len(pairs)} pictures are training pictures: {_first_names(both)}")
        trained |= {pair[0] for _, _, pair in pairs} if split == "train" else set()
    for report in reports[1:]:
        if report.classes != reports[0].classes:
            reports[0].faults.append(
                Fault("classes", f"{reports[0].name} has the classes {_first_names(reports[0].classes)}, {report.name} "
                      f"has {_first_names(report.classes)}; give both the same metainfo.classes (ImageFolder: the "
                      "same folders, or classes)"))
    faults = [f"{report.name}: {fault.text}" for report in reports for fault in report.faults]
    if faults:
        more = [f"and {len(faults) - 10} more faults; `jseg data check` lists all"] if len(faults) > 10 else []
        raise DataError("\n".join(faults[:10] + more))
    return [f"{report.name}: {note}" for report in reports for note in report.notes]


# ---- files -----------------------------------------------------------------------------------------------------------


def _plain_parts(dataset, report: DatasetReport) -> list[SegDataset]:
    """The plain datasets in a dataset; what is no SegDataset cannot be looked into."""
    parts = leaves(dataset)
    for part in parts:
        if isinstance(part, ImageFolder):
            counts = np.bincount([label for _, label in part.samples], minlength=len(part.classes))
            report.pictures += len(part)
            report.notes.append(f"{len(part)} pictures of {len(part.classes)} classes, {counts.min()} to "
                                f"{counts.max()} each")
        elif not isinstance(part, SegDataset):
            report.notes.append(f"{type(part).__name__} is no SegDataset and was not checked")
    return [part for part in parts if isinstance(part, SegDataset)]


def _pairs_of(part: SegDataset, report: DatasetReport, need_masks: bool) -> list[tuple[str, str | None]]:
    """List a plain dataset's complete pairs; what is missing goes into the report."""
    pairs, missing = part.scan()
    report.faults += [Fault("missing", text) for text in missing]
    if pairs and pairs[0][1] is None and not need_masks and "depth_map_path" in part.data_prefix:
        report.notes.append(f"{type(part).__name__} has depth maps and no labels: nothing here can be trained on it")
    elif pairs and pairs[0][1] is None and need_masks:
        report.faults.append(Fault("missing", f"{type(part).__name__} has no masks to learn from or compare with: "
                                   "data_prefix.seg_map_path is not set"))
    return pairs


def _note_lone_masks(part: SegDataset, pairs: Sequence[tuple[str, str | None]], report: DatasetReport) -> None:
    """Note masks without a picture where all pictures of a folder are meant, not those of a list."""
    if (not pairs or pairs[0][1] is None or part.ann_file or part.ignore_file or part.indices is not None
        or getattr(part, "split", None)):
        return
    folder = os.path.join(part.data_root, part.data_prefix["seg_map_path"])
    used = {mask for _, mask in pairs}
    lone = [name for name in list_files(folder, part.seg_map_suffix) if os.path.join(folder, name) not in used]
    if lone and folder != os.path.join(part.data_root, part.data_prefix["img_path"]):
        report.notes.append(f"{folder}: {len(lone)} masks have no picture: {_first_names(lone)}")


# ---- the whole -------------------------------------------------------------------------------------------------------


def _look(report: DatasetReport, parts: Sequence[SegDataset], order: Sequence[Sample], count: int,
          limit_s: float) -> None:
    """Check sizes and masks of the first `count` samples, as many as the time allows; of more where none holds a class
    above 0."""
    readings, began = tuple(map(Reading.of, parts)), time.perf_counter()
    values = [Counter() for _ in parts]
    for done, sample in enumerate(order):
        seconds = time.perf_counter() - began
        over = done >= min(count, 2) and (done >= count or seconds > limit_s)
        if sample.seg_map_path is None or over and (seconds > _SURE_S or not _holds_ignored_alone(report)):
            break
        found = look_at_sample(readings, sample)
        _add_sample(report, sample, found)
        values[sample.part].update(found.values)
    for part, seen in zip(parts, values):
        _judge_zero_label(report, part, seen, whole=False)
    _judge_ignored_class(report, parts, values)
    never = [report.classes[k] for k in np.flatnonzero(report.pixels == 0)] if report.pixels.any() else []
    if never and report.name == "train":
        report.notes.append(f"{len(never)} of {len(report.classes)} classes are in none of the {report.pictures} masks "
                            f"looked at: "
                            f"{_first_names(never)}")
    _note_odd_samples(report, [sample.img_path for sample in order[:4] if readings[sample.part].bands is None])


def _holds_ignored_alone(report: DatasetReport) -> bool:
    """Whether the masks so far hold ignored pixels and, of the classes, at most the first."""
    return report.ignored > 0 and not report.pixels[1:].any() and not report.faults


def _judge_ignored_class(report: DatasetReport, parts: Sequence[SegDataset],
                         values: Sequence[Mapping[int, int]]) -> None:
    """Masks of 0 and 255 alone: what was meant as a class counts as ignored, and a model that says 0 everywhere is
    perfect."""
    if not _holds_ignored_alone(report) or len(report.classes) < 2:
        return
    for part, seen in zip(parts, values):
        odd = [value for value in seen if value != 0 and not part.reduce_zero_label and part.color_map is None]
        if odd == [part.ignore_index]:
            value, name = odd[0], report.classes[1]
            text = (f"{type(part).__name__}: {value} is present and no other label above 0 in {report.pictures} masks, "
                    f"K = {len(report.classes)}: nothing of {name!r} would be learned, because {value} is ignored. "
                    f"If {value} means {name!r}, set label_map: {{{value}: 1}} on the dataset or write it as 1")
            report.faults.append(Fault("label", text, values=(value,)))
            return


def _note_odd_samples(report: DatasetReport, paths: Sequence[str]) -> None:
    """Note pictures of which the reading as 3 x 8 bits loses something; the first few stand for all."""
    for path in paths:
        with contextlib.suppress(DataError):  # told as a fault where the sample is read
            note = picture_note(path)
            report.notes += [note] if note else []


def _add_sample(report: DatasetReport, sample: Sample, found: Found) -> None:
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
    mapped = {value + 1 if part.reduce_zero_label else value for value in part.given_label_map}
    real = [value for value in values if value not in (255, part.ignore_index, *part.VOID_LABELS, *mapped)]
    if not real or part.color_map:
        return
    share = 100 * values.get(0, 0) / sum(values.values())
    if not part.reduce_zero_label:
        if max(real) == count:
            start = "from 0" if 0 in values else "from 1"
            cure = f"0 means unlabelled and {count} is {known[-1]!r}: set reduce_zero_label: true"
            if 0 in values and not part.REDUCE_ZERO_LABEL:
                cure = f"either {cure}; or {count} means unlabelled: {void_cure(count)}"
            strangers = [fault for fault in report.faults if fault.values == (count,)]
            report.faults = [fault for fault in report.faults if fault.values != (count,)]
            example = f" ({len(strangers)} hold {count}, such as {strangers[0].path})" if strangers else ""
            report.faults.append(Fault("zero label", f"{name}: reduce_zero_label is false, but the masks run {start} "
                                       f"to {count} for {count} classes{example}; {cure}"))
        elif part.REDUCE_ZERO_LABEL and not void:
            report.faults.append(Fault("zero label", f"{name}: reduce_zero_label is false, but the published masks "
                                       f"have 0 for unlabelled and 1 for {known[0]!r} ({share:.1f} % of the pixels are "
                                       "0); set reduce_zero_label: true"))
        return
    if 0 not in values or max(real) >= count:
        return
    text = (f"{name}: reduce_zero_label is true, but no mask holds {count}, which would be {known[-1]!r}, and 0 "
            f"({share:.1f} % of the pixels) is ignored")
    if part.REDUCE_ZERO_LABEL and not void:  # as published; the last class is only rare
        return
    if whole:
        why = ", while 255 marks unlabelled pixels already" if void else ""
        report.faults.append(Fault("zero label", f"{text}{why}; if 0 is {known[0]!r}, set reduce_zero_label: false"))
    else:
        report.notes.append(f"{text}; right only if 0 means unlabelled and that class is rare")


def _run_pipeline(report: DatasetReport, part: SegDataset) -> None:
    """Run the first sample through the dataset's own pipeline."""
    try:
        part.get(0, np.random.default_rng(0))
    except JsegError as error:
        report.faults.append(Fault("pipeline", str(error)))


def _first_names(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
