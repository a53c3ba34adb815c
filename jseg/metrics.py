"""Segmentation metrics from streaming counts: confusion matrix scores, boundary IoU, detected small targets. NumPy and
OpenCV only.

Scores follow mmsegmentation 1.2.2's `IoUMetric` (mmseg/evaluation/metrics/iou_metric.py): counts of all pictures are
added up first and divided once, a class that never occurs scores NaN, and means leave NaN out. Boundary IoU follows
"Boundary IoU: Improving Object-Centric Image Segmentation Evaluation" (CVPR 2021) and its reference code
(bowenc0221/boundary-iou-api, boundary_iou/utils/boundary_utils.py). Pd and Fa follow DNANet ("Dense Nested Attention
Network for Infrared Small Target Detection", TIP 2023) and XinyiYing/BasicIRSTD, metrics.py@41db8c1.

Deviations: counts are int64 and scores float64 (mmseg: float32); scores are ratios in 0-1 (mmseg prints percent); a
label outside the class range is an error (mmseg drops it without a word); boundary IoU is summed over a dataset per
class, as IoU is, because the paper scores instances or single pictures; a false area counts in Fa whatever its size
(BasicIRSTD leaves out one that is as large as a matched area), and ignored pixels count nowhere.
"""

from __future__ import annotations

import math
from typing import Sequence

import cv2
import numpy as np

from jseg.errors import DataError

__all__ = ["ConfusionMatrix", "BoundaryIoU", "SmallTargets", "mask_boundary", "score_number", "score_title",
           "CLASSIFIER_SCORES", "METRICS", "MILLIONTHS", "SCORES"]

METRICS = {"mIoU": ("IoU", "Acc"), "mDice": ("Dice", "Acc"), "mFscore": ("Fscore", "Precision", "Recall")}
SCORES = ("aAcc", *dict.fromkeys(f"m{part}" for parts in METRICS.values() for part in parts), "mBoundaryIoU", "Pd")
CLASSIFIER_SCORES = ("top1", "top5", "mAcc")  # of networks that classify whole pictures
MILLIONTHS = ("Fa",)  # scores shown in millionths; all others in percent


