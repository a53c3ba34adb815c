"""Score a model on a dataset: stream pictures through it, add up counts, turn them into a table and a JSON file.

Only the counts and the few pictures worth showing are held, so memory does not grow with the dataset. A loader that is
split over the ranks of a job gives every rank its own batches; the counts are then added as integers, so that the
result is that of one process, bit for bit.
"""

from __future__ import annotations

import contextlib
import datetime
import heapq
import json
import math
import os
import pathlib
import time
from typing import Any, Callable, Iterator, Mapping, Sequence

import jittor as jt
import numpy as np
from tqdm import tqdm

from jseg.config import load_config
from jseg.data import io
from jseg.data.build import build_loader
from jseg.data.datasets.wrappers import leaves
from jseg.data.tta import augment
from jseg.engine import distributed
from jseg.engine.memory import Pool, fix_heap
from jseg.engine.model_file import build_any, own_data
from jseg.errors import ConfigError, DataError
from jseg.files import write_atomically
from jseg.metrics import METRICS, BoundaryIoU, ConfusionMatrix, SmallTargets, nan_mean, score_number, score_title
from jseg.models.image_classifier import ImageClassifier
from jseg.registry import nearest
from jseg.rules import COUNT_OR_0, FRACTION, MAPPING, POSITIVE, Rule, fields, list_of
from jseg.text import printable

__all__ = ["evaluate", "format_table", "joins_ranks", "keep_largest", "ruled_table", "save_result", "evaluation_mode",
           "evaluator_faults", "EvaluationStopped"]

_DEFAULTS = {"metrics": list(METRICS), "beta": 1.0, "boundary": None, "small_targets": None}
_RULES = {"metrics": Rule(list_of(lambda v: isinstance(v, str)), f"a list of {', '.join(METRICS)}", optional=False),
          "beta": POSITIVE, "boundary": MAPPING, "small_targets": MAPPING}
_BLOCKS = {"boundary": {"dilation_ratio": FRACTION},
           "small_targets": {"distance_px": POSITIVE, "background": COUNT_OR_0}}
_CHECK_EVERY = 32  # batches


class EvaluationStopped(Exception):
    """`stop` said so, on this rank or another."""


