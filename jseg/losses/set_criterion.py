"""Losses of a head that predicts a set of classes with a mask each: match, then compare what was matched.

Papers: Carion et al. (DETR), ECCV 2020, sec. 3.1; Cheng et al. (MaskFormer), NeurIPS 2021, sec. 3.2; Cheng et al.
(Mask2Former), CVPR 2022, sec. 3.3 (points instead of pixels; Kirillov et al. (PointRend), CVPR 2020, chose them so
first). Upstream: mmdetection 3.x mmdet/models/dense_heads/{maskformer,mask2former}_head.py and
mmdet/models/utils/point_sample.py, and mmsegmentation 1.2.2 mmseg/models/decode_heads/{maskformer,mask2former}_head.py
(Apache-2.0), whose words and arithmetic these are.

A picture's targets are the classes its label map shows, each with the mask of its pixels; ignored pixels are in no
mask. Deviations: in a step split over ranks, losses are averaged over the masks of all ranks (upstream: over the mean
number of a rank's, twice as large for two ranks; its gradients are averaged afterwards, which gives the same); costs of
all layers are computed at once.
"""

from __future__ import annotations

from typing import Mapping, NamedTuple, Sequence

import jittor as jt
import numpy as np

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.top import choose_points
from jseg.losses import match_costs, set_losses  # noqa: F401  (importing them fills the registries)
from jseg.losses.assignment import linear_sum_assignment
from jseg.losses.common import EPS
from jseg.ops import ranks
from jseg.ops.labels import check_label_range
from jseg.registry import MATCH_COSTS, SET_LOSSES, construct

__all__ = ["HungarianAssigner", "Matches", "Points", "SetCriterion"]


class Matches(NamedTuple):
    """What was matched in one layer, (M,) int64 each: picture, query and class."""

    pictures: np.ndarray
    queries: np.ndarray
    classes: np.ndarray


class HungarianAssigner:
    """Assign targets to queries with the least sum of costs.

    Args:
        match_costs: one cost block or a list; they are added up.
    """

    def __init__(self, match_costs):
        blocks = match_costs if isinstance(match_costs, (list, tuple)) else [match_costs]
        self.costs = [MATCH_COSTS.build(block, f"match_costs[{i}]") for i, block in enumerate(blocks)]
        if not self.costs:
            raise ValueError("match_costs is empty; give at least one cost")

    def __call__(self, scores: jt.Var, masks: jt.Var, classes: np.ndarray, targets: jt.Var) -> list[
        tuple[np.ndarray, np.ndarray]]:
        """For each of B layers (queries, targets), as numbers. Shapes: see `jseg.losses.match_costs`."""
        with jt.no_grad():
            total = sum(cost(scores, masks, classes, targets) for cost in self.costs).numpy()
        return [linear_sum_assignment(cost) for cost in total]


