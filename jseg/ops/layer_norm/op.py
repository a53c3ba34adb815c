"""Layer normalisation of tokens: over the last axis.

Ba et al., 2016. The mean comes first, then the variance of the distances from it: E[x^2] - E[x]^2, which Jittor's own
norm uses, cancels in float32 when the mean is large against the spread. Maps (N, C, H, W) have `jseg.ops.norm` with
over="position".
"""

from __future__ import annotations

import math

import jittor as jt

from jseg.ops.common import as_parameters, check, check_shape, device_op, like, pick

__all__ = ["layer_norm"]


def layer_norm(x: jt.Var, weight: jt.Var, bias: jt.Var, *, eps: float = 1e-5, impl: str = "auto") -> jt.Var:
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, mean and biased variance over the last axis.

    Shape:
        x: (..., C) with at least one axis before C, float32; weight, bias: (C,) -> y (..., C)
        The CUDA kernel also takes float16 and bfloat16 tokens; statistics and sums are float32 all the same.
    Raises:
        KernelError: shapes disagree, or there is no such impl.
    """
    check("layer_norm", x.ndim >= 2 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}; accepted: (..., C) with no empty side")
    check_shape("layer_norm", "weight", weight, (x.shape[-1],))
    check_shape("layer_norm", "bias", bias, (x.shape[-1],))
    impl = pick(impl, "layer_norm", x, weight, bias)
    if impl == "jittor":
        return _composed(x, weight, bias, eps)
    return _LayerNorm.apply(x, *as_parameters(weight, bias), float(eps), device_op(impl))


class _LayerNorm(jt.Function):
    """The kernels; they save their input and two numbers per token."""

    def execute(self, x, weight, bias, eps, run):
        self.scalars, rows = [math.prod(x.shape[:-1]), x.shape[-1], eps], tuple(x.shape[:-1])
        statistics = [] if jt.flags.no_grad else [((2, *rows), "float32")]
        y, *saved = run("jseg_layer_norm_forward", [x, weight, bias], [(x.shape, x.dtype), *statistics], self.scalars)
        self.run, self.saved = run, [x, weight, *saved]
        return y

    def grad(self, dy):
        x, weight = self.saved[:2]
        outputs = [(x.shape, x.dtype), (weight.shape, "float32"), (weight.shape, "float32")]
        return (*self.run("jseg_layer_norm_backward", [*self.saved, like(dy, x)], outputs, self.scalars), None, None)


def _composed(x, weight, bias, eps):
    """Plain framework operations."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred / jt.sqrt(variance + eps) * weight + bias