class ConfusionMatrix:
    """Count pixels per (true class, predicted class) pair; memory is K * K numbers whatever the number of pictures.

    Args:
        num_classes: K, at least 1.
        ignore_index: label value that takes no part, outside or inside 0..K-1.

    Attributes:
        matrix: (K, K) int64; row = true class, column = predicted class.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255):
        if num_classes < 1:
            raise ValueError(f"ConfusionMatrix: num_classes is {num_classes}, at least 1 is needed")
        self.num_classes = int(num_classes)
        self.ignore_index = int(ignore_index)
        self.matrix = np.zeros((self.num_classes, self.num_classes), np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray, *, name: str = "") -> None:
        """Add one picture or one batch.

        Args:
            pred: integer classes, any shape; values under ignored labels do not matter.
            label: integer true classes of the same shape.
            name: file name for error messages.
        Raises:
            DataError: shapes differ, or a value is neither a class nor `ignore_index`.
        """
        pred, label = _pair(pred, label, name)
        label, valid = _checked(label, self.num_classes, self.ignore_index, name)
        k = self.num_classes
        kept = pred[valid].astype(np.int64)
        if kept.size and (kept.min() < 0 or kept.max() >= k):
            raise DataError(f"{_at(name)}prediction has class {_first_bad(kept, k)}, accepted 0..{k - 1}; the model "
                            "has more classes than the dataset: check num_classes in the config")
        pairs = label[valid].astype(np.int64) * k + kept
        self.matrix += np.bincount(pairs, minlength=k * k).reshape(k, k)

    def __add__(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """Return the counts of both; the parts must have the same classes and ignore index."""
        if (self.num_classes, self.ignore_index) != (other.num_classes, other.ignore_index):
            raise ValueError(f"cannot add confusion matrices of {self.num_classes} and {other.num_classes} classes "
                             f"with ignore index {self.ignore_index} and {other.ignore_index}")
        total = ConfusionMatrix(self.num_classes, self.ignore_index)
        total.matrix = self.matrix + other.matrix
        return total

    def join(self, total) -> None:
        """Replace the counts by `total(counts)`, their sum over the parts of a dataset that other processes counted."""
        self.matrix = total(self.matrix)

    def compute(self, metrics: Sequence[str] = ("mIoU", "mDice", "mFscore"), *, beta: float = 1.0) -> dict:
        """Turn the counts into scores in 0-1.

        Args:
            metrics: any of "mIoU" (IoU, Acc), "mDice" (Dice, Acc), "mFscore" (Fscore, Precision, Recall).
            beta: weight of recall in Fscore, above 0.
        Returns:
            {"metrics": {"aAcc": float, "mIoU": float, ...}, "per_class": {"IoU": (K,) float64, ...}}. NaN marks a class
            whose score is 0 / 0 (and Fscore where precision and recall are both 0, as in mmseg); means leave it out.
        Raises:
            ValueError: an unknown metric name, or beta is not positive.
        """
        unknown = [m for m in metrics if m not in METRICS]
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}, accepted: {', '.join(METRICS)}")
        if not beta > 0:
            raise ValueError(f"beta is {beta}, it must be above 0")
        hit = np.diag(self.matrix).astype(np.float64)
        truth, guess = self.matrix.sum(1).astype(np.float64), self.matrix.sum(0).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision, recall = hit / guess, hit / truth
            scores = {"IoU": hit / (truth + guess - hit), "Acc": recall, "Dice": 2 * hit / (truth + guess),
                      "Fscore": (1 + beta**2) * precision * recall / (beta**2 * precision + recall),
                      "Precision": precision, "Recall": recall}
            overall = float(hit.sum() / truth.sum())
        wanted = list(dict.fromkeys(key for metric in metrics for key in METRICS[metric]))
        per_class = {key: scores[key] for key in wanted}
        return {"metrics": {"aAcc": overall, **{f"m{key}": nan_mean(value) for key, value in per_class.items()}},
                "per_class": per_class}


class BoundaryIoU:
    """IoU of the bands along the mask borders, summed over pictures per class (CVPR 2021, eq. 4).

    A band holds the pixels of a mask that lie within d pixels (chessboard distance) of its border; the picture's edge
    counts as border. d = `dilation_ratio` * picture diagonal, rounded, at least 1 pixel. Ignored pixels belong to no
    class in truth and prediction alike, so the edge of an ignored area is a border in both.

    Args:
        num_classes: K, at least 1.
        ignore_index: label value that takes no part.
        dilation_ratio: share of the diagonal, above 0 (paper: 0.02).
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, *, dilation_ratio: float = 0.02):
        if num_classes < 1 or not dilation_ratio > 0:
            raise ValueError(f"BoundaryIoU: num_classes is {num_classes} (at least 1), dilation_ratio {dilation_ratio} "
                             "(above 0)")
        self.num_classes, self.ignore_index, self.dilation_ratio = int(num_classes), int(ignore_index), float(
            dilation_ratio)
        self.intersection = np.zeros(self.num_classes, np.int64)
        self.union = np.zeros(self.num_classes, np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray, *, name: str = "") -> None:
        """Add one picture: pred and label are (H, W) integer maps.
        Raises DataError as `ConfusionMatrix.update` does.
        """
        pred, label, valid, present = _one_picture(self, pred, label, name)
        distance = max(1, round(self.dilation_ratio * math.hypot(*label.shape)))
        for k in sorted(present):
            true_band = mask_boundary((label == k) & valid, distance)
            pred_band = mask_boundary((pred == k) & valid, distance)
            both = int(np.count_nonzero(true_band & pred_band))
            self.intersection[k] += both
            self.union[k] += int(np.count_nonzero(true_band)) + int(np.count_nonzero(pred_band)) - both

    def __add__(self, other: "BoundaryIoU") -> "BoundaryIoU":
        """Return the counts of both; the parts must have the same settings."""
        mine = (self.num_classes, self.ignore_index, self.dilation_ratio)
        theirs = (other.num_classes, other.ignore_index, other.dilation_ratio)
        if mine != theirs:
            raise ValueError(f"cannot add boundary counts made with (classes, ignore index, ratio) {mine} and {theirs}")
        total = BoundaryIoU(self.num_classes, self.ignore_index, dilation_ratio=self.dilation_ratio)
        total.intersection, total.union = self.intersection + other.intersection, self.union + other.union
        return total

    def join(self, total) -> None:
        """Replace the counts by `total(counts)`, their sum over the parts of a dataset that other processes counted."""
        self.intersection, self.union = total(self.intersection), total(self.union)

    def compute(self) -> dict:
        """Return {"metrics": {"mBoundaryIoU": float}, "per_class": {"BoundaryIoU":
        (K,) float64}}, NaN for absent classes.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            score = self.intersection / self.union
        return {"metrics": {"mBoundaryIoU": nan_mean(score)}, "per_class": {"BoundaryIoU": score}}


class SmallTargets:
    """Probability of detection Pd and false-alarm rate Fa of small targets (infrared small-target detection).

    A target is an area of one class, its pixels joined by sides or corners. Targets are taken by their first pixels,
    row by row; each is detected by the first predicted area of its class whose centroid is less than `distance_px` from
    its own and which has detected none before. Pd = detected targets / targets, Fa = pixels of the predicted areas that
    detected none / pixels. Pixels of a matched area beyond its target are no false alarm.

    Args:
        num_classes: K, at least 1.
        ignore_index: label value that takes no part.
        distance_px: above 0 (the papers: 3).
        background: the class that is no target, 0..K-1.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, *, distance_px: float = 3.0, background: int = 0):
        if not distance_px > 0 or not 0 <= background < num_classes:
            raise ValueError(f"SmallTargets: distance_px is {distance_px} (above 0), background {background} (a class, "
                             f"0..{num_classes - 1})")
        self.num_classes, self.ignore_index = int(num_classes), int(ignore_index)
        self.distance_px, self.background = float(distance_px), int(background)
        self.targets, self.detected, self.false_px = np.zeros((3, self.num_classes), np.int64)
        self.pixels = np.zeros(1, np.int64)

    def update(self, pred: np.ndarray, label: np.ndarray, *, name: str = "") -> None:
        """Add one picture: pred and label are (H, W) integer maps.
        Raises DataError as `ConfusionMatrix.update` does.
        """
        pred, label, valid, present = _one_picture(self, pred, label, name)
        for k in sorted(present - {self.background}):
            targets, (sizes, centres) = _areas((label == k) & valid)[1], _areas((pred == k) & valid)
            free = np.ones(len(sizes), bool)
            for target in targets:
                near = np.flatnonzero(free & (np.hypot(*(centres - target).T) < self.distance_px))
                free[near[:1]] = False
            self.targets[k] += len(targets)
            self.detected[k] += np.count_nonzero(~free)
            self.false_px[k] += sizes[free].sum()
        self.pixels += np.count_nonzero(valid)

    def join(self, total) -> None:
        """Replace the counts by `total(counts)`, their sum over the parts of a dataset that other processes counted."""
        self.targets, self.detected, self.false_px, self.pixels = (
            total(counts) for counts in (self.targets, self.detected, self.false_px, self.pixels))

    def compute(self) -> dict:
        """Return {"metrics": {"Pd": float, "Fa": float}, "per_class": {"Pd": (K,) float64, "Fa": (K,)}}, all in 0-1,
        NaN for the background and for what has no target or no pixel; the metrics are of the targets of all classes.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            detected, false = self.detected / self.targets, self.false_px / self.pixels
            overall = {"Pd": float(self.detected.sum() / self.targets.sum()),
                       "Fa": float(self.false_px.sum() / self.pixels[0])}
        false[self.background] = np.nan
        return {"metrics": overall, "per_class": {"Pd": detected, "Fa": false}}


def score_title(name: str) -> str:
    """A score's name over numbers of `score_number`: those that are not percent say in what they are counted."""
    return f"{name} (1e-6)" if name in MILLIONTHS else name


