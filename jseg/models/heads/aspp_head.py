"""ASPPHead: DeepLabV3's convolutions of several dilations, side by side.

Paper: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv 1706.05587, 2017, sec. 3.3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/aspp_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.models.heads.psp_head import PoolBranch
from jseg.registry import MODELS

__all__ = ["ASPPHead"]


@MODELS.register()
class ASPPHead(SegmentationHead):
    """The mean of the map and its convolutions of several dilations, joined, through a 3x3 block.

    Args:
        options: see `HeadOptions`.
        dilations: of the branches, >= 1; the branch of dilation 1 is a 1x1 convolution, the others are 3x3.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "ASPPHead", "channels": 8})

    def __init__(self, options: HeadOptions, *, dilations: Sequence[int] = (1, 6, 12, 18)):
        super().__init__(options)
        if not isinstance(dilations, (list, tuple)) or not dilations or min(dilations) < 1:
            raise ConfigError(f"dilations is {dilations!r}; a list of integers of at least 1 is accepted")
        width, channels = options.input_width, options.channels
        self.image_pool = PoolBranch(1, width, channels, options.blocks)
        self.aspp_modules = nn.Sequential(*[self._branch(width, dilation) for dilation in dilations])
        self.bottleneck = ConvNormAct((len(dilations) + 1) * channels, channels, 3, padding=1, **options.blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        size = tuple(features.shape[2:])
        mean = ops.bilinear_resize(self.image_pool(features), size, align_corners=self.align_corners)
        return self.bottleneck(jt.concat([mean, *[branch(features) for branch in self.aspp_modules]], 1))

    def _branch(self, width: int, dilation: int) -> nn.Module:
        """The convolution block of one dilation."""
        side, padding = (1, 0) if dilation == 1 else (3, dilation)
        return ConvNormAct(width, self.channels, side, padding=padding, dilation=dilation, **self.options.blocks)
