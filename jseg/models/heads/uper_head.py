"""UPerHead (UPerNet): pyramid pooling of the last map, a feature pyramid of all, joined at the size of the first.

Paper: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/uper_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.models.heads.psp_head import PyramidPooling
from jseg.registry import MODELS

__all__ = ["UPerHead"]


@MODELS.register()
class UPerHead(SegmentationHead):
    """Pyramid pooling and a feature pyramid.

    Args:
        options: see `HeadOptions`; `in_channels` and `in_index` are lists, largest map first.
        pool_scales: sides of the pooling grids in cells.
    Shape:
        features: list of (N, in_channels[i], H_i, W_i) -> (N, K, H_0, W_0)
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType({"type": "UPerHead", "channels": 8, "pool_scales": [1, 2, 3]})

    def __init__(self, options: HeadOptions, *, pool_scales: Sequence[int] = (1, 2, 3, 6)):
        super().__init__(options)
        *lower, last = options.in_channels
        channels, blocks = options.channels, options.blocks
        self.psp_modules = PyramidPooling(pool_scales, last, channels, blocks=blocks,
                                          align_corners=options.align_corners)
        self.bottleneck = ConvNormAct(last + len(pool_scales) * channels, channels, 3, padding=1, **blocks)
        self.lateral_convs = nn.Sequential(*[ConvNormAct(width, channels, 1, **blocks) for width in lower])
        self.fpn_convs = nn.Sequential(*[ConvNormAct(channels, channels, 3, padding=1, **blocks) for _ in lower])
        self.fpn_bottleneck = ConvNormAct(len(options.in_channels) * channels, channels, 3, padding=1, **blocks)

    def decode(self, features: list[jt.Var]) -> jt.Var:
        """(N, channels, H_0, W_0) from the selected maps."""
        last, size = features[-1], tuple(features[0].shape[2:])
        summed = [self.bottleneck(jt.concat([last, *self.psp_modules(last)], 1))]
        for x, block in zip(features[-2::-1], reversed(list(self.lateral_convs))):
            lateral = block(x)
            above = ops.bilinear_resize(summed[0], tuple(lateral.shape[2:]),
                                        align_corners=self.align_corners, add=lateral)
            summed.insert(0, above)
        maps = [block(x) for block, x in zip(self.fpn_convs, summed)] + summed[-1:]
        maps = [maps[0], *(ops.bilinear_resize(x, size, align_corners=self.align_corners) for x in maps[1:])]
        return self.fpn_bottleneck(jt.concat(maps, 1))
