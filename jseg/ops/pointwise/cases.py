"""Shapes of pointwise for tests and benchmarks."""

from jseg.ops.common import Case
from jseg.ops.pointwise.op import pointwise

CASES = [
    Case("one_number", n=1, c=1, out=1, size=(1, 1)),
    Case("odd", n=2, c=5, out=7, size=(5, 7)),
    Case("gelu", n=2, c=32, out=33, size=(9, 11), activation="gelu"),
    Case("large_values", n=1, c=8, out=8, size=(4, 9), activation="gelu", scale=100.0),
    Case("many_classes", n=1, c=70, out=150, size=(8, 13)),
    Case("long_sums", n=3, c=3, out=2, size=(70, 41)),
    Case("many_blocks", n=2, c=130, out=260, size=(3, 5), activation="gelu"),
    Case("stage1", n=2, c=32, out=32, size=(128, 128), activation="gelu", bench=True),
    Case("stage2", n=2, c=64, out=64, size=(64, 64), activation="gelu", bench=True),
    Case("stage3", n=2, c=160, out=160, size=(32, 32), bench=True),
    Case("head_squeeze", n=2, c=480, out=256, size=(64, 64), bench=True),
    Case("wide", n=2, c=1024, out=1024, size=(32, 32), bench=True),
]
GRADS = ["x", "weight", "bias"]
FLOOR = 1e-6


def make(case, rng):
    """Random input, weights of unit gain."""
    inputs = {"x": rng.standard_normal((case.n, case.c, *case.size)) * case.options.get("scale", 1.0),
              "weight": rng.standard_normal((case.out, case.c, 1, 1)) / case.c ** 0.5, "bias": rng.standard_normal(case.out)}
    if "activation" in case.options:
        inputs["activation"] = case.activation
    return inputs


def call(inputs, impl):
    """y (N, D, H, W)."""
    return pointwise(**inputs, impl=impl)
