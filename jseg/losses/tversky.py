"""Tversky loss (MLMI 2017, arXiv 1706.05721; mmsegmentation 1.2.2, mmseg/models/losses/tversky_loss.py, Apache-2.0).

Kept from mmseg: a pixel weight has no effect (a sampler may serve another loss of the same head). Deviation: pixels
of the head's ignore index are left out as well as those of the constructor's (mmseg: only the latter).
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg.losses.base import Loss
from jseg.losses.common import check_shapes, class_weights, one_hot, upsample
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["TverskyLoss"]


@LOSSES.register()
class TverskyLoss(Loss):
    """1 - (TP + s) / (TP + alpha FP + beta FN + s) per picture and class on softmax probabilities, averaged.

    Args:
        smooth: s, above 0; keeps a picture of ignored pixels at loss 0.
        class_weight: K weights >= 0, or a .npy/.json file with them.
        loss_weight: factor on the result.
        ignore_index: label left out; if it is a class in 0..K-1, that class adds nothing (the divisor stays K).
        alpha: weight of false positives; alpha + beta = 1.
        beta: weight of false negatives.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int -> scalar: mean over pictures, sum over classes / K.
    Raises:
        ValueError: alpha + beta is not 1, smooth is not positive, or shapes that do not fit.
    """

    def __init__(self, smooth: float = 1, class_weight=None, loss_weight: float = 1.0, ignore_index: int | None = 255,
                 alpha: float = 0.3, beta: float = 0.7, loss_name: str = "loss_tversky"):
        if abs(alpha + beta - 1.0) > 1e-6 or not smooth > 0:
            raise ValueError(f"TverskyLoss: alpha {alpha} and beta {beta} must add up to 1, smooth {smooth} must be "
                             "above 0")
        self.smooth, self.alpha, self.beta, self.ignore_index = float(smooth), float(alpha), float(beta), ignore_index
        self.class_weight = class_weights(class_weight, "TverskyLoss")
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def divisor(self, labels, ignore_index: int) -> int | None:
        """The mean is over pictures."""
        return len(labels)

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted loss (a scalar Var)."""
        check_shapes("TverskyLoss", logits, labels, weights=self.class_weight)
        check_label_range("TverskyLoss", labels, max(logits.shape[1], 2), ignore_index)
        prob = jt.nn.softmax(upsample(logits, labels, align_corners), dim=1)  # (N, K, H, W)
        n, k, h, w = prob.shape
        valid = labels != ignore_index
        if self.ignore_index is not None:
            valid = valid & (labels != self.ignore_index)
        target = one_hot(labels, k, valid)
        prob = prob * valid.float32().reshape(n, 1, h, w)
        hit = (prob * target).sum(3).sum(2)  # (N, K)
        false_positive = prob.sum(3).sum(2) - hit
        false_negative = target.sum(3).sum(2) - hit
        index = (hit + self.smooth) / (hit + self.alpha * false_positive + self.beta * false_negative + self.smooth)
        weight = np.ones(k, np.float32) if self.class_weight is None else self.class_weight.copy()
        if self.ignore_index is not None and 0 <= self.ignore_index < k:
            weight[self.ignore_index] = 0
        return self.loss_weight * ((1 - index).mean(0) * jt.array(weight)).sum() / k
