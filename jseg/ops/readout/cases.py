"""Shapes of readout for tests and benchmarks."""

from jseg.ops.bilinear import Resampling, resize_matrix
from jseg.ops.case import Case
from jseg.ops.readout.op import readout

CASES = [
    Case("one_pixel", n=1, k=3, size=(1, 1), out=(1, 1)),
    Case("one_class", n=1, k=1, size=(2, 3), out=(5, 4), with_prob=True),
    Case("odd", n=2, k=5, size=(6, 7), out=(19, 23), with_prob=True),
    Case("align_corners", n=1, k=16, size=(5, 9), out=(17, 40), align_corners=True),
    Case("downwards", n=2, k=37, size=(20, 31), out=(9, 10), with_prob=True),
    Case("ties", n=1, k=40, size=(7, 5), out=(7, 5), levels=3),
    Case("one_source_row", n=1, k=150, size=(1, 6), out=(8, 11)),
    Case("resized_twice", n=2, k=5, size=(6, 7), through=(24, 28), out=(19, 31), with_prob=True),
    Case("four_sources", n=1, k=3, size=(20, 6), through=(10, 6), out=(13, 6)),
    Case("camvid", n=1, k=11, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k", n=1, k=150, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k_resized", n=1, k=150, size=(64, 86), through=(512, 683), out=(480, 640), bench=True),
    Case("ade20k_prob", n=1, k=150, size=(64, 64), out=(512, 512), with_prob=True, bench=True),
]
GRADS = []
FLOOR = 1e-6


def make(case, rng):
    """Random logits; `levels`: only so many different values, for ties; `through`: two resizes in a row."""
    shape = (case.n, case.k, *case.size)
    levels = case.options.get("levels")
    inputs = {"logits": rng.standard_normal(shape) * 3 if levels is None
              else rng.integers(0, levels, shape).astype(float), "size": case.out}
    inputs.update({name: case.options[name] for name in ("through", "align_corners", "with_prob")
                   if name in case.options})
    return inputs


def call(inputs, impl):
    """Labels, or labels and probability."""
    inputs = dict(inputs)
    if through := inputs.pop("through", None):
        matrices = [resize_matrix(b, c) @ resize_matrix(a, b)
                    for a, b, c in zip(inputs["logits"].shape[2:], through, inputs["size"])]
        inputs["size"] = tuple(map(Resampling.from_matrix, matrices))
    return readout(**inputs, impl=impl)
