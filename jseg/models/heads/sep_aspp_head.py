"""DepthwiseSeparableASPPHead: DeepLabV3+, which adds a finer map and works with depthwise separable convolutions.

Paper: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", ECCV
2018, sec. 3.1.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/sep_aspp_head.py (Apache-2.0), whose keys and arithmetic
these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, DepthwiseSeparableConv
from jseg.models.heads.aspp_head import ASPPHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DepthwiseSeparableASPPHead"]


@MODELS.register()
class DepthwiseSeparableASPPHead(ASPPHead):
    """ASPP whose 3x3 branches are depthwise separable; its result is resized to the first map and joined with that.

    Args:
        options: see `HeadOptions`.
        c1_in_channels: width of the first map of the list; 0: that map is not read.
        c1_channels: width to which the first map is projected; 0 where it is not read.
        dilations: see `ASPPHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the first map's size
    """

    TINY = MappingProxyType(
        {"type": "DepthwiseSeparableASPPHead", "channels": 8, "c1_in_channels": 8, "c1_channels": 4})

    def __init__(self, options: HeadOptions, *, c1_in_channels: int, c1_channels: int,
                 dilations: Sequence[int] = (1, 6, 12, 18)):
        super().__init__(options, dilations=dilations)
        if c1_in_channels < 0 or (c1_channels > 0) != (c1_in_channels > 0):
            raise ConfigError(
                f"c1_in_channels is {c1_in_channels} and c1_channels {c1_channels}; both are above 0, or both are 0 "
                "for a head that does not read the first map")
        channels = self.channels
        self.c1_bottleneck = ConvNormAct(c1_in_channels, c1_channels, 1, **options.blocks) if c1_in_channels else None
        self.sep_bottleneck = nn.Sequential(
            DepthwiseSeparableConv(channels + c1_channels, channels, 3, padding=1, **options.blocks),
            DepthwiseSeparableConv(channels, channels, 3, padding=1, **options.blocks))

    def select(self, features: list) -> list:
        """The map that `in_index` names, and the first."""
        return [super().select(features), features[0]]

    def decode(self, features: list) -> jt.Var:
        """(N, channels, h, w) from the selected map and the first."""
        x, first = super().decode(features[0]), features[1]
        if self.c1_bottleneck is not None:
            x = ops.bilinear_resize(x, tuple(first.shape[2:]), align_corners=self.align_corners)
            x = jt.concat([x, self.c1_bottleneck(first)], 1)
        return self.sep_bottleneck(x)

    def _branch(self, width: int, dilation: int) -> nn.Module:
        if dilation == 1:
            return super()._branch(width, dilation)
        blocks = self.options.blocks
        return DepthwiseSeparableConv(width, self.channels, 3, padding=dilation, dilation=dilation, **blocks)
