"""Shapes of linear for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.linear.op import linear

CASES = [
    Case("one_number", shape=(1, 1), out=1),
    Case("odd", shape=(2, 5, 7), out=11, bias=True),
    Case("no_bias", shape=(3, 13), out=50),
    Case("gelu_odd", shape=(2, 9, 11, 33), out=35, bias=True, activation="gelu"),
    Case("large_values", shape=(1, 30, 8), out=8, bias=True, activation="gelu", scale=100.0),
    Case("many_tokens", shape=(3, 1700, 3), out=2, bias=True),
    Case("many_channels", shape=(1, 7, 130), out=410, bias=True),
    Case("shortcut", shape=(2, 19, 12), out=10, bias=True, more=("shortcut",)),
    Case("dropped", shape=(3, 6, 5, 9), out=17, bias=True, more=("factor", "shortcut")),
    Case("swin_t_qkv", shape=(1, 16384, 96), out=288, bias=True, bench=True),
    Case("swin_t_fc1", shape=(1, 16384, 96), out=384, bias=True, activation="gelu", bench=True),
    Case("swin_t_fc2", shape=(1, 16384, 384), out=96, bias=True, more=("shortcut",), bench=True),
    Case("segformer_b0_q", shape=(1, 16384, 32), out=32, bias=True, bench=True),
    Case("vit_b_fc1", shape=(1, 1025, 768), out=3072, bias=True, activation="gelu", bench=True),
    Case("vit_b_fc2", shape=(1, 1025, 3072), out=768, bias=True, more=("shortcut",), bench=True),
]
GRADS = ["x", "weight", "bias", "shortcut"]
FLOOR = 1e-6


def make(case, rng):
    """Random tokens, weights of unit gain."""
    c, options = case.shape[-1], case.options
    inputs = {"x": rng.standard_normal(case.shape) * options.get("scale", 1.0),
              "weight": rng.standard_normal((case.out, c)) / c ** 0.5}
    if "bias" in options:
        inputs["bias"] = rng.standard_normal(case.out)
    for name in options.get("more", ()):
        inputs[name] = rng.standard_normal(case.shape[0]) * (rng.random(case.shape[0]) < 0.6) if name == "factor" \
            else rng.standard_normal((*case.shape[:-1], case.out))
    return inputs | {name: options[name] for name in ("activation",) if name in options}


def call(inputs, impl):
    """y (N, ..., D)."""
    return linear(**inputs, impl=impl)
