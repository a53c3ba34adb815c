"""DMHead: depthwise filters of several sizes that are made from the map they filter.

Paper: He et al., "Dynamic Multi-scale Filters for Semantic Segmentation", ICCV 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/dm_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import Conv2d, ConvNormAct, adaptive_avg_pool, build_activation, build_norm
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DMHead"]


class DynamicFilter(nn.Module):
    """Filter each channel of each picture by the means of the map over a grid.

    Args:
        filter_size: side of the filters and of the grid; an even one reaches one pixel further up and left.
        fusion: one more 1x1 block at the end.
        in_channels, channels: widths of the map and of the result.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, H, W)
    """

    def __init__(self, filter_size: int, fusion: bool, in_channels: int, channels: int, blocks: dict):
        super().__init__()
        self.filter_size = filter_size
        self.filter_gen_conv = Conv2d(in_channels, channels, 1)
        self.input_redu_conv = ConvNormAct(in_channels, channels, 1, **blocks)
        self.norm = None if blocks["norm_cfg"] is None else build_norm(blocks["norm_cfg"], channels)[1]
        self.activate = build_activation(blocks["act_cfg"])
        self.fusion_conv = ConvNormAct(channels, channels, 1, **blocks) if fusion else None

    def execute(self, x: jt.Var) -> jt.Var:
        side = self.filter_size
        filters = self.filter_gen_conv(adaptive_avg_pool(x, side))
        x = self.input_redu_conv(x)
        n, c, h, w = x.shape
        before, after = side // 2, (side - 1) // 2
        x = x.reshape(1, n * c, h, w)
        if before != after:
            x = nn.pad(x, (before, after, before, after))
        y = ops.depthwise(x, filters.reshape(n * c, 1, side, side), padding=before if before == after else 0)
        y = y.reshape(n, c, h, w)
        y = self.activate(y if self.norm is None else self.norm(y))
        return y if self.fusion_conv is None else self.fusion_conv(y)


@MODELS.register()
class DMHead(SegmentationHead):
    """The map and what dynamic filters of several sizes make of it, joined, through a 3x3 block.

    Args:
        options: see `HeadOptions`.
        filter_sizes: sides of the filters in cells.
        fusion: one more 1x1 block behind each filter.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "DMHead", "channels": 8, "filter_sizes": [1, 2, 3], "fusion": True,
                             "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, filter_sizes: Sequence[int] = (1, 3, 5, 7), fusion: bool = False):
        super().__init__(options)
        width, channels, blocks = options.input_width, options.channels, options.blocks
        self.dcm_modules = nn.Sequential(
            *[DynamicFilter(size, fusion, width, channels, blocks) for size in filter_sizes])
        self.bottleneck = ConvNormAct(width + len(filter_sizes) * channels, channels, 3, padding=1, **blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        return self.bottleneck(jt.concat([features, *[module(features) for module in self.dcm_modules]], 1))
