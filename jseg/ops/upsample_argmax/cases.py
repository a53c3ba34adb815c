"""Shapes of upsample_argmax for tests and benchmarks."""

from jseg.ops.common import Case
from jseg.ops.upsample_argmax.op import upsample_argmax

CASES = [
    Case("one_pixel", n=1, k=3, size=(1, 1), out=(1, 1)),
    Case("one_class", n=1, k=1, size=(2, 3), out=(5, 4), with_prob=True),
    Case("odd", n=2, k=5, size=(6, 7), out=(19, 23), with_prob=True),
    Case("align_corners", n=1, k=16, size=(5, 9), out=(17, 40), align_corners=True),
    Case("downwards", n=2, k=37, size=(20, 31), out=(9, 10), with_prob=True),
    Case("ties", n=1, k=40, size=(7, 5), out=(7, 5), levels=3),
    Case("one_source_row", n=1, k=150, size=(1, 6), out=(8, 11)),
    Case("camvid", n=1, k=11, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k", n=1, k=150, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k_prob", n=1, k=150, size=(64, 64), out=(512, 512), with_prob=True, bench=True),
]
GRADS = []
FLOOR = 1e-6


def make(case, rng):
    """Random logits; `levels`: only so many different values, for ties."""
    shape = (case.n, case.k, *case.size)
    levels = case.options.get("levels")
    inputs = {"logits": rng.standard_normal(shape) * 3 if levels is None
              else rng.integers(0, levels, shape).astype(float), "size": case.out}
    inputs.update({name: case.options[name] for name in ("align_corners", "with_prob") if name in case.options})
    return inputs


def call(inputs, impl):
    """Labels, or labels and probability."""
    return upsample_argmax(**inputs, impl=impl)
