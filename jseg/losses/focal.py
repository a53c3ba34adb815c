"""Sigmoid focal loss (ICCV 2017; mmsegmentation 1.2.2, mmseg/models/losses/focal_loss.py, Apache-2.0).

The numbers are those of mmseg's CUDA path; its CPU path fails on label maps. Deviations: `reduction` "none" is refused;
a pixel weight multiplies the pixel's terms (mmseg fails on it).
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt
import numpy as np

from jseg.losses.base import Loss
from jseg.losses.common import (binary_cross_entropy, check_choice, check_shapes, class_weights, one_hot,
                                sum_of_map, upsample)
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["FocalLoss"]


@LOSSES.register()
class FocalLoss(Loss):
    """a_t (1 - p_t)^gamma * binary cross entropy per channel, averaged over pixels and channels.

    Args:
        use_sigmoid: only True (as in mmseg).
        gamma: focusing power, >= 0.
        alpha: weight of the foreground term in 0-1 (background gets 1 - alpha), one for all classes or K of them.
        reduction: "mean" (over all pixels and channels, ignored pixels included) or "sum".
        class_weight: K weights >= 0 on the channels, or a .npy/.json file with them.
        loss_weight: factor on the result.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int, pixel_weight (N, H, W) or None -> scalar. Ignored pixels add 0.
    Raises:
        ValueError: an argument outside the accepted ones, or shapes that do not fit.
    """

    def __init__(self, use_sigmoid: bool = True, gamma: float = 2.0, alpha: float | Sequence[float] = 0.5,
                 reduction: str = "mean", class_weight=None, loss_weight: float = 1.0, loss_name: str = "loss_focal"):
        if not use_sigmoid:
            raise ValueError("FocalLoss: only the sigmoid form exists (as in mmseg); set use_sigmoid: true")
        check_choice("FocalLoss", "reduction", reduction, ("mean", "sum"))
        self.alpha = np.asarray(alpha, np.float32)
        if self.alpha.ndim > 1 or self.alpha.min() < 0 or self.alpha.max() > 1 or gamma < 0:
            raise ValueError(f"FocalLoss: alpha is {alpha!r} (accepted 0-1, or a list of them), gamma {gamma!r} (at "
                             "least 0)")
        self.gamma, self.reduction = float(gamma), reduction
        self.class_weight = class_weights(class_weight, "FocalLoss")
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def divisor(self, labels, ignore_index: int) -> int | None:
        """The mean is over all pixels and so over pictures; None for a sum."""
        return len(labels) if self.reduction == "mean" else None

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted, reduced loss (a scalar Var)."""
        check_shapes("FocalLoss", logits, labels, pixel_weight, self.class_weight)
        check_label_range("FocalLoss", labels, max(logits.shape[1], 2), ignore_index)
        logits = upsample(logits, labels, align_corners)  # (N, K, H, W)
        n, k, h, w = logits.shape
        if self.alpha.ndim == 1 and len(self.alpha) != k:
            raise ValueError(f"FocalLoss: alpha has {len(self.alpha)} values, the model has {k} classes")
        valid = labels != ignore_index
        target = one_hot(labels, k, valid)
        alpha = jt.array(np.broadcast_to(self.alpha, (k,)).copy()).reshape(1, k, 1, 1)
        prob = jt.sigmoid(logits)
        missing = (1 - prob) * target + prob * (1 - target)  # 1 - p_t
        focus = missing * missing if self.gamma == 2.0 else jt.pow(jt.maximum(missing, 1e-12), self.gamma)
        loss = binary_cross_entropy(logits, target) * (alpha * target + (1 - alpha) * (1 - target)) * focus
        if self.class_weight is not None:
            loss = loss * jt.array(self.class_weight).reshape(1, k, 1, 1)
        mask = valid.float32() if pixel_weight is None else valid.float32() * pixel_weight  # (N, H, W)
        total = sum_of_map(loss * mask.reshape(n, 1, h, w))
        return self.loss_weight * (total / (n * k * h * w) if self.reduction == "mean" else total)
