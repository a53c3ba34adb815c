"""Shapes of readout for tests and benchmarks."""

import numpy as np

from jseg.ops.bilinear import Resampling, resize_matrix
from jseg.ops.case import Case
from jseg.ops.readout.op import readout
from jseg.ops.readout.reference import axis_matrix

CASES = [
    Case("one_pixel", n=1, k=3, size=(1, 1), out=(1, 1)),
    Case("one_class", n=1, k=1, size=(2, 3), out=(5, 4), with_prob=True),
    Case("odd", n=2, k=5, size=(6, 7), out=(19, 23), with_prob=True),
    Case("labels_odd", n=2, k=9, size=(5, 12), out=(19, 70), patches=(2, 3)),
    Case("align_corners", n=1, k=16, size=(5, 9), out=(17, 40), align_corners=True),
    Case("downwards", n=2, k=37, size=(20, 31), out=(9, 10), with_prob=True),
    Case("ties", n=1, k=40, size=(7, 5), out=(7, 5), levels=3),
    Case("ties_enlarged", n=1, k=40, size=(7, 5), out=(49, 37), levels=3),
    Case("one_source_row", n=1, k=150, size=(1, 6), out=(8, 11)),
    Case("resized_twice", n=2, k=5, size=(6, 7), through=(24, 28), out=(19, 31), with_prob=True),
    Case("four_sources", n=1, k=3, size=(20, 6), through=(10, 6), out=(13, 6)),
    Case("many_classes", n=1, k=300, size=(4, 5), out=(37, 41), patches=(2, 2)),
    Case("certain", n=1, k=20, size=(6, 9), out=(50, 75), patches=(2, 3), scale=60, with_prob=True),
    Case("windows", n=1, k=21, size=(12, 9), windows=(3, 3), through=(64, 48), out=(57, 71), patches=(6, 3)),
    Case("windows_prob", n=1, k=4, size=(12, 9), windows=(3, 3), through=(64, 48), out=(57, 71), with_prob=True),
    Case("camvid", n=1, k=11, size=(64, 64), out=(512, 512), patches=(12, 12), bench=True),
    Case("ade20k", n=1, k=150, size=(64, 64), out=(512, 512), patches=(12, 12), bench=True),
    Case("ade20k_noise", n=1, k=150, size=(64, 64), out=(512, 512), bench=True),
    Case("ade20k_resized", n=1, k=150, size=(64, 86), through=(512, 683), out=(480, 640), patches=(12, 16), bench=True),
    Case("ade20k_1920", n=1, k=150, size=(64, 114), through=(512, 910), out=(1080, 1920), patches=(12, 21), bench=True),
    Case("ade20k_prob", n=1, k=150, size=(64, 64), out=(512, 512), patches=(12, 12), with_prob=True, bench=True),
]
GRADS = []
FLOOR = 1e-6


def make(case, rng):
    """Random logits: noise, or with `patches` so many values a side with slopes in between, as those of networks;
    `levels`: only so many different values, for ties; `through`: resized to that size first, with `windows` from so
    many windows a side that overlap by half."""
    options, shape = case.options, (case.n, case.k, *case.size)
    if "levels" in options:
        logits = rng.integers(0, case.levels, shape).astype(float)
    elif "patches" in options:
        coarse = rng.standard_normal((case.n, case.k, *case.patches))
        rows, columns = map(resize_matrix, case.patches, case.size)
        logits = options.get("scale", 3) * np.einsum("Yy,nkyx,Xx->nkYX", rows, coarse, columns)
    else:
        logits = rng.standard_normal(shape) * 3
    return {"logits": logits, "size": case.out,
            **{name: options[name] for name in ("through", "windows", "align_corners", "with_prob") if name in options}}


def call(inputs, impl):
    """Labels, or labels and probability."""
    inputs = dict(inputs)
    through, windows = inputs.pop("through", None), inputs.pop("windows", (1, 1))
    if through:
        inputs["size"] = tuple(Resampling.from_matrix(axis_matrix(*sides))
                               for sides in zip(inputs["logits"].shape[2:], through, inputs["size"], windows))
    return readout(**inputs, impl=impl)
