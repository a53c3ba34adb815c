"""Shapes of deformable_attention for tests and benchmarks."""

import numpy as np

from jseg.ops.case import Case
from jseg.ops.deformable_attention.op import deformable_attention

CASES = [
    Case("one_pixel", n=1, heads=1, width=2, queries=3, count=1, sizes=[(1, 1)]),
    Case("odd", n=2, heads=3, width=5, queries=7, count=2, sizes=[(2, 3), (5, 4)]),
    Case("outside", n=1, heads=2, width=4, queries=9, count=3, sizes=[(4, 3), (1, 6)], low=-0.6, high=1.6),
    Case("many_queries", n=2, heads=1, width=3, queries=99, count=3, sizes=[(2, 3), (3, 1)]),
    Case("wide", n=1, heads=2, width=32, queries=6, count=4, sizes=[(2, 2), (4, 4), (8, 8)]),
    Case("mask2former_512", n=1, heads=8, width=32, queries=5376, count=4,
         sizes=[(16, 16), (32, 32), (64, 64)], bench=True),
]
GRADS = ["value", "points", "weights"]
FLOOR = 2e-6


def make(case, rng):
    """Random values, and points that lie clear of the places where a gradient jumps."""
    low, high = case.options.get("low", 0.0), case.options.get("high", 1.0)
    cells = sum(h * w for h, w in case.sizes)
    points = rng.uniform(low, high, (case.n, case.queries, case.heads, len(case.sizes), case.count, 2))
    sides = np.array([(w, h) for h, w in case.sizes], np.float64)[:, None]  # (maps, 1, 2)
    grid = points * sides - 0.5
    grid = np.floor(grid) + np.clip(grid - np.floor(grid), 0.01, 0.99)
    return {"value": rng.standard_normal((case.n, cells, case.heads, case.width)), "points": (grid + 0.5) / sides,
            "weights": rng.standard_normal((case.n, case.queries, case.heads, len(case.sizes), case.count)),
            "sizes": case.sizes}


def call(inputs, impl):
    """Weighted sums."""
    return deformable_attention(**inputs, impl=impl)
