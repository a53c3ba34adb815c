"""Shapes of `psa_mask` that tests and benchmarks run; m is the mask's size."""

from jseg.ops.case import Case
from jseg.ops.psa_mask.op import psa_mask

CASES = [
    Case("one_pixel", n=1, h=1, w=1, m=(1, 1), kind="collect"),
    Case("small_window", n=1, h=6, w=7, m=(3, 2), kind="collect"),
    Case("collect_odd", n=2, h=5, w=4, m=(9, 7), kind="collect"),
    Case("distribute_odd", n=2, h=5, w=4, m=(9, 7), kind="distribute"),
    Case("small_window_back", n=1, h=6, w=7, m=(2, 3), kind="distribute"),
    Case("large_window", n=1, h=3, w=2, m=(8, 9), kind="distribute"),
    Case("psanet_49x49", n=1, h=49, w=49, m=(97, 97), kind="collect", bench=True),
    Case("psanet_49x49_distribute", n=1, h=49, w=49, m=(97, 97), kind="distribute", bench=True),
]
GRADS = ["x"]
FLOOR = 1e-7


def make(case, rng) -> dict:
    """Weights of unit variance."""
    (rows, columns) = case.m
    return {"x": rng.standard_normal((case.n, rows * columns, case.h, case.w)), "mask_size": case.m, "kind": case.kind}


def call(inputs: dict, impl: str):
    """y (N, H * W, H, W)."""
    return psa_mask(inputs["x"], inputs["mask_size"], inputs["kind"], impl=impl)
