"""Batch, group and layer normalisation of maps with an activation and a residual in the same pass.

Ioffe & Szegedy, ICML 2015; Wu & He, ECCV 2018; Ba et al., 2016. The mean comes first, then the variance of the
distances from it: E[x^2] - E[x]^2, which Jittor's own norms use, cancels in float32 when the mean is large against the
spread. The kernels read a channel or group once from memory for its statistics and compute activation and residual
again in the backward pass instead of saving them.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
from jittor import nn

from jseg.ops import ranks
from jseg.ops.common import as_parameters, check, check_same, check_shape, device_op, like, pick
from jseg.ops.norm.sync import SyncNorm

__all__ = ["norm", "moments"]

_ACTIVATIONS = (None, "relu", "gelu")
_OVER = ("batch", "group", "position")


def norm(x: jt.Var, weight: jt.Var, bias: jt.Var, *, over: str, groups: int = 1, eps: float = 1e-5,
         activation: str | None = None, residual: jt.Var | None = None, sync: bool = False, fork: bool = False,
         impl: str = "auto") -> tuple:
    """y = activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), with the statistics it used.

    Args:
        over: what mean and variance are taken over: "batch" (all pictures and pixels of a channel), "group" (`groups`
            groups of consecutive channels of one picture, all pixels) or "position" (the channels of one pixel).
        activation: None, "relu" or "gelu" (exact, by erf).
        sync: under MPI, take the statistics of "batch" over all ranks; on CUDA this runs the plain path.
        fork: also return y and x for a second use; their gradients are then added up inside this operation.
    Shape:
        x, residual: (N, C, H, W) float32; weight, bias: (C,) -> y (N, C, H, W); mean and biased variance (C,), (N, G)
        or (N, H * W). The CUDA kernel also takes float16 and bfloat16 maps; statistics and sums are float32 all the
        same.
    Returns:
        (y, mean, variance), with `fork` (y, mean, variance, y, x). Mean and variance carry no gradient.
    Raises:
        KernelError: shapes disagree, `groups` does not divide C, or an unknown word.
    """
    _check(x, weight, bias, residual, over, groups, activation)
    options = over, groups, float(eps), activation
    shared = sync and over == "batch" and ranks.world_size() > 1
    impl = pick(impl, "norm", x, weight, bias)
    if shared and impl == "cpu":
        return tuple(SyncNorm.apply(x, weight, bias, residual, float(eps), _ACTIVATIONS.index(activation), fork))
    impl = "jittor" if shared else impl
    if impl == "jittor":
        y, mean, variance = _composed(x, weight, bias, residual, *options, sync)
        return (y, mean, variance, y, x) if fork else (y, mean, variance)
    residual = residual if residual is None else like(residual, x)
    return tuple(_Norm.apply(x, *as_parameters(weight, bias), residual, *options, fork, device_op(impl)))


class _Norm(jt.Function):
    """The kernels; they save their inputs and the statistics."""

    def execute(self, x, weight, bias, residual, over, groups, eps, activation, fork, run):
        self.run, (n, c, h, w) = run, x.shape
        self.symbol = "jseg_norm_position" if over == "position" else "jseg_norm"
        self.scalars = [n, c, h * w, groups if over == "group" else 0, _ACTIVATIONS.index(activation), eps]
        sets = {"batch": (c,), "group": (n, groups), "position": (n, h * w)}[over]
        y, mean, variance = run(f"{self.symbol}_forward", [x, weight, bias, residual],
                                [(x.shape, x.dtype), (sets, "float32"), (sets, "float32")], self.scalars)
        self.saved = x, weight, bias, residual, mean, variance
        mean, variance = mean.stop_grad(), variance.stop_grad()
        return [y, mean, variance, y, x] if fork else [y, mean, variance]

    def grad(self, dy, _mean, _variance, dy_again=None, dx_more=None):
        x, weight, bias, residual = self.saved[:4]
        outputs = [(x.shape, x.dtype), (weight.shape, "float32"), (bias.shape, "float32")]
        if residual is not None:
            outputs.append((x.shape, x.dtype))
        maps = [v if v is None else like(v, x) for v in (dy, dy_again, dx_more)]
        grads = self.run(f"{self.symbol}_backward", [*self.saved, *maps], outputs, self.scalars)
        return [*grads[:3], grads[3] if residual is not None else None, None, None, None, None, None, None]


def moments(x: jt.Var, dims: list[int], *, sync: bool = False) -> tuple[jt.Var, jt.Var, int]:
    """Mean and biased variance over `dims`, kept as size-1 axes, and the number of values each is taken over.

    The plain path's statistics. With `sync` under MPI, and pictures on axis 0, they span the batches of all ranks: the
    mean comes first, then the squared distances from that common mean. Ranks may hold different numbers of pictures.
    """
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    if not sync or ranks.world_size() == 1:
        mean = x.mean(dims, keepdims=True)
        centred = x - mean
        return mean, (centred * centred).mean(dims, keepdims=True), count
    count = count // x.shape[0] * ranks.pictures(x.shape[0])
    share = jt.array(np.array([1.0 / count], np.float32))
    mean = ranks.total(x.float32().sum(dims, keepdims=True)) * share
    centred = x - mean
    return mean, ranks.total((centred * centred).sum(dims, keepdims=True)) * share, count


def _check(x, weight, bias, residual, over, groups, activation) -> None:
    """Raise KernelError unless the arguments fit."""
    check("norm", x.ndim == 4 and min(x.shape) >= 1,
          f"x is {tuple(x.shape)}; accepted: (N, C, H, W) with no empty side")
    check_shape("norm", "weight", weight, (x.shape[1],))
    check_shape("norm", "bias", bias, (x.shape[1],))
    if residual is not None:
        check_same("norm", x=x, residual=residual)
    check("norm", over in _OVER, f"over is {over!r}; accepted: {', '.join(_OVER)}")
    check("norm", groups >= 1 and x.shape[1] % groups == 0,
          f"groups={groups} must divide the channel count {x.shape[1]}")
    check("norm", activation in _ACTIVATIONS, f"activation is {activation!r}; accepted: None, 'relu', 'gelu'")


def _composed(x, weight, bias, residual, over, groups, eps, activation, sync):
    """Plain framework operations."""
    n, c, h, w = x.shape
    if over == "group":
        mean, variance, _ = moments(x.reshape(n, groups, -1), [2])  # (N, G, 1)
        per_group = (1, groups, c // groups)
        scale = weight.reshape(per_group) / jt.sqrt(variance + eps)  # (N, G, C/G)
        shift = bias.reshape(per_group) - mean * scale
        y = x * scale.reshape(n, c, 1, 1) + shift.reshape(n, c, 1, 1)
        sets = (n, groups)
    else:
        mean, variance, _ = moments(x, [0, 2, 3] if over == "batch" else [1], sync=sync)  # (1, C, 1, 1) or (N, 1, H, W)
        y = (x - mean) * (weight.reshape(1, c, 1, 1) / jt.sqrt(variance + eps)) + bias.reshape(1, c, 1, 1)
        sets = (c,) if over == "batch" else (n, h * w)
    y = y if residual is None else y + residual
    y = jt.maximum(y, 0.0) if activation == "relu" else nn.gelu(y) if activation == "gelu" else y
    return y, mean.reshape(sets).detach(), variance.reshape(sets).detach()
