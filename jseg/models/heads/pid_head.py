"""PIDHead: classifies PIDNet's fused map; in training its P branch too, and where boundaries are by its D branch.

Paper: Xu et al., "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers", CVPR 2023, sec. 4.4.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/pid_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviation: edges are drawn on the labels of the batch, by `edge_width`, instead of by the transform GenerateEdge; where
they differ: see `jseg.losses.targets.edge_map`. `in_index` has no effect: the head reads all three maps.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import jittor as jt

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.layers.dual_resolution import PreactivatedBlock
from jseg.losses.targets import edge_map
from jseg.models.backbones.pidnet import PIDNet
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["PIDHead"]

BOUNDARY = 0.8  # probability from which a pixel belongs to a boundary


class Branches(NamedTuple):
    """Logits: P and I (N, K, h, w), D (N, 1, h, w); P and D are None in evaluation."""

    p: jt.Var | None
    i: jt.Var
    d: jt.Var | None


@MODELS.register()
class PIDHead(SegmentationHead):
    """A classifier for each branch. Losses: "loss_sem_p" and "loss_sem_i" on the labels, "loss_bd" on their edges, and
    "loss_sem_bd", that of I on the pixels which D finds at a boundary.

    Args:
        options: see `HeadOptions`; `in_channels` is the width of the fused map, `loss_decode` lists the four losses in
            this order.
        edge_width: thickness of the edges, in pixels.
    Shape:
        features: [(N, in_channels / 2, h, w), (N, in_channels, h, w), (N, in_channels / 2, h, w)] -> `Branches`
    Raises:
        ConfigError: another number of losses.
    """

    DEFAULTS = MappingProxyType({"norm_cfg": {"type": "BN"}, "act_cfg": {"type": "ReLU", "inplace": True}})
    TINY_BACKBONE = PIDNet.TINY
    TINY = MappingProxyType({
        "type": "PIDHead", "in_channels": 32, "channels": 8, "norm_cfg": {"type": "BN"}, "edge_width": 1,
        "loss_decode": [{"type": "CrossEntropyLoss", "loss_weight": 0.4}, {"type": "OhemCrossEntropy", "thres": 0.9},
                        {"type": "BoundaryLoss", "loss_weight": 20.0}, {"type": "OhemCrossEntropy", "thres": 0.9}]})

    def __init__(self, options: HeadOptions, *, edge_width: int = 4):
        super().__init__(options)
        if edge_width < 1:
            raise ConfigError(f"edge_width is {edge_width}; accepted: 1 or more pixels")
        if len(self.criterion.losses) != 4:
            raise ConfigError(f"loss_decode lists {len(self.criterion.losses)} losses; PIDHead needs four: of the P "
                              "branch, of the I branch, of boundaries (BoundaryLoss), of the I branch at boundaries")
        width, words = options.in_channels, {"keys": ("conv", "norm"), "norm_cfg": options.norm_cfg}
        self.edge_width = edge_width
        self.i_head = PreactivatedBlock(width, options.channels, act_cfg=options.act_cfg, **words)
        self.p_head = PreactivatedBlock(width // 2, options.channels, act_cfg=options.act_cfg, **words)
        self.d_head = PreactivatedBlock(width // 2, width // 4, act_cfg={"type": "ReLU"}, **words)
        self.p_cls_seg = Conv2d(options.channels, options.score_channels, 1)
        self.d_cls_seg = Conv2d(width // 4, 1, 1)

    def execute(self, features: list, previous: jt.Var | None = None) -> Branches:
        if len(features) != 3:
            raise ConfigError(f"PIDHead reads PIDNet's three maps, this backbone gives {len(features)}")
        p, i, d = features
        scores = self.classify(self.i_head(i))
        if not self.is_training():
            return Branches(None, scores, None)
        return Branches(self.p_cls_seg(self.p_head(p)), scores, self.d_cls_seg(self.d_head(d)))

    def loss(self, outputs: Branches, labels: jt.Var) -> dict[str, jt.Var]:
        criterion, edges = self.criterion, edge_map(labels, width=self.edge_width, ignore_index=self.ignore_index)
        with jt.no_grad():
            boundary = jt.sigmoid(ops.bilinear_resize(outputs.d, tuple(labels.shape[1:]),
                                                      align_corners=self.align_corners))[:, 0] > BOUNDARY
            near = jt.ternary(boundary, labels, jt.full_like(labels, self.ignore_index))
        return {"loss_sem_p": criterion.term(0, outputs.p, labels), "loss_sem_i": criterion.term(1, outputs.i, labels),
                "loss_bd": criterion.term(2, outputs.d, edges), "loss_sem_bd": criterion.term(3, outputs.i, near),
                "acc_seg": criterion.accuracy(outputs.i, labels)}

    def scores(self, outputs: Branches, size: tuple[int, int]) -> jt.Var:
        return super().scores(outputs.i, size)
