"""Fused and folded paths against the plain one: same model, same weights, same numbers;
nothing stays behind when modes change.
"""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg.layers import named_parameters
from jseg.models import build_model
from jseg.models.backbones.mscan import KERNEL_SIZES, PADDINGS, MSCAAttention, MSCABlock

pytestmark = pytest.mark.usefixtures("few_kernels")


def build(impl: str, *, norm: str = "BN", act: str = "GELU", drop_rate: float = 0.0, align_corners: bool = False):
    """A small SegNeXt; every call gives the same weights and running statistics."""
    norm_cfg = {"type": norm, "num_groups": 4} if norm == "GN" else {"type": norm}
    model = build_model({"type": "EncoderDecoder", "impl": impl, "backbone": {
        "type": "MSCAN", "embed_dims": [8, 12, 16, 20], "depths": [1, 2, 1, 1], "mlp_ratios": [2, 2, 2, 2],
        "norm_cfg": norm_cfg, "act_cfg": {"type": act}, "drop_rate": drop_rate}, "decode_head": {
        "type": "LightHamHead", "in_channels": [12, 16, 20], "in_index": [1, 2, 3], "channels": 16, "ham_channels": 16,
        "num_classes": 5, "dropout_ratio": 0.0, "align_corners": align_corners,
        "norm_cfg": {"type": "GN", "num_groups": 4}, "ham_kwargs": {"MD_R": 4, "rand_init": False}}})
    rng = np.random.default_rng(5)
    for key, value in sorted(model.state_dict().items()):
        spread = rng.standard_normal(tuple(value.shape)).astype(np.float32)
        if key.endswith("running_var") or key.endswith("bases"):
            spread = np.abs(spread) + 0.5
        elif value.ndim > 1:
            spread = spread / np.sqrt(np.prod(value.shape[1:]))
        value.assign(spread)
    return model


def picture(seed: int = 1) -> jt.Var:
    return jt.array(np.random.default_rng(seed).standard_normal((2, 3, 70, 93)).astype(np.float32))


def logits(model, *, gradients: bool) -> np.ndarray:
    """Logits with the operators that gradients need, or with those for inference."""
    if gradients:
        return model(picture()).numpy()
    with jt.no_grad():
        return model(picture()).numpy()


def assert_close(name: str, got: np.ndarray, want: np.ndarray, limit: float = 2e-5) -> None:
    error = float(np.abs(got - want).max()) / max(float(np.abs(want).max()), 1e-6)
    assert got.shape == want.shape and error <= limit, (f"{name} {want.shape}: error {error:.3g} of the largest value, "
                                                        f"at most {limit:g}")


@pytest.mark.parametrize("options", [{}, {"norm": "GN"}, {"norm": "LN"}, {"act": "ReLU"},
                                     {"act": "SiLU", "align_corners": True}],
                         ids=lambda o: "_".join(map(str, o.values())) or "default")
def test_inference_folds_without_changing_the_numbers(options):
    plain = build("jittor", **options)
    plain.eval()
    model = build("auto", **options)
    model.eval()
    want = logits(plain, gradients=True)
    assert_close("plain path without gradients", logits(plain, gradients=False), want)
    assert_close("not folded", logits(model, gradients=True), want)
    assert_close("folded", logits(model, gradients=False), want)


def test_folding_leaves_nothing_behind():
    model = build("auto")
    before = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    model.eval()
    first = logits(model, gradients=False)
    state = model.state_dict()
    assert sorted(state) == sorted(before) and all(np.array_equal(state[key].numpy(), before[key]) for key in before)
    for key, value in state.items():  # weights loaded after a folded run count at once
        value.assign(before[key] * (1.3 if key.endswith("running_var") else 1.0))
    changed = logits(model, gradients=False)
    assert not np.allclose(changed, first) and model.state_dict().keys() == before.keys()
    assert_close("after loading", changed, logits(model, gradients=True))
    model.load_parameters(before)
    assert np.array_equal(logits(model, gradients=False), first)


@pytest.mark.parametrize("options", [{}, {"norm": "GN"}, {"norm": "LN", "act": "ReLU"}],
                         ids=lambda o: "_".join(map(str, o.values())) or "default")
def test_training_gives_the_plain_paths_loss_gradients_and_statistics(options):
    results = []
    labels = jt.array(np.random.default_rng(2).integers(0, 5, (2, 70, 93)).astype(np.int32))
    for impl in ("jittor", "auto"):
        model = build(impl, **options)
        model.eval()
        logits(model, gradients=False)  # a folded run before training changes nothing
        model.train()
        loss = model.loss(picture(), labels)["loss"]
        parameters = named_parameters(model)
        gradients = jt.grad(loss, list(parameters.values()))
        found = {f"gradient of {key}": g.numpy() for key, g in zip(parameters, gradients)}
        found.update((key, value.numpy()) for key, value in model.state_dict().items() if "running" in key)
        results.append((float(loss.numpy().item()), found))
    assert abs(results[0][0] - results[1][0]) <= 1e-5 * abs(results[0][0])
    largest = max(float(np.abs(v).max()) for k, v in results[0][1].items() if k.startswith("gradient"))
    for key, want in results[0][1].items():  # a bias before BatchNorm has no gradient but noise
        error = float(np.abs(results[1][1][key] - want).max())
        limit = 1e-3 * max(float(np.abs(want).max()), 1e-3 * largest)
        assert error <= limit, f"{key} {want.shape}: error {error:.3g}, at most {limit:.3g}"


def test_stochastic_depth_drops_whole_branches():
    block = MSCABlock(6, make_gate=lambda channels: MSCAAttention(channels, KERNEL_SIZES, PADDINGS), mlp_ratio=2,
                      drop_prob=0.0, drop_path_prob=0.999, act_cfg={"type": "GELU"}, norm_cfg={"type": "BN"})
    x = jt.array(np.random.default_rng(3).standard_normal((3, 6, 7, 9)).astype(np.float32))
    jt.set_global_seed(987654321)
    y = block(x)
    assert np.array_equal(y.numpy(), x.numpy())
    assert np.allclose(jt.grad(y.sum(), x).numpy(), 1.0)
    block.eval()
    assert not np.allclose(block(x).numpy(), x.numpy())
