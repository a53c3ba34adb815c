"""What heads that classify masks share: every query is read as a class and a mask,
and pixels take the classes of their masks.

Paper: Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation" (MaskFormer), NeurIPS
2021, sec. 3. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/{maskformer,mask2former}_head.py (Apache-2.0).
State keys: `cls_embed`, `mask_embed.0`, `.2`, `.4`, `query_embed`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import relu
from jseg.layers.init import start_with_xavier
from jseg.layers.parameters import Table
from jseg.layers.products import mix_maps
from jseg.layers.tokens import Linear
from jseg.losses.set_criterion import SetCriterion
from jseg.models.heads.base import Head
from jseg.rules import is_pair

__all__ = ["DICE_LOSS", "MASK_LOSS", "MATCHING", "MaskHead", "class_scores", "default_class_loss"]

# Mask2Former's, which SAN has too: losses of a mask, pixel by pixel and as a whole, and how queries find their masks
MASK_LOSS = MappingProxyType({"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 5.0})
DICE_LOSS = MappingProxyType({"type": "DiceLoss", "naive_dice": True, "eps": 1.0, "loss_weight": 5.0})
MATCHING = {"type": "HungarianAssigner", "match_costs": [
    {"type": "ClassificationCost", "weight": 2.0}, {"type": "CrossEntropyLossCost", "weight": 5.0},
    {"type": "DiceCost", "weight": 5.0, "pred_act": True, "eps": 1.0}]}


def class_scores(scores: jt.Var, masks: jt.Var, size: tuple[int, int]) -> jt.Var:
    """What a set says of every pixel: the sum over queries of the class's probability times the mask's.

    Shape:
        scores: (N, Q, K + 1) logits; masks: (N, Q, h, w) logits -> (N, K, H, W) for size (H, W)
    """
    classes = nn.softmax(scores, dim=2)[:, :, :-1].transpose(0, 2, 1)  # (N, K, Q)
    return mix_maps(classes, jt.sigmoid(ops.bilinear_resize(masks, size)))


def default_class_loss(num_classes: int, weight: float) -> dict:
    """Cross entropy in which a query without a class counts a tenth."""
    return {"type": "CrossEntropyLoss", "loss_weight": weight, "class_weight": [1.0] * num_classes + [0.1]}


class MaskEmbed(nn.Sequential):
    """Three linear layers with ReLU, or GELU, between them. Shape:
    (N, Q, channels) -> (N, Q, out_channels). Keys "0", "2", "4".
    """

    def __init__(self, channels: int, out_channels: int, *, has_gelu: bool = False):
        super().__init__(Linear(channels, channels), nn.ReLU(), Linear(channels, channels), nn.ReLU(),
                         Linear(channels, out_channels))
        start_with_xavier(self)
        self.has_gelu = has_gelu

    def execute(self, x: jt.Var) -> jt.Var:
        first, _, second, _, third = self
        if self.has_gelu:
            return third(second(first(x, activation="gelu"), activation="gelu"))
        return third(relu(second(relu(first(x)))))


class MaskHead(Head):
    """Base of the heads. Outputs are readings, first to last: class logits (N, Q, K + 1) and mask logits (N, Q, h, w).

    A subclass writes `execute` and sets `criterion`.

    Args:
        num_classes: K.
        in_index: places of the maps it reads in what backbone or neck gives, finest first; None for all.
        channels: width of the queries.
        out_channels: width of the map that masks are read from.
        num_queries: Q, the rows of `query_embed`.
        query_channels: width of those rows.
        align_corners, ignore_index: facts of the head; masks are always resized with align_corners False, as upstream.
        readout_size: (h, w) of the scores in cells, "masks" for the masks' own size, None for the pictures'. Upstream
            has None; transformers' image processors read classes at other sizes.
        has_gelu: GELU instead of ReLU in `mask_embed`.
    """

    criterion: SetCriterion

    def __init__(self, num_classes: int, *, in_index: Sequence[int] | None, channels: int, out_channels: int,
                 num_queries: int, query_channels: int, align_corners: bool, ignore_index: int,
                 readout_size: str | Sequence[int] | None = None, has_gelu: bool = False):
        super().__init__()
        if not (readout_size in (None, "masks") or is_pair(readout_size)):
            raise ConfigError(f"readout_size is {readout_size!r}; accepted: null, 'masks', or [height, width]")
        self.readout_size = readout_size
        if num_classes < 2 or num_queries < 1:
            raise ConfigError(f"num_classes is {num_classes} (at least 2), num_queries {num_queries} (at least 1)")
        self.num_classes, self.align_corners, self.ignore_index = num_classes, align_corners, ignore_index
        self.in_index = None if in_index is None else list(in_index)
        self.cls_embed = Linear(channels, num_classes + 1)
        self.mask_embed = MaskEmbed(channels, out_channels, has_gelu=has_gelu)
        self.query_embed = Table(num_queries, query_channels)

    def select(self, features: list[jt.Var]) -> list[jt.Var]:
        """The maps that `in_index` names."""
        return list(features) if self.in_index is None else [features[i] for i in self.in_index]

    def read(self, queries: jt.Var, features: jt.Var) -> tuple[jt.Var, jt.Var]:
        """Logits (N, Q, K + 1) and (N, Q, h, w) of queries (N, Q,
        channels) and the map of masks (N, out_channels, h, w).
        """
        return self.cls_embed(queries), mix_maps(self.mask_embed(queries), features)

    def loss(self, outputs: list[tuple[jt.Var, jt.Var]], labels: jt.Var) -> dict[str, jt.Var]:
        return self.criterion(outputs, labels)

    def scores(self, outputs: list[tuple[jt.Var, jt.Var]], size: tuple[int, int]) -> jt.Var:
        """At `size`: probabilities are mixed pixel by pixel, so they cannot be resized afterwards.
        `readout_size` changes that.
        """
        classes, masks = outputs[-1]
        if self.readout_size is not None:
            size = tuple(masks.shape[2:] if self.readout_size == "masks" else self.readout_size)
        return class_scores(classes, masks, size)
