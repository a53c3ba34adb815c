"""Norms folded into the convolutions behind them, and what else spares launches at inference on a GPU, under the
emulator."""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg import ops
from jseg.errors import KernelError
from jseg.models.backbones.mscan import MSCAN
from jseg.ops import cuda_library
import cuda_emulator as emulation

KERNELS = ("pointwise", "msca", "mix_ffn", "norm")


class Emulators:
    """Stands in for `cuda_op` of several kernels."""

    def __init__(self):
        self.each = {kernel: emulation.Emulator(emulation.build(kernel)) for kernel in KERNELS}

    def __call__(self, symbol: str, *arguments):
        kernel = next(kernel for kernel in self.each if symbol.startswith(f"jseg_{kernel}_"))
        return self.each[kernel](symbol, *arguments)

    def launches(self) -> list[str]:
        """Names of all launches since the last call of this."""
        found = [name.strip("()").split("<")[0] for one in self.each.values() for name, *_ in one.launches]
        for one in self.each.values():
            one.launches = []
        return found


@pytest.fixture
def emulators(monkeypatch):
    found = Emulators()
    monkeypatch.setattr(cuda_library, "ready", lambda: True)
    monkeypatch.setattr(cuda_library, "cuda_op", found)
    with ops.use("cuda"):
        yield found


def _random(*shape: int, seed: int = 0) -> jt.Var:
    return jt.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def _largest(a: jt.Var, b: np.ndarray) -> float:
    return float(np.abs(a.numpy() - b).max() / np.abs(b).max())


def test_folds_give_the_convolution_of_the_norm(emulators):
    rng, x = np.random.default_rng(1), _random(1, 4, 2, 2)
    folds, want = [], []
    for i, (d, c) in enumerate([(5, 300), (3, 7), (1, 1), (40, 16), (8, 8), (9, 4), (2, 3), (6, 5), (4, 4)]):
        w, b, weight, bias, mean, later = (rng.standard_normal(s).astype(np.float32) for s in ((d, c), d, c, c, c, c))
        variance = rng.random(c).astype(np.float32) + 0.1
        scale = weight / np.sqrt(variance.astype(np.float64) + 1e-3)
        shift = bias - mean * scale
        has_bias, again = i % 3 != 1, i % 2 == 0
        folds.append(ops.Fold(jt.array(w[:, :, None, None]), jt.array(b) if has_bias else None,
                              tuple(map(jt.array, (weight, bias, mean, variance))), 1e-3,
                              jt.array(later) if again else None))
        want.append([w[:, :, None, None] * scale[:, None, None], w @ shift + b * has_bias]
                    + ([scale, later + shift] if again else []))
    with jt.no_grad():
        found = ops.fold_norms(x, folds)
    assert emulators.launches() == ["fold_norms", "fold_norms"]   # 7 and 2
    for got, expected in zip(found, want):
        assert len(got) == len(expected)
        for a, b in zip(got, expected):
            assert tuple(a.shape) == b.shape and np.allclose(a.numpy(), b, rtol=1e-5, atol=1e-5)
    with pytest.raises(KernelError, match=r"fold_norms: norm is \(7,\), expected \(300\)"):
        ops.fold_norms(x, [folds[0]._replace(norm=folds[1].norm)])


def test_a_stage_folds_its_norms_in_one_launch_and_a_norm_of_positions_is_one(emulators):
    """The whole encoder on the emulated GPU equals the plain one; each launch is counted."""
    jt.set_global_seed(3)
    model = MSCAN(embed_dims=[8, 8, 12, 16], depths=[2, 1, 1, 1], mlp_ratios=[2, 2, 2, 2])
    rng = np.random.default_rng(2)
    for norm in (m for m in model.modules() if hasattr(m, "running_var")):
        norm.running_mean.update(jt.array(rng.standard_normal(norm.channels).astype(np.float32) * 0.3))
        norm.running_var.update(jt.array(rng.random(norm.channels).astype(np.float32) + 0.5))
        norm.weight.update(jt.array(rng.random(norm.channels).astype(np.float32) + 0.5))
    model.eval()
    x = _random(1, 3, 32, 32)
    with jt.no_grad():
        with ops.use("jittor"):
            want = [feature.numpy() for feature in model(x)]
        found = model(x)
        for got, expected in zip(found, want):
            assert _largest(got, expected) < 1e-4
    launches = emulators.launches()
    assert launches.count("fold_norms") == 4 and "fold_affine" not in launches
    assert launches.count("normalise_positions") == 4 and len(launches) == 5 * 7 + 4 + 4


def test_relu_and_a_part_of_the_weights_need_no_launch_of_their_own(emulators):
    x, w, b = _random(2, 6, 5, 7), _random(10, 16, 1, 1, seed=1), _random(10, seed=2)
    with jt.no_grad():
        got = ops.pointwise(x, w, b, activation="relu", columns=(3, 9))
    assert len(emulators.launches()) == 1
    with ops.use("jittor"):
        want = ops.pointwise(x, w[:, 3:9], b).numpy()
        again = ops.pointwise(x, w, b, activation="relu", columns=(3, 9)).numpy()
    assert _largest(got, np.maximum(want, 0)) < 1e-5 and np.array_equal(again, np.maximum(want, 0))
    with pytest.raises(KernelError, match=r"pointwise: columns is \(3, 10\)"):
        ops.pointwise(x, w, b, columns=(3, 10))
    with pytest.raises(KernelError, match="ReLU goes without a gate"):
        ops.pointwise(x, w[:, :6], b, activation="relu", gate=_random(2, 10, 5, 7))
