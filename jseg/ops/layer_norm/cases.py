"""Shapes of layer_norm for tests and benchmarks."""

from jseg.ops.case import Case
from jseg.ops.layer_norm.op import layer_norm

CASES = [
    Case("three_channels", shape=(4, 3)),
    Case("odd", shape=(2, 5, 7)),
    Case("one_token", shape=(1, 1, 96)),
    Case("large_mean", shape=(2, 9, 33), mean=300.0),
    Case("many_tokens", shape=(2, 531, 5)),
    Case("wide", shape=(1, 6, 1030)),
    Case("one_vector", shape=(1, 21, 16)),
    Case("other_eps", shape=(2, 4, 3, 6), eps=1e-2),
    Case("segformer_b0_stage1", shape=(1, 16384, 32), bench=True),
    Case("swin_t_stage1", shape=(1, 16384, 96), bench=True),
    Case("swin_t_stage3", shape=(1, 1024, 384), bench=True),
    Case("vit_b", shape=(1, 1025, 768), bench=True),
]
GRADS = ["x", "weight", "bias"]
FLOOR = 1e-6


def make(case, rng):
    """Tokens of unit variance around `mean`."""
    c = case.shape[-1]
    inputs = {"x": rng.standard_normal(case.shape) + case.options.get("mean", 0.0),
              "weight": rng.standard_normal(c), "bias": rng.standard_normal(c)}
    return inputs | {name: case.options[name] for name in ("eps",) if name in case.options}


def call(inputs, impl):
    """y (..., C)."""
    return layer_norm(**inputs, impl=impl)
