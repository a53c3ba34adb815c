"""The runs of a comparison: what is compared with what, under which name, and over which classes."""

from __future__ import annotations

import os
import pathlib
import statistics
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.errors import DataError
from jseg.metrics import ConfusionMatrix
from jseg.report.parts import finite_number, scored_data
from jseg.report.run import RunRecord, read_run

__all__ = ["RunGroup", "class_ious", "common_classes", "is_repeated", "main_score", "mean_iou", "read_groups",
           "warnings_of"]


@dataclass
class RunGroup:
    """Runs that differ in their seed only, or a single run.

    Attributes:
        name: shortest end of its path that no other group has.
        path: as given.
        runs: at least one.
        repeated: made by `jseg train --repeat`: a folder of `seed_<n>/`.
        notes: what was left out.
    """

    name: str
    path: pathlib.Path
    runs: list[RunRecord]
    repeated: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def results(self) -> list[dict[str, Any]]:
        """The results of the runs that have one."""
        return [run.result for run in self.runs if run.result is not None]

    def scores(self, name: str) -> list[float]:
        """A score of every result that has it."""
        values = [finite_number(result["metrics"].get(name)) for result in self.results]
        return [value for value in values if value is not None]


def is_repeated(path: str | os.PathLike) -> bool:
    """Whether a folder is one of `jseg train --repeat`: no run itself, but of runs `seed_<n>/`."""
    folder = pathlib.Path(path)
    return not any((folder / name).exists() for name in ("log.jsonl", "metrics.json")) and bool(_seed_folders(folder))


def read_groups(paths: Sequence[str | os.PathLike]) -> list[RunGroup]:
    """Read what is to be compared: folders of runs, folders of repeated runs, result files of `jseg val --out`.

    Raises:
        DataError: one of them holds nothing to report, or is given twice.
    """
    places = [pathlib.Path(path) for path in paths]
    found = [place.resolve() for place in places]
    for place, real in zip(places, found):
        if found.count(real) > 1:
            raise DataError(f"{place}: is given twice; a run is compared with others")
    return [_read_group(name, place) for name, place in zip(_distinct_names(found), places)]


def _read_group(name: str, path: pathlib.Path) -> RunGroup:
    if not is_repeated(path):
        return RunGroup(name, path, [read_run(path)])
    group = RunGroup(name, path, [], repeated=True)
    for folder in _seed_folders(path):
        try:
            run = read_run(folder)
        except DataError as error:
            group.notes.append(str(error))
            continue
        group.runs.append(run)
        if run.result is None:
            group.notes.append(f"{folder}: has no metrics.json (it was not finished); its scores are left out")
    if not group.runs:
        raise DataError(f"{path}: no seed_*/ in it holds anything to report: {'; '.join(group.notes)}")
    return group


def _seed_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    found = [path for path in folder.glob("seed_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _distinct_names(paths: Sequence[pathlib.Path]) -> list[str]:
    """For each path the fewest last parts that tell it from the others; a result file is named with its folder."""
    names = []
    for path in paths:
        count = 2 if path.suffix == ".json" else 1
        while count < len(path.parts) and any(other != path and other.parts[-count:] == path.parts[-count:]
                                              for other in paths):
            count += 1
        names.append("/".join(path.parts[-count:]))
    return names


def main_score(groups: Sequence[RunGroup]) -> str:
    """The score that decides: top1 where all results are a classifier's, else mIoU."""
    results = [result for group in groups for result in group.results]
    return "top1" if results and all(result.get("task") == "classification" for result in results) else "mIoU"


def class_ious(result: Mapping[str, Any]) -> dict[str, float | None]:
    """IoU of each class, from the confusion matrix; None for a class that never occurs. Of a classifier's result the
    accuracy."""
    if result.get("task") == "classification":
        return {row["name"]: finite_number(row.get("Acc")) for row in result["per_class"]}
    counts = ConfusionMatrix(len(result["classes"]))
    counts.matrix = np.asarray(result["confusion"], np.int64)
    return dict(zip(result["classes"], map(finite_number, counts.compute(["mIoU"])["per_class"]["IoU"].tolist())))


def common_classes(groups: Sequence[RunGroup]) -> list[str]:
    """The classes that every result knows, in the order of the first."""
    lists = [result["classes"] for group in groups for result in group.results]
    return [name for name in lists[0] if all(name in classes for classes in lists)] if lists else []


def mean_iou(result: Mapping[str, Any], classes: Sequence[str]) -> float | None:
    """Mean IoU of some of the classes; those that never occur are left out."""
    ious = class_ious(result)
    known = [ious[name] for name in classes if ious[name] is not None]
    return statistics.fmean(known) if known else None


def warnings_of(groups: Sequence[RunGroup]) -> list[str]:
    """What makes the scores of these groups less comparable than they look, in sentences."""
    told = []
    common = common_classes(groups)
    extra = {group.name: [name for result in group.results for name in result["classes"] if name not in common]
             for group in groups}
    if any(extra.values()):
        lists = "; ".join(f"{name}: {', '.join(dict.fromkeys(names))}" for name, names in extra.items() if names)
        told.append(f"Different classes: only the {len(common)} that all know are compared. Left out: {lists}")
    for what, fact in _FACTS.items():
        seen: dict[str, list[str]] = {}
        for group in groups:
            for text in dict.fromkeys(map(fact, group.results)):
                if text:  # results of older versions do not say
                    seen.setdefault(text, []).append(group.name)
        if len(seen) > 1:
            lists = "; ".join(f"{', '.join(names)}: {text}" for text, names in seen.items())
            told.append(f"Different {what}: {lists}")
    return told


_FACTS = {
    "types of data set": lambda result: scored_data(result).type,
    "splits": lambda result: scored_data(result).split,
    "data folders": lambda result: scored_data(result).folders,
    "numbers of pictures": lambda result: f"{result['images']:,}",
    "test-time augmentation": lambda result: "none" if result.get("tta") is None else str(result["tta"])}
