"""1x1 convolution as a matrix product over pixels, with bias and optional GELU fused into its end."""

from __future__ import annotations

import jittor as jt

from jseg.ops.common import check, check_shape, cpu_op, pick

__all__ = ["pointwise"]

_ACTIVATIONS = (None, "gelu")


class _Pointwise(jt.Function):
    """The CPU kernel; with GELU, the backward pass computes the value before it again instead of saving it."""

    def execute(self, x, weight, bias, activation):
        self.saved = x, weight, bias, activation
        n, c, h, w = x.shape
        out = weight.shape[0]
        return cpu_op("jseg_pointwise_forward", [x, weight, bias], [((n, out, h, w), "float32")], [n, c, out, h * w, activation == "gelu"])[0]

    def grad(self, dy):
        x, weight, bias, activation = self.saved
        n, c, h, w = x.shape
        out = weight.shape[0]
        dx, dweight, dbias = cpu_op("jseg_pointwise_backward", [x, weight, bias, dy],
                                    [(x.shape, "float32"), (weight.shape, "float32"), ((out,), "float32")], [n, c, out, h * w, activation == "gelu"])
        return dx, dweight, None if bias is None else dbias, None


def pointwise(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None, *, activation: str | None = None, impl: str = "auto") -> jt.Var:
    """y = activation(weight * x + bias) at every pixel.

    Args:
        activation: None or "gelu" (exact, by erf).
    Shape:
        x: (N, C, H, W) float32; weight: (D, C, 1, 1) or (D, C); bias: (D,) -> (N, D, H, W)
    Raises:
        KernelError: shapes disagree or `activation` is unknown.
    """
    _check(x, weight, bias, activation)
    if pick(impl, "pointwise", x, weight) == "jittor":
        return _composed(x, weight.reshape(*weight.shape[:2], 1, 1), bias, activation)
    return _Pointwise.apply(x, weight, bias, activation)


def _check(x, weight, bias, activation) -> None:
    """Raise KernelError unless the arguments fit."""
    check("pointwise", x.ndim == 4, f"x is {tuple(x.shape)}; accepted: (N, C, H, W)")
    check_shape("pointwise", "weight", weight, (None, x.shape[1]) if weight.ndim == 2 else (None, x.shape[1], 1, 1))
    if bias is not None:
        check_shape("pointwise", "bias", bias, (weight.shape[0],))
    check("pointwise", activation in _ACTIVATIONS, f"activation is {activation!r}; accepted: None, 'gelu'")


def _composed(x, weight, bias, activation):
    """Plain framework operations."""
    y = jt.nn.conv2d(x, weight, bias)  # (N, D, H, W); jt.matmul is as fast forward, but its backward pass is not
    return jt.nn.gelu(y) if activation == "gelu" else y
