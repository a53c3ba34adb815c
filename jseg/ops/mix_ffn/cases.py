"""Shapes of mix_ffn for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.mix_ffn.op import mix_ffn

CASES = [
    Case("one_number", n=1, c=1, hidden=1, size=(1, 1)),
    Case("odd", n=2, c=5, hidden=11, size=(5, 7)),
    Case("one_row", n=1, c=3, hidden=9, size=(1, 37)),
    Case("one_column", n=1, c=3, hidden=9, size=(23, 1)),
    Case("other_width_out", n=2, c=6, hidden=40, size=(9, 17), out=10),
    Case("several_chunks", n=2, c=52, hidden=150, size=(6, 16)),
    Case("several_tiles", n=1, c=3, hidden=8, size=(7, 330)),
    Case("tall_tiles", n=1, c=4, hidden=33, size=(200, 48)),
    Case("images_in_turn", n=2, c=2, hidden=17, size=(182, 181)),
    Case("branch", n=3, c=5, hidden=11, size=(5, 19), more=("scale", "factor", "shortcut")),
    Case("branch_images_in_turn", n=2, c=2, hidden=17, size=(182, 181), more=("scale", "factor", "shortcut")),
    Case("scale", n=2, c=6, hidden=40, size=(9, 7), out=10, more=("scale",)),
    Case("affine_input", n=2, c=5, hidden=11, size=(5, 7), more=("input_scale", "input_shift", "shortcut")),
    Case("large_values", n=1, c=4, hidden=16, size=(6, 6), scale=50.0),
    Case("branch_stage1", n=2, c=32, hidden=256, size=(128, 128), more=("scale", "factor", "shortcut"), bench=True),
    Case("stage1", n=2, c=32, hidden=256, size=(128, 128), bench=True),
    Case("stage2", n=2, c=64, hidden=512, size=(64, 64), bench=True),
    Case("stage3", n=2, c=160, hidden=640, size=(32, 32), bench=True),
    Case("stage4", n=2, c=256, hidden=1024, size=(16, 16), bench=True),
]
GRADS = ["x", "fc1_w", "fc1_b", "dw_w", "dw_b", "fc2_w", "fc2_b", "scale", "shortcut", "input_scale", "input_shift"]
FLOOR = 1e-6


def make(case, rng):
    """Random input, weights of about unit gain."""
    c, hidden, out = case.c, case.hidden, case.options.get("out", case.c)
    inputs = {"x": rng.standard_normal((case.n, c, *case.size)) * case.options.get("scale", 1.0),
              "fc1_w": rng.standard_normal((hidden, c, 1, 1)) / c ** 0.5, "fc1_b": rng.standard_normal(hidden) * 0.3,
              "dw_w": rng.standard_normal((hidden, 1, 3, 3)) / 3, "dw_b": rng.standard_normal(hidden) * 0.3,
              "fc2_w": rng.standard_normal((out, hidden, 1, 1)) / hidden ** 0.5,
              "fc2_b": rng.standard_normal(out) * 0.3}
    shapes = {"scale": out, "factor": case.n, "shortcut": (case.n, out, *case.size), "input_scale": c, "input_shift": c}
    for name in case.options.get("more", ()):
        inputs[name] = rng.standard_normal(shapes[name]) * (rng.random(case.n) < 0.6 if name == "factor" else 1)
    return inputs


def call(inputs, impl):
    """y (N, D, H, W)."""
    return mix_ffn(**inputs, impl=impl)
