"""Dice loss (V-Net, 3DV 2016; mmsegmentation 1.2.2, mmseg/models/losses/dice_loss.py, Apache-2.0).

Kept from mmseg although one would not expect it: sigmoid is the default also for many classes; one ratio is formed per
picture over all classes together; ignored pixels have no target but their predictions stay in the denominator, so a
picture of ignored pixels has loss 1 (with zero gradient in the squared form). Deviations: `reduction` "none" and a
pixel weight are refused (mmseg fails on the latter); with one channel the foreground is label 1 (mmseg: label 0);
negative labels have no target (mmseg takes them for class 0).
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg.losses.base import Loss
from jseg.losses.common import check_choice, check_shapes, one_hot, upsample
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["DiceLoss"]


@LOSSES.register()
class DiceLoss(Loss):
    """1 - 2 sum(p t) / (sum(p p) + sum(t t)), per picture, then reduced.

    Args:
        use_sigmoid: probabilities by sigmoid per channel; False: softmax over channels.
        activate: False takes the inputs as probabilities already.
        reduction: "mean" or "sum" over pictures.
        naive_dice: denominator sum(p) + sum(t) instead of the squares.
        loss_weight: factor on the result.
        ignore_index: a class in 0..K-1 whose channel is left out, too; 255 leaves none out.
        eps: keeps the ratio finite, above 0.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int -> scalar. `ignore_index` of the call marks pixels without
        target.
    Raises:
        ValueError: an argument outside the accepted ones, a pixel weight, or no channel left.
    """

    def __init__(self, use_sigmoid: bool = True, activate: bool = True, reduction: str = "mean",
                 naive_dice: bool = False, loss_weight: float = 1.0, ignore_index: int | None = 255, eps: float = 1e-3,
                 loss_name: str = "loss_dice"):
        check_choice("DiceLoss", "reduction", reduction, ("mean", "sum"))
        self.use_sigmoid, self.activate, self.reduction, self.naive_dice = use_sigmoid, activate, reduction, naive_dice
        self.loss_weight, self.eps = float(loss_weight), float(eps)
        self.ignore_index, self.loss_name = ignore_index, loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted, reduced loss (a scalar Var)."""
        check_shapes("DiceLoss", logits, labels)
        check_label_range("DiceLoss", labels, max(logits.shape[1], 2), ignore_index)
        if pixel_weight is not None:
            raise ValueError("DiceLoss: a ratio of areas takes no pixel_weight; remove the sampler from the head")
        prob = self._probabilities(upsample(logits, labels, align_corners))  # (N, K, H, W)
        n, k = prob.shape[:2]
        target = one_hot(labels, k, labels != ignore_index)
        if self.ignore_index is not None and 0 <= self.ignore_index < k:
            if k == 1:
                raise ValueError("DiceLoss: ignore_index leaves out the only class")
            keep = jt.array((np.arange(k) != self.ignore_index).astype(np.float32)).reshape(1, k, 1, 1)
            prob, target = prob * keep, target * keep
        prob, target = prob.reshape(n, -1), target.reshape(n, -1)  # (N, K * H * W)
        common = (prob * target).sum(1)  # (N,)
        if self.naive_dice:
            ratio = (2 * common + self.eps) / (prob.sum(1) + target.sum(1) + self.eps)
        else:
            ratio = 2 * common / ((prob * prob).sum(1) + (target * target).sum(1) + 2 * self.eps)
        loss = 1 - ratio
        return self.loss_weight * (loss.mean() if self.reduction == "mean" else loss.sum())

    def divisor(self, labels, ignore_index: int) -> int | None:
        """The mean is over pictures; None for a sum."""
        return len(labels) if self.reduction == "mean" else None

    def _probabilities(self, logits):
        if not self.activate:
            return logits
        if self.use_sigmoid:
            return jt.sigmoid(logits)
        return jt.nn.softmax(logits, dim=1) if logits.shape[1] > 1 else logits