def evaluate(model, loader=None, evaluator_cfg: Mapping | None = None, *, tta: Mapping | None = None,
             progress: bool = True, keep: str | os.PathLike | None = None, keep_count: int = 4,
             stop: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Predict every picture of a loader and compare with its labels.

    Args:
        model: a segmentor with `predict(images, metas)`, and `predict_augmented(views)` for `tta`, or a classifier (see
            `engine.classify`), whose mode is put back after; or a checkpoint, a run's folder or an
            `InferenceSegmentor`.
        loader: an evaluation `Loader`; its dataset names classes, palette and ignore index. When it is split over
            ranks, every rank calls this and gets the same result; rank 0 writes the pictures of `keep`. Or a config
            (file, shipped name or dict) whose `val_dataloader` is taken; None: the config inside the checkpoint.
        evaluator_cfg: `{metrics: [mIoU, mDice, mFscore], beta: 1.0, boundary: null | {dilation_ratio: 0.02},
            small_targets: null | {distance_px: 3, background: 0}}`; None: the `evaluator` of a config that was named,
            else these.
        tta: `{scales: [...], flip: true}` to average augmented views; None for the plain view.
        progress: show a bar.
        keep: folder to fill with the worst and best pictures:
            `<worst|best>_<n>_{picture.jpg,truth.png,prediction.png}`.
        keep_count: how many of each.
        stop: asked before each batch; true ends the evaluation.
    Returns:
        JSON-able: "metrics" {aAcc, mIoU, ...} in 0-1, "per_class" [{name, IoU, ...}] (None where a class never occurs),
        "confusion" [[pixels]] (row = truth), "classes", "palette", "ignore_index", "images", "seconds", "date"
        (when it ended, ISO 8601), "data" {type, folders, split} of the dataset, "tta", "worst" and "best" [{index,
        img_path, mIoU, aAcc, files}] by the mIoU of the single picture, "kept_in" the name of the folder `keep`.
    Raises:
        CheckpointError: a checkpoint that cannot be read.
        ConfigError: the evaluator block is wrong, or model and dataset differ in classes, or no loader is named.
        DataError: no pictures or no labels, or a label out of range.
        EvaluationStopped: `stop` came true, here or on another rank.
    """
    model, loader, evaluator_cfg = _resolved(model, loader, evaluator_cfg)
    if isinstance(model, ImageClassifier):
        from jseg.engine.classify import evaluate_classifier  # it builds on this file
        return evaluate_classifier(model, loader, progress=progress, keep=keep, keep_count=keep_count, stop=stop)
    settings = _settings(evaluator_cfg)
    dataset = loader.dataset
    classes, ignore_index = [str(name) for name in dataset.classes], int(dataset.ignore_index)
    if len(classes) != model.num_classes:
        raise ConfigError(f"model.decode_head.num_classes is {model.num_classes}, the dataset has {len(classes)} "
                          f"classes ({', '.join(classes[:3])}, ...); make them equal")
    counts = _counters(len(classes), ignore_index, settings)
    shown = _Extremes(keep_count, with_maps=keep is not None)
    began, images = time.perf_counter(), 0
    with evaluation_mode(model):
        for meta, pred, label in _predictions(model, loader, tta, progress and distributed.is_main(), stop):
            name = str(meta.get("img_path", f"picture {images}"))
            for count in counts:
                count.update(pred, label, name=name)
            single = ConfusionMatrix(len(classes), ignore_index)
            single.update(pred, label)
            shown.add(meta.get("index", images), name, single, pred, label)
            images += 1
    images = _join_ranks(loader, counts, shown, images, stop)
    if not images:
        raise DataError("evaluation got no pictures; check the val_dataloader's data_root and data_prefix")
    worst, best = shown.records()
    if keep is not None:
        worst, best = distributed.from_main(lambda: shown.save(keep, [list(c) for c in dataset.palette]))
    scores = _scores(counts, settings)
    return {"metrics": _jsonable(scores["metrics"]), "per_class": _class_rows(classes, scores["per_class"]),
            "confusion": counts[0].matrix.tolist(), "classes": classes,
            "palette": [list(map(int, c)) for c in dataset.palette], "ignore_index": ignore_index, "images": images,
            "seconds": round(time.perf_counter() - began, 3),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "data": _data_facts(loader),
            "tta": dict(tta) if tta is not None else None,
            "worst": worst, "best": best, "kept_in": None if keep is None else pathlib.Path(keep).name}


def _resolved(model, loader, evaluator_cfg: Mapping | None) -> tuple[Any, Any, Mapping | None]:
    """Model, loader and evaluator block for what a caller may name instead."""
    config = loader
    if isinstance(model, (str, os.PathLike)):
        path = model
        model, config = build_any(path)
        config = own_data(config, path) if loader is None else loader
    elif hasattr(model, "infer"):  # an InferenceSegmentor, which this file does not import
        config = own_data(model.config, model.path) if loader is None else loader
        model = model.model
    if config is None:
        raise ConfigError("evaluate: a model alone does not say on which data; give a loader or a config")
    if isinstance(config, (str, os.PathLike)):
        config = load_config(config)
    if not isinstance(config, Mapping):
        return model, loader, evaluator_cfg
    return model, build_loader(config, "val"), evaluator_cfg or config.get("evaluator")


def _counters(num_classes: int, ignore_index: int, settings: Mapping) -> list:
    """The confusion matrix, and what else the evaluator is asked for."""
    counts: list = [ConfusionMatrix(num_classes, ignore_index)]
    try:
        for key, kind in (("boundary", BoundaryIoU), ("small_targets", SmallTargets)):
            if settings[key] is not None:
                counts.append(kind(num_classes, ignore_index, **settings[key]))
    except ValueError as error:
        raise ConfigError(f"evaluator.{key}: {error}") from error
    return counts


def _data_facts(loader) -> dict[str, Any]:
    """What was scored, for the report: the type of the dataset, its folders as the config names them, the split."""
    parts = leaves(loader.dataset)
    folders = [getattr(part, "data_root", "") or getattr(part, "data_prefix", {}).get("img_path", "") for part in parts]
    return {"type": type(loader.dataset).__name__, "folders": [str(folder) for folder in folders if folder],
            "split": getattr(loader, "split", "")}


def format_table(result: Mapping[str, Any]) -> str:
    """Lay out a result of `evaluate` for the screen: one row per class, a mean row, overall accuracy; percent, Fa in
    millionths.
    """
    if result.get("task") == "classification":
        from jseg.engine.classify import format_classes
        return format_classes(result)
    columns = [key for key in result["per_class"][0] if key != "name"]
    rows = [["class", *map(score_title, columns)]]
    rows += [[printable(row["name"]), *(_shown(key, row[key]) for key in columns)] for row in result["per_class"]]
    rows.append(["mean", *(_shown(key, result["metrics"].get(f"m{key}")) for key in columns)])
    views = "" if result.get("tta") is None else ", test-time augmentation"
    scores = result["metrics"]
    targets = "".join(f"{key} {_shown(key, scores[key])}{unit}, " for key, unit in (("Pd", " %"), ("Fa", "e-6"))
                      if key in scores)
    foot = (f"aAcc {_shown('aAcc', scores['aAcc'])} %, mIoU {_shown('mIoU', _mean_iou(result))} %, {targets}"
            f"{result['images']} pictures in {result['seconds']:.1f} s{views}")
    return ruled_table(rows, foot)


def ruled_table(rows: Sequence[Sequence[str]], foot: str) -> str:
    """Cells in columns for the screen, names on the left, rules behind the first row and before the last; a line below.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
             for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], foot])


