"""Depthwise convolution (one filter per channel) with optional bias and GELU in the same pass.

MSCAN's MLP and SegFormer's MixFFN put a 3x3 depthwise convolution and a GELU between two 1x1 convolutions; strips such
as 1x21 are the same operation. The kernels keep no tensor but their inputs: with an activation the backward pass
computes the pre-activation again.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["depthwise"]


def depthwise(x, weight, bias=None, *, stride=1, padding=0, dilation=1, activation: str | None = None,
              impl: str = "auto"):
    """Convolve each channel with its own filter.

    Args:
        stride, padding, dilation: int or (vertical, horizontal); stride and dilation >= 1, padding >= 0.
        activation: None or "gelu" (exact, with erf).
        impl: see `jseg.ops.common`.
    Shape:
        x (N, C, H, W); weight (C, 1, kh, kw); bias (C,) -> (N, C, H', W') with
        H' = (H + 2 * padding - dilation * (kh - 1) - 1) // stride + 1 >= 1
    Raises:
        KernelError: shapes that do not fit, an output without pixels, an unknown activation or impl.
    """
    stride, padding, dilation = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    check("depthwise", len(x.shape) == 4, f"x is {tuple(x.shape)}, expected (N, C, H, W)")
    check("depthwise", activation in (None, "gelu"), f"activation is {activation!r}, accepted are None and 'gelu'")
    check_shape("depthwise", "weight", weight, (x.shape[1], 1, None, None))
    if bias is not None:
        check_shape("depthwise", "bias", bias, (x.shape[1],))
    size = tuple((x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1
                 for i in (0, 1))
    check("depthwise", min(size) >= 1 and min(x.shape) >= 1,
          f"x {tuple(x.shape)} with weight {tuple(weight.shape)}, stride {stride}, padding {padding}, dilation "
          f"{dilation} has no output")
    tensors = (x, weight) if bias is None else (x, weight, bias)
    impl = pick(impl, "depthwise", *tensors)
    if impl == "jittor":
        return _composed(x, weight, bias, stride, padding, dilation, activation)
    return _Depthwise.apply(x, *as_parameters(weight, bias), size, stride, padding, dilation, activation,
                            device_op(impl))


def _pair(name: str, value, low: int) -> tuple:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    check("depthwise", len(pair) == 2 and all(isinstance(v, int) and v >= low for v in pair),
          f"{name} is {value!r}, expected an integer >= {low} or two of them")
    return pair


def _composed(x, weight, bias, stride, padding, dilation, activation):
    y = nn.conv2d(x, weight, bias, stride, padding, dilation, groups=x.shape[1])
    return nn.gelu(y) if activation == "gelu" else y


class _Depthwise(jt.Function):
    def execute(self, x, weight, bias, size, stride, padding, dilation, activation, run):
        n, c, h, w = x.shape
        self.saved, self.run = (x, weight, bias), run
        self.scalars = [n, c, h, w, *size, *weight.shape[2:], *stride, *padding, *dilation, activation == "gelu"]
        return run("jseg_depthwise_forward", [x, weight, bias], [((n, c, *size), x.dtype)], self.scalars)[0]

    def grad(self, dy):
        x, weight, bias = self.saved
        outputs = [(x.shape, x.dtype), (weight.shape, "float32"), ((x.shape[1],), "float32")]
        dx, dw, db = self.run("jseg_depthwise_backward", [x, weight, bias, like(dy, x)], outputs, self.scalars)
        return dx, dw, db if bias is not None else None, None, None, None, None, None, None
