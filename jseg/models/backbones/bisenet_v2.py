"""BiSeNetV2: a detail branch, a light semantic branch, and an aggregation in which each guides the other.

Paper: Yu et al., "BiSeNet V2: Bilateral Network with Guided Aggregation for Real-time Semantic Segmentation", IJCV
2021, sec. 3 and 4. Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/bisenetv2.py (Apache-2.0), whose words, keys
and arithmetic these are.

Deviation: `norm_cfg` and `act_cfg` reach all blocks (upstream keeps both and builds BatchNorm and ReLU).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import (ConvNormAct, DepthwiseSeparableConv, adaptive_avg_pool, avg_pool, build_activation,
                         build_norm, max_pool)
from jseg.registry import MODELS

__all__ = ["BiSeNetV2"]


class DetailBranch(nn.Module):
    """Stages of 3x3 blocks, of which the first has stride 2: two blocks, then three in each.

    Args:
        in_channels, widths: channels of the picture and of each stage.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, in_channels, H, W) -> (N, widths[-1], ceil(H / s), ceil(W / s)) with s = 2 ** stages
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, blocks: dict):
        super().__init__()
        stages = []
        for i, (before, width) in enumerate(zip((in_channels, *widths), widths)):
            convs = [ConvNormAct(width, width, 3, padding=1, **blocks) for _ in range(2 if i else 1)]
            stages.append(nn.Sequential(ConvNormAct(before, width, 3, stride=2, padding=1, **blocks), *convs))
        self.detail_branch = nn.Sequential(*stages)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.detail_branch(x)


class StemBlock(nn.Module):
    """A strided block, then a narrow strided one beside pooling. Shape:
    (N, C, H, W) -> (N, channels, ceil(H / 4), ceil(W / 4)).
    """

    def __init__(self, in_channels: int, channels: int, *, blocks: dict):
        super().__init__()
        half = channels // 2
        self.conv_first = ConvNormAct(in_channels, channels, 3, stride=2, padding=1, **blocks)
        self.convs = nn.Sequential(ConvNormAct(channels, half, 1, **blocks),
                                   ConvNormAct(half, channels, 3, stride=2, padding=1, **blocks))
        self.fuse_last = ConvNormAct(2 * channels, channels, 3, padding=1, **blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.conv_first(x)
        return self.fuse_last(jt.concat([self.convs(x), max_pool(x, 3, stride=2, padding=1)], 1))


class GatherExpansion(nn.Module):
    """A 3x3 block, depthwise convolutions of `exp_ratio` times the width, a 1x1 projection,
    plus the input (projected at stride 2).

    Args:
        in_channels, out_channels: widths of input and output; equal at stride 1.
        exp_ratio: filters of each channel of the first depthwise convolution.
        stride: 1 or 2.
        norm_cfg, act_cfg: norm of all blocks, activation of the first, of the last depthwise one and of the sum.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, exp_ratio: int, stride: int, *, norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        wide, blocks = in_channels * exp_ratio, {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.conv1 = ConvNormAct(in_channels, in_channels, 3, padding=1, **blocks)
        if stride == 1:
            depthwise = [ConvNormAct(in_channels, wide, 3, padding=1, groups=in_channels, **blocks)]
            self.shortcut = None
        else:
            depthwise = [ConvNormAct(in_channels, wide, 3, stride=stride, padding=1, groups=in_channels,
                                     norm_cfg=norm_cfg),
                         ConvNormAct(wide, wide, 3, padding=1, groups=wide, **blocks)]
            self.shortcut = nn.Sequential(DepthwiseSeparableConv(in_channels, out_channels, 3, stride=stride, padding=1,
                                                                 norm_cfg=norm_cfg))
        self.dwconv = nn.Sequential(*depthwise)
        self.conv2 = nn.Sequential(ConvNormAct(wide, out_channels, 1, norm_cfg=norm_cfg))
        self.act = build_activation(act_cfg)

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return self.act(self.conv2[0](self.dwconv(self.conv1(x)), residual=shortcut))


class PooledNorm(nn.Module):
    """Norm (key "1") of the mean over positions. Shape: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self, channels: int, norm_cfg: dict):
        super().__init__()
        setattr(self, "1", build_norm(norm_cfg, channels)[1])

    def execute(self, x: jt.Var) -> jt.Var:
        return getattr(self, "1")(adaptive_avg_pool(x, 1))


