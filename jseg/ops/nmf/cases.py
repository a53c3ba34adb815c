"""Shapes of `nmf` that tests and benchmarks run; x and bases are non-negative, a third of x is zero as after a ReLU."""

import numpy as np

from jseg.ops.case import Case
from jseg.ops.nmf.op import nmf

CASES = [
    Case("one_value", n=1, d=1, l=1, r=1, steps=2, eps=0.5),
    Case("no_steps", n=2, d=7, l=19, r=3, steps=0),
    Case("odd", n=2, d=13, l=67, r=5, steps=3),
    Case("odd_one_step", n=2, d=13, l=67, r=5, steps=3, grad="one_step"),
    Case("rank16", n=2, d=40, l=300, r=16, steps=6),
    Case("rank64_inv_t", n=1, d=96, l=130, r=64, steps=2, inv_t=3.0),
    Case("rank64_one_step", n=1, d=70, l=90, r=64, steps=3, grad="one_step"),
    Case("rank70", n=2, d=12, l=35, r=70, steps=1),
    Case("rank70_one_step", n=1, d=12, l=35, r=70, steps=1, grad="one_step"),
    Case("rank24", n=1, d=33, l=49, r=24, steps=4, eps=1e-4),
    Case("head_tiny", n=1, d=256, l=4096, r=16, steps=6, bench=True),
    Case("head_base", n=1, d=512, l=4096, r=64, steps=6, bench=True),
]
GRADS = ["x", "bases"]
FLOOR = 1e-5


def make(case, rng) -> dict:
    """Arguments of the case: float64 arrays and options."""
    o = case.options
    x = np.maximum(rng.standard_normal((o["n"], o["d"], o["l"])) + 0.5, 0)
    bases = rng.random((o["n"], o["d"], o["r"]))
    bases /= np.sqrt((bases ** 2).sum(1, keepdims=True))
    options = {key: o[key] for key in ("steps", "inv_t", "eps", "grad") if key in o}
    return {"x": x, "bases": bases, **options}


def call(inputs: dict, impl: str):
    """Run the op on the arguments `make` gave."""
    inputs = dict(inputs)
    return nmf(inputs.pop("x"), inputs.pop("bases"), impl=impl, **inputs)
