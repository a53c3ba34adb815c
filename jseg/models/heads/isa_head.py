"""ISAHead: attention among positions far apart, then among neighbours; both together join every two positions.

Paper: Huang et al., "Interlaced Sparse Self-Attention for Semantic Segmentation", arXiv 1907.12273, 2019, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/isa_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.layers import ConvNormAct, SelfAttentionBlock, pair
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["ISAHead"]


class Relation(SelfAttentionBlock):
    """Attention within groups of positions, and a 1x1 block. Shape: (groups, channels, h, w) -> same.

    Args:
        channels, isa_channels: widths of the map, and of queries and keys.
        blocks: norm_cfg and act_cfg.
    """

    def __init__(self, channels: int, isa_channels: int, blocks: dict):
        super().__init__(channels, isa_channels, channels, key_query_num_convs=2, value_out_norm=False, with_out=False,
                         blocks=blocks)
        self.output_project = ConvNormAct(channels, channels, 1, **blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.output_project(super().execute(x, x))


@MODELS.register()
class ISAHead(SegmentationHead):
    """A 3x3 block, attention of far and of near positions, joined with the block's map, a classifier.

    Args:
        options: see `HeadOptions`.
        isa_channels: width of queries and keys.
        down_factor: (height, width) of a group of neighbours, in cells; zeros around the map fill the last groups.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "ISAHead", "channels": 8, "isa_channels": 4,
                            "down_factor": [2, 3], "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, isa_channels: int, down_factor: Sequence[int] = (8, 8)):
        super().__init__(options)
        channels, blocks = options.channels, options.blocks
        self.down_factor = pair(down_factor)
        self.in_conv = ConvNormAct(options.input_width, channels, 3, padding=1, **blocks)
        self.global_relation = Relation(channels, isa_channels, blocks)
        self.local_relation = Relation(channels, isa_channels, blocks)
        self.out_conv = ConvNormAct(2 * channels, channels, 1, **blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        x = self.in_conv(features)
        n, c, h, w = x.shape
        rows, columns = self.down_factor
        down, right = -(-h // rows), -(-w // columns)
        top, left = (down * rows - h) // 2, (right * columns - w) // 2
        y = nn.pad(x, (left, right * columns - w - left, top, down * rows - h - top)) if (h % rows
                                                                                          or w % columns) else x
        y = y.reshape(n, c, down, rows, right, columns).transpose(
            0, 3, 5, 1, 2, 4)  # (N, rows, columns, C, down, right)
        y = self.global_relation(y.reshape(-1, c, down, right)).reshape(n, rows, columns, c, down, right)
        y = y.transpose(0, 4, 5, 3, 1, 2)  # (N, down, right, C, rows, columns)
        y = self.local_relation(y.reshape(-1, c, rows, columns)).reshape(n, down, right, c, rows, columns)
        y = y.transpose(0, 3, 1, 4, 2, 5).reshape(n, c, down * rows, right * columns)
        return self.out_conv(jt.concat([y[:, :, top:top + h, left:left + w], x], 1))
