"""MultiLevelNeck: maps of one size become a pyramid; between ViT and UPerHead.

Upstream: mmsegmentation 1.2.2 mmseg/models/necks/multilevel_neck.py (Apache-2.0), whose words, keys and arithmetic
these are.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import Conv2d, ConvNormAct
from jseg.layers.init import xavier_uniform
from jseg.registry import MODELS

__all__ = ["MultiLevelNeck", "rescale"]


def rescale(x: jt.Var, scale: float) -> jt.Var:
    """Resize bilinearly by a factor: PyTorch's `F.interpolate(scale_factor=scale, mode="bilinear")`.

    Sides are rounded down, to at least 1, and positions go by the factor, not by the sides: what is left over at the
    end is cut first.

    Shape:
        x: (N, C, H, W) -> (N, C, floor(scale * H), floor(scale * W))
    """
    size = tuple(max(1, math.floor(side * scale)) for side in x.shape[2:])
    if scale < 1:
        x = x[:, :, :math.ceil(size[0] / scale), :math.ceil(size[1] / scale)]
    return ops.bilinear_resize(x, size)


@MODELS.register()
class MultiLevelNeck(nn.Module):
    """A 1x1 block, a resize and a 3x3 block for each level.

    Args:
        in_channels: widths of the maps; a single map serves every level.
        out_channels: width of every level.
        scales: factor of each level's size.
        norm_cfg, act_cfg: norm and activation of the blocks, None for none.
    Shape:
        maps: list of (N, in_channels[i], H, W) -> list of (N, out_channels, floor(scales[i] * H), floor(scales[i] * W))
    Raises:
        ValueError: neither one map nor one for each level.
    """

    TINY = MappingProxyType({"type": "MultiLevelNeck", "out_channels": 8, "scales": [2, 1, 1, 0.5]})

    def __init__(self, in_channels: Sequence[int], out_channels: int, scales: Sequence[float] = (0.5, 1, 2, 4),
                 norm_cfg: dict | None = None, act_cfg: dict | None = None):
        super().__init__()
        if len(in_channels) not in (1, len(scales)):
            raise ValueError(f"in_channels lists {len(in_channels)} maps, scales {len(scales)} levels; give one map or "
                             "one for each level")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.scales = tuple(scales)
        self.lateral_convs = nn.Sequential(*[ConvNormAct(width, out_channels, 1, **blocks) for width in in_channels])
        self.convs = nn.Sequential(*[ConvNormAct(out_channels, out_channels, 3, padding=1, **blocks) for _ in scales])
        self.out_channels = [out_channels] * len(scales)
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.weight = xavier_uniform(module.weight.shape)

    def execute(self, maps: list[jt.Var]) -> list[jt.Var]:
        maps = [block(x) for block, x in zip(self.lateral_convs, maps)]
        maps = maps * len(self.scales) if len(maps) == 1 else maps
        return [block(rescale(x, scale)) for block, x, scale in zip(self.convs, maps, self.scales)]