class Points(NamedTuple):
    """How many points a mask is compared at, and how they are chosen.

    num_points are kept: `importance_sample_ratio` of them, 0 to 1, are the most undecided of `oversample_ratio` times
    as many random ones; the others are random.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75


class SetCriterion:
    """All losses of a head that classifies masks.

    Args:
        num_classes: K; class K is "nothing".
        loss_cls, loss_mask, loss_dice: blocks of set losses, of the classes, and of the masks pixel by pixel and as a
            whole.
        train_cfg: `{assigner: {type: HungarianAssigner, match_costs: [...]}, sampler: {type: MaskPseudoSampler}}` and,
            with points, the words of `Points`; None: the head can only be evaluated.
        ignore_index: label value that is no class.
        at_points: compare masks at points instead of pixels.
    Raises:
        ConfigError: a block that does not fit, or class weights of another number than K + 1.
    """

    def __init__(self, num_classes: int, *, loss_cls: Mapping, loss_mask: Mapping, loss_dice: Mapping,
                 train_cfg: Mapping | None, ignore_index: int = 255, at_points: bool = False):
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.loss_cls, self.loss_mask, self.loss_dice = (SET_LOSSES.build(block, name) for name, block in (
            ("loss_cls", loss_cls), ("loss_mask", loss_mask), ("loss_dice", loss_dice)))
        weights = getattr(self.loss_cls, "class_weight", None)
        if not isinstance(self.loss_cls, set_losses.CrossEntropyLoss) or self.loss_cls.use_sigmoid:
            raise ConfigError("loss_cls: accepted: CrossEntropyLoss with use_sigmoid false, classes exclude each other")
        if weights is not None and len(weights) != num_classes + 1:
            raise ConfigError(f"loss_cls.class_weight has {len(weights)} values; accepted: num_classes + 1 = "
                              f"{num_classes + 1}, the last of queries without a class")
        words = {key: value for key, value in (train_cfg or {}).items() if key not in ("assigner", "sampler")}
        sampler = (train_cfg or {}).get("sampler") or {"type": "MaskPseudoSampler"}
        if sampler.get("type") != "MaskPseudoSampler" or (words and not at_points):
            raise ConfigError(f"train_cfg: sampler is {dict(sampler)} (accepted: MaskPseudoSampler, which takes every "
                              f"query), and words of points are {sorted(words)} (of Mask2FormerHead only)")
        self.points = construct(Points, words, "train_cfg") if at_points else None
        if at_points and (self.points.num_points < 1 or self.points.oversample_ratio < 1
                          or not 0 <= self.points.importance_sample_ratio <= 1):
            raise ConfigError(f"train_cfg: {self.points}; num_points and oversample_ratio are at least 1, "
                              "importance_sample_ratio is 0 to 1")
        assigner = dict((train_cfg or {}).get("assigner") or {})
        if assigner and assigner.pop("type", "HungarianAssigner") != "HungarianAssigner":
            raise ConfigError(f"train_cfg.assigner is {train_cfg['assigner']}; accepted: type HungarianAssigner")
        self.assigner = construct(HungarianAssigner, assigner, "train_cfg.assigner") if assigner else None

    def __call__(self, layers: Sequence[tuple[jt.Var, jt.Var]], labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of every layer: "loss_cls", "loss_mask" and "loss_dice" of the last,
        "d<i>.loss_..." of layer i before it.

        Args:
            layers: (class logits (N, Q, K + 1), mask logits (N, Q, h, w)) of each reading, first to last.
            labels: (N, H, W) int32.
        Raises:
            ConfigError: no `train_cfg` was given.
            KernelError: a label that is neither a class nor `ignore_index`.
        """
        if self.assigner is None:
            raise ConfigError("decode_head.train_cfg has no assigner, so predictions cannot be matched to targets; "
                              "give one to train")
        check_label_range("decode_head", labels, self.num_classes, self.ignore_index)
        host = labels.numpy()
        shown = [values[values != self.ignore_index] for values in map(np.unique, host)]
        matches = self._match(layers, host, shown)
        count = sum(max(np.count_nonzero(matches[0].pictures == i), 1) for i in range(len(host)))
        masks = max(_over_ranks(count), 1.0)
        found = {}
        for i, ((scores, predicted), matched) in enumerate(zip(layers, matches)):
            prefix = "" if i + 1 == len(layers) else f"d{i}."
            terms = {"loss_cls": self._class_loss(scores, matched),
                     **self._mask_losses(predicted, labels, matched, masks)}
            found.update({prefix + name: value for name, value in terms.items()})
        return found

    def _match(self, layers: Sequence, host: np.ndarray, shown: list[np.ndarray]) -> list[Matches]:
        """What each layer's queries are matched to; every layer matches as many in every picture."""
        with jt.no_grad():
            # of each layer (N, P, 2)
            points = [ranks.rand((len(host), self.points.num_points, 2)) for _ in layers] if self.points else None
            pairs: list[list] = [[] for _ in layers]
            for i, classes in enumerate(shown):
                if not len(classes):
                    continue
                scores = jt.stack([scores[i] for scores, _ in layers])  # (B, Q, K + 1)
                masks = jt.stack([masks[i] for _, masks in layers])  # (B, Q, h, w)
                here = None if points is None else jt.stack([p[i] for p in points])  # (B, P, 2)
                masks, targets = self._places(masks, host[i], classes, here)
                for found, (queries, numbers) in zip(pairs, self.assigner(scores, masks, classes, targets)):
                    order = np.argsort(numbers)
                    found.append((np.full(len(order), i), queries[order], classes[numbers[order]]))
        empty = [(np.zeros(0, np.int64),) * 3]
        return [Matches(*(np.concatenate(part).astype(np.int64) for part in zip(*(found or empty)))) for found in pairs]

    @staticmethod
    def _places(masks: jt.Var, labels: np.ndarray, classes: np.ndarray, points: jt.Var | None) -> tuple[jt.Var, jt.Var]:
        """Masks (B, Q, P) and targets at the same places.

        These are points (B, P, 2), with targets (B, K, P); or without points the masks' pixels, with targets (1, K, P),
        labels taken by nearest neighbour.
        """
        layers, _, h, w = masks.shape
        if points is None:
            rows, columns = ((np.arange(out, dtype=np.float32) * np.float32(side / out)).astype(np.int64)
                             for side, out in zip(labels.shape, (h, w)))
            small = labels[np.minimum(rows, labels.shape[0] - 1)][:, np.minimum(columns, labels.shape[1] - 1)].reshape(
                -1)
            targets = jt.array((small == classes[:, None]).astype(np.float32))  # (K, h * w)
            return masks.reshape(layers, -1, h * w), targets.unsqueeze(0)
        whole = jt.array((labels == classes[:, None, None]).astype(np.float32))
        targets = ops.point_sample(whole.unsqueeze(0), points.reshape(1, -1, 2))  # (1, K, B * P)
        return ops.point_sample(masks, points), targets.reshape(len(classes), layers, -1).transpose(1, 0, 2)

    def _class_loss(self, scores: jt.Var, matched: Matches) -> jt.Var:
        """Weighted cross entropy of all queries; those without a target shall say "nothing"."""
        wanted = np.full(tuple(scores.shape[:2]), self.num_classes, np.int64)
        wanted[matched.pictures, matched.queries] = matched.classes
        divisor = _over_ranks(float(self.loss_cls.weights(wanted).sum())) + EPS
        return self.loss_cls.loss_weight / divisor * self.loss_cls.values(scores, wanted).sum(1).sum()

    def _mask_losses(self, predicted: jt.Var, labels: jt.Var, matched: Matches, masks: float) -> dict[str, jt.Var]:
        """The losses of matched masks; `masks`: how many they are averaged over."""
        if not len(matched.pictures):
            return {name: predicted.sum() * 0.0 for name in ("loss_mask", "loss_dice")}
        pictures, queries, classes = (jt.array(values.astype(np.int32)) for values in matched)
        logits = predicted[pictures, queries].unsqueeze(1)  # (M, 1, h, w)
        targets = (labels[pictures] == classes.reshape(-1, 1, 1)).float32().unsqueeze(1)  # (M, 1, H, W)
        targets.stop_grad()
        if self.points is None:
            logits = ops.bilinear_resize(logits, tuple(targets.shape[2:]))
        else:
            points = self._chosen_points(logits, np.bincount(matched.pictures, minlength=predicted.shape[0]))
            logits = ops.point_sample(logits, points)  # (M, 1, P)
            targets = ops.point_sample(targets, points).stop_grad()
        # axes are summed one by one, in float32
        logits, targets = (x.reshape(x.shape[0], x.shape[2], -1) for x in (logits, targets))
        whole = self.loss_dice.values(logits, targets).sum() / (masks + EPS)
        each = self.loss_mask.values(logits, targets).sum(2).sum(1).sum() / (
            masks * logits.shape[1] * logits.shape[2] + EPS)
        return {"loss_mask": self.loss_mask.loss_weight * each, "loss_dice": self.loss_dice.loss_weight * whole}

    def _chosen_points(self, logits: jt.Var, counts: np.ndarray) -> jt.Var:
        """Points (M, num_points, 2) where masks (M, 1, h, w) are compared;
        `counts`: masks of each picture, in order.
        """
        kept, drawn = self.points.num_points, int(self.points.num_points * self.points.oversample_ratio)
        undecided = int(self.points.importance_sample_ratio * kept)
        return choose_points(lambda count: ranks.rand_each(counts, (count, 2)),
                             lambda points: -jt.abs(ops.point_sample(logits, points))[:, 0],
                             drawn=drawn, undecided=undecided, kept=kept)


def _over_ranks(value: float) -> float:
    """The sum over the ranks of a split step."""
    return ranks.summed(value) if ranks.in_step() else float(value)
