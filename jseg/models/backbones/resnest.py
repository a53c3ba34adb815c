"""ResNeSt: ResNet-D whose 3x3 convolution has several parts, weighed against each other channel by channel.

Paper: Zhang et al., "ResNeSt: Split-Attention Networks", CVPR Workshops 2022, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/resnest.py (Apache-2.0), whose words, keys and arithmetic these
are.

Deviations: `zero_init_residual` works (upstream takes it and leaves these blocks as they are); those of `ResNet`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Conv2d, avg_pool, build_norm, conv_norm
from jseg.models.backbones.resnet import Bottleneck, ResNet
from jseg.registry import MODELS

__all__ = ["ResNeSt", "SplitAttention", "SplitBottleneck"]


class SplitAttention(nn.Module):
    """A 3x3 convolution with `radix` parts, and their sum weighted by a softmax over the parts.

    Args:
        channels: width of input and output.
        stride, dilation: of the convolution.
        groups: groups of each part.
        radix: parts; with 1 a sigmoid takes the softmax's place.
        reduction_factor: `channels * radix` over the width in which the weights are found, which is at least 32.
        norm_cfg: of both norms.
    Shape:
        x: (N, channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels: int, *, stride: int, dilation: int, groups: int, radix: int, reduction_factor: int,
                 norm_cfg: dict):
        super().__init__()
        self.radix, self.groups = radix, groups
        inner = max(channels * radix // reduction_factor, 32)
        self.conv = Conv2d(channels, channels * radix, 3, stride=stride, padding=dilation, dilation=dilation,
                           groups=groups * radix, bias=False)
        self.bn0 = build_norm(norm_cfg, channels * radix)[1]
        self.fc1 = Conv2d(channels, inner, 1, groups=groups)
        self.bn1 = build_norm(norm_cfg, inner)[1]
        self.fc2 = Conv2d(inner, channels * radix, 1, groups=groups)

    def execute(self, x: jt.Var) -> jt.Var:
        x = conv_norm(x, self.conv, self.bn0, activation="relu")
        n, c, h, w = x.shape
        parts = x.reshape(n, self.radix, c // self.radix, h, w)  # (N, R, C, H, W)
        whole = parts.mean([3, 4]).sum(1).reshape(n, c // self.radix, 1, 1)
        scores = self.fc2(conv_norm(whole, self.fc1, self.bn1, activation="relu"))
        if self.radix == 1:
            return x * jt.sigmoid(scores)
        scores = scores.reshape(n, self.groups, self.radix, -1).transpose(0, 2, 1, 3)  # (N, R, G, C / G)
        weights = nn.softmax(scores, dim=1).reshape(n, self.radix, -1, 1, 1)
        return (weights * parts).sum(1)


class SplitBottleneck(Bottleneck):
    """1x1 convolution, split attention, 1x1 convolution and a shortcut.

    Args:
        radix, reduction_factor: see `SplitAttention`.
        avg_down_stride: shrink by a mean behind the split attention, not by its convolution.
        base_channels: width of the first stage, for which `base_width` is meant.
        others: as in `Bottleneck`.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int, downsample: nn.Module | None,
                 style: str, norm_cfg: dict, radix: int, reduction_factor: int, avg_down_stride: bool,
                 base_channels: int, groups: int = 1, base_width: int = 4):
        super().__init__(in_channels, channels, stride=stride, dilation=dilation, downsample=downsample, style=style,
                         norm_cfg=norm_cfg, groups=groups, base_width=base_width * 64 / base_channels)
        stride = self.conv2.stride[0]
        self.pool_stride = stride if avg_down_stride else 1
        del self.bn2
        self.conv2 = SplitAttention(self.conv2.in_channels, stride=stride // self.pool_stride, dilation=dilation,
                                    groups=groups, radix=radix, reduction_factor=reduction_factor, norm_cfg=norm_cfg)

    def middle(self, x: jt.Var) -> jt.Var:
        x = self.conv2(x)
        return x if self.pool_stride == 1 else avg_pool(x, 3, stride=self.pool_stride, padding=1)


@MODELS.register()
class ResNeSt(ResNet):
    """ResNet with the deep stem, averaging shortcuts and split attention.

    Args:
        groups, base_width: number of groups of each part, and their width in the first stage.
        radix, reduction_factor: parts, and how narrow the attention is: see `SplitAttention`.
        avg_down_stride: blocks shrink by a mean, not by a strided convolution.
        others: see `ResNet`.
    Raises:
        ConfigError: `radix` or `reduction_factor` below 1; those of `ResNet`.
    """

    DEPTHS = MappingProxyType({50: (SplitBottleneck, (3, 4, 6, 3)), 101: (SplitBottleneck, (3, 4, 23, 3)),
                               152: (SplitBottleneck, (3, 8, 36, 3)), 200: (SplitBottleneck, (3, 24, 36, 3))})
    TINY = MappingProxyType({
        "type": "ResNeSt", "depth": 50, "stem_channels": 8, "base_channels": 8, "strides": [1, 2, 2, 1],
        "dilations": [1, 1, 1, 2], "norm_cfg": {"type": "GN", "num_groups": 2}, "zero_init_residual": False
    })

    def __init__(self,
                 depth: int,
                 groups: int = 1,
                 base_width: int = 4,
                 radix: int = 2,
                 reduction_factor: int = 4,
                 avg_down_stride: bool = True,
                 in_channels: int = 3,
                 stem_channels: int = 64,
                 base_channels: int = 64,
                 num_stages: int = 4,
                 strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3),
                 style: str = "pytorch",
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 multi_grid: Sequence[int] | None = None,
                 contract_dilation: bool = False,
                 zero_init_residual: bool = True,
                 frozen_stages: int = -1):
        if radix < 1 or reduction_factor < 1:
            raise ConfigError(f"radix {radix} and reduction_factor {reduction_factor} must be at least 1")
        self.block_words = {"radix": radix, "reduction_factor": reduction_factor, "avg_down_stride": avg_down_stride,
                            "base_channels": base_channels}
        super().__init__(depth, in_channels, stem_channels, base_channels, num_stages, strides, dilations, out_indices,
                         style, True, True, norm_cfg, multi_grid, contract_dilation, zero_init_residual, groups,
                         base_width, frozen_stages)
