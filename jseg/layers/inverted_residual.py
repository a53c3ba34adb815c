"""Inverted residual blocks: expand, convolve each channel alone, project.

Papers: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, sec. 3.3; Howard et al.,
"Searching for MobileNetV3", ICCV 2019, sec. 3 (squeeze and excitation inside).
State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/inverted_residual.py, Apache-2.0): `conv.<i>.conv`,
`conv.<i>.bn`; in MobileNetV3's form `expand_conv`, `depthwise_conv`, `se`, `linear_conv`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.conv import ConvNormAct
from jseg.layers.drop import DropPath

__all__ = ["InvertedResidual", "InvertedResidualV3"]


class InvertedResidual(nn.Module):
    """1x1 expansion (none at ratio 1), 3x3 depthwise, 1x1 projection without activation, plus the input if it fits.

    Args:
        in_channels, out_channels: widths of input and output.
        stride: of the depthwise convolution, 1 or 2.
        expand_ratio: width inside over `in_channels`.
        dilation: of the depthwise convolution.
        norm_cfg, act_cfg: norm of all three, activation of the first two.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, expand_ratio: float, dilation: int = 1,
                 norm_cfg: dict | None = None, act_cfg: dict | None = None):
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"InvertedResidual: stride is {stride}; accepted: 1, 2")
        hidden = int(round(in_channels * expand_ratio))
        self.adds_input = stride == 1 and in_channels == out_channels
        expand = [] if expand_ratio == 1 else [ConvNormAct(in_channels, hidden, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)]
        depthwise = ConvNormAct(hidden, hidden, 3, stride=stride, padding=dilation, dilation=dilation, groups=hidden,
                                norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv = nn.Sequential(*expand, depthwise, ConvNormAct(hidden, out_channels, 1, norm_cfg=norm_cfg))

    def execute(self, x: jt.Var) -> jt.Var:
        *before, project = self.conv
        y = x
        for part in before:
            y = part(y)
        return project(y, residual=x if self.adds_input else None)


class InvertedResidualV3(nn.Module):
    """1x1 expansion (none where the width stays), depthwise convolution, squeeze and excitation, 1x1 projection, plus
    the input if it fits.

    Args:
        in_channels, mid_channels, out_channels: widths of input, inside and output.
        kernel_size, stride, dilation: of the depthwise convolution.
        adaptive: whether the depthwise convolution is padded as TensorFlow does at stride 2, instead of evenly.
        squeeze: squeeze and excitation of `mid_channels`; None for none.
        norm_cfg, act_cfg: norm of all three, activation of the first two.
        drop_path_prob: probability of dropping the branch in training, where the input is added.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, in_channels: int, out_channels: int, *, mid_channels: int, kernel_size: int, stride: int = 1,
                 dilation: int = 1, adaptive: bool = True, squeeze: nn.Module | None = None,
                 norm_cfg: dict | None = None, act_cfg: dict | None = None, drop_path_prob: float = 0.0):
        super().__init__()
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.adds_input = stride == 1 and in_channels == out_channels
        self.expand_conv = None if in_channels == mid_channels else ConvNormAct(in_channels, mid_channels, 1, **blocks)
        padding = {"conv_cfg": {"type": "Conv2dAdaptivePadding"}} if adaptive and stride > 1 else {
            "padding": dilation * (kernel_size // 2)}
        self.depthwise_conv = ConvNormAct(mid_channels, mid_channels, kernel_size, stride=stride, dilation=dilation,
                                          groups=mid_channels, **padding, **blocks)
        self.se = squeeze
        self.linear_conv = ConvNormAct(mid_channels, out_channels, 1, norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var) -> jt.Var:
        y = self.depthwise_conv(x if self.expand_conv is None else self.expand_conv(x))
        y = y if self.se is None else self.se(y)
        if self.adds_input and self.drop_path.is_train and self.drop_path.drop_prob:
            return x + self.drop_path(self.linear_conv(y))
        return self.linear_conv(y, residual=x if self.adds_input else None)
