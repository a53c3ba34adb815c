"""What every head ends with: channel dropout, a 1x1 classifier and the losses.

Heads inherit this and nothing else; state key of the classifier: `conv_seg`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

import jseg.losses  # noqa: F401  (registers the losses)
from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, Dropout2d
from jseg.losses.common import part_of_batch
from jseg.registry import LOSSES

__all__ = ["SegmentationHead"]


class SegmentationHead(nn.Module):
    """Base of decode and auxiliary heads.

    Args:
        channels: width of the map that is classified.
        num_classes: K >= 2.
        dropout_ratio: channel dropout before the classifier, in [0, 1).
        loss_decode: one loss block or a list; None for cross entropy. Losses of one name are added up.
        sampler: pixel sampler block, or None.
        ignore_index: label value that counts nowhere.
        align_corners: how logits are resized.
        impl: operator implementation.
    """

    def __init__(self, *, channels: int, num_classes: int, dropout_ratio: float, loss_decode, sampler: dict | None,
                 ignore_index: int, align_corners: bool, impl: str):
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"num_classes must be at least 2, got {num_classes}; background is a class of its own")
        self.channels, self.num_classes = channels, num_classes
        self.ignore_index, self.align_corners, self.impl = ignore_index, align_corners, impl
        self.dropout = Dropout2d(dropout_ratio)
        self.conv_seg = Conv2d(channels, num_classes, 1, init_std=0.01, impl=impl)
        blocks = loss_decode or {"type": "CrossEntropyLoss", "loss_weight": 1.0}
        blocks = blocks if isinstance(blocks, (list, tuple)) else [blocks]
        self.losses = [LOSSES.build(block, "loss_decode") for block in blocks]
        self.sampler = LOSSES.build(sampler, "sampler") if sampler else None

    def classify(self, x: jt.Var) -> jt.Var:
        """Drop channels and classify each pixel. Shape: (N, channels, h, w) -> (N, num_classes, h, w)."""
        return self.conv_seg(self.dropout(x))

    def loss(self, features: list[jt.Var], labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of a batch.

        Args:
            features: maps of the backbone or neck.
            labels: (N, H, W) int32, values in [0, num_classes) or `ignore_index`.
        Returns:
            one scalar for each loss name, and "acc_seg", percent of counted pixels that are right. In a step split over ranks each
            loss is this rank's term of a sum: added over ranks they are the loss of the whole batch.
        """
        return self.loss_of_logits(self(features), labels)

    def loss_of_logits(self, logits: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        """As `loss`, from logits (N, K, h, w) at head resolution; the losses upsample on the fly."""
        options = {"ignore_index": self.ignore_index, "align_corners": self.align_corners}
        if self.sampler is not None:
            weight = self.sampler.sample(logits, labels, losses=self.losses, **options)
        else:
            weight = None
        values: dict[str, jt.Var] = {}
        accuracy = None
        for loss in self.losses:
            if accuracy is None and hasattr(loss, "with_accuracy"):
                value, accuracy = loss.with_accuracy(logits, labels, pixel_weight=weight, **options)
            else:
                value = loss(logits, labels, pixel_weight=weight, **options)
            part = part_of_batch(loss, labels, self.ignore_index)
            value = value if part is None else value * part
            values[loss.loss_name] = values[loss.loss_name] + value if loss.loss_name in values else value
        values["acc_seg"] = self._accuracy(logits, labels) if accuracy is None else accuracy
        return values

    def _accuracy(self, logits: jt.Var, labels: jt.Var) -> jt.Var:
        """Percent of counted pixels whose largest logit is right, for losses that do not know it."""
        with jt.no_grad():
            right = ops.upsample_argmax(logits, tuple(labels.shape[1:]), align_corners=self.align_corners, impl=self.impl) == labels
            counted = labels != self.ignore_index
            return 100.0 * (right & counted).float32().sum() / counted.float32().sum().maximum(1.0)
