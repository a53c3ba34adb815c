"""STDCNet, whose blocks join convolutions of shrinking width,
and the context path that makes STDC-Seg's backbone of it.

Paper: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/stdc.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations: `norm_cfg` of the context path reaches its attention modules and, where `ffm_cfg` has none, the fusion
(upstream: always BatchNorm); maps are resized with `upsample_mode` nearest or bilinear only.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import (AttentionRefinement, ChannelGate, ConvNormAct, GatedFusion, adaptive_avg_pool, avg_pool,
                         nearest_resize)
from jseg.registry import MODELS

__all__ = ["STDCContextPathNet", "STDCNet"]

_RELU = MappingProxyType({"type": "ReLU"})
# strides
VARIANTS = MappingProxyType({"STDCNet1": ((2, 1), (2, 1), (2, 1)),
                             "STDCNet2": ((2, 1, 1, 1), (2, 1, 1, 1, 1), (2, 1, 1))})


class STDCModule(nn.Module):
    """A 1x1 and several 3x3 convolutions, each half as wide as the one before; all results are joined.

    Args:
        in_channels, out_channels: widths of input and output.
        stride: 1, or 2: then a depthwise convolution behind the first one halves the map.
        num_convs: convolutions, at least 2.
        fusion: "cat", or "add": the input, projected at stride 2, is added to the result.
        norm_cfg, act_cfg: norm of all, activation of the 3x3 convolutions; ReLU follows the first.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, num_convs: int, fusion: str, norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        self.strided, self.adds = stride == 2, fusion == "add"
        self.upstream_copies = {"layers.0.1": "downsample"} if self.strided and self.adds else {}
        half = out_channels // 2
        first = ConvNormAct(in_channels, half, 1, norm_cfg=norm_cfg, act_cfg=_RELU)
        halve = self._halving(half, norm_cfg)
        if self.strided and self.adds:
            first = nn.Sequential(first, halve)
            self.skip = nn.Sequential(self._halving(in_channels, norm_cfg),
                                      ConvNormAct(in_channels, out_channels, 1, norm_cfg=norm_cfg))
        elif self.strided:
            self.downsample = halve
        widths = [out_channels // 2**i for i in range(1, num_convs)]
        self.layers = nn.Sequential(first,
                                    *[ConvNormAct(before, after, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
                                      for before, after in zip(widths, [*widths[1:], widths[-1]])])

    def execute(self, x: jt.Var) -> jt.Var:
        first, *others = self.layers
        y = first(x)
        joined = [avg_pool(y, 3, stride=2, padding=1) if self.strided and not self.adds else y]
        y = self.downsample(y) if self.strided and not self.adds else y
        for layer in others:
            y = layer(y)
            joined.append(y)
        result = jt.concat(joined, 1)
        return result + (self.skip(x) if self.strided else x) if self.adds else result

    @staticmethod
    def _halving(channels: int, norm_cfg: dict) -> ConvNormAct:
        """A depthwise 3x3 convolution of stride 2 with norm."""
        return ConvNormAct(channels, channels, 3, stride=2, padding=1, groups=channels, norm_cfg=norm_cfg)


@MODELS.register()
class STDCNet(nn.Module):
    """Two strided convolutions and three stages of `STDCModule`s.

    Args:
        stdc_type: "STDCNet1" or "STDCNet2", which has more blocks.
        in_channels: channels of the picture.
        channels: widths of the two convolutions and of the three stages.
        bottleneck_type: "cat" or "add", see `STDCModule`.
        norm_cfg, act_cfg: of the convolution blocks.
        num_convs: convolutions of each module.
        with_final_conv: a 1x1 block on the last map, at least 1024 wide.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), at
            strides 8, 16 and 32
    Raises:
        ConfigError: an unknown type, another number of widths, or fewer than two convolutions.
    """

    TINY = MappingProxyType({"type": "STDCNet", "stdc_type": "STDCNet1", "in_channels": 3,
                             "channels": [4, 8, 16, 16, 32], "bottleneck_type": "add", "norm_cfg": {"type": "BN"},
                             "act_cfg": {"type": "ReLU"}, "num_convs": 3})

    def __init__(self, stdc_type: str, in_channels: int, channels: Sequence[int], bottleneck_type: str, norm_cfg: dict,
                 act_cfg: dict, num_convs: int = 4, with_final_conv: bool = False):
        super().__init__()
        if stdc_type not in VARIANTS or bottleneck_type not in ("add", "cat"):
            raise ConfigError(f"stdc_type {stdc_type!r}, bottleneck_type {bottleneck_type!r}; accepted: "
                              f"{', '.join(VARIANTS)}; 'add', 'cat'")
        if len(channels) != 5 or num_convs < 2:
            raise ConfigError(f"channels needs 5 widths, got {list(channels)}; num_convs at least 2, got {num_convs}")
        words = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        stages = [ConvNormAct(before, after, 3, stride=2, padding=1, **words)
                  for before, after in zip((in_channels, channels[0]), channels)]
        for before, after, strides in zip(channels[1:], channels[2:], VARIANTS[stdc_type]):
            stages.append(nn.Sequential(*[
                STDCModule(after if i else before, after, stride=stride, num_convs=num_convs,
                           fusion=bottleneck_type, **words)
                for i, stride in enumerate(strides)]))
        self.stages = nn.Sequential(*stages)
        self.out_channels, self.strides, self.final_conv = list(channels[2:]), [8, 16, 32], None
        if with_final_conv:
            self.out_channels[-1] = max(1024, channels[-1])
            self.final_conv = ConvNormAct(channels[-1], self.out_channels[-1], 1, **words)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        if self.final_conv is not None:
            maps[-1] = self.final_conv(maps[-1])
        return maps[2:]

    @staticmethod
    def remap_keys(state: Mapping) -> dict:
        """Upstream's strided modules of type "add" hold one convolution twice, as `downsample` and as `layers.0.1`."""
        return {key: value for key, value in state.items()
                if ".downsample." not in key or key.replace(".downsample.", ".layers.0.1.") not in state}


def make_fusion(in_channels: int, out_channels: int, scale_factor: int = 4,
                norm_cfg: dict = MappingProxyType({"type": "BN"}), act_cfg: dict = _RELU) -> GatedFusion:
    """A fusion whose gate is two 1x1 convolutions without norm, `scale_factor` times narrower inside;
    the words are `ffm_cfg`'s.
    """
    inside = out_channels // scale_factor
    gate = ChannelGate(ConvNormAct(out_channels, inside, 1, bias=False, act_cfg=act_cfg),
                       ConvNormAct(inside, out_channels, 1, bias=False))
    return GatedFusion(in_channels, out_channels, gate, keys=("conv0", "attention"), norm_cfg=norm_cfg, act_cfg=act_cfg)


@MODELS.register()
class STDCContextPathNet(nn.Module):
    """A backbone of three maps whose last two are refined, added up from coarse to fine, and fused with the first.

    Args:
        backbone_cfg: block of the backbone, which gives three maps.
        last_in_channels: widths of its last and its second map.
        out_channels: width of the refined maps.
        ffm_cfg: words of the fusion: in_channels (of the first map and a refined one), out_channels, scale_factor,
            norm_cfg, act_cfg.
        upsample_mode: "nearest" or "bilinear".
        align_corners: how maps are resized by "bilinear"; None: false.
        norm_cfg: of the convolution blocks, which end in ReLU.
    Shape:
        x: (N, C, H, W) -> list of the backbone's first map, the refined maps brought to the sizes of its second and its
        first map, and the fused map: (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])) at strides 8, 16,
        8 and 8
    Raises:
        ConfigError: another mode, or widths that are not the backbone's.
    """

    TINY = MappingProxyType({
        "type": "STDCContextPathNet", "backbone_cfg": {**STDCNet.TINY, "bottleneck_type": "cat", "num_convs": 4},
        "last_in_channels": [32, 16], "out_channels": 8,
        "ffm_cfg": {"in_channels": 24, "out_channels": 16, "scale_factor": 2},
        "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, backbone_cfg: dict, last_in_channels: Sequence[int] = (1024, 512), out_channels: int = 128,
                 ffm_cfg: dict = MappingProxyType({"in_channels": 512, "out_channels": 256, "scale_factor": 4}),
                 upsample_mode: str = "nearest", align_corners: bool | None = None,
                 norm_cfg: dict = MappingProxyType({"type": "BN"})):
        super().__init__()
        if upsample_mode not in ("nearest", "bilinear"):
            raise ConfigError(f"upsample_mode is {upsample_mode!r}; accepted: 'nearest', 'bilinear'")
        self.backbone = MODELS.build(backbone_cfg, "backbone_cfg")
        first, *others = self.backbone.out_channels
        if list(last_in_channels) != others[::-1] or len(others) != 2:
            raise ConfigError(f"last_in_channels is {list(last_in_channels)}; the backbone's last two maps, coarse to "
                              f"fine, have {others[::-1]} channels")
        words = {"norm_cfg": norm_cfg, "act_cfg": _RELU}
        self.arms = nn.Sequential(*[AttentionRefinement(width, out_channels, **words) for width in last_in_channels])
        self.convs = nn.Sequential(*[ConvNormAct(out_channels, out_channels, 3, padding=1, **words)
                                     for _ in last_in_channels])
        self.conv_avg = ConvNormAct(last_in_channels[0], out_channels, 1, **words)
        self.ffm = make_fusion(**{"norm_cfg": norm_cfg, **ffm_cfg})
        self.upsample_mode, self.align_corners = upsample_mode, bool(align_corners)
        fine, middle = self.backbone.strides[:2]
        self.out_channels = [first, out_channels, out_channels, self.ffm.conv0.conv.out_channels]
        self.strides = [fine, middle, fine, fine]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        maps = self.backbone(x)
        above, refined = self._resized(self.conv_avg(adaptive_avg_pool(maps[-1], 1)), maps[-1]), []
        for arm, conv, coarse, fine in zip(self.arms, self.convs, maps[:0:-1], maps[-2::-1]):
            above = conv(self._resized(arm(coarse) + above, fine))
            refined.append(above)
        return [maps[0], *refined, self.ffm(maps[0], refined[-1])]

    def _resized(self, x: jt.Var, like: jt.Var) -> jt.Var:
        size = tuple(like.shape[2:])
        return nearest_resize(x, size) if self.upsample_mode == "nearest" else ops.bilinear_resize(
            x, size, align_corners=self.align_corners)

    @staticmethod
    def remap_keys(state: Mapping) -> dict:
        """What the keys of the backbone inside need."""
        prefix = "backbone."
        inside = STDCNet.remap_keys({key[len(prefix):]: value
                                     for key, value in state.items() if key.startswith(prefix)})
        return {**{prefix + key: value for key, value in inside.items()},
                **{key: value for key, value in state.items() if not key.startswith(prefix)}}
