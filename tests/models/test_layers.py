"""Shared layers against formulas in float64 and against numbers that PyTorch gave."""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError, KernelError
from jseg.layers import (BatchNorm2d, Conv2d, ConvNormAct, Dropout, Dropout2d, DropPath, GroupNorm, LayerNorm,
                         build_activation, build_norm)
from jseg.ops import bilinear_resize
from jseg.ops.bilinear import resize_matrix

pytestmark = pytest.mark.usefixtures("few_kernels")


def offset_maps(rng, shape=(3, 4, 5, 7)) -> np.ndarray:
    """Maps whose mean is large against their spread: E[x^2] - E[x]^2 in float32 would be off by a tenth."""
    return (rng.standard_normal(shape) + 500.0 * np.arange(1, shape[1] + 1).reshape(1, -1, 1, 1)).astype(np.float32)


def randomise(layer, rng):
    layer.weight.assign(rng.uniform(0.5, 1.5, layer.weight.shape).astype(np.float32))
    layer.bias.assign(rng.standard_normal(layer.bias.shape).astype(np.float32))
    return layer.weight.numpy().astype(np.float64), layer.bias.numpy().astype(np.float64)


def test_batch_norm_and_its_running_statistics(rng):
    layer, x = BatchNorm2d(4), offset_maps(rng)
    weight, bias = (v.reshape(1, -1, 1, 1) for v in randomise(layer, rng))
    exact = x.astype(np.float64)
    mean, var = exact.mean((0, 2, 3), keepdims=True), exact.var((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), (exact - mean) / np.sqrt(var + 1e-5) * weight + bias,
                               atol=2e-3)
    count = x.size // 4
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean.ravel(), rtol=1e-5)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * var.ravel() * count / (count - 1), rtol=1e-5)
    layer.eval()
    mean, var = (v.numpy().reshape(1, -1, 1, 1).astype(np.float64) for v in (layer.running_mean, layer.running_var))
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), (exact - mean) / np.sqrt(var + 1e-5) * weight + bias,
                               rtol=1e-4)


def test_batch_norm_refuses_one_value_a_channel():
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNorm2d(2)(jt.zeros((1, 2, 1, 1)))


@pytest.mark.parametrize("kind", ["group", "layer_first", "layer_last"])
def test_group_and_layer_norm(kind, rng):
    x = offset_maps(rng)
    if kind == "group":
        layer, grouped, axes, back = GroupNorm(2, 4), x.reshape(3, 2, -1), (2,), x.shape
    else:
        x = x - 500.0 * np.arange(1, 5, dtype=np.float32).reshape(1, -1, 1, 1) + 500.0
        x = x if kind == "layer_first" else x.transpose(0, 2, 3, 1).copy()
        layer = LayerNorm(4, axis=1 if kind == "layer_first" else -1)
        grouped, axes, back = x, (layer.axis,), x.shape
    shape = (4,) if kind == "layer_last" else (1, 4, 1, 1)
    weight, bias = (v.reshape(shape) for v in randomise(layer, rng))
    exact = grouped.astype(np.float64)
    exact = (exact - exact.mean(axes, keepdims=True)) / np.sqrt(exact.var(axes, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), exact.reshape(back) * weight + bias, atol=2e-3)


@pytest.mark.parametrize(("size", "align_corners", "torch_says"), [
    ((5, 3), False, [0.01667, 0.25, 0.81667, 0.71, 1.37, 2.36333, 1.75, 3.05, 4.68333, 4.71, 6.65, 8.92334, 6.68333,
                     9.05, 11.75]),
    ((5, 3), True, [0.0, 0.25, 0.9, 0.8, 1.65, 2.9, 1.6, 3.05, 4.9, 4.0, 6.05, 8.5, 6.4, 9.05, 12.1]),
    ((2, 7), False, [0.4, 0.50714, 0.67857, 0.95, 1.25, 1.65, 1.9, 5.2, 5.73571, 6.59286, 7.55, 8.53571,
                     9.62143, 10.3]),
    ((1, 4), True, [0.0, 0.1, 0.4, 0.9])])
