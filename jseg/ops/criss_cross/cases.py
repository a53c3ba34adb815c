"""Shapes of `criss_cross` that tests and benchmarks run; c is the width of queries and keys, d that of values."""

from jseg.ops.case import Case
from jseg.ops.criss_cross.op import criss_cross

CASES = [
    Case("one_pixel", n=1, c=1, d=2, h=1, w=1),
    Case("odd", n=2, c=3, d=5, h=5, w=7),
    Case("one_row", n=1, c=4, d=3, h=1, w=19),
    Case("one_column", n=1, c=4, d=3, h=18, w=1),
    Case("several_vectors", n=1, c=5, d=9, h=33, w=20),
    Case("large_scores", n=1, c=16, d=4, h=9, w=11, size=3.0),
    Case("ccnet_97x97", n=2, c=64, d=512, h=97, w=97, bench=True),
    Case("ccnet_64x128", n=2, c=64, d=512, h=64, w=128, bench=True),
]
GRADS = ["query", "key", "value"]
FLOOR = 1e-6


def make(case, rng) -> dict:
    """Queries and keys of standard deviation `size`, values of 1."""
    size, narrow = case.options.get("size", 1.0), (case.n, case.c, case.h, case.w)
    return {"query": size * rng.standard_normal(narrow), "key": size * rng.standard_normal(narrow),
            "value": rng.standard_normal((case.n, case.d, case.h, case.w))}


def call(inputs: dict, impl: str):
    """y (N, D, H, W)."""
    return criss_cross(**inputs, impl=impl)
