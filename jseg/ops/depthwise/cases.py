"""Shapes and options of `depthwise` that tests and benchmarks run."""

from jseg.ops.case import Case
from jseg.ops.depthwise.op import depthwise

CASES = [
    Case("one_pixel", n=1, c=1, h=1, w=1, k=(3, 3), padding=1),
    Case("3x3_gelu", n=2, c=5, h=9, w=37, k=(3, 3), padding=1, activation="gelu"),
    Case("3x3_wide", n=1, c=3, h=70, w=50, k=(3, 3), padding=1, bias=False),
    Case("5x5_no_padding", n=1, c=2, h=11, w=23, k=(5, 5)),
    Case("7x7", n=1, c=2, h=10, w=8, k=(7, 7), padding=3),
    Case("row_1x21", n=1, c=2, h=4, w=33, k=(1, 21), padding=(0, 10)),
    Case("column_11x1", n=2, c=1, h=6, w=5, k=(11, 1), padding=(5, 0), bias=False),
    Case("stride2_gelu", n=2, c=3, h=15, w=34, k=(3, 3), stride=2, padding=1, activation="gelu"),
    Case("stride_2_3_dilation_2_1", n=1, c=2, h=13, w=19, k=(3, 5), stride=(2, 3), padding=(2, 1), dilation=(2, 1)),
    Case("dilation6", n=1, c=2, h=17, w=20, k=(3, 3), padding=6, dilation=6),
    Case("padding_wider_than_filter", n=1, c=2, h=3, w=4, k=(3, 3), padding=4),
    Case("even_2x2_stride2", n=1, c=3, h=8, w=10, k=(2, 2), stride=2),
    Case("mlp_stage1", n=1, c=256, h=128, w=128, k=(3, 3), padding=1, activation="gelu", bench=True),
]
GRADS = ["x", "weight", "bias"]
FLOOR = 2e-6


def make(case, rng) -> dict:
    """Arguments of the case: float64 arrays and options."""
    o = case.options
    pair = {name: _pair(o.get(name, default)) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))}
    inputs = {"x": rng.standard_normal((o["n"], o["c"], o["h"], o["w"])),
              "weight": rng.standard_normal((o["c"], 1, *o["k"]))}
    if o.get("bias", True):
        inputs["bias"] = rng.standard_normal(o["c"])
    return {**inputs, **pair, "activation": o.get("activation")}


def call(inputs: dict, impl: str):
    """Run the op on the arguments `make` gave."""
    inputs = dict(inputs)
    return depthwise(inputs.pop("x"), inputs.pop("weight"), inputs.pop("bias", None), impl=impl, **inputs)


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)
