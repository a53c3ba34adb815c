"""The losses of one head as its config lists them, with sampler, accuracy and this rank's share."""

from __future__ import annotations

from typing import Mapping, Sequence

import jittor as jt
import numpy as np

from jseg import ops
from jseg.losses.base import Loss
from jseg.ops import ranks
from jseg.ops.labels import check_label_range
from jseg.registry import LOSSES, SAMPLERS

__all__ = ["Criterion"]


class Criterion:
    """All losses of a head.

    Args:
        blocks: one loss block or a list of them.
        sampler: pixel sampler block, or None.
        ignore_index: label value that counts nowhere.
        align_corners: how logits are upsampled.
    Raises:
        ConfigError: an unknown loss or sampler, or a value that one of them does not take.
    """

    def __init__(self, blocks: Mapping | Sequence[Mapping], *, sampler: Mapping | None = None, ignore_index: int = 255,
                 align_corners: bool = False):
        blocks = blocks if isinstance(blocks, (list, tuple)) else [blocks]
        self.losses: list[Loss] = [LOSSES.build(block, "loss_decode") for block in blocks]
        self.sampler = SAMPLERS.build(sampler, "sampler") if sampler else None
        self.ignore_index, self.align_corners = ignore_index, align_corners

    def __call__(self, logits: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """The terms of one output: a scalar for each loss name (equal names added up), and "acc_seg" in percent.

        Args:
            logits: (N, K, h, w) at any resolution.
            labels: (N, H, W) int32.
        Raises:
            KernelError: a label that is neither a class (0 and 1 for one map) nor `ignore_index`, whatever the losses.
        """
        check_label_range("loss_decode", labels, max(logits.shape[1], 2), self.ignore_index)
        options = {"ignore_index": self.ignore_index, "align_corners": self.align_corners}
        weight = None if self.sampler is None else self.sampler.sample(logits, labels, losses=self.losses, **options)
        values: dict[str, jt.Var] = {}
        accuracy = None
        for loss in self.losses:
            value, percent = loss.with_accuracy(logits, labels, pixel_weight=weight, **options)
            accuracy = percent if accuracy is None else accuracy
            value = self.rank_share(loss, value, labels)
            values[loss.loss_name] = values[loss.loss_name] + value if loss.loss_name in values else value
        values["acc_seg"] = self.accuracy(logits, labels) if accuracy is None else accuracy
        return values

    def term(self, index: int, logits: jt.Var, labels: jt.Var) -> jt.Var:
        """The value of the loss at place `index` of the config's list, for one of several outputs; no sampler."""
        check_label_range("loss_decode", labels, max(logits.shape[1], 2), self.ignore_index)
        loss = self.losses[index]
        value = loss(logits, labels, ignore_index=self.ignore_index, align_corners=self.align_corners)
        return self.rank_share(loss, value, labels)

    def elements(self, logits: jt.Var, targets: np.ndarray) -> jt.Var:
        """The sum of all losses of values that lie on no label map.

        Args:
            logits: (N, ...).
            targets: the same shape, float32 from 0 to 1.
        """
        goal = jt.array(targets).stop_grad()
        return sum(self.rank_share(loss, loss.elements(logits, goal), goal) for loss in self.losses)

    def rank_share(self, loss: Loss, value: jt.Var, labels: jt.Var) -> jt.Var:
        """This rank's contribution to the loss of a batch that is split over ranks; the contributions add up to it.

        A sum contributes as it is. A mean is weighted: `loss.divisor` is the number it was divided by, and the weight
        is this rank's share of that number over all ranks.
        """
        if not ranks.in_step():
            return value
        divisor = loss.divisor(labels.numpy(), self.ignore_index)
        if divisor is None:
            return value
        return value * jt.array(np.array([ranks.share_of(divisor)], np.float32))  # an input: a constant would recompile

    def accuracy(self, logits: jt.Var, labels: jt.Var) -> jt.Var:
        """Percent of counted pixels whose largest logit is right, for losses that do not know it; one map: above 0."""
        with jt.no_grad():
            if logits.shape[1] == 1:
                right = (ops.bilinear_resize(logits, tuple(labels.shape[1:]),
                                             align_corners=self.align_corners)[:, 0] > 0).int32() == labels
            else:
                right = ops.readout(logits, tuple(labels.shape[1:]),
                                    align_corners=self.align_corners).int32() == labels
            counted = labels != self.ignore_index
            return 100.0 * (right & counted).float32().sum() / counted.float32().sum().maximum(1.0)
