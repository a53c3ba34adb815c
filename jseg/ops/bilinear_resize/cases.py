"""Shapes of bilinear_resize for tests and benchmarks."""

from jseg.ops.bilinear_resize.op import bilinear_resize
from jseg.ops.case import Case

CASES = [
    Case("one_pixel", n=1, c=2, size=(1, 1), out=(3, 5)),
    Case("to_one_pixel", n=2, c=1, size=(2, 2), out=(1, 1)),
    Case("odd", n=2, c=3, size=(6, 7), out=(19, 23), add=True),
    Case("align_corners", n=1, c=4, size=(5, 9), out=(17, 40), align_corners=True),
    Case("downwards", n=2, c=5, size=(20, 31), out=(9, 10), add=True),
    Case("one_axis", n=1, c=3, size=(8, 21), out=(8, 50)),
    Case("narrow", n=1, c=2, size=(33, 1), out=(40, 2), add=True),
    Case("level3", n=1, c=256, size=(32, 32), out=(64, 64), add=True, bench=True),
    Case("level4", n=1, c=256, size=(16, 16), out=(64, 64), bench=True),
]
GRADS = ["x", "add"]
FLOOR = 1e-6


def make(case, rng):
    """Random maps."""
    inputs = {"x": rng.standard_normal((case.n, case.c, *case.size)), "size": case.out}
    if case.options.get("add"):
        inputs["add"] = rng.standard_normal((case.n, case.c, *case.out))
    if "align_corners" in case.options:
        inputs["align_corners"] = case.align_corners
    return inputs


def call(inputs, impl):
    """Resized maps."""
    return bilinear_resize(**inputs, impl=impl)
