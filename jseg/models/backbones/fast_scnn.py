"""FastSCNN: a few strided convolutions, whose map a deeper path and a fusion share.

Paper: Poudel et al., "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/fast_scnn.py (Apache-2.0), whose words, keys and arithmetic
these are.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, DepthwiseSeparableConv, InvertedResidual, relu
from jseg.models.heads.psp_head import PyramidPooling
from jseg.registry import MODELS

__all__ = ["FastSCNN"]

_RELU = MappingProxyType({"type": "ReLU"})


class LearningToDownsample(nn.Module):
    """A convolution and two depthwise separable ones, each of stride 2.

    Args:
        in_channels, middle, channels: widths of the picture, of the first two results, and of the last.
        blocks: norm_cfg and act_cfg of the first.
        dw_act_cfg: activation of the depthwise convolutions; ReLU follows the pointwise ones.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, ceil(H / 8), ceil(W / 8))
    """

    def __init__(self, in_channels: int, middle: Sequence[int], channels: int, *, blocks: dict,
                 dw_act_cfg: dict | None):
        super().__init__()
        words = {"stride": 2, "padding": 1, "norm_cfg": blocks["norm_cfg"], "act_cfg": _RELU, "dw_act_cfg": dw_act_cfg}
        self.conv = ConvNormAct(in_channels, middle[0], 3, stride=2, padding=1, **blocks)
        self.dsconv1 = DepthwiseSeparableConv(middle[0], middle[1], 3, **words)
        self.dsconv2 = DepthwiseSeparableConv(middle[1], channels, 3, **words)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.dsconv2(self.dsconv1(self.conv(x)))


class GlobalFeatureExtractor(nn.Module):
    """Three groups of three inverted residual blocks, pyramid pooling, a 3x3 block.

    Args:
        in_channels, widths, channels: widths of the input, of each group and of the output.
        strides: of each group's first block.
        blocks: norm_cfg and act_cfg.
        align_corners: how pooled maps are resized.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, ceil(H / s), ceil(W / s)) with s the product of the strides
    """

    def __init__(self, in_channels: int, widths: Sequence[int], channels: int, *, strides: Sequence[int], blocks: dict,
                 align_corners: bool):
        super().__init__()
        for i, (before, width) in enumerate(zip((in_channels, *widths), widths)):
            group = [InvertedResidual(width if j else before, width, stride=1 if j else strides[i], expand_ratio=6,
                                      **blocks) for j in range(3)]
            setattr(self, f"bottleneck{i + 1}", nn.Sequential(*group))
        self.ppm = PyramidPooling((1, 2, 3, 6), widths[2], widths[2] // 4, blocks=blocks, align_corners=align_corners)
        self.out = ConvNormAct(2 * widths[2], channels, 3, padding=1, **blocks)

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.bottleneck3(self.bottleneck2(self.bottleneck1(x)))
        return self.out(jt.concat([x, *self.ppm(x)], 1))


class FeatureFusion(nn.Module):
    """The coarse map, resized and convolved, plus the fine one.

    Args:
        fine_channels, coarse_channels, channels: widths of both maps and of the result.
        blocks: norm_cfg, and act_cfg of the 3x3 convolution; the 1x1 ones have none.
        align_corners: how the coarse map is resized.
    Shape:
        fine: (N, fine_channels, H, W), coarse: (N, coarse_channels, h, w) -> (N, channels, H, W)
    """

    def __init__(self, fine_channels: int, coarse_channels: int, channels: int, *, blocks: dict, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        self.dwconv = ConvNormAct(coarse_channels, channels, 3, padding=1, groups=channels, **blocks)
        self.conv_lower_res = ConvNormAct(channels, channels, 1, norm_cfg=blocks["norm_cfg"])
        self.conv_higher_res = ConvNormAct(fine_channels, channels, 1, norm_cfg=blocks["norm_cfg"])

    def execute(self, fine: jt.Var, coarse: jt.Var) -> jt.Var:
        coarse = self.dwconv(ops.bilinear_resize(coarse, tuple(fine.shape[2:]), align_corners=self.align_corners))
        return relu(self.conv_higher_res(fine, residual=self.conv_lower_res(coarse)))


@MODELS.register()
class FastSCNN(nn.Module):
    """Two paths from one start, and their fusion.

    Args:
        in_channels: channels of the picture.
        downsample_dw_channels: widths of the first two convolutions.
        global_in_channels, higher_in_channels: width after the third; equal.
        global_block_channels, global_block_strides: width and stride of each group of the deeper path, three each.
        global_out_channels, lower_in_channels: width of the deeper path's map; equal.
        fusion_out_channels: width of the fused map.
        out_indices: of (fine map, coarse map, fused map).
        norm_cfg, act_cfg: of the convolution blocks.
        align_corners: how maps are resized.
        dw_act_cfg: activation of the depthwise convolutions at the start; None for none.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])),
        at strides 8, 32 and 8 by default
    Raises:
        ConfigError: widths that must be equal and are not, or lists of another length.
    """

    TINY = MappingProxyType({
        "type": "FastSCNN", "downsample_dw_channels": [4, 8], "global_in_channels": 8, "higher_in_channels": 8,
        "global_block_channels": [8, 8, 16], "global_out_channels": 8, "lower_in_channels": 8, "fusion_out_channels": 8,
        "norm_cfg": {"type": "GN", "num_groups": 1}
    })

    def __init__(self,
                 in_channels: int = 3,
                 downsample_dw_channels: Sequence[int] = (32, 48),
                 global_in_channels: int = 64,
                 global_block_channels: Sequence[int] = (64, 96, 128),
                 global_block_strides: Sequence[int] = (2, 2, 1),
                 global_out_channels: int = 128,
                 higher_in_channels: int = 64,
                 lower_in_channels: int = 128,
                 fusion_out_channels: int = 128,
                 out_indices: Sequence[int] = (0, 1, 2),
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 act_cfg: dict = _RELU,
                 align_corners: bool = False,
                 dw_act_cfg: dict | None = None):
        super().__init__()
        if global_in_channels != higher_in_channels or global_out_channels != lower_in_channels:
            raise ConfigError(
                f"global_in_channels {global_in_channels} and higher_in_channels {higher_in_channels} must be equal, "
                f"as must global_out_channels {global_out_channels} and lower_in_channels {lower_in_channels}")
        lengths = {
            "downsample_dw_channels": (downsample_dw_channels, 2), "global_block_channels": (global_block_channels, 3),
            "global_block_strides": (global_block_strides, 3)
        }
        for name, (values, length) in lengths.items():
            if len(values) != length:
                raise ConfigError(f"{name} needs {length} values, got {list(values)}")
        if not out_indices or not set(out_indices) <= {0, 1, 2}:
            raise ConfigError(
                f"out_indices is {list(out_indices)}; accepted: of 0 (fine map), 1 (coarse map), 2 (fused map)")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.out_indices = tuple(out_indices)
        self.learning_to_downsample = LearningToDownsample(
            in_channels, downsample_dw_channels, global_in_channels, blocks=blocks, dw_act_cfg=dw_act_cfg)
        self.global_feature_extractor = GlobalFeatureExtractor(
            global_in_channels, global_block_channels, global_out_channels, strides=global_block_strides, blocks=blocks,
            align_corners=align_corners)
        self.feature_fusion = FeatureFusion(
            higher_in_channels, lower_in_channels, fusion_out_channels, blocks=blocks, align_corners=align_corners)
        widths = (higher_in_channels, lower_in_channels, fusion_out_channels)
        strides = (8, 8 * math.prod(global_block_strides), 8)
        self.out_channels = [widths[i] for i in self.out_indices]
        self.strides = [strides[i] for i in self.out_indices]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        fine = self.learning_to_downsample(x)
        coarse = self.global_feature_extractor(fine)
        maps = (fine, coarse, self.feature_fusion(fine, coarse))
        return [maps[i] for i in self.out_indices]
