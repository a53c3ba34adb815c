"""Product of tokens with a matrix, fused with what follows it in transformers: bias, GELU, stochastic depth, shortcut.

Tokens are (N, ..., C), channels last; maps (N, C, H, W) have `jseg.ops.pointwise`. A scale per output channel (layer
scale) needs no word here: multiply weight and bias by it, they are small.
"""

from __future__ import annotations

import math

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick, rounds_factors

__all__ = ["linear"]

_ACTIVATIONS = (None, "gelu")


def linear(x: jt.Var, weight: jt.Var, bias: jt.Var | None = None, *, activation: str | None = None,
           factor: jt.Var | None = None, shortcut: jt.Var | None = None, impl: str = "auto") -> jt.Var:
    """y = shortcut + factor * activation(x weight^T + bias).

    Everything after `weight` is optional. `activation` does not go together with `factor` and `shortcut`.

    Args:
        activation: None or "gelu" (exact, by erf).
        factor: one number per picture (stochastic depth), taken as constant in the gradient.
    Shape:
        x: (N, ..., C) float32; weight: (D, C); bias: (D,); factor: (N,); shortcut: (N, ..., D) -> (N, ..., D)
        The CUDA kernel also takes float16 and bfloat16 tokens; weights and sums are float32 all the same.
    Raises:
        KernelError: shapes disagree, `activation` is unknown or does not go with another word, or no such impl.
    """
    check("linear", x.ndim >= 2 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}; accepted: (N, ..., C) with no empty side")
    check_shape("linear", "weight", weight, (None, x.shape[-1]))
    out = weight.shape[0]
    for name, value, shape in (("bias", bias, (out,)), ("factor", factor, (x.shape[0],)),
                               ("shortcut", shortcut, (*x.shape[:-1], out))):
        if value is not None:
            check_shape("linear", name, value, shape)
    check("linear", activation in _ACTIVATIONS, f"activation is {activation!r}; accepted: None, 'gelu'")
    check("linear", activation is None or (factor is None and shortcut is None),
          "activation does not go together with factor and shortcut; use two calls")
    factor = None if factor is None else factor.detach()
    impl = pick(impl, "linear", x, weight)
    if impl == "jittor":
        return _composed(x, weight, bias, activation, factor, shortcut)
    shortcut = shortcut if shortcut is None else like(shortcut, x)
    return _Linear.apply(x, *as_parameters(weight, bias, factor), shortcut, activation, device_op(impl))


class _Linear(jt.Function):
    """The kernels; with GELU they also save the value before it: to multiply it out again costs a third of a step."""

    def execute(self, x, weight, bias, factor, shortcut, activation, run):
        n, shape = x.shape[0], (*x.shape[:-1], weight.shape[0])
        self.scalars = [n, math.prod(x.shape[1:-1]), x.shape[-1], shape[-1], activation == "gelu",
                        rounds_factors()]
        before = [(shape, "float32")] * (activation == "gelu" and not jt.flags.no_grad)
        inputs = [x, weight, bias, factor, shortcut]
        y, *before = run("jseg_linear_forward", inputs, [(shape, x.dtype), *before], self.scalars)
        self.run, self.has_shortcut, self.has_bias = run, shortcut is not None, bias is not None
        self.saved = x, weight, factor, before[0] if before else None
        return y

    def grad(self, dy):
        x, weight = self.saved[:2]
        dy = like(dy, x)
        outputs = [(x.shape, x.dtype), (weight.shape, "float32"), ((weight.shape[0],), "float32")]
        dx, dweight, dbias = self.run("jseg_linear_backward", [*self.saved, dy], outputs, self.scalars)
        return dx, dweight, dbias if self.has_bias else None, None, dy if self.has_shortcut else None, None, None


def _composed(x, weight, bias, activation, factor, shortcut):
    """Plain framework operations."""
    y = jt.nn.matmul_transpose(x.reshape(-1, x.shape[-1]), weight)
    y = y.reshape(*x.shape[:-1], weight.shape[0])  # (N, ..., D)
    y = y if bias is None else y + bias
    y = jt.nn.gelu(y) if activation == "gelu" else y
    y = y if factor is None else y * factor.reshape(-1, *[1] * (x.ndim - 1))
    return y if shortcut is None else y + shortcut
