"""What every head answers, and what an ordinary one is made of.

A head turns features into *outputs* (whatever its losses need), outputs into losses, and outputs into class scores. An
ordinary head writes only `decode`: selection of inputs, dropout, classifier, losses, sampler and accuracy are
`SegmentationHead`'s. State key of the classifier: `conv_seg`, as in MMSegmentation.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import Conv2d, Dropout2d
from jseg.losses.criterion import Criterion
from jseg.models.heads.options import HeadOptions

__all__ = ["Head", "SegmentationHead"]


class Head(nn.Module):
    """The three methods that a segmentor asks of a head.

    Facts: `num_classes` K, `align_corners`, `ignore_index`; `own_targets`: True where its classes are not the
    dataset's; `needs_previous`: True where it can only follow another head in a cascade.
    """

    num_classes: int
    align_corners: bool = False
    ignore_index: int = 255
    own_targets: bool = False
    needs_previous: bool = False

    def execute(self, features: list, previous: jt.Var | None = None) -> Any:
        """Outputs of a batch.

        Args:
            features: maps of backbone or neck.
            previous: scores (N, K, h, w) of the stage before, in a cascade.
        """
        raise NotImplementedError

    def begin_step(self, iteration: int) -> None:
        """Told before each training step, counted from 0: for what changes in the course of training."""

    def loss(self, outputs: Any, labels: jt.Var) -> dict[str, jt.Var]:
        """Losses of a batch.

        Args:
            outputs: what `execute` gave in training.
            labels: (N, H, W) int32, values in [0, num_classes) or `ignore_index`.
        Returns:
            one scalar for each loss name, all of which are added up, and "acc_<...>" in percent for the log. In a step
            split over ranks each loss is this rank's term of a sum: added over ranks they are the loss of the whole
            batch.
        """
        raise NotImplementedError

    def scores(self, outputs: Any, size: tuple[int, int]) -> jt.Var:
        """Class scores (N, K, h, w), which are resized bilinearly to `size` (H, W); the class with the largest wins."""
        raise NotImplementedError


class SegmentationHead(Head):
    """A head that classifies each position of one map.
    Its `loss` and `scores` need nothing more of a subclass than `decode`.

    Args:
        options: see `HeadOptions`.
    Shape:
        features: list of (N, C_i, H_i, W_i) -> logits (N, K, h, w); (N, 1, h, w) for a binary head
    """

    OPTIONS = HeadOptions
    DEFAULTS = MappingProxyType({})  # words of HeadOptions whose default is another for this head

    def __init__(self, options: HeadOptions):
        super().__init__()
        self.options = options
        self.channels, self.num_classes = options.channels, options.num_classes
        self.ignore_index, self.align_corners = options.ignore_index, options.align_corners
        self.dropout = Dropout2d(max(options.dropout_ratio, 0.0))
        self.conv_seg = Conv2d(options.channels, options.score_channels, 1, init_std=0.01)
        self.criterion = Criterion(options.loss_decode, sampler=options.sampler, ignore_index=options.ignore_index,
                                   align_corners=options.align_corners)

    def decode(self, features: Any) -> jt.Var:
        """The map (N, channels, h, w) to classify, from what `select` gives."""
        raise NotImplementedError

    def execute(self, features: list, previous: jt.Var | None = None) -> jt.Var:
        return self.classify(self.decode(self.select(features)))

    def select(self, features: list) -> Any:
        """The map, or the list of maps, that `in_index` and `input_transform` name."""
        options = self.options
        if options.input_transform is None:
            return features[options.in_index]
        maps = [features[i] for i in options.in_index]
        if options.input_transform == "multiple_select":
            return maps
        size = tuple(maps[0].shape[2:])
        return jt.concat([ops.bilinear_resize(m, size, align_corners=self.align_corners) for m in maps], 1)

    def classify(self, x: jt.Var) -> jt.Var:
        """Drop channels and classify each position. Shape: (N, channels, h, w) -> (N, K, h, w)."""
        return self.conv_seg(self.dropout(x))

    def loss(self, outputs: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        return self.criterion(outputs, labels)

    def scores(self, outputs: jt.Var, size: tuple[int, int]) -> jt.Var:
        if self.options.out_channels != 1:
            return outputs
        threshold = 0.3 if self.options.threshold is None else self.options.threshold
        return jt.concat([jt.zeros_like(outputs), outputs - math.log(threshold / (1 - threshold))], 1)
