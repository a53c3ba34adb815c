"""Convolution that picks the right operator for its shape, and the convolution-norm-activation block built on it.

State keys follow MMCV 2.x's ConvModule (`conv.weight`, `bn.weight`, `gn.weight`). Initial weights are normal with the
fan-out rule (He et al., ICCV 2015) and zero bias, which is what MMSegmentation uses for MSCAN and for decode heads.
"""

from __future__ import annotations

import math

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.activation import build_activation
from jseg.layers.init import normal, zeros
from jseg.layers.norms import BatchNorm2d, activated, build_norm

__all__ = ["AdaptiveConv2d", "Conv1d", "Conv2d", "ConvNormAct", "DepthwiseSeparableConv", "conv_norm", "pair"]


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

    Convolutions with one channel a group run as `ops.depthwise`, all others at inference as `ops.conv`; with gradients
    and on a GPU, 1x1 convolutions run as a matrix product (`ops.pointwise`).

    Args:
        in_channels, out_channels: channel counts; both divisible by `groups`.
        kernel_size, stride, padding, dilation: one integer or (vertical, horizontal), in pixels.
        bias: whether a bias is added.
        init_std: standard deviation of the initial weights; None for sqrt(2 / fan_out).
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W') with H' = (H + 2*padding - dilation*(kernel-1) - 1) //
            stride + 1
    Raises:
        ValueError: channel counts that `groups` does not divide; later: x has other channels (the operators:
            KernelError).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1,
                 groups: int = 1, bias: bool = True, init_std: float | None = None):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"Conv2d: groups={groups} must divide in_channels={in_channels} and "
                             f"out_channels={out_channels}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = pair(kernel_size), pair(stride)
        self.padding, self.dilation = pair(padding), pair(dilation)
        kh, kw = self.kernel_size
        fan_out = kh * kw * out_channels // groups
        self.weight = normal((out_channels, in_channels // groups, kh, kw), init_std or math.sqrt(2.0 / fan_out))
        self.bias = zeros(out_channels) if bias else None

    @property
    def is_product(self) -> bool:
        """Whether this is a matrix product over channels, at every position or every `stride`th."""
        return self.kernel_size == (1, 1) and self.padding == (0, 0) and self.groups == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel has a filter of its own."""
        return self.groups == self.in_channels == self.out_channels and self.groups > 1

    def execute(self, x: jt.Var) -> jt.Var:
        return self.run(x, self.weight, self.bias)

    def run(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None, *, shortcut: jt.Var | None = None,
            **ending) -> jt.Var:
        """This convolution with other weights, plus `shortcut`.

        Args:
            ending: `scale` and `activation` as `ops.conv` has them, where `takes_ending`.
        """
        if self.is_depthwise:
            y = ops.depthwise(x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation)
            return y if shortcut is None else y + shortcut
        if self.is_product and not self.takes_ending:
            (down, right) = self.stride
            return ops.pointwise(x if self.stride == (1, 1) else x[:, :, ::down, ::right], weight, bias,
                                 shortcut=shortcut)
        return ops.conv(x, weight, bias, stride=self.stride, padding=self.padding, dilation=self.dilation,
                        groups=self.groups, residual=shortcut, layer=self, **ending)

    @property
    def takes_ending(self) -> bool:
        """Whether a norm's scale and an activation can join the convolution, here and now."""
        return jt.flags.no_grad and ops.takes_cpu_kernels() and not self.is_depthwise


class AdaptiveConv2d(Conv2d):
    """Convolution padded as TensorFlow's "same": MMCV's Conv2dAdaptivePadding. An odd pixel of padding goes below and
    to the right.

    Args:
        as in `Conv2d`, without padding.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))
    """

    @property
    def is_product(self) -> bool:
        """Never: what is padded depends on the map's size."""
        return False

    def run(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None, **options) -> jt.Var:
        edges = []
        for side, kernel, stride, dilation in zip(x.shape[2:], self.kernel_size, self.stride, self.dilation):
            missing = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            edges = [missing // 2, missing - missing // 2, *edges]  # the width's come first
        return super().run(nn.pad(x, edges) if any(edges) else x, weight, bias, **options)


class Conv1d(Conv2d):
    """Convolution of kernel 1 over points, whose weight has the shape of PyTorch's Conv1d, (out_channels, in_channels,
    1).

    Shape:
        x: (N, in_channels, P, 1) -> (N, out_channels, P, 1)
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, init_std: float | None = None):
        super().__init__(in_channels, out_channels, 1, bias=bias, init_std=init_std)
        self.weight = self.weight.reshape(out_channels, in_channels, 1)

    def run(self, x: jt.Var, weight: jt.Var, bias: jt.Var | None, **options) -> jt.Var:
        return super().run(x, weight.unsqueeze(3), bias, **options)


def conv_norm(x: jt.Var, conv: Conv2d, norm: nn.Module, *, activation: str | None = None,
              residual: jt.Var | None = None) -> jt.Var:
    """activation(norm(conv(x)) + residual) in as few operations as possible.

    Without gradients, a BatchNorm by running statistics joins the convolution as the scale and shift of its channels,
    with the residual and a ReLU (`ops.conv`); behind a depthwise convolution, and on a GPU behind a matrix product, it
    goes into the weights.

    Args:
        activation: None, "relu" or "gelu".
    Shape:
        x: (N, C, H, W) -> (N, D, H', W'), the residual's shape
    """
    folds = jt.flags.no_grad and isinstance(norm, BatchNorm2d) and not norm.is_train and not ops.uses_plain()
    if not folds or not (conv.takes_ending or conv.is_product or conv.is_depthwise):
        return norm(conv(x), activation=activation, residual=residual)
    scale, shift = norm.affine()
    bias = shift if conv.bias is None else shift + conv.bias * scale
    if conv.takes_ending:
        relu = "relu" if activation == "relu" else None
        y = conv.run(x, conv.weight, bias, shortcut=residual, scale=scale, activation=relu)
        return y if relu else activated(y, activation)
    weight = conv.weight * scale.reshape(-1, *[1] * (conv.weight.ndim - 1))
    return activated(conv.run(x, weight, bias, shortcut=residual), activation)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation: MMCV's ConvModule with its keys.

    Args:
        bias: "auto" (a bias only without a norm), True or False.
        conv_cfg: None, `{type: Conv2d}`, `{type: Conv2dAdaptivePadding}` (see `AdaptiveConv2d`; no padding is given),
            or `{type: Conv1d}` for kernel 1 over points (see `Conv1d`).
        norm_cfg: block for `build_norm`, or None for no norm.
        act_cfg: block for `build_activation`, or None.
        order: of "conv", "norm" and "act"; the norm has the width of what it normalises.
        others: as in `Conv2d`.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W')
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1,
                 groups: int = 1, bias: bool | str = "auto", conv_cfg: dict | None = None, norm_cfg: dict | None = None,
                 act_cfg: dict | None = None, order: tuple[str, str, str] = ("conv", "norm", "act")):
        super().__init__()
        kind = (conv_cfg or {}).get("type", "Conv2d")
        if kind not in ("Conv", "Conv2d", "Conv2dAdaptivePadding", "Conv1d"):
            raise ConfigError(f"conv_cfg: unknown convolution {kind!r} (known: Conv2d, Conv2dAdaptivePadding, Conv1d)")
        if kind == "Conv1d" and (kernel_size, stride, padding, groups) != (1, 1, 0, 1):
            raise ConfigError("conv_cfg: Conv1d has kernel 1 and stride 1, no padding and no groups; got "
                              f"{kernel_size}, {stride}, {padding}, {groups}")
        if sorted(order) != ["act", "conv", "norm"]:
            raise ValueError(f"ConvNormAct: order is {order}; it holds 'conv', 'norm' and 'act' once each")
        bias = norm_cfg is None if bias == "auto" else bias
        if kind == "Conv1d":
            self.conv = Conv1d(in_channels, out_channels, bias=bias)
        else:
            plain = AdaptiveConv2d if kind == "Conv2dAdaptivePadding" else Conv2d
            self.conv = plain(in_channels, out_channels, kernel_size, stride=stride, padding=padding,
                              dilation=dilation, groups=groups, bias=bias)
        self.order, self.norm_name = tuple(order), None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm(norm_cfg, out_channels if order.index("norm") > order.index("conv")
                                              else in_channels)
            setattr(self, self.norm_name, norm)
        self.activate = build_activation(act_cfg)
        activation = (act_cfg or {}).get("type")
        fusible = self.norm_name is not None and self.order == ("conv", "norm", "act")
        self.fused = {None: None, "ReLU": "relu", "GELU": "gelu"}.get(activation, False) if fusible else False

    @property
    def norm(self) -> nn.Module | None:
        """The norm, whatever its key."""
        return None if self.norm_name is None else getattr(self, self.norm_name)

    def execute(self, x: jt.Var, *, residual: jt.Var | None = None) -> jt.Var:
        """With `residual`, that is added before the activation."""
        if self.fused is not False:
            return conv_norm(x, self.conv, self.norm, activation=self.fused, residual=residual)
        steps = {"conv": self.conv, "norm": self.norm or (lambda y: y), "act": self.activate}
        for i, name in enumerate(self.order):
            if name == "norm" and i and self.order[i - 1] == "conv" and self.norm is not None:
                continue  # done with the convolution
            together = name == "conv" and self.order[i + 1:i + 2] == ("norm",) and self.norm is not None
            if name == "act" and residual is not None:
                x = x + residual
            x = conv_norm(x, self.conv, self.norm) if together else steps[name](x)
        return x

    def norm_and_activate(self, x: jt.Var) -> jt.Var:
        """Norm and activation of a map that the convolution made, in one operation where the norm can."""
        if self.fused is not False:
            return self.norm(x, activation=self.fused)
        return self.activate(x if self.norm is None else self.norm(x))


class DepthwiseSeparableConv(nn.Module):
    """A depthwise convolution block and a pointwise one: MMCV's DepthwiseSeparableConvModule with its keys.

    Args:
        norm_cfg, act_cfg: of both blocks, unless `dw_` or `pw_` blocks are given ("default": as `norm_cfg`, `act_cfg`).
        others: as in `ConvNormAct`.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H', W')
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size, *, stride=1, padding=0, dilation=1,
                 norm_cfg: dict | None = None, act_cfg: dict | None = None, dw_norm_cfg="default", dw_act_cfg="default",
                 pw_norm_cfg="default", pw_act_cfg="default"):
        super().__init__()

        def chosen(value, usual):
            return usual if value == "default" else value

        self.depthwise_conv = ConvNormAct(in_channels, in_channels, kernel_size, stride=stride, padding=padding,
                                          dilation=dilation, groups=in_channels, norm_cfg=chosen(dw_norm_cfg, norm_cfg),
                                          act_cfg=chosen(dw_act_cfg, act_cfg))
        self.pointwise_conv = ConvNormAct(in_channels, out_channels, 1, norm_cfg=chosen(pw_norm_cfg, norm_cfg),
                                          act_cfg=chosen(pw_act_cfg, act_cfg))

    def execute(self, x: jt.Var) -> jt.Var:
        return self.pointwise_conv(self.depthwise_conv(x))
