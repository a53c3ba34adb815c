"""Convolution that picks the right operator for its shape, and the convolution-norm-activation block built on it.

State keys follow MMCV 2.x's ConvModule (`conv.weight`, `bn.weight`, `gn.weight`). Initial weights are normal with the
fan-out rule (He et al., ICCV 2015) and zero bias, which is what MMSegmentation uses for MSCAN and for decode heads.
"""

from __future__ import annotations

import math

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.activation import build_activation
from jseg.layers.init import normal, zeros
from jseg.layers.norms import build_norm

__all__ = ["Conv2d", "ConvNormAct", "pair"]


def pair(value) -> tuple[int, int]:
    """Return `(value, value)` for an integer and `(a, b)` for a sequence of two.

    Raises:
        ValueError: a sequence whose length is not 2.
    """
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    if len(values) != 2:
        raise ValueError(f"expected one integer or a pair (vertical, horizontal), got {value!r}")
    return values


class Conv2d(nn.Module):
    """Two-dimensional convolution.

    1x1 convolutions run as a matrix product (`ops.pointwise`), convolutions with one channel a group as `ops.depthwise`;
    all others go to Jittor's own operator.

    Args:
        in_channels, out_channels: channel counts; both divisible by `groups`.
        kernel_size, stride, padding, dilation: one integer or (vertical, horizontal), in pixels.
        bias: whether a bias is added.
        init_std: standard deviation of the initial weights; None for sqrt(2 / fan_out).
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W') with H' = (H + 2*padding - dilation*(kernel-1) - 1) // stride + 1
    Raises:
        ValueError: channel counts that `groups` does not divide.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1, groups: int = 1,
                 bias: bool = True, init_std: float | None = None):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        kh, kw = self.kernel_size
        fan_out = kh * kw * out_channels // groups
        self.weight = normal((out_channels, in_channels // groups, kh, kw), init_std or math.sqrt(2.0 / fan_out))
        self.bias = zeros(out_channels) if bias else None

    @property
    def is_pointwise(self) -> bool:
        """Whether this is a plain matrix product over channels."""
        return (self.kernel_size == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1)

    def execute(self, x: jt.Var) -> jt.Var:
        if self.is_pointwise:
            return ops.pointwise(x, self.weight, self.bias)
        if self.groups == self.in_channels == self.out_channels and self.groups > 1:
            return ops.depthwise(x, self.weight, self.bias, stride=self.stride, padding=self.padding,
                                 dilation=self.dilation)
        return nn.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation: MMCV's ConvModule with its keys and defaults.

    Args:
        norm_cfg: block for `build_norm`, or None for no norm. The convolution has a bias only without a norm.
        act_cfg: block for `build_activation`, or None.
        others: as in `Conv2d`.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W')
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1, groups: int = 1,
                 norm_cfg: dict | None = None, act_cfg: dict | None = None):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, dilation=dilation,
                           groups=groups, bias=norm_cfg is None)
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm(norm_cfg, out_channels)
            setattr(self, self.norm_name, norm)
        self.activate = build_activation(act_cfg)
        kind = (act_cfg or {}).get("type")
        self.fused = {None: None, "ReLU": "relu", "GELU": "gelu"}.get(kind, False) if self.norm_name else False

    def execute(self, x: jt.Var) -> jt.Var:
        return self.finish(self.conv(x))

    def finish(self, x: jt.Var) -> jt.Var:
        """Norm and activation of a map that the convolution made, in one operation where the norm can."""
        if self.fused is not False:
            return getattr(self, self.norm_name)(x, activation=self.fused)
        if self.norm_name is not None:
            x = getattr(self, self.norm_name)(x)
        return self.activate(x)