def save_result(result: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a result as JSON, whole or not at all; folders are made. Raises CheckpointError when the disk refuses."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, allow_nan=False).encode())


@contextlib.contextmanager
def evaluation_mode(model) -> Iterator[None]:
    """Run the block with every module in evaluation mode and without gradients;
    each module's own mode comes back after.

    Unlike `model.train()` afterwards, this keeps norms frozen that were frozen before, and leaves parameters alone.
    """
    before = [(module, module.is_training()) for module in model.modules()]
    try:
        for module, _ in before:
            module.is_train = False
        with jt.no_grad():
            yield
    finally:
        for module, mode in before:
            module.is_train = mode


def evaluator_faults(cfg: Mapping | None) -> list[str]:
    """List what is wrong with an `evaluator:` block; empty when nothing is."""
    cfg = cfg or {}
    faults = fields(cfg, _RULES, "evaluator", "an evaluator")
    if _RULES["metrics"].accepts(cfg.get("metrics")):
        faults += [f"evaluator.metrics: unknown metric {name!r:.200}{nearest(name, METRICS)} (known: "
                   f"{', '.join(METRICS)})" for name in cfg["metrics"] if name not in METRICS]
    for key, rules in _BLOCKS.items():
        if isinstance(cfg.get(key), Mapping):
            faults += fields(cfg[key], rules, f"evaluator.{key}", key)
    return faults


def _settings(cfg: Mapping | None) -> dict[str, Any]:
    faults = evaluator_faults(cfg)
    if faults:
        raise ConfigError("\n".join(faults))
    return {**_DEFAULTS, **(cfg or {})}


def _join_ranks(loader, counts: list, shown: "_Extremes", images: int, stop: Callable[[], Any] | None) -> int:
    """Make counts and extremes those of all ranks; returns the pictures of all.
    Raises EvaluationStopped everywhere if any rank did.
    """
    if not joins_ranks(loader, stop):
        return images
    for count in counts:
        count.join(distributed.sum_counts)
    for entries in distributed.gather_objects(shown.entries()):
        shown.merge(entries)
    distributed.beat("computes")
    return int(distributed.sum_counts(np.array([images]))[0])


def joins_ranks(loader, stop: Callable[[], Any] | None) -> bool:
    """Whether counts are to be joined with those of other ranks, once a loader is through.
    Raises EvaluationStopped everywhere if any rank was stopped.
    """
    stopped, several = bool(stop is not None and stop()), getattr(loader, "world_size", 1) > 1
    if several:
        distributed.beat(distributed.WAITING)
        stopped = distributed.any_rank(stopped)
    if stopped:
        raise EvaluationStopped
    return several


def keep_largest(heap: list[tuple], entry: tuple, count: int) -> None:
    """Put an entry into a heap of the `count` largest ones by their first two parts."""
    if len(heap) < count:
        heapq.heappush(heap, entry)
    elif entry[:2] > heap[0][:2]:
        heapq.heapreplace(heap, entry)


def _predictions(model, loader, tta: Mapping | None, progress: bool, stop: Callable[[], Any] | None) -> Iterator[
    tuple[dict, np.ndarray, np.ndarray]]:
    """Yield (meta, predicted labels (h, w), true labels (h, w)) picture by picture,
    until the end or until `stop` says so.
    """
    fix_heap()
    pool = Pool()
    for number, batch in enumerate(tqdm(loader, total=len(loader), desc="evaluate", unit="batch",
                                        disable=None if progress else True, leave=False)):
        distributed.beat("evaluates")
        if stop is not None and stop():
            return
        if batch.labels is None:
            raise DataError(f"{batch.metas[0].get('img_path')}: no mask to compare with; set data_prefix.seg_map_path")
        if tta is None:
            predicted = model.predict(batch.images, batch.metas)
        else:
            predicted = [_predict_views(model, loader.preprocessor, meta, tta) for meta in batch.metas]
        for meta, pred, label in zip(batch.metas, predicted, batch.labels):
            rows, columns = meta.get("label_shape") or label.shape
            yield meta, pred, label[:rows, :columns]
        if number % _CHECK_EVERY == _CHECK_EVERY - 1:
            pool.check()


def _predict_views(model, preprocessor, meta: Mapping, tta: Mapping) -> np.ndarray:
    """Labels of one picture from its augmented views, each made from the file itself as mmsegmentation does."""
    views = augment(io.read_image(meta["img_path"]), **tta, name=str(meta["img_path"]))
    batches = [preprocessor.batch([view], training=False) for view in views]
    return model.predict_augmented([(batch.images, batch.metas) for batch in batches])[0]


def _scores(counts: list, settings: Mapping) -> dict[str, dict]:
    scores = counts[0].compute(settings["metrics"], beta=settings["beta"])
    for count in counts[1:]:
        more = count.compute()
        scores = {key: {**scores[key], **more[key]} for key in scores}
    return scores


def _class_rows(classes: list[str], per_class: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{"name": name, **_jsonable({key: values[k] for key, values in per_class.items()})}
            for k, name in enumerate(classes)]


def _jsonable(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {key: None if math.isnan(value) else float(value) for key, value in scores.items()}


def _shown(key: str, value: float | None) -> str:
    return "-" if value is None else f"{score_number(key, value):.2f}"


def _mean_iou(result: Mapping[str, Any]) -> float | None:
    """mIoU of a result, from its confusion matrix when the evaluator was not asked for it."""
    if "mIoU" in result["metrics"]:
        return result["metrics"]["mIoU"]
    counts = ConfusionMatrix(len(result["classes"]))
    counts.matrix = np.asarray(result["confusion"], np.int64)
    value = counts.compute(["mIoU"])["metrics"]["mIoU"]
    return None if math.isnan(value) else value


class _Extremes:
    """The n pictures with the lowest and the n with the highest mIoU so far;
    pictures without any label are passed over.
    """

    def __init__(self, count: int, with_maps: bool):
        self.count, self.with_maps = count, with_maps
        self._worst: list[tuple] = []  # heaps of (key, -index, record, maps); the smallest key is the first to go
        self._best: list[tuple] = []

    def add(self, index: int, path: str, counts: ConfusionMatrix, pred: np.ndarray, label: np.ndarray) -> None:
        scores = counts.compute(["mIoU"])
        value = nan_mean(scores["per_class"]["IoU"])
        if math.isnan(value) or not self.count:
            return
        record = {"index": index, "img_path": path, "mIoU": value, "aAcc": scores["metrics"]["aAcc"]}
        for heap, key in ((self._worst, -value), (self._best, value)):
            if len(heap) == self.count and (key, -index) <= heap[0][:2]:
                continue
            maps = (pred.copy(), label.copy()) if self.with_maps else None
            keep_largest(heap, (key, -index, record, maps), self.count)

    def entries(self) -> tuple[list, list]:
        """What `merge` takes: copies of both lists."""
        return list(self._worst), list(self._best)

    def merge(self, entries: tuple[list, list]) -> None:
        """Take in the entries of another part of the dataset, or one's own again."""
        for heap, others in zip((self._worst, self._best), entries):
            for entry in others:
                if all(entry[1] != mine[1] for mine in heap):
                    keep_largest(heap, entry, self.count)

    def _ordered(self) -> tuple[list[tuple], list[tuple]]:
        """Worst first, best first; a small dataset's picture is not shown as both."""
        worst, best = (sorted(heap, key=lambda entry: (-entry[0], -entry[1])) for heap in (self._worst, self._best))
        taken = {entry[1] for entry in worst}
        if len(taken | {entry[1] for entry in best}) < len(worst) + len(best):
            every = {entry[1]: entry for entry in best + worst}
            by_score = sorted(every.values(), key=lambda entry: entry[2]["mIoU"])
            half = (len(by_score) + 1) // 2
            worst, best = by_score[:half][:self.count], by_score[half:][::-1][:self.count]
        return worst, best

    def records(self) -> tuple[list[dict], list[dict]]:
        """Return (worst, best) as JSON-able records."""
        worst, best = self._ordered()
        return [entry[2] for entry in worst], [entry[2] for entry in best]

    def save(self, folder: str | os.PathLike, palette: list) -> tuple[list[dict], list[dict]]:
        """Write picture, truth and prediction of each; return the records with their file names."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("worst", "best"):
            for old in folder.glob(f"{kind}_*"):
                old.unlink()
        return tuple([self._save_one(folder, f"{kind}_{place}", entry, palette)
                      for place, entry in enumerate(entries, 1)]
                     for kind, entries in zip(("worst", "best"), self._ordered()))

    @staticmethod
    def _save_one(folder: pathlib.Path, stem: str, entry: tuple, palette: list) -> dict:
        record, (pred, label) = entry[2], entry[3]
        colours = None
        if max(int(label.max()), int(pred.max())) < 256:
            colours = palette[:256] + [[0, 0, 0]] * (256 - len(palette))  # ignored labels show black
        names = {"picture": f"{stem}_picture.jpg", "truth": f"{stem}_truth.png", "prediction": f"{stem}_prediction.png"}
        io.write_image(folder / names["picture"], io.read_image(record["img_path"]), quality=90)
        io.write_mask(folder / names["truth"], label, palette=colours)
        io.write_mask(folder / names["prediction"], pred, palette=colours)
        return {**record, "files": names}