class ContextEmbedding(nn.Module):
    """A block of the mean, added to every position, and a 3x3 block. Shape: (N, C, H, W) -> same."""

    def __init__(self, channels: int, *, blocks: dict):
        super().__init__()
        self.gap = PooledNorm(channels, blocks["norm_cfg"])
        self.conv_gap = ConvNormAct(channels, channels, 1, **blocks)
        self.conv_last = ConvNormAct(channels, channels, 3, padding=1, **blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.conv_last(x + self.conv_gap(self.gap(x)))


class SemanticBranch(nn.Module):
    """Stem, stages of gather-and-expansion blocks, context embedding.

    Args:
        in_channels, widths: channels of the picture and of each stage.
        exp_ratio: see `GatherExpansion`.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, widths[i], h, w), one per stage from stride 4 on, and the last one
            embedded
    """

    def __init__(self, in_channels: int, widths: Sequence[int], exp_ratio: int, *, blocks: dict):
        super().__init__()
        self.stage1 = StemBlock(in_channels, widths[0], blocks=blocks)
        self.names = ["stage1"]
        for i, (before, width) in enumerate(zip(widths, widths[1:])):
            count = 4 if i == len(widths) - 2 else 2
            stage = nn.Sequential(*[GatherExpansion(width if j else before, width, exp_ratio, 1 if j else 2, **blocks)
                                    for j in range(count)])
            self._enter(f"stage{i + 2}", stage)
        self._enter(f"stage{len(widths)}_CEBlock", ContextEmbedding(widths[-1], blocks=blocks))

    def _enter(self, name: str, module: nn.Module) -> None:
        setattr(self, name, module)
        self.names.append(name)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        maps = []
        for name in self.names:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps


class GuidedAggregation(nn.Module):
    """Detail gated by semantics at the fine size, semantics gated by detail at the coarse one,
    and a 3x3 block of their sum.

    Args:
        channels: width of both maps and of the result.
        align_corners: how coarse maps are resized.
        blocks: norm_cfg and act_cfg.
    Shape:
        detail: (N, channels, H, W), semantic: (N, channels, h, w) a quarter as large -> (N, channels, H, W)
    """

    def __init__(self, channels: int, *, align_corners: bool, blocks: dict):
        super().__init__()
        self.align_corners = align_corners
        norm = {"norm_cfg": blocks["norm_cfg"]}
        self.detail_dwconv = nn.Sequential(DepthwiseSeparableConv(channels, channels, 3, padding=1, **norm,
                                                                  pw_norm_cfg=None))
        self.detail_down = nn.Sequential(ConvNormAct(channels, channels, 3, stride=2, padding=1, **norm))
        self.semantic_conv = nn.Sequential(ConvNormAct(channels, channels, 3, padding=1, **norm))
        self.semantic_dwconv = nn.Sequential(DepthwiseSeparableConv(channels, channels, 3, padding=1, **norm,
                                                                    pw_norm_cfg=None))
        self.conv = ConvNormAct(channels, channels, 3, padding=1, **blocks)

    def execute(self, detail: jt.Var, semantic: jt.Var) -> jt.Var:
        size = tuple(detail.shape[2:])
        gate = jt.sigmoid(ops.bilinear_resize(self.semantic_conv(semantic), size, align_corners=self.align_corners))
        coarse = avg_pool(self.detail_down(detail), 3, stride=2, padding=1) * jt.sigmoid(self.semantic_dwconv(semantic))
        return self.conv(ops.bilinear_resize(coarse, size, align_corners=self.align_corners,
                                             add=self.detail_dwconv(detail) * gate))


@MODELS.register()
class BiSeNetV2(nn.Module):
    """Detail branch, semantic branch and their aggregation.

    Args:
        in_channels: channels of the picture.
        detail_channels: widths of the detail branch's three stages.
        semantic_channels: widths of the semantic branch's four stages.
        semantic_expansion_ratio: how many times wider gather-and-expansion blocks are inside.
        bga_channels: width of the aggregation, equal to the last of both branches.
        out_indices: of (aggregated map, each stage of the semantic branch).
        align_corners: how maps are resized.
        norm_cfg, act_cfg: of the convolution blocks.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), at
            strides 8, 4, 8, 16 and 32
    Raises:
        ConfigError: another number of stages, widths that must be equal and are not, or an index out of range.
    """

    TINY = MappingProxyType({
        "type": "BiSeNetV2", "detail_channels": [8, 8, 16], "semantic_channels": [4, 8, 8, 16],
        "semantic_expansion_ratio": 2, "bga_channels": 16, "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, in_channels: int = 3, detail_channels: Sequence[int] = (64, 64, 128),
                 semantic_channels: Sequence[int] = (16, 32, 64, 128), semantic_expansion_ratio: int = 6,
                 bga_channels: int = 128, out_indices: Sequence[int] = (0, 1, 2, 3, 4), align_corners: bool = False,
                 norm_cfg: dict = MappingProxyType({"type": "BN"}), act_cfg: dict = MappingProxyType({"type": "ReLU"})):
        super().__init__()
        if (len(detail_channels) != 3 or len(semantic_channels) != 4
            or not detail_channels[2] == semantic_channels[3] == bga_channels):
            raise ConfigError(f"detail_channels {list(detail_channels)} needs three widths, semantic_channels "
                              f"{list(semantic_channels)} four; the last of both and bga_channels ({bga_channels}) are "
                              "equal")
        if not out_indices or not set(out_indices) <= set(range(5)):
            raise ConfigError(f"out_indices is {list(out_indices)}; accepted: of 0 (aggregated map), 1 to 4 (stages of "
                              "the semantic branch)")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.detail = DetailBranch(in_channels, detail_channels, blocks=blocks)
        self.semantic = SemanticBranch(in_channels, semantic_channels, semantic_expansion_ratio, blocks=blocks)
        self.bga = GuidedAggregation(bga_channels, align_corners=align_corners, blocks=blocks)
        self.out_indices = tuple(out_indices)
        self.out_channels = [(bga_channels, *semantic_channels)[i] for i in self.out_indices]
        self.strides = [(8, 4, 8, 16, 32)[i] for i in self.out_indices]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        *stages, embedded = self.semantic(x)
        maps = [self.bga(self.detail(x), embedded), *stages]
        return [maps[i] for i in self.out_indices]
