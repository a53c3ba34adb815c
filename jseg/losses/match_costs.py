"""What it costs to give a target to a query; the assignment with the least sum is learned from.

Papers: Carion et al. (DETR), ECCV 2020, sec. 3.1; Cheng et al., "Per-Pixel Classification is Not All You Need for
Semantic Segmentation" (MaskFormer), NeurIPS 2021, sec. 3.2; Cheng et al. (Mask2Former), CVPR 2022.
Upstream: mmdetection 3.x mmdet/models/task_modules/assigners/match_cost.py (Apache-2.0), whose words and arithmetic
these are.

Every cost is called as

    cost(scores (B, Q, C), masks (B, Q, P), classes (K,), targets (B, K, P)) -> (B, Q, K)

with class logits, mask logits at P places (pixels or points), NumPy class numbers and masks of 0 and 1 at the same
places, (1, K, P) where they are the same in all of B. Deviation:
`CrossEntropyLossCost` has the sigmoid form only (so has upstream, which fails later).
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jseg.layers.products import pair_products
from jseg.losses.common import binary_cross_entropy
from jseg.registry import MATCH_COSTS

__all__ = ["ClassificationCost", "CrossEntropyLossCost", "DiceCost", "FocalLossCost"]


@MATCH_COSTS.register()
class ClassificationCost:
    """Minus the probability (softmax) of the target's class.

    Args:
        weight: factor on the cost.
    """

    def __init__(self, weight: float = 1.0):
        self.weight = float(weight)

    def __call__(self, scores: jt.Var, masks: jt.Var, classes: np.ndarray, targets: jt.Var) -> jt.Var:
        return -self.weight * _columns(nn.softmax(scores, dim=2), classes)


@MATCH_COSTS.register()
class FocalLossCost:
    """Focal loss (Lin et al., ICCV 2017) of a class score, or of a mask.

    Args:
        alpha: weight of the positive term in 0-1; the negative one gets 1 - alpha.
        gamma: focusing power.
        eps: keeps logarithms finite.
        binary_input: True: of the masks, averaged over places; False: of the class, positive minus negative term.
        weight: factor on the cost.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2, eps: float = 1e-12, binary_input: bool = False,
                 weight: float = 1.0):
        self.alpha, self.gamma, self.eps = float(alpha), float(gamma), float(eps)
        self.binary_input, self.weight = binary_input, float(weight)

    def __call__(self, scores: jt.Var, masks: jt.Var, classes: np.ndarray, targets: jt.Var) -> jt.Var:
        prob = jt.sigmoid(masks if self.binary_input else scores)
        negative = -jt.log(1 - prob + self.eps) * (1 - self.alpha) * prob**self.gamma
        positive = -jt.log(prob + self.eps) * self.alpha * (1 - prob)**self.gamma
        if not self.binary_input:
            return self.weight * _columns(positive - negative, classes)
        return self.weight * _mean_cost(positive, negative, targets)


@MATCH_COSTS.register()
class DiceCost:
    """1 - (2 sum(p t) + eps) / (sum(p) + sum(t) + eps) (Milletari et al., V-Net, 3DV 2016).

    Args:
        pred_act: take the sigmoid of the masks first.
        eps: added above and below.
        naive_dice: False: sums of squares below, as in V-Net.
        weight: factor on the cost.
    """

    def __init__(self, pred_act: bool = False, eps: float = 1e-3, naive_dice: bool = True, weight: float = 1.0):
        self.pred_act, self.eps, self.naive_dice, self.weight = pred_act, float(eps), naive_dice, float(weight)

    def __call__(self, scores: jt.Var, masks: jt.Var, classes: np.ndarray, targets: jt.Var) -> jt.Var:
        prob = jt.sigmoid(masks) if self.pred_act else masks
        common = 2 * pair_products(prob, targets)
        sizes = [(x if self.naive_dice else x * x).sum(2) for x in (prob, targets)]  # (B, Q), (B, K)
        return self.weight * (1 - (common + self.eps) / (sizes[0].unsqueeze(2) + sizes[1].unsqueeze(1) + self.eps))


@MATCH_COSTS.register()
class CrossEntropyLossCost:
    """Mean binary cross entropy of the masks.

    Args:
        use_sigmoid: only True.
        weight: factor on the cost.
    Raises:
        ValueError: `use_sigmoid` is false.
    """

    def __init__(self, use_sigmoid: bool = True, weight: float = 1.0):
        if not use_sigmoid:
            raise ValueError("CrossEntropyLossCost: use_sigmoid is false; accepted: true, a mask is a yes or no for "
                             "each place")
        self.weight = float(weight)

    def __call__(self, scores: jt.Var, masks: jt.Var, classes: np.ndarray, targets: jt.Var) -> jt.Var:
        positive, negative = (binary_cross_entropy(masks, jt.full_like(masks, value)) for value in (1.0, 0.0))
        return self.weight * _mean_cost(positive, negative, targets)


def _mean_cost(positive: jt.Var, negative: jt.Var, targets: jt.Var) -> jt.Var:
    """The mean over places of `positive` where a target is 1 and `negative` where it is 0:
    (B, Q, P), (B, K, P) -> (B, Q, K).
    """
    return (pair_products(positive - negative, targets) + negative.sum(2).unsqueeze(2)) / targets.shape[2]


def _columns(x: jt.Var, classes: np.ndarray) -> jt.Var:
    """Columns of the last axis by their numbers: (B, Q, C) -> (B, Q, K)."""
    return x[:, :, jt.array(np.asarray(classes, np.int32))]
