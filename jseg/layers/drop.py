"""Dropout, channel dropout and stochastic depth; all are the identity in evaluation.

Masks come from Jittor's generator, so `jt.set_global_seed` fixes them; a batch split over MPI ranks gets the masks of
one process.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.ops import ranks

__all__ = ["Dropout", "Dropout2d", "DropPath"]


class _Drop(nn.Module):
    """Zero whole slices of the input with probability `drop_prob` and scale the rest by 1 / (1 - drop_prob)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"{type(self).__name__}: drop probability must be in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob
        self.is_train = True

    def mask_shape(self, x: jt.Var) -> tuple[int, ...]:
        """Shape of the random mask: one draw for each slice that is kept or dropped together."""
        raise NotImplementedError

    def execute(self, x: jt.Var) -> jt.Var:
        if not self.is_train or self.drop_prob == 0.0:
            return x
        keep_prob = 1.0 - self.drop_prob
        mask = (ranks.rand(self.mask_shape(x)) < keep_prob).cast(x.dtype) / keep_prob
        return x * mask.stop_grad()


class Dropout(_Drop):
    """Drop single values (Srivastava et al., JMLR 2014). Shape: any -> same."""

    def mask_shape(self, x: jt.Var) -> tuple[int, ...]:
        return tuple(x.shape)


class Dropout2d(_Drop):
    """Drop whole channels of single pictures (Tompson et al., CVPR 2015). Shape: (N, C, H, W) -> same."""

    def mask_shape(self, x: jt.Var) -> tuple[int, ...]:
        return x.shape[0], x.shape[1], 1, 1


class DropPath(_Drop):
    """Drop a residual branch of single pictures: stochastic depth (Huang et al., ECCV 2016).
    Shape: (N, ...) -> same.
    """

    def mask_shape(self, x: jt.Var) -> tuple[int, ...]:
        return (x.shape[0],) + (1,) * (x.ndim - 1)

    def factor(self, n: int) -> jt.Var | None:
        """What the branch of each of `n` pictures is multiplied by, (n,);
        None for 1: for operators that do it on the way.
        """
        if not self.is_train or self.drop_prob == 0.0:
            return None
        return ((ranks.rand((n,)) < 1.0 - self.drop_prob).float32() / (1.0 - self.drop_prob)).stop_grad()