def score_number(name: str, value: float) -> float:
    """A score in the unit it is shown in: percent, or millionths for Fa."""
    return value * (1e6 if name in MILLIONTHS else 100)


def mask_boundary(mask: np.ndarray, distance_px: int) -> np.ndarray:
    """Return the pixels of a mask within `distance_px` of its border: (H, W) bool -> (H, W) bool.

    The mask is framed with one pixel of background first, so that the picture's edge erodes it as in the paper's code.
    """
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=int(distance_px))[1:-1, 1:-1]
    return mask.astype(bool) & (inner == 0)


def _areas(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (A,) and centroids (A, 2) of the areas of a mask, joined by sides or corners, by their first pixels."""
    _, marks, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    first = np.unique(marks[marks > 0], return_index=True)[1]  # OpenCV's own order is not row by row
    order = np.argsort(first)
    return stats[1:, cv2.CC_STAT_AREA][order].astype(np.int64), centres[1:][order]


def nan_mean(values: np.ndarray) -> float:
    """Return the mean of the values that are not NaN, NaN when none is left (without NumPy's warning)."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _pair(pred: np.ndarray, label: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    pred, label = np.asarray(pred), np.asarray(label)
    if pred.shape != label.shape:
        raise DataError(f"{_at(name)}prediction has shape {pred.shape}, label {label.shape}; both must cover the same "
                        "pixels")
    if pred.dtype.kind not in "iub" or label.dtype.kind not in "iub":
        raise DataError(f"{_at(name)}prediction is {pred.dtype}, label {label.dtype}; integer class maps are accepted")
    return pred, label


def _checked(label: np.ndarray, num_classes: int, ignore_index: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the label map and its mask of scored pixels; DataError for a value that is no class."""
    valid = label != ignore_index
    kept = label[valid]
    if kept.size and (kept.min() < 0 or kept.max() >= num_classes):
        bad = _first_bad(kept, num_classes)
        place = tuple(int(i) for i in np.argwhere(label == bad)[0])
        raise DataError(f"{_at(name)}label {bad} at {place}, accepted 0..{num_classes - 1} and {ignore_index} "
                        "(ignored); check num_classes and reduce_zero_label in the config, or the mask file")
    return label, valid


def _one_picture(counter: BoundaryIoU | SmallTargets, pred: np.ndarray, label: np.ndarray,
                 name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, set[int]]:
    """Both maps of one picture, the mask of scored pixels, and the classes that occur there."""
    pred, label = _pair(pred, label, name)
    if label.ndim != 2:
        raise ValueError(f"{type(counter).__name__}.update takes one (H, W) map at a time, got shape {label.shape}")
    label, valid = _checked(label, counter.num_classes, counter.ignore_index, name)
    found = set(np.unique(label[valid]).tolist()) | set(np.unique(pred[valid]).tolist())
    return pred, label, valid, found & set(range(counter.num_classes))


def _first_bad(values: np.ndarray, num_classes: int) -> int:
    return int(values[(values < 0) | (values >= num_classes)][0])


def _at(name: str) -> str:
    return f"{name}: " if name else ""
