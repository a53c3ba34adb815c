"""One step of AdamW on a flat vector, straight from the gradients of the parameters that lie in it.

Loshchilov & Hutter, "Decoupled Weight Decay Regularization", ICLR 2019; the numbers of PyTorch's torch/optim/adamw.py.
The kernel reads each gradient where the backward pass left it and sums its squares on the way; the plain path packs the
gradients first.
"""

from __future__ import annotations

from collections.abc import Sequence

import jittor as jt
import numpy as np

from jseg.ops.common import as_parameters, check, check_same, device_op, pick

__all__ = ["ALIGN", "MOST_GRADIENTS", "adamw", "pack", "sum_of_squares"]

ALIGN = 16           # float32 values in 64 bytes: where parts of a flat vector begin
MOST_GRADIENTS = 48  # of one call
_BLOCK = 8192        # values a partial sum of squares is taken over, as in cpu.cc


def pack(parts: Sequence[jt.Var], size: int) -> jt.Var:
    """One float32 vector of `size` values: each part flat at the next multiple of `ALIGN`, zero between them."""
    flat, start = jt.zeros((size,), "float32"), 0
    for part in parts:
        flat[start:start + part.numel()] = part.reshape(-1).float32()
        start += _room(part)
    return flat.stop_grad()


def sum_of_squares(vector: jt.Var) -> jt.Var:
    """Of a vector (L,), in two stages: one long float32 sum of millions loses three digits."""
    rows = vector.shape[0] // _BLOCK
    squares = vector * vector
    rest = squares[rows * _BLOCK:].sum()
    return rest if not rows else rest + squares[:rows * _BLOCK].reshape(rows, _BLOCK).sum(1).sum()


def adamw(weights: jt.Var, exp_avg: jt.Var, exp_avg_sq: jt.Var, gradients: Sequence[jt.Var], *, lr: float,
          weight_decay: float, betas: tuple[float, float], eps: float, step: int, impl: str = "auto") -> tuple[
              jt.Var, jt.Var, jt.Var, jt.Var]:
    """The next weights and moments. No gradient.

    Args:
        gradients: one for each part of the vectors, of any shape, in `pack`'s order; at most `MOST_GRADIENTS`.
        lr: rate of this step, >= 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, > 0.
        step: number of this step, from 1.
    Shape:
        weights, exp_avg, exp_avg_sq: (L,) float32; zero where no part lies. Vectors and gradients of half precision are
            widened first.
    Returns:
        (weights, exp_avg, exp_avg_sq, sum of the squared gradients (1,))
    Raises:
        KernelError: lengths disagree, or too many gradients.
    """
    check("adamw", weights.ndim == 1, f"weights are {tuple(weights.shape)}; accepted: (L,)")
    check_same("adamw", weights=weights, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
    check("adamw", 0 < len(gradients) <= MOST_GRADIENTS, f"{len(gradients)} gradients; accepted: 1 to {MOST_GRADIENTS}")
    length, room = weights.shape[0], sum(map(_room, gradients))
    check("adamw", length == room, f"the gradients fill {room} values, the vectors have {length}")
    numbers = [1 - lr * weight_decay, lr / (1 - betas[0]**step), 1 / (1 - betas[1]**step)**0.5, 1 - betas[0],
               betas[1], eps]
    with jt.no_grad():
        # mixed precision: all kernels read float32
        weights, exp_avg, exp_avg_sq, *gradients = as_parameters(weights, exp_avg, exp_avg_sq, *gradients)
        impl = pick(impl, "adamw", weights, exp_avg, exp_avg_sq, *gradients)
        if impl == "jittor":
            return _composed(weights, exp_avg, exp_avg_sq, pack(gradients, length), *numbers)
        outputs = [((length,), "float32")] * 3 + [((-(-length // _BLOCK),), "float32")]
        *results, squares = device_op(impl)("jseg_adamw_run", [weights, exp_avg, exp_avg_sq, *gradients],
                                            outputs, numbers)
        return (*results, squares.sum())


def _room(part: jt.Var) -> int:
    return -(-part.numel() // ALIGN) * ALIGN


def _composed(weights, exp_avg, exp_avg_sq, gradient, keep, rate, root, share, beta2, eps):
    """Plain framework operations. Numbers that change from step to step are inputs,
    not constants in a kernel's source.
    """
    keep, rate, root = (jt.array(np.array([value], np.float32)) for value in (keep, rate, root))
    exp_avg = exp_avg + (gradient - exp_avg) * share
    exp_avg_sq = exp_avg_sq * beta2 + gradient * gradient * (1 - beta2)
    weights = weights * keep - rate * exp_avg / (jt.sqrt(exp_avg_sq) * root + eps)
    return weights, exp_avg, exp_avg_sq, sum_of_squares(gradient)
