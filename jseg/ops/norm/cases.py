"""Shapes of norm for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.norm.op import norm

CASES = [
    Case("batch_one_pixel", n=4, c=1, size=(1, 1), over="batch"),
    Case("batch_odd", n=3, c=5, size=(5, 7), over="batch"),
    Case("batch_gelu", n=2, c=6, size=(9, 11), over="batch", activation="gelu"),
    Case("batch_relu_residual", n=2, c=6, size=(9, 11), over="batch", activation="relu", residual=True),
    Case("batch_long_rows", n=2, c=3, size=(40, 61), over="batch"),
    Case("batch_mean_far_from_zero", n=2, c=4, size=(8, 9), over="batch", offset=30.0),
    Case("group_odd", n=2, c=6, size=(5, 7), over="group", groups=3),
    Case("group_one_channel", n=2, c=4, size=(4, 4), over="group", groups=4, activation="gelu"),
    Case("group_relu_residual", n=2, c=8, size=(9, 11), over="group", groups=2, activation="relu", residual=True),
    Case("group_residual", n=1, c=8, size=(3, 5), over="group", groups=1, residual=True),
    Case("position_odd", n=2, c=5, size=(5, 7), over="position"),
    Case("position_gelu", n=2, c=33, size=(4, 9), over="position", activation="gelu"),
    Case("position_relu_residual", n=1, c=8, size=(3, 3), over="position", activation="relu", residual=True),
    Case("position_many", n=2, c=3, size=(37, 40), over="position"),
    Case("batch_stage1", n=2, c=32, size=(128, 128), over="batch", bench=True),
    Case("batch_stage3", n=2, c=160, size=(32, 32), over="batch", bench=True),
    Case("group_head", n=2, c=256, size=(64, 64), over="group", groups=32, activation="relu", bench=True),
    Case("position_stage1", n=2, c=32, size=(128, 128), over="position", bench=True),
]
GRADS = ["x", "weight", "bias", "residual"]
FLOOR = 2e-6


def make(case, rng):
    """Random maps whose channels differ in mean and spread."""
    shape, c = (case.n, case.c, *case.size), case.c
    x = rng.standard_normal(shape) * rng.uniform(0.5, 2, (c, 1, 1)) + rng.standard_normal((c, 1, 1)) + case.options.get(
        "offset", 0.0)
    inputs = {"x": x, "weight": rng.uniform(0.5, 1.5, c), "bias": rng.standard_normal(c) * 0.5}
    inputs.update((key, case.options[key]) for key in ("over", "groups", "activation") if key in case.options)
    if case.options.get("residual"):
        inputs["residual"] = rng.standard_normal(shape)
    return inputs


def call(inputs, impl):
    """(y, mean, variance)."""
    return norm(**inputs, impl=impl)
