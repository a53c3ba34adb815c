"""LRASPPHead: the coarsest map, weighed by means over large windows, then joined with finer maps step by step.

Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019, sec. 6.4 (Lite R-ASPP).
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/lraspp_head.py (Apache-2.0), whose keys and arithmetic these
are.

Deviations: maps smaller than the pooling window are accepted (the window is cut to them; upstream fails); any number of
maps.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, Numbered, window_means
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["LRASPPHead"]

_WINDOW, _STRIDE = (49, 49), (16, 20)  # of the pooling, in pixels of the coarsest map


class ImagePool(nn.Module):
    """Means over large windows, then a 1x1 convolution and a sigmoid, whose key is "1"."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        setattr(self, "1", ConvNormAct(in_channels, channels, 1, bias=False, act_cfg={"type": "Sigmoid"}))

    def execute(self, x: jt.Var) -> jt.Var:
        return getattr(self, "1")(window_means(x, _WINDOW, _STRIDE))


@MODELS.register()
class LRASPPHead(SegmentationHead):
    """Lite R-ASPP.

    Args:
        options: see `HeadOptions`; `input_transform` is "multiple_select", the maps come finest first.
        branch_channels: width to which each map but the last is projected.
    Shape:
        features: list of maps -> (N, K, h, w) of the finest selected map's size
    Raises:
        ConfigError: another `input_transform`, or not one width for each map but the last.
    """

    TINY = MappingProxyType({
        "type": "LRASPPHead", "channels": 8, "branch_channels": [4, 4, 6], "input_transform": "multiple_select",
        "norm_cfg": {"type": "BN"}
    })

    def __init__(self, options: HeadOptions, *, branch_channels: Sequence[int] = (32, 64)):
        super().__init__(options)
        if options.input_transform != "multiple_select" or len(branch_channels) != len(options.in_channels) - 1:
            raise ConfigError(f"input_transform is {options.input_transform!r} and branch_channels "
                              f"{list(branch_channels)}; accepted: 'multiple_select', and a width for each map of "
                              "in_channels but the last")
        *finer, coarsest = options.in_channels
        channels, blocks = options.channels, options.blocks
        self.convs = Numbered([Conv2d(a, b, 1, bias=False) for a, b in zip(finer, branch_channels)], "conv")
        self.conv_ups = Numbered(
            [ConvNormAct(channels + width, channels, 1, bias=False, **blocks) for width in branch_channels], "conv_up")
        self.conv_up_input = Conv2d(channels, channels, 1)
        self.aspp_conv = ConvNormAct(coarsest, channels, 1, bias=False, **blocks)
        self.image_pool = ImagePool(coarsest, channels)

    def decode(self, features: list) -> jt.Var:
        """(N, channels, h, w) from the selected maps."""
        *finer, x = features
        weights = ops.bilinear_resize(self.image_pool(x), tuple(x.shape[2:]), align_corners=self.align_corners)
        x = self.conv_up_input(self.aspp_conv(x) * weights)
        for i in reversed(range(len(finer))):
            x = ops.bilinear_resize(x, tuple(finer[i].shape[2:]), align_corners=self.align_corners)
            x = self.conv_ups[i](jt.concat([x, self.convs[i](finer[i])], 1))
        return x
