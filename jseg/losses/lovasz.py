"""Lovasz-Softmax and Lovasz hinge (CVPR 2018, arXiv 1705.08790;
mmsegmentation 1.2.2, mmseg/models/losses/lovasz_loss.py, Apache-2.0).

The loss of a class is sum_i w_i e_i over errors e in descending order, where w_i is the growth of the Jaccard loss when
pixel i joins the wrong ones (Algorithm 1). Here w comes from its closed form instead of differences of nearly equal
numbers: with I, U the intersection and union after pixel i, w_i = 1 / U for a pixel of the class and I / (U (U - 1))
for another one. Ignored pixels are sorted behind all others and weigh nothing, so no shape depends on the data.

Kept from mmseg: a pixel weight has no effect (a sampler may serve another loss of the same head). Deviations:
`reduction` matters only with `per_image` and may then be "mean" or "sum" (mmseg demands "none" without `per_image`, so
its own default arguments fail); a batch or a picture of ignored pixels, or one without any of the chosen classes, gives
0 (mmseg: an empty tensor or an error).
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt
import numpy as np

from jseg.layers import relu
from jseg.losses.base import Loss
from jseg.losses.common import check_choice, check_shapes, class_weights, upsample
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["LovaszLoss"]

_LAST = -1e30  # sort key of ignored pixels


@LOSSES.register()
class LovaszLoss(Loss):
    """Convex surrogate of 1 - IoU, averaged over classes.

    Args:
        loss_type: "multi_class" (softmax over K channels) or "binary" (hinge on one channel, labels 0 and 1).
        classes: "present" averages over the classes that occur in the labels, "all" over every class, or a list of
            them.
        per_image: one loss per picture, then reduced; False: one loss over the whole batch.
        reduction: "mean" or "sum" over pictures with `per_image`; without it any of "none", "mean", "sum" and no
            effect.
        class_weight: K weights >= 0 (multi_class), or a .npy/.json file with them.
        loss_weight: factor on the result.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int -> scalar. Ignored pixels take no part.
    Raises:
        ValueError: an argument outside the accepted ones, or shapes that do not fit.
    """

    def __init__(self, loss_type: str = "multi_class", classes: str | Sequence[int] = "present",
                 per_image: bool = False, reduction: str = "mean", class_weight=None, loss_weight: float = 1.0,
                 loss_name: str = "loss_lovasz"):
        check_choice("LovaszLoss", "loss_type", loss_type, ("multi_class", "binary"))
        check_choice("LovaszLoss", "reduction", reduction, ("mean", "sum") if per_image else ("none", "mean", "sum"))
        if isinstance(classes, str):
            check_choice("LovaszLoss", "classes", classes, ("present", "all"))
        elif not classes or any(not isinstance(c, int) or c < 0 for c in classes):
            raise ValueError(f"LovaszLoss: classes is {classes!r}, accepted: 'present', 'all' or a list of class "
                             "indices")
        self.loss_type, self.classes, self.per_image, self.reduction = loss_type, classes, per_image, reduction
        self.class_weight = class_weights(class_weight, "LovaszLoss")
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted, reduced loss (a scalar Var)."""
        check_shapes("LovaszLoss", logits, labels, weights=self.class_weight)
        check_label_range("LovaszLoss", labels, max(logits.shape[1], 2), ignore_index)
        n, k = logits.shape[:2]
        if (self.loss_type == "binary") != (k == 1):
            raise ValueError(f"LovaszLoss: loss_type {self.loss_type!r} got {k} channels; 'binary' takes 1, "
                             "'multi_class' more")
        scores = upsample(logits, labels, align_corners)  # (N, K, H, W)
        if self.loss_type == "multi_class":
            scores = jt.nn.softmax(scores, dim=1)
        scores, labels = scores.reshape(n, k, -1), labels.reshape(n, -1)  # (N, K, H * W), (N, H * W)
        if not self.per_image:
            scores, labels = scores.permute(1, 0, 2).reshape(1, k, -1), labels.reshape(1, -1)  # (1, K, P), (1, P)
        single = self._hinge if self.loss_type == "binary" else self._softmax
        losses = [single(scores[i], labels[i], ignore_index) for i in range(scores.shape[0])]
        total = sum(losses[1:], losses[0])
        return self.loss_weight * (total / len(losses) if self.per_image and self.reduction == "mean" else total)

    def divisor(self, labels, ignore_index: int) -> int | None:
        """Pictures; None for a sum. Without `per_image` the batch is ranked as one:
        ranks then average their own rankings.
        """
        return None if self.per_image and self.reduction == "sum" else len(labels)

    def _softmax(self, prob, labels, ignore_index):
        """prob (K, P), labels (P,) -> scalar: mean over the chosen classes."""
        k, valid = prob.shape[0], labels != ignore_index
        chosen = range(k) if isinstance(self.classes, str) else self.classes
        if max(chosen) >= k:
            raise ValueError(f"LovaszLoss: classes names class {max(chosen)}, the model has 0..{k - 1}")
        total, count = jt.zeros(1), jt.zeros(1)
        for c in chosen:
            member = ((labels == c) & valid).float32()  # (P,)
            error = jt.abs(member - prob[c])
            counted = (member.sum() > 0 if self.classes == "present" else valid.float32().sum() > 0).float32()
            weight = 1.0 if self.class_weight is None else float(self.class_weight[c])
            total = total + (error * _growth(error, member, valid)).sum() * counted * weight
            count = count + counted
        return (total / jt.maximum(count, 1.0)).sum()

    def _hinge(self, logits, labels, ignore_index):
        """logits (1, P), labels (P,) in {0, 1} -> scalar."""
        valid = labels != ignore_index
        member = ((labels == 1) & valid).float32()
        error = 1 - logits[0] * (2 * member - 1)
        return (relu(error) * _growth(error, member, valid)).sum()


def _growth(error: jt.Var, member: jt.Var, valid: jt.Var) -> jt.Var:
    """Return w (P,) in the order of the pixels, without gradient: what each error weighs in the Lovasz extension.

    Args:
        error: (P,) float, its order decides.
        member: (P,) float, 1 for pixels of the class.
        valid: (P,) bool.
    """
    with jt.no_grad():
        order, _ = jt.argsort(jt.ternary(valid, error, jt.full_like(error, _LAST)), dim=0, descending=True)
        inside = member[order]
        outside = valid.float32()[order] - inside  # ignored pixels are neither
        size = member.sum()
        intersection, union = size - _cumulate(inside), size + _cumulate(outside)
        weight = inside / jt.maximum(union, 1.0) + outside * intersection / jt.maximum(union * (union - 1), 1.0)
        absent = (size == 0).float32()  # no pixel of the class: the largest error counts alone
        first = jt.array(np.eye(1, weight.shape[0], dtype=np.float32)[0])
        weight = weight * (1 - absent) + first * absent
        weight = jt.scatter(jt.zeros_like(weight), 0, order, weight)  # back to the order of the pixels
        return (weight * valid.float32()).stop_grad()


def _cumulate(flags: jt.Var) -> jt.Var:
    """Running sum of 0/1 flags, counted in integers: float32 stops counting at 16.8 million pixels."""
    return jt.cumsum(flags.int32(), 0).float32()
