"""Shapes of adamw for tests and benchmarks."""

import numpy as np

from jseg.ops.adamw.op import ALIGN, adamw
from jseg.ops.case import Case

CASES = [
    Case("one_value", sizes=[(1,)], step=1),
    Case("parts_over_blocks", sizes=[(3, 5), (16,), (90, 101), (7,), (1, 1, 31), (8192,), (33,)], step=3),
    Case("no_decay", sizes=[(40, 2), (5,)], step=200, weight_decay=0.0),
    Case("no_momentum", sizes=[(50,)], step=2, betas=(0.0, 0.5)),
    Case("many_parts", sizes=[(i,) for i in range(1, 49)], step=7),
    Case("segnext_tiny", sizes=[(512, 128, 3, 3), *[(256, 256), (256,)] * 20], step=100, bench=True),
]
GRADS = []
FLOOR = 1e-6


def make(case, rng):
    """Random vectors, zero between the parts."""
    length = sum(-(-int(np.prod(size)) // ALIGN) * ALIGN for size in case.sizes)
    filled, start = np.zeros(length), 0
    for size in case.sizes:
        filled[start:start + int(np.prod(size))] = 1
        start += -(-int(np.prod(size)) // ALIGN) * ALIGN
    inputs = {"weights": rng.standard_normal(length) * filled, "exp_avg": rng.standard_normal(length) * 0.1 * filled,
              "exp_avg_sq": rng.uniform(0.01, 1, length) * filled}
    inputs.update({f"g{i}": rng.standard_normal(size) for i, size in enumerate(case.sizes)})
    return {**inputs, "lr": 1e-2, "weight_decay": case.options.get("weight_decay", 0.1),
            "betas": case.options.get("betas", (0.9, 0.999)), "eps": 1e-8, "step": case.step}


def call(inputs, impl):
    """(weights, exp_avg, exp_avg_sq, sum of squares)."""
    named = dict(inputs)
    gradients = [named.pop(name) for name in list(named) if name[0] == "g"]
    return adamw(gradients=gradients, **named, impl=impl)
