"""Batch, group and layer normalisation of maps with an activation and a residual in the same pass.

Ioffe & Szegedy, ICML 2015; Wu & He, ECCV 2018; Ba et al., 2016. The mean comes first, then the variance of the distances from
it: E[x^2] - E[x]^2, which Jittor's own norms use, cancels in float32 when the mean is large against the spread. The CPU kernel
reads a channel or group once from memory and computes activation and residual again in the backward pass instead of saving them.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.ops.common import check, check_same, check_shape, cpu_op, pick

__all__ = ["norm", "moments"]

_ACTIVATIONS = (None, "relu", "gelu")
_OVER = ("batch", "group", "position")


def norm(x: jt.Var, weight: jt.Var, bias: jt.Var, *, over: str, groups: int = 1, eps: float = 1e-5, activation: str | None = None,
         residual: jt.Var | None = None, sync: bool = False, fork: bool = False, impl: str = "auto") -> tuple:
    """y = activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), with the statistics it used.

    Args:
        over: what mean and variance are taken over: "batch" (all pictures and pixels of a channel), "group" (`groups` groups of
            consecutive channels of one picture, all pixels) or "position" (the channels of one pixel).
        activation: None, "relu" or "gelu" (exact, by erf).
        sync: under MPI, take the statistics of "batch" over all ranks; this runs the plain path.
        fork: also return y and x for a second use; their gradients are then added up inside this operation.
    Shape:
        x, residual: (N, C, H, W) float32; weight, bias: (C,) -> y (N, C, H, W); mean and biased variance (C,), (N, G) or (N, H * W)
    Returns:
        (y, mean, variance), with `fork` (y, mean, variance, y, x). Mean and variance carry no gradient.
    Raises:
        KernelError: shapes disagree, `groups` does not divide C, or an unknown word.
    """
    _check(x, weight, bias, residual, over, groups, activation)
    options = over, groups, float(eps), activation
    if (sync and jt.in_mpi) or pick(impl, "norm", x, weight, bias) == "jittor":
        y, mean, variance = _composed(x, weight, bias, residual, *options, sync)
        return (y, mean, variance, y, x) if fork else (y, mean, variance)
    return tuple(_Norm.apply(x, weight, bias, residual, *options, fork))


class _Norm(jt.Function):
    """The CPU kernel; saves its inputs and the statistics."""

    def execute(self, x, weight, bias, residual, over, groups, eps, activation, fork):
        n, c, h, w = x.shape
        self.symbol = "jseg_norm_position" if over == "position" else "jseg_norm"
        self.scalars = [n, c, h * w, groups if over == "group" else 0, _ACTIVATIONS.index(activation), eps]
        sets = {"batch": (c,), "group": (n, groups), "position": (n, h * w)}[over]
        y, mean, variance = cpu_op(f"{self.symbol}_forward", [x, weight, bias, residual],
                                   [(x.shape, "float32"), (sets, "float32"), (sets, "float32")], self.scalars)
        self.saved = x, weight, bias, residual, mean, variance
        mean, variance = mean.stop_grad(), variance.stop_grad()
        return [y, mean, variance, y, x] if fork else [y, mean, variance]

    def grad(self, dy, _mean, _variance, dy_again=None, dx_more=None):
        x, weight, bias, residual = self.saved[:4]
        outputs = [(x.shape, "float32"), (weight.shape, "float32"), (bias.shape, "float32")]
        if residual is not None:
            outputs.append((x.shape, "float32"))
        grads = cpu_op(f"{self.symbol}_backward", [*self.saved, dy, dy_again, dx_more], outputs, self.scalars)
        return [*grads[:3], grads[3] if residual is not None else None, None, None, None, None, None]


def moments(x: jt.Var, dims: list[int], *, sync: bool = False) -> tuple[jt.Var, jt.Var, int]:
    """Mean and biased variance over `dims`, kept as size-1 axes, and the number of values each is taken over.

    The plain path's statistics. With `sync` under MPI they span the batches of all ranks: the mean is averaged first, then the
    squared distances from that common mean.
    """
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    shared = sync and jt.in_mpi
    mean = x.mean(dims, keepdims=True)
    if shared:
        mean = mean.mpi_all_reduce("mean")
    centred = x - mean
    variance = (centred * centred).mean(dims, keepdims=True)
    if shared:
        variance = variance.mpi_all_reduce("mean")
        count *= jt.world_size
    return mean, variance, count


def _check(x, weight, bias, residual, over, groups, activation) -> None:
    """Raise KernelError unless the arguments fit."""
    check("norm", x.ndim == 4 and min(x.shape) >= 1, f"x is {tuple(x.shape)}; accepted: (N, C, H, W) with no empty side")
    check_shape("norm", "weight", weight, (x.shape[1],))
    check_shape("norm", "bias", bias, (x.shape[1],))
    if residual is not None:
        check_same("norm", x=x, residual=residual)
    check("norm", over in _OVER, f"over is {over!r}; accepted: {', '.join(_OVER)}")
    check("norm", groups >= 1 and x.shape[1] % groups == 0, f"groups={groups} must divide the channel count {x.shape[1]}")
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
    y = nn.relu(y) if activation == "relu" else nn.gelu(y) if activation == "gelu" else y
    return y, mean.reshape(sets).detach(), variance.reshape(sets).detach()
