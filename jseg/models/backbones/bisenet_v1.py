"""BiSeNetV1: a shallow path for detail and a deep one for context, fused at stride 8.

Paper: Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/bisenetv1.py (Apache-2.0), whose words, keys and arithmetic these
are.

Deviation: `norm_cfg` and `act_cfg` reach all blocks but the backbone's (upstream keeps both and builds BatchNorm and
ReLU).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import AttentionRefinement, ChannelGate, ConvNormAct, GatedFusion, nearest_resize
from jseg.models.backbones.resnet import ResNet
from jseg.models.heads.psp_head import PoolBranch
from jseg.registry import MODELS

__all__ = ["BiSeNetV1"]


class SpatialPath(nn.Module):
    """A 7x7 and two 3x3 blocks of stride 2, and a 1x1 block. Shape:
    (N, in_channels, H, W) -> (N, widths[3], ceil(H / 8), ceil(W / 8)).
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, blocks: dict):
        super().__init__()
        self.layer1 = ConvNormAct(in_channels, widths[0], 7, stride=2, padding=3, **blocks)
        self.layer2 = ConvNormAct(widths[0], widths[1], 3, stride=2, padding=1, **blocks)
        self.layer3 = ConvNormAct(widths[1], widths[2], 3, stride=2, padding=1, **blocks)
        self.layer4 = ConvNormAct(widths[2], widths[3], 1, **blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class ContextPath(nn.Module):
    """A backbone's last two maps, refined and added up from coarse to fine.

    Args:
        backbone_cfg: block of a backbone with four maps.
        widths: of the results, of the third map, of the fourth.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, C, H, W) -> (N, widths[0], H / 8, W / 8) and (N, widths[0], H / 16, W / 16), sides rounded up
    """

    def __init__(self, backbone_cfg: dict, widths: Sequence[int], *, blocks: dict):
        super().__init__()
        self.backbone = MODELS.build(backbone_cfg, "backbone_cfg")
        if len(self.backbone.out_channels) != 4 or list(self.backbone.out_channels[2:]) != list(widths[1:]):
            raise ConfigError(f"context_channels is {list(widths)}; its last two are the widths of the third and "
                              f"fourth of four maps, the backbone has {list(self.backbone.out_channels)}")
        width = widths[0]
        self.arm16 = AttentionRefinement(widths[1], width, **blocks)
        self.arm32 = AttentionRefinement(widths[2], width, **blocks)
        self.conv_head32 = ConvNormAct(width, width, 3, padding=1, **blocks)
        self.conv_head16 = ConvNormAct(width, width, 3, padding=1, **blocks)
        self.gap_conv = PoolBranch(1, widths[2], width, blocks)

    def execute(self, x: jt.Var) -> tuple[jt.Var, jt.Var]:
        _, fine, middle, coarse = self.backbone(x)
        x = self.arm32(coarse) + self.gap_conv(coarse)
        above = self.conv_head32(nearest_resize(x, tuple(middle.shape[2:])))
        x = self.arm16(middle) + above
        return self.conv_head16(nearest_resize(x, tuple(fine.shape[2:]))), above


@MODELS.register()
class BiSeNetV1(nn.Module):
    """Spatial path, context path and their fusion.

    Args:
        backbone_cfg: block of the context path's backbone, which gives four maps at strides 4 to 32.
        in_channels: channels of the picture.
        spatial_channels: widths of the spatial path's four blocks.
        context_channels: width of the context path's results, and of the backbone's third and fourth map. The fusion
            reads the last spatial width and the first of these, which add up to the second.
        out_indices: of (fused map, context at stride 8, context at stride 16).
        align_corners: no effect: maps are resized to the nearest pixel.
        out_channels: width of the fused map.
        norm_cfg, act_cfg: of the convolution blocks.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), at
            strides 8, 8 and 16
    Raises:
        ConfigError: lists of another length, or widths that do not fit each other.
    """

    TINY = MappingProxyType({
        "type": "BiSeNetV1", "backbone_cfg": dict(ResNet.TINY), "spatial_channels": [8, 8, 8, 24],
        "context_channels": [8, 32, 64], "out_channels": 16, "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, backbone_cfg: dict, in_channels: int = 3, spatial_channels: Sequence[int] = (64, 64, 64, 128),
                 context_channels: Sequence[int] = (128, 256, 512), out_indices: Sequence[int] = (0, 1, 2),
                 align_corners: bool = False, out_channels: int = 256,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU"})):
        super().__init__()
        if (len(spatial_channels) != 4 or len(context_channels) != 3
            or spatial_channels[3] + context_channels[0] != context_channels[1]):
            raise ConfigError(f"spatial_channels {list(spatial_channels)} needs four widths, context_channels "
                              f"{list(context_channels)} three; the last of the former and the first of the latter add "
                              "up to the second of the latter")
        if not out_indices or not set(out_indices) <= {0, 1, 2}:
            raise ConfigError(f"out_indices is {list(out_indices)}; accepted: of 0 (fused map), 1 (context at stride "
                              "8), 2 (at stride 16)")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.context_path = ContextPath(backbone_cfg, context_channels, blocks=blocks)
        self.spatial_path = SpatialPath(in_channels, spatial_channels, blocks=blocks)
        gate = ChannelGate(ConvNormAct(out_channels, out_channels, 1, bias=False, **blocks), first_key=0)
        self.ffm = GatedFusion(context_channels[1], out_channels, gate, keys=("conv1", "conv_atten"), **blocks)
        self.out_indices = tuple(out_indices)
        self.out_channels = [(out_channels, context_channels[0], context_channels[0])[i] for i in self.out_indices]
        self.strides = [(8, 8, 16)[i] for i in self.out_indices]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        context8, context16 = self.context_path(x)
        maps = (self.ffm(self.spatial_path(x), context8), context8, context16)
        return [maps[i] for i in self.out_indices]
