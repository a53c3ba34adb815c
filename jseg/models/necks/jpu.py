"""JPU: several maps joined at the size of the finest, through convolutions of several dilations.

Paper: Wu et al., "FastFCN: Rethinking Dilated Convolution in the Backbone for Semantic Segmentation", arXiv 1903.11816,
2019, sec. 3.3.
Upstream: mmsegmentation 1.2.2 mmseg/models/necks/jpu.py (Apache-2.0), whose words, keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, DepthwiseSeparableConv
from jseg.registry import MODELS

__all__ = ["JPU"]


@MODELS.register()
class JPU(nn.Module):
    """Joint pyramid upsampling: the coarsest map is replaced by one of the finest map's size.

    Args:
        in_channels: widths of all maps of the backbone, finest first.
        mid_channels: width of every branch.
        start_level, end_level: the maps used, [start_level, end_level); end_level -1: to the last.
        dilations: of the branches, >= 1.
        align_corners: how maps are resized.
        norm_cfg, act_cfg: norm and activation of the blocks.
    Shape:
        maps: list of (N, in_channels[i], H_i, W_i) -> the maps used but the last, as they are, and
            (N, len(dilations) * mid_channels, H_start, W_start)
    Raises:
        ConfigError: levels that the maps do not have, or no dilation.
    """

    TINY = MappingProxyType({"type": "JPU", "mid_channels": 8, "dilations": [1, 2]})

    def __init__(self, in_channels: Sequence[int] = (512, 1024, 2048), mid_channels: int = 512, start_level: int = 0,
                 end_level: int = -1, dilations: Sequence[int] = (1, 2, 4, 8), align_corners: bool = False,
                 norm_cfg: dict | None = MappingProxyType({"type": "BN"}),
                 act_cfg: dict | None = MappingProxyType({"type": "ReLU"})):
        super().__init__()
        end = len(in_channels) if end_level == -1 else end_level
        if not 0 <= start_level < end <= len(in_channels) or not dilations or min(dilations) < 1:
            raise ConfigError(f"start_level {start_level} and end_level {end_level} choose of {len(in_channels)} maps; "
                              f"dilations is {dilations!r}, accepted: a list of integers of at least 1")
        self.in_channels, self.levels, self.align_corners = list(in_channels), (start_level, end), align_corners
        used, blocks = list(in_channels[start_level:end]), {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.conv_layers = nn.Sequential(
            *[nn.Sequential(ConvNormAct(width, mid_channels, 3, padding=1, **blocks)) for width in used])
        self.dilation_layers = nn.Sequential(*[nn.Sequential(DepthwiseSeparableConv(
            len(used) * mid_channels, mid_channels, 3, padding=dilation, dilation=dilation, dw_act_cfg=None, **blocks))
            for dilation in dilations])
        self.out_channels = [*used[:-1], len(dilations) * mid_channels]

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        if len(maps) != len(self.in_channels):
            raise ValueError(f"JPU: {len(maps)} maps came, in_channels lists {len(self.in_channels)}")
        used = list(maps[slice(*self.levels)])
        size = tuple(used[0].shape[2:])
        joined = jt.concat([ops.bilinear_resize(layer(x), size, align_corners=self.align_corners)
                            for layer, x in zip(self.conv_layers, used)], 1)
        return [*used[:-1], jt.concat([layer(joined) for layer in self.dilation_layers], 1)]
