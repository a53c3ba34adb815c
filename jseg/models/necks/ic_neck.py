"""ICNeck: fuses ICNet's maps from coarse to fine.

Paper: Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018, sec. 3.3 (cascade
feature fusion). Upstream: mmsegmentation 1.2.2 mmseg/models/necks/ic_neck.py (Apache-2.0), whose words, keys and
arithmetic these are.

Kept from upstream: auxiliary heads read the coarse map after its dilated convolution (the paper: after a classifier of
its own).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, relu
from jseg.models.backbones.icnet import ICNet
from jseg.registry import MODELS

__all__ = ["ICNeck"]


class CascadeFusion(nn.Module):
    """The coarse map, resized and through a dilated 3x3 block, plus the fine one through a 1x1 block, and ReLU.

    Args:
        coarse_channels, fine_channels, channels: widths of both maps and of the result.
        blocks: norm_cfg and act_cfg.
        align_corners: how the coarse map is resized.
    Shape:
        coarse: (N, coarse_channels, h, w), fine: (N, fine_channels, H, W) -> sum and coarse part, (N, channels, H, W)
            each
    """

    def __init__(self, coarse_channels: int, fine_channels: int, channels: int, *, blocks: dict, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.conv_low = ConvNormAct(coarse_channels, channels, 3, padding=2, dilation=2, **blocks)
        self.conv_high = ConvNormAct(fine_channels, channels, 1, **blocks)

    def execute(self, coarse: jt.Var, fine: jt.Var) -> tuple[jt.Var, jt.Var]:
        coarse = self.conv_low(ops.bilinear_resize(coarse, tuple(fine.shape[2:]), align_corners=self.align_corners))
        return relu(coarse + self.conv_high(fine)), coarse


@MODELS.register()
class ICNeck(nn.Module):
    """Two cascade fusions.

    Args:
        in_channels: widths of the three maps, fine to coarse.
        out_channels: width of every result.
        norm_cfg, act_cfg: of the convolution blocks.
        align_corners: how maps are resized.
    Shape:
        maps: three (N, in_channels[i], H_i, W_i) -> [coarse part of the first fusion, at the second map's size; coarse
        part of the second fusion and its sum, at the first map's size], all `out_channels` wide
    Raises:
        ConfigError: another number of widths.
    """

    TINY = MappingProxyType({"type": "ICNeck", "out_channels": 8, "norm_cfg": {"type": "BN"}})
    TINY_BACKBONE = ICNet.TINY

    def __init__(self, in_channels: Sequence[int] = (64, 256, 256), out_channels: int = 128,
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU"}), align_corners: bool = False):
        super().__init__()
        if len(in_channels) != 3:
            raise ConfigError(f"in_channels needs the widths of three maps, got {list(in_channels)}")
        fine, middle, coarse = in_channels
        words = {"blocks": {"norm_cfg": norm_cfg, "act_cfg": act_cfg}, "align_corners": align_corners}
        self.cff_24 = CascadeFusion(coarse, middle, out_channels, **words)
        self.cff_12 = CascadeFusion(out_channels, fine, out_channels, **words)
        self.out_channels = [out_channels] * 3

    def execute(self, maps: list[jt.Var]) -> list[jt.Var]:
        if len(maps) != 3:
            raise ConfigError(f"ICNeck reads three maps, the backbone gives {len(maps)}")
        fine, middle, coarse = maps
        fused, first = self.cff_24(coarse, middle)
        fused, second = self.cff_12(fused, fine)
        return [first, second, fused]
