"""Shapes of pointwise for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.pointwise.op import pointwise

CASES = [
    Case("one_number", n=1, c=1, out=1, size=(1, 1)),
    Case("odd", n=2, c=5, out=7, size=(5, 7)),
    Case("gelu", n=2, c=32, out=33, size=(9, 11), activation="gelu"),
    Case("large_values", n=1, c=8, out=8, size=(4, 9), activation="gelu", scale=100.0),
    Case("many_classes", n=1, c=70, out=150, size=(8, 13)),
    Case("long_sums", n=3, c=3, out=2, size=(70, 41)),
    Case("many_blocks", n=2, c=130, out=260, size=(3, 5), activation="gelu"),
    Case("gate", n=2, c=5, out=7, size=(5, 7), more=("gate",)),
    Case("gate_gelu", n=2, c=6, out=9, size=(6, 11), activation="gelu", more=("gate",)),
    Case("residual", n=2, c=5, out=7, size=(5, 7), more=("residual",)),
    Case("scale", n=2, c=5, out=7, size=(5, 7), more=("scale",)),
    Case("branch", n=3, c=9, out=11, size=(5, 13), more=("residual", "scale", "factor", "shortcut")),
    Case("branch_long_rows", n=2, c=3, out=4, size=(40, 41), more=("residual", "scale", "factor", "shortcut")),
    Case("dropped", n=2, c=5, out=7, size=(5, 7), more=("factor", "shortcut")),
    Case("affine_input", n=2, c=5, out=7, size=(5, 7),
         more=("input_scale", "input_shift", "residual", "residual_scale", "scale", "shortcut")),
    Case("branch_stage1", n=2, c=32, out=32, size=(128, 128), more=("residual", "scale", "factor", "shortcut"),
         bench=True),
    Case("stage1", n=2, c=32, out=32, size=(128, 128), activation="gelu", bench=True),
    Case("stage2", n=2, c=64, out=64, size=(64, 64), activation="gelu", bench=True),
    Case("stage3", n=2, c=160, out=160, size=(32, 32), bench=True),
    Case("head_squeeze", n=2, c=480, out=256, size=(64, 64), bench=True),
    Case("wide", n=2, c=1024, out=1024, size=(32, 32), bench=True),
]
GRADS = ["x", "weight", "bias", "gate", "residual", "residual_scale", "scale", "shortcut", "input_scale", "input_shift"]
FLOOR = 1e-6


def make(case, rng):
    """Random input, weights of unit gain."""
    inputs = {"x": rng.standard_normal((case.n, case.c, *case.size)) * case.options.get("scale", 1.0),
              "weight": rng.standard_normal((case.out, case.c, 1, 1)) / case.c ** 0.5,
              "bias": rng.standard_normal(case.out)}
    maps, vectors = (case.n, case.out, *case.size), {"input_scale": case.c, "input_shift": case.c, "factor": case.n}
    for name in case.options.get("more", ()):
        shape = maps if name in ("gate", "residual", "shortcut") else vectors.get(name, case.out)
        inputs[name] = rng.standard_normal(shape) * (rng.random(shape) < 0.6 if name == "factor" else 1)
    if "activation" in case.options:
        inputs["activation"] = case.activation
    return inputs


def call(inputs, impl):
    """y (N, D, H, W)."""
    return pointwise(**inputs, impl=impl)
