"""DDRHead: classifies DDRNet's sum; in training its fine branch too.

Paper: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes",
T-ITS 2022, sec. III-D. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/ddr_head.py (Apache-2.0), whose keys
and arithmetic these are.

Deviation: `in_index` has no effect: the head reads both maps.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import jittor as jt

from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.layers.dual_resolution import PreactivatedBlock
from jseg.models.backbones.ddrnet import DDRNet
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DDRHead"]


class Branches(NamedTuple):
    """Logits (N, K, h, w); those of the fine branch are None in evaluation."""

    context: jt.Var
    fine: jt.Var | None


@MODELS.register()
class DDRHead(SegmentationHead):
    """A classifier for each map. Losses: "loss_context" and "loss_spatial".

    Args:
        options: see `HeadOptions`; `in_channels` is the width of the sum, `loss_decode` lists the losses of the sum and
            of the fine branch.
    Shape:
        features: [(N, in_channels / 2, h, w), (N, in_channels, h, w)] -> `Branches`
    Raises:
        ConfigError: another number of losses.
    """

    DEFAULTS = MappingProxyType({"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU", "inplace": True}})
    TINY_BACKBONE = DDRNet.TINY
    TINY = MappingProxyType({
        "type": "DDRHead", "in_channels": 32, "channels": 8, "norm_cfg": {"type": "BN"},
        "loss_decode": [{"type": "OhemCrossEntropy", "thres": 0.9},
                        {"type": "OhemCrossEntropy", "thres": 0.9, "loss_weight": 0.4}]})

    def __init__(self, options: HeadOptions):
        super().__init__(options)
        if len(self.criterion.losses) != 2:
            raise ConfigError(f"loss_decode lists {len(self.criterion.losses)} losses; DDRHead needs two: of the sum, "
                              "of the fine branch")
        words = {"keys": ("0", "1"), "norm_cfg": options.norm_cfg, "act_cfg": options.act_cfg}
        self.head = PreactivatedBlock(options.in_channels, options.channels, **words)
        self.aux_head = PreactivatedBlock(options.in_channels // 2, options.channels, **words)
        self.aux_cls_seg = Conv2d(options.channels, options.score_channels, 1)

    def execute(self, features: list, previous: jt.Var | None = None) -> Branches:
        if len(features) != 2:
            raise ConfigError(f"DDRHead reads DDRNet's two maps, this backbone gives {len(features)}")
        fine, context = features
        scores = self.classify(self.head(context))
        return Branches(scores, self.aux_cls_seg(self.aux_head(fine)) if self.is_training() else None)

    def loss(self, outputs: Branches, labels: jt.Var) -> dict[str, jt.Var]:
        return {"loss_context": self.criterion.term(0, outputs.context, labels),
                "loss_spatial": self.criterion.term(1, outputs.fine, labels),
                "acc_seg": self.criterion.accuracy(outputs.context, labels)}

    def scores(self, outputs: Branches, size: tuple[int, int]) -> jt.Var:
        return super().scores(outputs.context, size)
