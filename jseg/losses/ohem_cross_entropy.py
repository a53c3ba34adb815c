"""Cross entropy over hard pixels only (PIDNet's form of online hard example mining; mmsegmentation 1.2.2,
mmseg/models/losses/ohem_cross_entropy_loss.py, Apache-2.0).

Deviations: pixels with the head's ignore index are left out as well as those with `ignore_label` (upstream: only the
latter; there the loss fails in heads that hand an ignore index over); a batch in which no pixel is hard gives 0
(upstream: NaN).
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from jseg import ops
from jseg.losses.base import Loss
from jseg.losses.common import check_shapes, class_weights
from jseg.losses.ohem import hard_pixels
from jseg.registry import LOSSES

__all__ = ["OhemCrossEntropy"]


@LOSSES.register()
class OhemCrossEntropy(Loss):
    """Mean cross entropy of the pixels whose true class is improbable.

    A pixel is hard if that probability is below the larger of `thres` and the `min_kept`-th smallest (counted from 0)
    of the batch.

    Args:
        ignore_label: label left out.
        thres: probability in 0 to 1.
        min_kept: pixels to keep of the whole batch, at least 1.
        loss_weight: factor on the result.
        class_weight: K weights >= 0, or a .npy/.json file with them; a pixel's value is multiplied by its class's, the
            divisor is not.
        loss_name: name in the log.
    Shape:
        logits (N, K, h, w) float, labels (N, H, W) int -> scalar
    Raises:
        ValueError: an argument outside its range, shapes that do not fit, or a pixel weight.
    """

    def __init__(self, ignore_label: int = 255, thres: float = 0.7, min_kept: int = 100000, loss_weight: float = 1.0,
                 class_weight=None, loss_name: str = "loss_ohem"):
        if not 0 <= thres <= 1:
            raise ValueError(f"OhemCrossEntropy: thres is {thres}; accepted: a probability, 0 to 1")
        self.ignore_label, self.thres, self.min_kept = int(ignore_label), float(thres), max(1, int(min_kept))
        self.class_weight = class_weights(class_weight, "OhemCrossEntropy")
        self.loss_weight, self.loss_name = float(loss_weight), loss_name

    def __call__(self, logits, labels, *, pixel_weight=None, ignore_index: int = 255, align_corners: bool = False):
        """Return the weighted loss (a scalar Var)."""
        check_shapes("OhemCrossEntropy", logits, labels, weights=self.class_weight)
        if pixel_weight is not None:
            raise ValueError("OhemCrossEntropy: it chooses its pixels itself; remove the sampler from the head")
        if self.ignore_label != ignore_index:
            labels = jt.ternary(labels == self.ignore_label, jt.full_like(labels, ignore_index), labels)
        values, _ = ops.upsample_cross_entropy(logits, labels, align_corners=align_corners, ignore_index=ignore_index,
                                               reduction="none")
        weight = self._pixel_weights(values.numpy(), labels.numpy(), ignore_index)
        return self.loss_weight * (values * jt.array(weight)).sum(2).sum()

    def _pixel_weights(self, values: np.ndarray, labels: np.ndarray, ignore_index: int) -> np.ndarray:
        """What each pixel's cross entropy counts in the mean: (N, H, W) float32 each -> same."""
        valid, weight = labels != ignore_index, np.zeros(labels.shape, np.float32)
        hard = hard_pixels(np.exp(-values[valid]), self.min_kept, self.thres)
        of_class = np.float32(1.0) if self.class_weight is None else self.class_weight[labels[valid]]
        weight[valid] = hard * of_class / max(int(hard.sum()), 1)
        return weight
