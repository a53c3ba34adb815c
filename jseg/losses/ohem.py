"""Online hard example mining (CVPR 2016; mmsegmentation 1.2.2,
mmseg/structures/sampler/ohem_pixel_sampler.py, Apache-2.0).

Deviations: takes logits at head resolution (probabilities and losses come from the fused operator, so logits at label
size never exist); ranks on the host with a partial sort; without `thresh`, only losses with per-pixel values
(CrossEntropyLoss, softmax form) rank the pixels (mmseg adds scalars of the others, which does not change the order).
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt
import numpy as np

from jseg import ops
from jseg.losses.common import check_shapes
from jseg.registry import SAMPLERS

__all__ = ["OHEMPixelSampler", "hard_pixels"]


@SAMPLERS.register()
class OHEMPixelSampler:
    """Choose the pixels worth learning from: weight 1 for hard pixels, 0 for easy and ignored ones.

    Args:
        thresh: probability of the true class in 0-1 below which a pixel is hard; the bar rises until about `min_kept` *
            N pixels pass. None: the `min_kept` * N pixels with the largest loss.
        min_kept: pixels to keep per picture, at least 2.
    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(self, thresh: float | None = None, min_kept: int = 100000):
        if min_kept < 2 or (thresh is not None and not 0 <= thresh <= 1):
            raise ValueError(f"OHEMPixelSampler: min_kept is {min_kept} (at least 2), thresh {thresh} (0-1 or null)")
        self.thresh, self.min_kept = thresh, int(min_kept)

    def sample(self, logits: jt.Var, labels: jt.Var, *, losses: Sequence = (), ignore_index: int = 255,
               align_corners: bool = False) -> jt.Var:
        """Return pixel weights (N, H, W) float32, 0 or 1, without gradient.

        Args:
            logits: (N, K, h, w) at any resolution.
            labels: (N, H, W) int.
            losses: the head's losses; needed without `thresh`.
        Raises:
            ValueError: neither a thresh nor a loss with per-pixel values.
        """
        check_shapes("OHEMPixelSampler", logits, labels)
        valid = labels.numpy() != ignore_index
        kept = self.min_kept * labels.shape[0]
        ranked = [loss for loss in losses if loss.ranks_pixels]
        if self.thresh is None and not ranked:
            raise ValueError("OHEMPixelSampler: without thresh, one loss of the head must be CrossEntropyLoss; set "
                             "thresh")
        if not valid.any():  # nothing to choose from, and nothing to compute
            return jt.array(np.zeros(valid.shape, np.float32)).stop_grad()
        with jt.no_grad():
            if self.thresh is not None:
                nll, _ = ops.upsample_cross_entropy(logits, labels, align_corners=align_corners,
                                                    ignore_index=ignore_index, reduction="none")
                chosen = hard_pixels(np.exp(-nll.numpy()[valid]), kept, self.thresh)
            else:
                total = sum(loss.pixels(logits, labels, ignore_index=ignore_index, align_corners=align_corners).numpy()
                            for loss in ranked)
                chosen = _largest(total[valid], kept)
        weight = np.zeros(valid.shape, np.float32)
        weight[valid] = chosen
        return jt.array(weight).stop_grad()


def hard_pixels(prob: np.ndarray, kept: int, thresh: float) -> np.ndarray:
    """Mark probabilities under max(thresh, the `kept`-th smallest, from 0): (P,) -> (P,) bool."""
    if prob.size == 0:
        return np.zeros(0, bool)
    rank = min(kept, prob.size - 1)
    return prob < max(float(np.partition(prob, rank)[rank]), thresh)


def _largest(loss: np.ndarray, kept: int) -> np.ndarray:
    """Mark the `kept` largest values: (P,) -> (P,) bool."""
    chosen = np.zeros(loss.size, bool)
    chosen[np.argsort(-loss, kind="stable")[:kept]] = True
    return chosen
