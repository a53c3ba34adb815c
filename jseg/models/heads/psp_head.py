"""PSPHead: pyramid pooling.

Paper: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/psp_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import ConvNormAct, adaptive_avg_pool
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["PSPHead", "PyramidPooling"]


class PoolBranch(nn.Module):
    """Means over a grid, then a 1x1 block, whose key is "1". Shape: (N, C, H, W) -> (N, channels, scale, scale)."""

    def __init__(self, scale: int, in_channels: int, channels: int, blocks: dict):
        super().__init__()
        self.scale = scale
        setattr(self, "1", ConvNormAct(in_channels, channels, 1, **blocks))

    def execute(self, x: jt.Var) -> jt.Var:
        return getattr(self, "1")(adaptive_avg_pool(x, self.scale))


class PyramidPooling(nn.Sequential):
    """Pool to several grids, project, resize back.

    Args:
        pool_scales: sides of the grids in cells.
        in_channels, channels: widths of the input and of each branch.
        blocks: norm_cfg and act_cfg of the branches.
        align_corners: how branches are resized.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, channels, H, W), one per scale
    """

    def __init__(self, pool_scales: Sequence[int], in_channels: int, channels: int, *, blocks: dict,
                 align_corners: bool):
        super().__init__(*[PoolBranch(scale, in_channels, channels, blocks) for scale in pool_scales])
        self.align_corners = align_corners

    def execute(self, x: jt.Var) -> list[jt.Var]:
        size = tuple(x.shape[2:])
        return [ops.bilinear_resize(branch(x), size, align_corners=self.align_corners) for branch in self]


@MODELS.register()
class PSPHead(SegmentationHead):
    """The map and its pyramid, joined, through a 3x3 block.

    Args:
        options: see `HeadOptions`.
        pool_scales: sides of the pooling grids in cells.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "PSPHead", "channels": 8, "pool_scales": [1, 2, 3]})

    def __init__(self, options: HeadOptions, *, pool_scales: Sequence[int] = (1, 2, 3, 6)):
        super().__init__(options)
        width, channels = options.input_width, options.channels
        self.psp_modules = PyramidPooling(pool_scales, width, channels, blocks=options.blocks,
                                          align_corners=options.align_corners)
        self.bottleneck = ConvNormAct(width + len(pool_scales) * channels, channels, 3, padding=1, **options.blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        return self.bottleneck(jt.concat([features, *self.psp_modules(features)], 1))
