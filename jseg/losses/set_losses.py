"""Losses over a set of matched predictions: class logits of queries, masks at pixels or points.

Papers: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; Milletari et al., "V-Net", 3DV 2016.
Upstream: mmdetection 3.x mmdet/models/losses/{cross_entropy_loss,focal_loss,dice_loss}.py (Apache-2.0), whose words,
defaults and arithmetic these are. They stand beside the losses over label maps (`LOSSES`), which have other defaults
under the same names.

Every loss gives the unreduced values of its elements; `SetCriterion` sums them, divides by what the paper averages
over, and multiplies by `loss_weight`. Deviations: `reduction` is "mean" only; labels have no ignored value here
(`ignore_index` null).
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg.losses.common import binary_cross_entropy, check_choice, class_weights
from jseg.registry import SET_LOSSES

__all__ = ["CrossEntropyLoss", "DiceLoss", "FocalLoss"]


@SET_LOSSES.register()
class CrossEntropyLoss:
    """Cross entropy of classes (softmax), or of yes-or-no answers (`use_sigmoid`).

    Args:
        use_sigmoid: False: logits (..., C) and class numbers (...); True: logits and 0-1 targets of one shape.
        use_mask: only False.
        reduction: only "mean".
        class_weight: C weights >= 0, by which the mean is weighted too; sigmoid: one weight of the positive term.
        ignore_index: only None.
        loss_weight: factor on the result.
        avg_non_ignore: no effect here.
    Raises:
        ValueError: a value that is not accepted.
    """

    def __init__(self, use_sigmoid: bool = False, use_mask: bool = False, reduction: str = "mean", class_weight=None,
                 ignore_index: int | None = None, loss_weight: float = 1.0, avg_non_ignore: bool = False):
        for name, value, accepted in (("use_mask", use_mask, (False,)), ("reduction", reduction, ("mean",)),
                                      ("ignore_index", ignore_index, (None,))):
            check_choice("CrossEntropyLoss", name, value, accepted)
        self.use_sigmoid, self.loss_weight = bool(use_sigmoid), float(loss_weight)
        self.class_weight = class_weights(class_weight, "CrossEntropyLoss")

    def weights(self, labels: np.ndarray) -> np.ndarray:
        """The class weight of every label, of their shape; ones without class weights."""
        return np.ones(labels.shape, np.float32) if self.class_weight is None else self.class_weight[labels]

    def values(self, logits: jt.Var, targets) -> jt.Var:
        """Unreduced values, of the targets' shape. Targets:
        a NumPy array of classes, or a Var of zeros and ones (sigmoid).
        """
        if self.use_sigmoid:
            return binary_cross_entropy(logits, targets,
                                        1.0 if self.class_weight is None else jt.array(self.class_weight))
        top = logits.max(-1, keepdims=True).stop_grad()
        spread = jt.log(jt.exp(logits - top).sum(-1)) + top.squeeze(-1)
        chosen = jt.array(np.arange(logits.shape[-1]) == targets[..., None]).float32()
        return (spread - (logits * chosen).sum(-1)) * jt.array(self.weights(targets))


@SET_LOSSES.register()
class FocalLoss:
    """a_t (1 - p_t)^gamma * binary cross entropy.

    Args:
        use_sigmoid: only True.
        gamma: focusing power, >= 0.
        alpha: weight of the positive term in 0-1; the negative one gets 1 - alpha.
        reduction: only "mean".
        loss_weight: factor on the result.
        activated: the inputs are probabilities already: only False.
    Raises:
        ValueError: a value that is not accepted.
    """

    def __init__(self, use_sigmoid: bool = True, gamma: float = 2.0, alpha: float = 0.25, reduction: str = "mean",
                 loss_weight: float = 1.0, activated: bool = False):
        for name, value, accepted in (("use_sigmoid", use_sigmoid, (True,)), ("activated", activated, (False,)),
                                      ("reduction", reduction, ("mean",))):
            check_choice("FocalLoss", name, value, accepted)
        if gamma < 0 or not 0 <= alpha <= 1:
            raise ValueError(f"FocalLoss: gamma is {gamma!r} (at least 0), alpha {alpha!r} (0 to 1)")
        self.gamma, self.alpha, self.loss_weight = float(gamma), float(alpha), float(loss_weight)

    def values(self, logits: jt.Var, targets: jt.Var) -> jt.Var:
        """Unreduced values. Shape: logits, targets (0 or 1): any, the same."""
        prob = jt.sigmoid(logits)
        missing = (1 - prob) * targets + prob * (1 - targets)  # 1 - p_t
        focus = missing * missing if self.gamma == 2.0 else jt.pow(jt.maximum(missing, 1e-12), self.gamma)
        return binary_cross_entropy(logits, targets) * (self.alpha * targets + (1 - self.alpha) * (1 - targets)) * focus


@SET_LOSSES.register()
class DiceLoss:
    """1 - 2 sum(p t) / (sum(p p) + sum(t t)) of every mask.

    Args:
        use_sigmoid: with `activate`, only True.
        activate: take the sigmoid of the inputs first.
        reduction: only "mean".
        naive_dice: sums instead of sums of squares below, and `eps` above too.
        loss_weight: factor on the result.
        eps: keeps the ratio finite, above 0.
    Raises:
        ValueError: a value that is not accepted.
    """

    def __init__(self, use_sigmoid: bool = True, activate: bool = True, reduction: str = "mean",
                 naive_dice: bool = False, loss_weight: float = 1.0, eps: float = 1e-3):
        check_choice("DiceLoss", "reduction", reduction, ("mean",))
        if activate and not use_sigmoid:
            raise ValueError("DiceLoss: use_sigmoid is false; accepted: true, or activate false for probabilities")
        self.activate, self.naive_dice = activate, naive_dice
        self.loss_weight, self.eps = float(loss_weight), float(eps)

    def values(self, logits: jt.Var, targets: jt.Var) -> jt.Var:
        """A value a mask. Shape: logits, targets (0 or 1): (M, ...) -> (M,)."""
        prob = (jt.sigmoid(logits) if self.activate else logits).reshape(logits.shape[0], -1)
        targets = targets.reshape(prob.shape)
        common = (prob * targets).sum(1)
        if self.naive_dice:
            return 1 - (2 * common + self.eps) / (prob.sum(1) + targets.sum(1) + self.eps)
        return 1 - 2 * common / ((prob * prob).sum(1) + (targets * targets).sum(1) + 2 * self.eps)
