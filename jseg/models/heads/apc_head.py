"""APCHead: each position gathers the cells of several grids, by weights from itself and the map as a whole.

Paper: He et al., "Adaptive Pyramid Context Network for Semantic Segmentation", CVPR 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/apc_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.layers import Conv2d, ConvNormAct, adaptive_avg_pool, relu, to_map, to_tokens
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["APCHead"]


class AdaptiveContext(nn.Module):
    """One grid: its cells, weighted for each position.

    Args:
        pool_scale: side of the grid.
        fusion: one more 1x1 block at the end.
        in_channels, channels: widths of the map and of the result.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, H, W)
    """

    def __init__(self, pool_scale: int, fusion: bool, in_channels: int, channels: int, blocks: dict):
        super().__init__()
        self.pool_scale = pool_scale
        self.pooled_redu_conv = ConvNormAct(in_channels, channels, 1, **blocks)
        self.input_redu_conv = ConvNormAct(in_channels, channels, 1, **blocks)
        self.global_info = ConvNormAct(channels, channels, 1, **blocks)
        self.gla = Conv2d(channels, pool_scale**2, 1)
        self.residual_conv = ConvNormAct(channels, channels, 1, **blocks)
        self.fusion_conv = ConvNormAct(channels, channels, 1, **blocks) if fusion else None

    def execute(self, x: jt.Var) -> jt.Var:
        cells = to_tokens(self.pooled_redu_conv(adaptive_avg_pool(x, self.pool_scale)))  # (N, cells, C)
        x = self.input_redu_conv(x)
        weights = jt.sigmoid(to_tokens(self.gla(x + self.global_info(adaptive_avg_pool(x, 1)))))  # (N, L, cells)
        context = to_map(jt.matmul(weights, cells), tuple(x.shape[2:]))
        y = relu(self.residual_conv(context) + x)
        return y if self.fusion_conv is None else self.fusion_conv(y)


@MODELS.register()
class APCHead(SegmentationHead):
    """The map and its contexts of several grids, joined, through a 3x3 block.

    Args:
        options: see `HeadOptions`.
        pool_scales: sides of the grids in cells.
        fusion: one more 1x1 block at the end of each context.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "APCHead", "channels": 8, "pool_scales": [1, 2],
                             "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, options: HeadOptions, *, pool_scales: Sequence[int] = (1, 2, 3, 6), fusion: bool = True):
        super().__init__(options)
        width, channels, blocks = options.input_width, options.channels, options.blocks
        self.acm_modules = nn.Sequential(
            *[AdaptiveContext(scale, fusion, width, channels, blocks) for scale in pool_scales])
        self.bottleneck = ConvNormAct(width + len(pool_scales) * channels, channels, 3, padding=1, **blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        return self.bottleneck(jt.concat([features, *[module(features) for module in self.acm_modules]], 1))
