"""The largest values of a row, where they are, and points chosen by them."""

from __future__ import annotations

from typing import Callable

import jittor as jt
import numpy as np

__all__ = ["choose_points", "lead_of_best", "top_places"]


def top_places(x: jt.Var, count: int) -> jt.Var:
    """Places of the `count` largest values of each row, in no order; carries no gradient.

    On the CPU NumPy parts each row at that value, ten times quicker than sorting it whole.

    Shape:
        x: (N, L) -> (N, count) int32, 1 <= count <= L
    """
    if count == x.shape[1]:
        return jt.arange(count).int32().unsqueeze(0).broadcast((x.shape[0], count))
    if jt.flags.use_cuda:
        return jt.argsort(x, dim=1, descending=True)[0][:, :count].int32()
    return jt.array(np.argpartition(-x.numpy(), count - 1, axis=1)[:, :count].astype(np.int32))


def choose_points(draw: Callable[[int], jt.Var], doubt_at: Callable[[jt.Var], jt.Var], *, drawn: int, undecided: int,
                  kept: int) -> jt.Var:
    """Points to learn from: the most undecided of many random ones, and more random ones
    (Kirillov et al., "PointRend", CVPR 2020, sec. 3.3).

    Args:
        draw: gives so many random points per row, (M, count, 2).
        doubt_at: how undecided points are, (M, P, 2) -> (M, P).
        drawn: random points to choose from.
        undecided: points chosen of them, at most `drawn`.
        kept: points in all; what is missing is drawn.
    Returns:
        (M, kept, 2), without a gradient.
    """
    with jt.no_grad():
        points, parts = draw(drawn), []
        if undecided:
            places = top_places(doubt_at(points), undecided)
            parts.append(points.gather(1, places.unsqueeze(2).broadcast((points.shape[0], undecided, 2))))
        if undecided < kept:
            parts.append(draw(kept - undecided))
        return jt.concat(parts, 1).stop_grad()


def lead_of_best(x: jt.Var) -> jt.Var:
    """How far the largest value of axis 1 is ahead of the second largest. Shape: (N, K, ...) -> (N, ...), K >= 2."""
    places, best = jt.argmax(x, 1)
    indices = jt.arange(x.shape[1]).reshape(1, -1, *[1] * (x.ndim - 2))
    others = jt.ternary(indices == places.unsqueeze(1), jt.full_like(x, -3.4e38), x)
    return best - others.max(1)
