"""ContextNet: a deep path on a picture made four times smaller, a shallow one on the whole picture, and their sum.

Paper: Poudel et al., "ContextNet: Exploring Context and Detail for Semantic Segmentation in Real-time", BMVC 2018,
sec. 3, the network cn14. There is no upstream file: MMSegmentation has no such model.

Deviations: the paper names no order of norm and activation in the sum; it is that of Fast-SCNN, by the same authors.
With its head and 19 classes it has 1.02 M parameters; Fast-SCNN's paper gives 0.85 M, and the difference was not found.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, DepthwiseSeparableConv, InvertedResidual
from jseg.models.backbones.fast_scnn import FeatureFusion
from jseg.registry import MODELS

__all__ = ["ContextNet"]

_RELU = MappingProxyType({"type": "ReLU"})
_EXPANSIONS, _REPEATS, _STRIDES = (1, 6, 6, 6, 6, 6), (1, 1, 3, 3, 2, 2), (1, 1, 2, 2, 1, 1)  # table 1


class DetailPath(nn.Sequential):
    """A convolution and two depthwise separable ones of stride 2, and one of stride 1.

    Args:
        in_channels: channels of the picture.
        widths: of the four results.
        norm_cfg, act_cfg: of every convolution; the depthwise ones have no activation.
    Shape:
        x: (N, in_channels, H, W) -> (N, widths[3], ceil(H / 8), ceil(W / 8))
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, norm_cfg: dict, act_cfg: dict):
        words = {"padding": 1, "norm_cfg": norm_cfg, "act_cfg": act_cfg}
        super().__init__(ConvNormAct(in_channels, widths[0], 3, stride=2, **words), *[
            DepthwiseSeparableConv(before, width, 3, stride=stride, dw_act_cfg=None, **words)
            for before, width, stride in zip(widths, widths[1:], (2, 2, 1))])


class ContextPath(nn.Sequential):
    """A convolution of stride 2, six groups of inverted residual blocks, a 3x3 convolution.

    Args:
        in_channels: channels of the picture.
        widths: of the first convolution, of each group and of the last convolution.
        norm_cfg, act_cfg: of every convolution.
    Shape:
        x: (N, in_channels, H, W) -> (N, widths[7], ceil(H / 8), ceil(W / 8))
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, norm_cfg: dict, act_cfg: dict):
        words = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        parts = [ConvNormAct(in_channels, widths[0], 3, stride=2, padding=1, **words)]
        for before, width, ratio, count, stride in zip(widths, widths[1:], _EXPANSIONS, _REPEATS, _STRIDES):
            parts += [InvertedResidual(width if i else before, width, stride=1 if i else stride, expand_ratio=ratio,
                                       **words) for i in range(count)]
        super().__init__(*parts, ConvNormAct(widths[-2], widths[-1], 3, padding=1, **words))


@MODELS.register()
class ContextNet(nn.Module):
    """Context from a small copy of the picture, details from the picture.

    Args:
        in_channels: channels of the picture.
        detail_channels: widths of the four convolutions of the shallow path.
        context_channels: widths of the deep path: first convolution, six groups, last convolution.
        fusion_channels: width of the sum.
        reduction: how many times smaller the deep path's picture is.
        norm_cfg, act_cfg: of the convolutions.
        align_corners: how picture and maps are resized.
    Shape:
        x: (N, in_channels, H, W) -> two maps: context (N, context_channels[-1], h, w), at stride 8 of the small
        picture, and the sum (N, fusion_channels, ceil(H / 8), ceil(W / 8))
    Raises:
        ConfigError: lists of another length.
    """

    TINY = MappingProxyType({
        "type": "ContextNet", "detail_channels": [4, 8, 8, 8], "context_channels": [4, 4, 4, 8, 8, 8, 8, 8],
        "fusion_channels": 8, "norm_cfg": {"type": "GN", "num_groups": 1}
    })

    def __init__(self, in_channels: int = 3, detail_channels: Sequence[int] = (32, 64, 128, 128),
                 context_channels: Sequence[int] = (32, 32, 32, 48, 64, 96, 128, 128), fusion_channels: int = 128,
                 reduction: int = 4, norm_cfg: dict = MappingProxyType({"type": "BN"}), act_cfg: dict = _RELU,
                 align_corners: bool = False):
        super().__init__()
        lists = (("detail_channels", detail_channels, 4), ("context_channels", context_channels, 8))
        for name, values, length in lists:
            if len(values) != length:
                raise ConfigError(f"{name} needs {length} values, got {list(values)}")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.reduction, self.align_corners = reduction, align_corners
        self.detail = DetailPath(in_channels, detail_channels, **blocks)
        self.context = ContextPath(in_channels, context_channels, **blocks)
        self.fusion = FeatureFusion(detail_channels[-1], context_channels[-1], fusion_channels, blocks=blocks,
                                    align_corners=align_corners)
        self.out_channels, self.strides = [context_channels[-1], fusion_channels], [8 * reduction, 8]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        size = tuple(-(-side // self.reduction) for side in x.shape[2:])
        context = self.context(ops.bilinear_resize(x, size, align_corners=self.align_corners))
        return [context, self.fusion(self.detail(x), context)]
