"""Squeeze and excitation: weigh channels by what a picture has of them as a whole.

Paper: Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018.
State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/se_layer.py, Apache-2.0): `conv1.conv`, `conv2.conv`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg.layers.conv import ConvNormAct
from jseg.layers.divisible import make_divisible

__all__ = ["SqueezeExcitation"]

_ACTIVATIONS = (MappingProxyType({"type": "ReLU"}), MappingProxyType({"type": "HSigmoid", "bias": 3.0, "divisor": 6.0}))


class SqueezeExcitation(nn.Module):
    """x times a factor for each channel of each picture, found from the means over all pixels.

    Args:
        channels: C.
        ratio: C over the width in between.
        act_cfgs: activations of both 1x1 convolutions.
        divisor: the width in between is rounded to a multiple of it.
    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int, ratio: int = 16, act_cfgs: Sequence[Mapping] = _ACTIVATIONS, *,
                 divisor: int = 8):
        super().__init__()
        inner = make_divisible(channels // ratio, divisor)
        self.conv1 = ConvNormAct(channels, inner, 1, act_cfg=act_cfgs[0])
        self.conv2 = ConvNormAct(inner, channels, 1, act_cfg=act_cfgs[1])

    def execute(self, x: jt.Var) -> jt.Var:
        return x * self.conv2(self.conv1(x.mean([2, 3], keepdims=True)))
