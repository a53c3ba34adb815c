"""The launches that `jseg bench --gpu-model` counts are those of the kernels' own host code, and the counts of the
model are those of a whole step."""

from __future__ import annotations

import numpy as np
import pytest

from jseg.bench import gpu_model
from jseg.bench.gpu_launches import SYMBOLS, Call, launches_of
from jseg.bench.gpu_rivals import operators_of
from jseg.cli import main
import cuda_emulator as emulation

F, H = "float32", "float16"


def _call(symbol, inputs, outputs, scalars):
    """Shapes by words: (shape, dtype), None; an int is a vector of that length."""
    def tensor(v):
        return None if v is None else ((v,), F) if isinstance(v, int) else v
    return Call(f"jseg_{symbol}", [tensor(v) for v in inputs], [tensor(v) for v in outputs], scalars)


def _pointwise(way, t, n, c, d, p, gelu, more=()):
    maps = [((n, d, p), t)] * (1 if way == "backward" else 0)
    return _call(f"pointwise_{way}", [((n, c, p), t), d * c, d, *maps, *more], [((n, c, p), t), d * c, d], [n, c, d, p,
                                                                                                       gelu])


def _calls(t):
    big = ((2, 64, 1024), t)
    strips = [25 * 48, 48, *[48 * k if i % 2 == 0 else 48 for k in (7, 11, 21) for i in (0, 1, 2, 3)]]
    for affine in (None, 64):
        yield _pointwise("forward", t, 2, 64, 70, 1024, 1, [None] * 6 + [affine, affine])
    yield _pointwise("forward", t, 16, 160, 160, 4096, 0)
    folds = [v for d, again in ((40, None), (7, None), (9, 30)) for v in (d * 30, d, 30, 30, 30, 30, again)]
    yield _call("pointwise_fold", [big, *folds], [9] * 8, [3, 40, 30, 1e-5, 7, 30, 1e-5, 9, 30, 1e-5])
    yield _pointwise("forward", t, 1, 64, 10, 30, 0)
    yield _pointwise("backward", t, 2, 64, 150, 1024, 1)
    yield _pointwise("backward", t, 2, 64, 64, 1024, 0)
    yield _pointwise("backward", t, 2, 64, 64, 1024, 0, [None, big, 64, None])
    for h, w in ((16, 16), (32, 20), (64, 70)):
        plane = ((2, 48, h, w), t)
        yield _call("msca_forward", [plane, *strips], [plane], [2, 48, h, w, 3, 5, 7, 11, 21])
        yield _call("msca_backward", [plane, *strips, plane], [plane, *strips], [2, 48, h, w, 3, 5, 7, 11, 21])
        for affine in (None, 48):
            yield _call("mix_ffn_forward", [plane, 9, 9, 9, 9, 9, 9, 48, None, plane, affine, affine], [plane],
                        [2, 48, 192, 48, h, w])
        for scale, factor in ((None, None), (48, 2)):
            yield _call("mix_ffn_backward", [plane, 9, 9, 9, 9, 9, 9, plane, scale, factor], [plane, *[9] * 7],
                        [2, 48, 192, 48, h, w])
        yield _call("norm_position_forward", [plane, 48, 48, None], [plane, 9, 9], [2, 48, h * w, 0, 0, 1e-5])
        yield _call("norm_position_backward", [plane, 48, 48, None, 9, 9, plane, None, None], [plane, 48, 48],
                    [2, 48, h * w, 0, 0, 1e-5])
        for groups in (0, 8):
            yield _call("norm_forward", [plane, 48, 48, None], [plane, 9, 9], [2, 48, h * w, groups, 1, 1e-5])
            yield _call("norm_backward", [plane, 48, 48, None, 9, 9, plane, None, None], [plane, 48, 48],
                        [2, 48, h * w, groups, 1, 1e-5])
        yield _call("bilinear_resize_forward", [plane, None], [plane], [96, h, w, 2 * h, 3 * w, 0])
        yield _call("bilinear_resize_backward", [plane], [plane], [96, h, w, 2 * h, 3 * w, 0])
        yield _call("readout_run", [plane, 9, 9, 9, 9], [9, 9], [2, 48, h, w, 4 * h, 4 * w, 0, 2, 1])
        yield _call("upsample_cross_entropy_run", [plane, 9, None, None, None], [2, 1, plane],
                    [2, 48, h, w, 4 * h, 4 * w, 0, 255, 0, 0, 1])
    for one_step, save in ((0, 1), (1, 1), (0, 0)):
        x, state = ((2, 128, 256), t), 9
        yield _call("nmf_forward", [x, 9], [x, state] if save else [x], [2, 128, 256, 64, 3, 1, 1e-6, one_step, save])
    for one_step in (0, 1):
        yield _call("nmf_backward", [((2, 128, 256), t), 9, ((2, 128, 256), t)], [((2, 128, 256), t), 9],
                    [2, 128, 256, 16, 3, 1, 1e-6, one_step, 1])
    yield _call("adamw_run", [9, 9, 9, 1000, 70, 100000], [9, 9, 9, 9], [1, 1, 1, 1, 1, 1])


