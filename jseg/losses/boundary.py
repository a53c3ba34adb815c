"""Boundary loss (PIDNet, CVPR 2023, sec. 4.4; mmsegmentation 1.2.2, mmseg/models/losses/boundary_loss.py, Apache-2.0).

Deviation: logits smaller than the targets are upsampled inside, as by every loss here (upstream's head does it).
"""

from __future__ import annotations

import jittor as jt

from jseg.losses.base import Loss
from jseg.losses.common import binary_cross_entropy, check_shapes, sum_of_map, upsample
from jseg.registry import LOSSES

__all__ = ["BoundaryLoss"]


@LOSSES.register()
class BoundaryLoss(Loss):
    """Binary cross entropy in which edges weigh as much as the rest.

    With P edge pixels and Q others in the batch, an edge pixel weighs Q / (P + Q) and another one P / (P + Q); pixels
    with any other target weigh nothing. The sum is divided by the number of all pixels.

    Args:
        loss_weight: factor on the result.
        loss_name: name in the log.
    Shape:
        logits (N, 1, h, w) float, labels (N, H, W) int: 1 on edges, 0 elsewhere -> scalar
    Raises:
        ValueError: more than one channel, or a pixel weight.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = "loss_boundary"):
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted loss (a scalar Var); `ignore_index` marks
        pixels like any value that is neither 0 nor 1.
        """
        check_shapes("BoundaryLoss", logits, labels)
        if logits.shape[1] != 1 or pixel_weight is not None:
            raise ValueError(f"BoundaryLoss: logits have {logits.shape[1]} channels; it takes one, and no "
                             "pixel_weight: it weighs edges itself")
        logits = upsample(logits, labels, align_corners)  # (N, 1, H, W)
        edge, other = (labels == 1).float32().unsqueeze(1), (labels == 0).float32().unsqueeze(1)  # (N, 1, H, W)
        edges, others = sum_of_map(edge), sum_of_map(other)
        weight = (edge * others + other * edges) / jt.maximum(edges + others, 1.0)
        return self.loss_weight * sum_of_map(binary_cross_entropy(logits, edge) * weight.stop_grad()) / labels.numel()
