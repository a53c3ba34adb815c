"""Score a classifier on a dataset: top-1 and top-5, each class, what is taken for what, the worst pictures.

What `engine.evaluate.evaluate` does for a classifier. Meaning of the scores: mmpretrain 1.2 `Accuracy(topk=(1, 5))`,
timm's `accuracy`: of equal scores the first class counts. A loader that is split over ranks gives every rank its own
batches; counts are added as integers, so that the result is that of one process, bit for bit.
"""

from __future__ import annotations

import datetime
import os
import pathlib
import time
from typing import Any, Callable, Mapping, Sequence

import jittor as jt
import numpy as np
from tqdm import tqdm

from jseg.data import io
from jseg.engine import distributed
from jseg.engine.evaluate import evaluation_mode, joins_ranks, keep_largest, ruled_table
from jseg.engine.memory import fix_heap
from jseg.errors import ConfigError, DataError
from jseg.metrics import nan_mean
from jseg.text import printable

__all__ = ["TOP", "evaluate_classifier", "format_classes"]

TOP = 5


def evaluate_classifier(model, loader, *, progress: bool = True, keep: str | os.PathLike | None = None,
                        keep_count: int = 4, stop: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Classify every picture of a loader and compare with its class.

    Args, raises: as `engine.evaluate.evaluate`.
    Returns:
        as there: "metrics" {top1, top5, mAcc} in 0-1, "per_class" [{name, Acc, Top5, Precision}] (None where a class
        never occurs), "confusion" [[pictures]] (row = truth), "worst" [{index, img_path, truth, guess, prob, files}] by
        the probability of the true class, "task": "classification".
    """
    classes = [str(name) for name in loader.dataset.classes]
    if len(classes) != model.num_classes:
        raise ConfigError(f"model.head.num_classes is {model.num_classes}, the dataset has {len(classes)} classes "
                          f"({', '.join(classes[:3])}, ...); make them equal")
    counts, shown = _Counts(len(classes)), _Worst(keep_count)
    began = time.perf_counter()
    fix_heap()
    with evaluation_mode(model):
        for batch in tqdm(loader, total=len(loader), desc="evaluate", unit="batch", leave=False,
                          disable=None if progress and distributed.is_main() else True):
            distributed.beat("evaluates")
            if stop is not None and stop():
                break
            logits = model(jt.array(batch.images)).float32().numpy()
            counts.update(logits, batch.labels)
            shown.add(batch.metas, logits, batch.labels)
    _join_ranks(loader, counts, shown, stop)
    if not counts.matrix.any():
        raise DataError("evaluation got no pictures; check the val_dataloader's data_root and data_prefix")
    worst = shown.records(classes)
    if keep is not None:
        worst = distributed.from_main(lambda: _saved_pictures(worst, pathlib.Path(keep)))
    dataset = loader.dataset
    return {**counts.scores(classes), "task": "classification", "confusion": counts.matrix.tolist(),
            "classes": classes, "palette": [list(map(int, c)) for c in dataset.palette], "ignore_index": -1,
            "images": int(counts.matrix.sum()), "seconds": round(time.perf_counter() - began, 3),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "data": {"type": type(dataset).__name__, "folders": [str(getattr(dataset, "folder", ""))],
                     "split": getattr(loader, "split", "")},
            "tta": None, "worst": worst, "best": [], "kept_in": None if keep is None else pathlib.Path(keep).name}


def format_classes(result: Mapping[str, Any]) -> str:
    """Lay out a classifier's result for the screen: a row per class, a mean row, top-1 and top-5; percent."""
    columns = [key for key in result["per_class"][0] if key != "name"]
    rows = [["class", *columns]]
    rows += [[printable(row["name"]), *(_percent(row[key]) for key in columns)] for row in result["per_class"]]
    rows.append(["mean", *(_percent(_mean(row[key] for row in result["per_class"])) for key in columns)])
    scores = result["metrics"]
    foot = (f"top-1 {_percent(scores['top1'])} %, top-5 {_percent(scores['top5'])} %, {result['images']} pictures in "
            f"{result['seconds']:.1f} s")
    return ruled_table(rows, foot)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


class _Counts:
    """Pictures by (true class, first class), and those of each class among whose first five it is."""

    def __init__(self, num_classes: int):
        self.matrix, self.top = np.zeros((num_classes, num_classes), np.int64), np.zeros(num_classes, np.int64)

    def update(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch: (N, K) float32, (N,) int32."""
        order = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]  # (N, 5)
        np.add.at(self.matrix, (labels, order[:, 0]), 1)
        np.add.at(self.top, labels[(order == labels[:, None]).any(1)], 1)

    def scores(self, classes: Sequence[str]) -> dict[str, Any]:
        """"metrics" and "per_class" of all that was added."""
        total, hits = self.matrix.sum(1), np.diag(self.matrix)
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = {"Acc": hits / total, "Top5": self.top / total, "Precision": hits / self.matrix.sum(0)}
        rows = [{"name": name, **{key: None if np.isnan(values[k]) else float(values[k])
                                  for key, values in columns.items()}} for k, name in enumerate(classes)]
        every = max(int(total.sum()), 1)
        return {"metrics": {"top1": float(hits.sum() / every), "top5": float(self.top.sum() / every),
                            "mAcc": nan_mean(columns["Acc"])}, "per_class": rows}


class _Worst:
    """The n pictures whose true class has the smallest probability, of those that are taken for another."""

    def __init__(self, count: int):
        self.count, self.entries = count, []  # a heap of (-probability, -index, path, truth, guess)

    def add(self, metas: Sequence[Mapping], logits: np.ndarray, labels: np.ndarray) -> None:
        """Add a batch."""
        logits = logits.astype(np.float64)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        for meta, prob, truth in zip(metas, probs, labels.tolist()):
            guess = int(prob.argmax())
            if guess != truth and self.count:
                entry = (-float(prob[truth]), -int(meta["index"]), str(meta["img_path"]), truth, guess)
                keep_largest(self.entries, entry, self.count)

    def merge(self, entries: Sequence[tuple]) -> None:
        """Take in the entries of another part of the dataset, or one's own again."""
        for entry in entries:
            if entry not in self.entries:
                keep_largest(self.entries, tuple(entry), self.count)

    def records(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """JSON-able records, the worst first."""
        return [{"index": -index, "img_path": path, "truth": classes[truth], "guess": classes[guess], "prob": -prob}
                for prob, index, path, truth, guess in sorted(self.entries, reverse=True)]


def _join_ranks(loader, counts: _Counts, shown: _Worst, stop: Callable[[], Any] | None) -> None:
    """Make counts and pictures those of all ranks. Raises EvaluationStopped everywhere if any rank was stopped."""
    if joins_ranks(loader, stop):
        counts.matrix, counts.top = distributed.sum_counts(counts.matrix), distributed.sum_counts(counts.top)
        for entries in distributed.gather_objects(list(shown.entries)):
            shown.merge(entries)
        distributed.beat("computes")


def _saved_pictures(records: Sequence[Mapping], folder: pathlib.Path) -> list[dict[str, Any]]:
    """Write the pictures of the records; the records with their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("worst_*"):
        old.unlink()
    saved = []
    for place, record in enumerate(records, 1):
        name = f"worst_{place}_picture.jpg"
        io.write_image(folder / name, io.read_image(record["img_path"]), quality=90)
        saved.append({**record, "files": {"picture": name}})
    return saved
