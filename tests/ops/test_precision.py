"""Products whose factors are rounded to bfloat16, `ops.use(precision="bf16")`,
against the same roundings in NumPy float64.
"""

import math
from importlib import import_module

import jittor as jt
import numpy as np
import pytest

from jseg import ops
from jseg.engine import precision
from jseg.engine.precision import set_precision
from jseg.errors import ConfigError, KernelError
from jseg.models import build_model


def _rounded(x):
    """To the nearest bfloat16, ties to even; NaN stays one."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    near = (bits + ((bits >> 16) & 1) + 0x7fff) & 0xffff0000
    return np.where(np.isnan(x), np.nan, near.astype(np.uint32).view(np.float32)).astype(np.float64)


def _gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / 2 ** 0.5))


def _run(kernel, inputs, *, gradient=False):
    values = {k: jt.array(np.asarray(v, np.float32)) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    call = import_module(f"jseg.ops.{kernel}.cases").call
    with ops.use("cpu", "bf16"):
        if gradient:
            return call(values, "cpu").numpy()
        with jt.no_grad():
            return call(values, "cpu").numpy()


def _pointwise(inputs):
    x, weight = _rounded(inputs["x"]), _rounded(inputs["weight"][:, :, 0, 0])
    return np.einsum("oc,nchw->nohw", weight, x) + inputs["bias"].reshape(1, -1, 1, 1)


def _linear(inputs):
    y = _rounded(inputs["x"]) @ _rounded(inputs["weight"]).T
    return y + inputs["bias"] if inputs.get("bias") is not None else y


def _mix_ffn(inputs):
    x, w1, w2 = _rounded(inputs["x"]), _rounded(inputs["fc1_w"][:, :, 0, 0]), _rounded(inputs["fc2_w"][:, :, 0, 0])
    hidden = np.einsum("ec,nchw->nehw", w1, x) + inputs["fc1_b"].reshape(1, -1, 1, 1)
    padded, (h, w) = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1))), x.shape[2:]
    filtered = sum(inputs["dw_w"][:, 0, i, j].reshape(1, -1, 1, 1) * padded[:, :, i:i + h, j:j + w]
                   for i in range(3) for j in range(3)) + inputs["dw_b"].reshape(1, -1, 1, 1)
    return np.einsum("de,nehw->ndhw", w2, _rounded(_gelu(filtered))) + inputs["fc2_b"].reshape(1, -1, 1, 1)


def test_filters_of_one_pixel_are_rounded_and_larger_ones_are_not():
    rng = np.random.default_rng(5)
    x, scale = rng.standard_normal((1, 20, 9, 13)).astype(np.float32), rng.random(33).astype(np.float32) + 0.5
    for side in (1, 3):
        weight = rng.standard_normal((33, 20, side, side)).astype(np.float32)
        with jt.no_grad():
            plain = ops.conv(jt.array(x), jt.array(weight), scale=jt.array(scale), padding=side // 2).numpy()
            with ops.use("cpu", "bf16"):
                got = ops.conv(jt.array(x), jt.array(weight), scale=jt.array(scale), padding=side // 2).numpy()
        if side == 1:
            want = np.einsum("oc,nchw->nohw", _rounded(weight[:, :, 0, 0]), _rounded(x)) * scale.reshape(1, -1, 1, 1)
            assert np.abs(got - want).max() / np.abs(want).max() < 1e-6 < np.abs(got - plain).max()
        else:
            assert np.array_equal(got, plain)


# In mix_ffn a hidden value that float32 puts on the other side of a tie is rounded the other way.
@pytest.mark.parametrize("kernel, case, expected, limit", [
    ("pointwise", "odd", _pointwise, 1e-6), ("pointwise", "many_classes", _pointwise, 1e-6),
    ("pointwise", "long_sums", _pointwise, 1e-6), ("linear", "many_channels", _linear, 1e-6),
    ("linear", "no_bias", _linear, 1e-6), ("mix_ffn", "odd", _mix_ffn, 5e-4),
    ("mix_ffn", "several_chunks", _mix_ffn, 5e-4), ("mix_ffn", "several_tiles", _mix_ffn, 5e-4)])
def test_factors_are_rounded_and_sums_are_not(kernel, case, expected, limit):
    cases = import_module(f"jseg.ops.{kernel}.cases")
    inputs = cases.make(next(one for one in cases.CASES if one.name == case), np.random.default_rng(3))
    inputs = {k: v.astype(np.float32).astype(np.float64) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    want, got = expected(inputs), _run(kernel, inputs)
    assert np.abs(got - want).max() / np.abs(want).max() < limit


def test_rounded_products_keep_nan_and_inf():
    weight, x = np.ones((40, 5, 1, 1)), np.ones((1, 5, 6, 9))
    x[0, 2, 1, 3], x[0, 1, 4, 4] = np.nan, np.inf
    y = _run("pointwise", {"x": x, "weight": weight, "bias": np.zeros(40)})
    assert np.isnan(y[0, :, 1, 3]).all() and np.isposinf(y[0, :, 4, 4]).all() and np.isfinite(y).sum() == 40 * 52


def test_training_is_never_rounded():
    cases = import_module("jseg.ops.pointwise.cases")
    inputs = cases.make(cases.CASES[1], np.random.default_rng(3))
    values = {k: jt.array(np.asarray(v, np.float32)) for k, v in inputs.items()}
    assert np.array_equal(_run("pointwise", inputs, gradient=True), cases.call(values, "cpu").numpy())
    with pytest.raises(KernelError, match="precision is 'fp8', accepted are float32, bf16"):
        with ops.use("auto", "fp8"):
            pass


def test_a_model_takes_bf16_only_where_the_processor_has_it(monkeypatch):
    model = build_model({"type": "EncoderDecoder", "backbone": {"type": "MixVisionTransformer", "embed_dims": 8,
                         "num_layers": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
                         "decode_head": {"type": "SegformerHead", "in_channels": [8, 8, 8, 8], "in_index": [0, 1, 2, 3],
                                         "channels": 8, "num_classes": 3}})
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with pytest.raises(ConfigError, match="needs a CPU with AVX512_BF16"):
        set_precision(model, "bf16")
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    image, meta = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32), {"ori_shape": (64, 64)}
    meta["padding_size"] = (0, 0, 0, 0)
    plain = model.scores_augmented([(image, [meta])], softmax=False)[0]
    set_precision(model, "bf16")
    rounded = model.scores_augmented([(image, [meta])], softmax=False)[0]
    assert 0 < np.abs(rounded - plain).max() < 0.05 * np.abs(plain).max()
    classifier = build_model({"type": "ImageClassifier", "backbone": {"type": "VGG", "depth": 11},
                              "head": {"num_classes": 3, "in_channels": 512}})
    set_precision(classifier, "float32")
    with pytest.raises(ConfigError, match="precision is 'bf16'; accepted for this model: float32"):
        set_precision(classifier, "bf16")
    model.impl = "jittor"
    with pytest.raises(ConfigError, match="with plain operators"):
        set_precision(model, "bf16")
