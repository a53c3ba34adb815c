"""Shapes of point_sample for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.point_sample.op import point_sample

CASES = [
    Case("one_pixel", n=1, c=2, size=(1, 1), points=5),
    Case("odd", n=2, c=3, size=(6, 7), points=19),
    Case("align_corners", n=2, c=4, size=(5, 9), points=17, align_corners=True),
    Case("nearest", n=2, c=1, size=(11, 8), points=33, mode="nearest"),
    Case("outside", n=1, c=2, size=(4, 5), points=40, low=-0.7, high=1.7),
    Case("many_points", n=1, c=9, size=(3, 4), points=1100),
    Case("training", n=4, c=256, size=(128, 256), points=2048, bench=True),
    Case("refinement", n=1, c=256, size=(128, 256), points=8196, bench=True),
]
GRADS = ["x"]
FLOOR = 1e-6


def make(case, rng):
    """Random maps and points."""
    low, high = case.options.get("low", 0.0), case.options.get("high", 1.0)
    more = {key: case.options[key] for key in ("mode", "align_corners") if key in case.options}
    return {
        "x": rng.standard_normal((case.n, case.c, *case.size)),
        "points": rng.uniform(low, high, (case.n, case.points, 2)), **more
    }


def call(inputs, impl):
    """Sampled values."""
    return point_sample(**inputs, impl=impl)
