"""Cross entropy over pixels, softmax or sigmoid (mmsegmentation 1.2.2,
mmseg/models/losses/cross_entropy_loss.py, Apache-2.0).

Deviations: `reduction` "none" is refused, a training loss is one number; `use_mask` is refused, it belongs to mask
classification; no warning about `avg_non_ignore`; with class weights, an ignored label outside 0..K-1 counts as one in
the divisor (mmseg fails on it); class weights of the sigmoid form go by channel (mmseg's broadcast along the width).
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg import ops
from jseg.losses.base import Loss
from jseg.losses.common import (EPS, binary_cross_entropy, check_choice, check_shapes, class_weights,
                                one_hot, sum_of_map, upsample)
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["CrossEntropyLoss"]


@LOSSES.register()
class CrossEntropyLoss(Loss):
    """Mean cross entropy of the upsampled logits.

    Softmax form: the fused operator upsamples and reduces in one pass, so logits at label size never exist. Sigmoid
    form: each channel is a yes/no question; one channel (K = 1) asks for label 1 against label 0.

    Args:
        use_sigmoid: binary cross entropy per channel instead of softmax over channels.
        use_mask: only False.
        reduction: "mean" or "sum" over pixels (sigmoid: over pixels and channels).
        class_weight: K weights >= 0, or a .npy/.json file with them; for the sigmoid form, weights of the positive
            term.
        loss_weight: factor on the result.
        loss_name: name in the log.
        avg_non_ignore: False divides by all pixels, ignored ones included; True by the others only. With class weights
            the softmax form divides by the sum of the pixels' class weights instead.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int, pixel_weight (N, H, W) or None -> scalar. Ignored pixels add 0;
        a batch of ignored pixels gives 0.
    Raises:
        ValueError: an argument outside the accepted ones, or shapes that do not fit.
    """

    def __init__(self, use_sigmoid: bool = False, use_mask: bool = False, reduction: str = "mean", class_weight=None,
                 loss_weight: float = 1.0, loss_name: str = "loss_ce", avg_non_ignore: bool = False):
        if use_mask:
            raise ValueError("CrossEntropyLoss: use_mask belongs to mask classification models, which jseg does not "
                             "have; remove it or set use_sigmoid")
        check_choice("CrossEntropyLoss", "reduction", reduction, ("mean", "sum"))
        self.use_sigmoid, self.reduction, self.avg_non_ignore = bool(use_sigmoid), reduction, bool(avg_non_ignore)
        self.class_weight = class_weights(class_weight, "CrossEntropyLoss")
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted, reduced loss (a scalar Var)."""
        return self.with_accuracy(logits, labels, pixel_weight=pixel_weight, ignore_index=ignore_index,
                                  align_corners=align_corners)[0]

    def with_accuracy(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return (loss, pixel accuracy in percent); the softmax form gets the accuracy from the same pass.

        The sigmoid form has no class ranking to score and returns None for the accuracy.
        """
        check_shapes("CrossEntropyLoss", logits, labels, pixel_weight, self.class_weight)
        if self.use_sigmoid:
            return self.loss_weight * self._sigmoid(logits, labels, pixel_weight, ignore_index, align_corners), None
        loss, percent = self._softmax(logits, labels, pixel_weight, ignore_index, align_corners, self.reduction)
        return self.loss_weight * (loss.sum() if self.reduction == "sum" else loss), percent

    @property
    def ranks_pixels(self) -> bool:
        """The softmax form has one value per pixel."""
        return not self.use_sigmoid

    def pixels(self, logits, labels, *, ignore_index: int = 255, align_corners: bool = False):
        """Return the unreduced loss (N, H, W), 0 on ignored pixels; for hard example mining.

        Raises:
            ValueError: the sigmoid form, which has one value per channel.
        """
        if self.use_sigmoid:
            raise ValueError("CrossEntropyLoss: hard example mining by loss needs the softmax form; give the sampler a "
                             "thresh")
        loss, _ = self._softmax(logits, labels, None, ignore_index, align_corners, "none")
        return self.loss_weight * loss

    def elements(self, logits, targets):
        """The sigmoid form of logits and targets of one shape, the classes on axis 1.

        Raises:
            ValueError: the softmax form, or shapes that differ.
        """
        if not self.use_sigmoid:
            raise ValueError("CrossEntropyLoss: targets of each class by itself need the sigmoid form; set "
                             "use_sigmoid: true")
        shape = tuple(logits.shape)
        if shape != tuple(targets.shape) or (self.class_weight is not None and shape[1] != len(self.class_weight)):
            raise ValueError(f"CrossEntropyLoss: logits are {shape}, targets {tuple(targets.shape)}; they must be "
                             "equal, with a class_weight for each value of axis 1")
        ones = [1] * (len(shape) - 2)
        positive = 1.0 if self.class_weight is None else jt.array(self.class_weight).reshape(1, -1, *ones)
        total = binary_cross_entropy(logits, targets, positive).sum()
        return self.loss_weight * (total if self.reduction == "sum" else total / logits.numel())

    def divisor(self, labels: np.ndarray, ignore_index: int) -> float | None:
        """What the mean over these labels (N, H, W) divides by, up to a constant factor; None for a sum."""
        if self.reduction == "sum":
            return None
        valid = labels[(labels != ignore_index) & (labels >= 0)]
        if self.class_weight is None or self.use_sigmoid:
            return float(valid.size if self.avg_non_ignore else labels.size)
        counts = np.bincount(valid, minlength=len(self.class_weight))[:len(self.class_weight)]
        ignored = 0 if self.avg_non_ignore else labels.size - valid.size
        return float(counts @ self.class_weight.astype(np.float64)) + ignored

    def _softmax(self, logits, labels, pixel_weight, ignore_index, align_corners, reduction):
        return ops.upsample_cross_entropy(
            logits, labels, align_corners=align_corners, ignore_index=ignore_index, class_weight=self.class_weight,
            avg_non_ignore=self.avg_non_ignore, pixel_weight=pixel_weight,
            reduction="mean" if reduction == "mean" else "none")

    def _sigmoid(self, logits, labels, pixel_weight, ignore_index, align_corners):
        logits = upsample(logits, labels, align_corners)  # (N, K, H, W)
        n, k, h, w = logits.shape
        check_label_range("CrossEntropyLoss", labels, max(k, 2), ignore_index)
        valid = labels != ignore_index
        target = one_hot(labels, k, valid)
        positive = 1.0 if self.class_weight is None else jt.array(self.class_weight).reshape(1, k, 1, 1)
        mask = valid.float32() if pixel_weight is None else valid.float32() * pixel_weight  # (N, H, W)
        total = sum_of_map(binary_cross_entropy(logits, target, positive) * mask.reshape(n, 1, h, w))
        if self.reduction == "sum":
            return total
        if self.avg_non_ignore:
            return total / (valid.float32().sum() * k + EPS)
        return total / (n * k * h * w)
