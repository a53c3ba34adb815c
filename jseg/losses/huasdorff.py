"""Hausdorff distance loss by distance maps (Karimi & Salcudean, TMI 2020; Ma et al., MIDL 2020; mmsegmentation 1.2.2,
mmseg/models/losses/huasdorff_distance_loss.py, Apache-2.0, whose spelling of the name is kept).

Kept from mmseg although one would not expect it: distances are those of all foreground together, the same for every
class; probabilities are compared with the label as a number; the sum over classes 1 to K-1 is divided by K; `reduction`
changes nothing, the loss being one number. Deviations: the class of `ignore_index` adds nothing (mmseg: the loss of the
class before once more); class weights work (mmseg refuses them); a map without background has distances 0; pixels of
the head's ignore index count as background as well as those of the constructor's; a pixel weight is refused.
"""

from __future__ import annotations

import cv2
import jittor as jt
import numpy as np

from jseg.losses.base import Loss
from jseg.losses.common import check_choice, check_shapes, class_weights, upsample
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES

__all__ = ["HuasdorffDisstanceLoss"]


@LOSSES.register()
class HuasdorffDisstanceLoss(Loss):
    """Squared differences, each times the squared distances of its pixel to the background of labels and of prediction.

    Args:
        reduction: "none", "mean" or "sum"; no effect.
        class_weight: K weights >= 0, or a .npy/.json file with them.
        loss_weight: factor on the result.
        ignore_index: label that counts as background; if it is a class in 1..K-1, that class adds nothing.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int -> scalar
    Raises:
        ValueError: an argument outside the accepted ones, a pixel weight, or shapes that do not fit.
    """

    def __init__(self, reduction: str = "mean", class_weight=None, loss_weight: float = 1.0, ignore_index: int = 255,
                 loss_name: str = "loss_huasdorff_disstance"):
        check_choice("HuasdorffDisstanceLoss", "reduction", reduction, ("none", "mean", "sum"))
        self.class_weight = class_weights(class_weight, "HuasdorffDisstanceLoss")
        self.loss_weight, self.ignore_index, self.loss_name = float(loss_weight), ignore_index, loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted loss (a scalar Var)."""
        check_shapes("HuasdorffDisstanceLoss", logits, labels, weights=self.class_weight)
        check_label_range("HuasdorffDisstanceLoss", labels, max(logits.shape[1], 2), ignore_index)
        if pixel_weight is not None:
            raise ValueError("HuasdorffDisstanceLoss: it takes no pixel_weight; remove the sampler from the head")
        prob = jt.nn.softmax(upsample(logits, labels, align_corners), dim=1)  # (N, K, H, W)
        k = prob.shape[1]
        target = labels.numpy().copy()
        target[(target == ignore_index) | (target == self.ignore_index)] = 0
        distance = squared_distances(target) + squared_distances(prob.numpy().argmax(1))  # (N, H, W)
        weight = np.ones(k, np.float32) if self.class_weight is None else self.class_weight.copy()
        weight[0] = 0
        if self.ignore_index is not None and 0 < self.ignore_index < k:
            weight[self.ignore_index] = 0
        difference = prob - jt.array(target.astype(np.float32)).unsqueeze(1)  # (N, K, H, W)
        share = jt.array(distance[:, None] * weight[:, None, None] / (k * target.size))  # (N, K, H, W)
        return self.loss_weight * (difference * difference * share.stop_grad()).sum(3).sum(2).sum()


def squared_distances(labels: np.ndarray) -> np.ndarray:
    """Squared distance of each pixel above 0 to the nearest 0 of its picture: (N, H, W) int -> same, float32."""
    found = np.zeros(labels.shape, np.float32)
    for distance, picture in zip(found, labels):
        foreground = (picture > 0).astype(np.uint8)
        if foreground.any() and not foreground.all():
            distance[:] = cv2.distanceTransform(foreground, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) ** 2
    return found