def test_resize_equals_torch(size, align_corners, torch_says):
    x = jt.array((np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4) ** 2 / 10))
    np.testing.assert_allclose(bilinear_resize(x, size, align_corners=align_corners).numpy().ravel(),
                               torch_says, atol=2e-5)


def test_resize_gradient_is_the_transposed_map(rng):
    x, weights = (jt.array(rng.standard_normal((2, 3, 4, 5)).astype(np.float32)),
                  rng.standard_normal((2, 3, 7, 3)).astype(np.float32))
    gradient = jt.grad((bilinear_resize(x, (7, 3)) * jt.array(weights)).sum(), x).numpy()
    np.testing.assert_allclose(gradient, resize_matrix(4, 7).T @ weights @ resize_matrix(5, 3), atol=1e-5)


def test_resize_refuses_empty_sizes():
    with pytest.raises(KernelError, match=r"size is \(0, 3\); accepted: \(H, W\), each at least 1"):
        bilinear_resize(jt.zeros((1, 1, 2, 2)), (0, 3))


@pytest.mark.parametrize(("kind", "together"), [(Dropout, ()), (Dropout2d, (2, 3)), (DropPath, (1, 2, 3))])
def test_dropouts_drop_whole_slices_and_keep_the_mean(kind, together):
    jt.set_global_seed(3)
    layer, x = kind(0.3), jt.ones((40, 8, 3, 5))
    y = layer(x).numpy()
    assert set(np.unique(y.round(5))) == {np.float32(0), np.float32(round(1 / 0.7, 5))}
    if together:
        assert (y.min(together) == y.max(together)).all()
    assert abs(y.mean() - 1) < 0.25
    layer.eval()
    assert (layer(x).numpy() == 1).all()
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        kind(1.0)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1, "groups": 6},
                                     {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "groups": 2}])
def test_conv_equals_the_framework(options, rng):
    layer, x = Conv2d(6, 6, **options), jt.array(rng.standard_normal((2, 6, 7, 9)).astype(np.float32))
    layer.bias.assign(rng.standard_normal(6).astype(np.float32))
    plain = jt.nn.Conv2d(6, 6, **options)
    plain.weight.assign(layer.weight)
    plain.bias.assign(layer.bias)
    np.testing.assert_allclose(layer(x).numpy(), plain(x).numpy(), atol=1e-5)


def test_initial_weights_follow_the_seed_and_the_fan_out_rule():
    weights = []
    for seed in (1, 1, 2):
        jt.set_global_seed(seed)
        weights.append(Conv2d(64, 128, 3).weight.numpy())
    assert (weights[0] == weights[1]).all() and not (weights[0] == weights[2]).any()
    assert weights[0].std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)


def test_conv_norm_act_has_mmcv_keys():
    assert list(ConvNormAct(4, 8, 1, norm_cfg={"type": "GN", "num_groups": 2}).state_dict()) == [
        "conv.weight", "gn.weight", "gn.bias"]
    assert list(ConvNormAct(4, 8, 1).state_dict()) == ["conv.weight", "conv.bias"]


def test_config_mistakes_name_the_nearest_word():
    with pytest.raises(ConfigError, match="unknown norm 'SynBN'; did you mean 'SyncBN'"):
        build_norm({"type": "SynBN"}, 4)
    with pytest.raises(ConfigError, match="unknown key 'num_group' for GN; did you mean 'num_groups'"):
        build_norm({"type": "GN", "num_group": 2}, 4)
    with pytest.raises(ConfigError, match="unknown activation 'Gelu'"):
        build_activation({"type": "Gelu"})
    with pytest.raises(ValueError, match="must divide the channel count 6"):
        build_norm({"type": "GN", "num_groups": 4}, 6)
