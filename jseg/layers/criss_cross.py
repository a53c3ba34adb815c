"""Criss-cross attention: every position attends to those of its own row and column.

Paper: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, sec. 3.2.
State keys and arithmetic follow MMCV 2.x (mmcv/ops/cc_attention.py, Apache-2.0): `query_conv`, `key_conv`,
`value_conv`, `gamma.scale`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.conv import Conv2d
from jseg.layers.scale import Scale

__all__ = ["CrissCrossAttention"]


class CrissCrossAttention(nn.Module):
    """The map and, times a factor that starts at 0, its criss-cross attention.

    Args:
        channels: C, at least 8; queries and keys have C // 8.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ValueError: fewer channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < 8:
            raise ValueError(f"CrissCrossAttention: channels is {channels}; at least 8, since queries have an eighth")
        self.query_conv = Conv2d(channels, channels // 8, 1)
        self.key_conv = Conv2d(channels, channels // 8, 1)
        self.value_conv = Conv2d(channels, channels, 1)
        self.gamma = Scale(0.0)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.gamma(ops.criss_cross(self.query_conv(x), self.key_conv(x), self.value_conv(x))) + x
