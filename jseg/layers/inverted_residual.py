"""Inverted residual blocks: expand, convolve each channel alone, project.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, sec. 3.3.
State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/inverted_residual.py, Apache-2.0): `conv.<i>.conv`,
`conv.<i>.bn`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.conv import ConvNormAct

__all__ = ["InvertedResidual", "make_divisible"]


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


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value` that is at least `divisor` and not below 0.9 `value`."""
    nearest = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return nearest if nearest >= 0.9 * value else nearest + divisor
