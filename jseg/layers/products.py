"""Products of pairs of matrices, one pair a picture, by the operators for tokens and maps.

Jittor's own batched product has on the CPU the tensor of all single products in memory.
"""

from __future__ import annotations

import jittor as jt

from jseg import ops

__all__ = ["mix_maps", "pair_products"]


def pair_products(x: jt.Var, y: jt.Var) -> jt.Var:
    """Every row of x times every row of y.

    Shape:
        x: (B, L, C); y: (B, M, C), or (1, M, C) for all of B -> (B, L, M)
    """
    if y.shape[0] == 1:
        return ops.linear(x, y[0])
    return jt.concat([ops.linear(x[i:i + 1], y[i]) for i in range(x.shape[0])], 0)


def mix_maps(weights: jt.Var, maps: jt.Var) -> jt.Var:
    """Sums of a picture's maps, with weights of that picture.

    Shape:
        weights: (N, D, C); maps: (N, C, H, W) -> (N, D, H, W)
    """
    return jt.concat([ops.pointwise(maps[i:i + 1], weights[i].reshape(*weights.shape[1:], 1, 1))
                      for i in range(maps.shape[0])], 0)