def _dry(library, call, dtype):
    """The launches of the host code: function, blocks, threads."""
    def sized(tensors):
        return [(0, 0) if v is None else (256, int(np.prod(v[0]))) for v in tensors]
    entry = "float32" if call.symbol.startswith("jseg_adamw") else "tf32" if dtype == F else dtype
    launches, error = emulation.Emulator(library).dry(f"{call.symbol}_{entry}", call.scalars, sized(call.inputs),
                                                      sized(call.outputs))
    assert not error, error
    return [(name.strip("()").split("<")[0], blocks, threads) for name, blocks, threads, _ in launches]


KERNELS = sorted({"_".join(symbol.split("_")[1:-1]).replace("norm_position", "norm") for symbol in SYMBOLS})


@pytest.mark.parametrize("kernel", KERNELS)
def test_counted_launches_are_those_of_the_host_code(kernel):
    library, seen = emulation.build(kernel), set()
    for dtype in (F, H):
        for call in _calls(dtype):
            if "_".join(call.symbol.split("_")[1:-1]).replace("norm_position", "norm") == kernel:
                seen.add(call.symbol)
                counted = [(one.kernel.split("<")[0], one.blocks, one.threads) for one in launches_of(call)]
                assert counted == _dry(library, call, dtype), (call.symbol, call.scalars, dtype)
                assert all(one.size > 0 for one in launches_of(call)) and operators_of(call)
    assert seen == {symbol for symbol in SYMBOLS if symbol.startswith(f"jseg_{kernel}_") and
                    ("position" not in symbol or kernel == "norm")}


def test_a_whole_step_is_recorded_and_bound_by_what_it_should_be(capsys):
    from jseg.bench.gpu import settings
    found = gpu_model.predict_gpu("sm_90", {"T": settings("tiny")}, sizes=[(128, 96)], batches=[1],
                                  modes=["infer", "train"])
    text = capsys.readouterr().out
    assert "PREDICTION for H100 SXM" in text and "nothing measured" in text and found["prediction"]
    by = {(one["mode"], one["precision"]): one for one in found["models"]}
    for one in by.values():
        kernels = {row["kernel"].split("<")[0] for row in one["jseg"]}
        assert {"tensor_tile", "msca_tile", "depthwise_tile"} <= kernels
        assert ("best_class" in kernels, "advance" in kernels) == (one["mode"] == "infer", one["mode"] == "train")
        assert all(row["us_at_60"] >= row["us"] >= 2 * row["launches"] - 1e-6 for row in one["jseg"])
        assert sum(row["launches"] for row in one["torch"]) > 400
    size = {key: sum(row["bytes"] for row in one["jseg"]) for key, one in by.items()}
    assert size["infer", "half"] < 0.8 * size["infer", "TF32"] and size["train", "TF32"] > 3 * size["infer", "TF32"]


def test_the_command_predicts_both_modes_and_needs_nothing_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu_model, "predict_gpu", lambda *words, **options: asked.append((words, options)) or {})
    assert main(["bench", "--gpu-model", "sm_80"]) == 0
    (arch, configs), options = asked[0]
    assert arch == "sm_80" and list(configs) == ["SegNeXt-T", "SegNeXt-B"] and options["modes"] == ["infer", "train"]


def test_the_time_of_a_launch_is_that_of_what_binds():
    device = gpu_model.DEVICES["sm_90"]
    one = gpu_model.Launch("k", 10000, 256, 3352e3)
    assert gpu_model.time_of(one, device) == (2.0, "launch")   # 1 microsecond of bytes
    assert gpu_model.time_of(gpu_model.Launch("k", 10000, 256, 3352e4), device) == (pytest.approx(10), "memory")
    assert gpu_model.time_of(gpu_model.Launch("k", 10000, 256, 0, adds=67e7 / 2), device) == (pytest.approx(10),
                                                                                          "arithmetic")
    few = gpu_model.time_of(gpu_model.Launch("k", 66, 256, 0, adds=67e7 / 2), device)
    assert few == (pytest.approx(20), "few blocks")
    product = gpu_model.Launch("k", 10000, 256, 0, products=495e7 / 2, rounded="tf32")
    assert gpu_model.time_of(product, device, mma=False) == (pytest.approx(10), "tensor cores")
    assert gpu_model.time_of(product, device)[0] == pytest.approx(10 / 0.62)
    assert gpu_model.time_of(product, device, 0.5, mma=False)[0] == pytest.approx(20)
    assert gpu_model.time_of(gpu_model.Launch("k", 10000, 256, 3352e3, stretches=4), device) == (8.0, "launch")
