"""Shapes of `msca` that tests and benchmarks run. `bands` cases are tall enough to be cut into bands."""

from jseg.ops.case import Case
from jseg.ops.msca.op import msca

CASES = [
    Case("one_pixel", n=1, c=2, h=1, w=1),
    Case("narrow", n=1, c=3, h=30, w=3),
    Case("flat", n=1, c=3, h=3, w=40),
    Case("odd", n=2, c=4, h=17, w=29),
    Case("other_sizes", n=1, c=2, h=14, w=18, k0=3, sizes=(5, 13)),
    Case("no_strips", n=1, c=2, h=9, w=9, k0=9, sizes=()),
    Case("bands", n=1, c=1, h=211, w=517),
    Case("stage1", n=1, c=32, h=128, w=128, bench=True),
    Case("stage2", n=1, c=64, h=64, w=64, bench=True),
    Case("stage3", n=1, c=160, h=32, w=32, bench=True),
    Case("stage4", n=1, c=256, h=16, w=16, bench=True),
]
GRADS = ["x", "w0", "b0"] + [f"{name}{i}" for i in range(3) for name in ("row", "row_bias", "column", "column_bias")]
FLOOR = 3e-6


def make(case, rng) -> dict:
    """Arguments of the case: float64 arrays by the names of reference.py.
    Filters are scaled to keep y near x in size.
    """
    o = case.options
    c, k0 = o["c"], o.get("k0", 5)
    inputs = {"x": rng.standard_normal((o["n"], c, o["h"], o["w"])), "w0": rng.standard_normal((c, 1, k0, k0)) / k0,
              "b0": rng.standard_normal(c)}
    for i, k in enumerate(o.get("sizes", (7, 11, 21))):
        inputs[f"row{i}"], inputs[f"row_bias{i}"] = rng.standard_normal((c, 1, 1, k)) / k ** 0.5, rng.standard_normal(c)
        inputs[f"column{i}"] = rng.standard_normal((c, 1, k, 1)) / k ** 0.5
        inputs[f"column_bias{i}"] = rng.standard_normal(c)
    return inputs


def call(inputs: dict, impl: str):
    """Run the op on the arguments `make` gave."""
    count = (len(inputs) - 3) // 4
    strips = [tuple(inputs[f"{name}{i}"] for name in ("row", "row_bias", "column", "column_bias"))
              for i in range(count)]
    return msca(inputs["x"], inputs["w0"], inputs["b0"], strips, impl=impl)
