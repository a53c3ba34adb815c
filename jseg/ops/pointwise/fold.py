"""BatchNorms by running statistics, taken into the 1x1 convolutions behind them: of many layers in one launch.

For inference on a GPU, where each norm by itself would be three short launches; the parameters are read anew each time,
so whatever changes them is noticed. On the CPU the kernels take a norm's scale and shift as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import jittor as jt

from jseg.ops import cuda_library
from jseg.ops.common import as_parameters, check_shape, pick

__all__ = ["Fold", "fold_norms", "folds_norms"]

MOST = 7   # folds of a launch, as its inputs are limited


class Fold(NamedTuple):
    """A norm before a 1x1 convolution.

    Args:
        weight, bias: of the convolution, (D, C, 1, 1) or (D, C), and (D,) or None.
        norm: the norm's weight, bias, running mean and running variance, (C,) each.
        eps: added to the variance.
        later: a bias (C,) that the norm's shift is to be added to, where its output is used a second time; or None.
    """

    weight: jt.Var
    bias: jt.Var | None
    norm: tuple
    eps: float
    later: jt.Var | None = None


def folds_norms(x: jt.Var) -> bool:
    """Whether `fold_norms` is for such maps, here and now."""
    return bool(jt.flags.no_grad) and cuda_library.ready() and pick("auto", "pointwise", x) == "cuda"


def fold_norms(x: jt.Var, folds: list[Fold]) -> list[tuple]:
    """Fold norms into convolutions, `MOST` in a launch.

    Args:
        x: the maps that they are for; only its type is looked at.
    Returns:
        for each fold (weight, bias) whose convolution of x is the given one of norm(x); with `later` also the norm's
        scale (C,) and `later` plus its shift (C,).
    Raises:
        KernelError: shapes disagree.
    """
    found: list[tuple] = []
    for first in range(0, len(folds), MOST):
        found += _fold_some(x, folds[first:first + MOST])
    return found


def _fold_some(x, folds):
    inputs, outputs, scalars = [x], [], [len(folds)]
    for weight, bias, norm, eps, later in folds:
        d, c = weight.shape[:2]
        for name, value, size in (("bias", bias, d), ("later", later, c), *(("norm", v, c) for v in norm)):
            if value is not None:
                check_shape("fold_norms", name, value, (size,))
        inputs += as_parameters(weight, bias, *norm, later)
        outputs += [(weight.shape, "float32"), ((d,), "float32")]
        outputs += [((c,), "float32")] * 2 if later is not None else []
        scalars += [d, c, eps]
    results = iter(cuda_library.cuda_op("jseg_pointwise_fold", inputs, outputs, scalars))
    return [tuple(next(results) for _ in range(2 if fold.later is None else 4)) for fold in folds]
