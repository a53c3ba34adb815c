"""Batch normalisation whose statistics span the ranks of a job (SyncBN), on the CPU's kernels.

Forward and backward are cut in two where the sums over ranks are needed; each cut is one message of 2 C float64 values.
Ranks may hold different numbers of pictures: sums are added, not means averaged.
"""

from __future__ import annotations

import jittor as jt

from jseg.ops import ranks
from jseg.ops.common import cpu_op

__all__ = ["SyncNorm"]


class SyncNorm(jt.Function):
    """(x, weight, bias, residual, eps, activation number, fork) -> (y, mean, variance), with fork also y and x."""

    def execute(self, x, weight, bias, residual, eps, activation, fork):
        n, c, h, w = x.shape
        self.count = ranks.pictures(n) * h * w
        self.scalars = [n, c, h * w, 0, activation, eps]
        sums, = cpu_op("jseg_norm_moments", [x], [((2 * c,), "float64")], self.scalars[:4])
        y, mean, variance = cpu_op("jseg_norm_apply", [x, weight, bias, residual, ranks.total(sums)],
                                   [(x.shape, "float32"), ((c,), "float32"), ((c,), "float32")],
                                   [*self.scalars, self.count])
        self.saved = x, weight, bias, residual, mean, variance
        mean, variance = mean.stop_grad(), variance.stop_grad()
        return [y, mean, variance, y, x] if fork else [y, mean, variance]

    def grad(self, dy, _mean, _variance, dy_again=None, dx_more=None):
        x, weight, _, residual, mean, variance = self.saved
        c = x.shape[1]
        slopes, dweight, dbias, sums = cpu_op("jseg_norm_slopes", [*self.saved, dy, dy_again],
                                              [(x.shape, "float32"), ((c,), "float32"), ((c,), "float32"),
                                               ((2 * c,), "float64")], self.scalars)
        dx, = cpu_op("jseg_norm_spread", [x, weight, mean, variance, slopes, ranks.total(sums), dx_more],
                     [(x.shape, "float32")], [*self.scalars, self.count])
        return [dx, dweight, dbias, slopes if residual is not None else None, None, None, None]
