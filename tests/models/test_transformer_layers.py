"""Layers of transformers against NumPy in float64: windows, positions, patches, attention over fewer keys."""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError
from jseg.layers import Conv2d, Linear, PatchEmbed, PatchMerging, ReducedAttention, check_attn_drop, project_patches
from jseg.layers.drop import Dropout
from jseg.layers.positions import cubic_matrix, resize_positions
from jseg.layers.windows import from_windows, relative_index, shift_mask, to_windows

pytestmark = pytest.mark.usefixtures("few_kernels")


def var(values) -> jt.Var:
    return jt.array(np.asarray(values, np.float32))


@pytest.mark.parametrize(("size", "side", "shift"), [((6, 9), 3, 0), ((6, 9), 3, 1), ((5, 7), 3, 1), ((2, 4), 7, 3)])
def test_windows(size, side, shift, rng):
    """Filling up, rolling and cutting, and the gradient of both ways."""
    (h, w), x = size, rng.standard_normal((2, size[0] * size[1], 4))
    filled = np.pad(x.reshape(2, h, w, 4), ((0, 0), (0, -h % side), (0, -w % side), (0, 0)))
    rolled = np.roll(filled, (-shift, -shift), (1, 2))
    rows, columns = rolled.shape[1] // side, rolled.shape[2] // side
    cut = rolled.reshape(2, rows, side, columns, side, 4).transpose(0, 1, 3, 2, 4, 5).reshape(-1, side * side, 4)
    given = var(x)
    windows = to_windows(given, size, side, shift)
    np.testing.assert_array_equal(windows.numpy(), cut.astype(np.float32))
    np.testing.assert_array_equal(from_windows(windows, size, side, shift).numpy(), x.astype(np.float32))
    weights = rng.standard_normal(cut.shape).astype(np.float32)
    np.testing.assert_array_equal(jt.grad((windows * var(weights)).sum(), given).numpy(),
                                  from_windows(var(weights), size, side, shift).numpy())
    given, weights = var(cut), rng.standard_normal(x.shape).astype(np.float32)
    back = jt.grad((from_windows(given, size, side, shift) * var(weights)).sum(), given)
    np.testing.assert_array_equal(back.numpy(), to_windows(var(weights), size, side, shift).numpy())


def test_shift_mask_and_relative_index():
    mask = shift_mask(4, 4, 2, 1)  # four windows; the last holds the four corners, which were no neighbours
    assert mask.shape == (4, 4, 4) and not mask[0].any()
    assert (mask[3] == np.where(np.eye(4), 0, -100)).all() and (mask[1] == mask[1].T).all()
    index = relative_index(2, 3)
    assert index.shape == (6, 6) and len(np.unique(index)) == 15
    assert (np.diag(index) == 7).all() and index[0, 5] == 0 and index[5, 0] == 14  # the middle, and both ends


def test_bicubic_positions(rng):
    """Rows sum to 1, a grid of the same size is kept, and values of PyTorch 2.13's F.interpolate."""
    assert np.allclose(cubic_matrix(4, 7).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(cubic_matrix(2, 4) @ np.array([0.0, 1.0]),
                               [-0.10546875, 0.2265625, 0.7734375, 1.10546875], atol=1e-6)
    x = rng.standard_normal((1, 12, 5)).astype(np.float32)
    given = var(x)
    found = resize_positions(given, (3, 4), (5, 2))
    exact = np.einsum("hi,wj,ijc->hwc", cubic_matrix(3, 5), cubic_matrix(4, 2), x[0].reshape(3, 4, 5)).reshape(1, 10, 5)
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-5)
    assert resize_positions(given, (3, 4), (3, 4)) is given
    assert np.abs(jt.grad(found.sum(), given).numpy().sum() - 50) < 1e-3
    with pytest.raises(ConfigError, match="interpolate_mode is 'nearest'"):
        resize_positions(given, (3, 4), (5, 2), mode="nearest")


def test_patches_are_a_strided_convolution(rng):
    conv, x = Conv2d(3, 4, (2, 3), stride=(2, 3)), rng.standard_normal((2, 3, 7, 9)).astype(np.float32)
    expected = jt.nn.conv2d(var(x), conv.weight, conv.bias, (2, 3)).numpy().reshape(2, 4, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(project_patches(var(x.transpose(0, 2, 3, 1)), conv).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("padding", "size"), [("corner", (2, 3)), ("same", (2, 3)), (0, (1, 2))])
def test_patch_embedding_fills_up(padding, size, rng):
    layer, x = PatchEmbed(3, 5, 4, padding=padding, norm_cfg=None), rng.standard_normal((1, 7, 9, 3)).astype(np.float32)
    tokens, found = layer(var(x))
    assert found == size and tuple(tokens.shape) == (1, size[0] * size[1], 5)
    before = {"corner": ((0, 1), (0, 3)), "same": ((0, 1), (1, 2)), 0: ((0, 0), (0, 0))}[padding]
    filled = np.pad(x[0], (*before, (0, 0)))
    first = np.einsum("hwc,dchw->d", filled[:4, :4].astype(np.float64),
                      layer.projection.weight.numpy()) + layer.projection.bias.numpy()
    np.testing.assert_allclose(tokens.numpy()[0, 0], first, atol=1e-5)
    with pytest.raises(ValueError, match="padding is 'valid'"):
        PatchEmbed(3, 5, 4, padding="valid")


def test_merging_joins_channels_first(rng):
    layer, x = PatchMerging(2, 3, norm_cfg=None), rng.standard_normal((1, 15, 2)).astype(np.float32)
    tokens, size = layer(var(x), (3, 5))
    assert size == (2, 3)
    joined = x[0].reshape(3, 5, 2)[:2, :2].transpose(2, 0, 1).reshape(8)  # PyTorch's unfold: channel, row, column
    np.testing.assert_allclose(tokens.numpy()[0, 0], layer.reduction.weight.numpy() @ joined, atol=1e-5)


@pytest.mark.parametrize("reduction", [1, 2, 4])
@pytest.mark.parametrize("drop_prob", [0.0, 0.3])
def test_attention_over_fewer_keys(reduction, drop_prob, rng):
    """Tokens and maps give the same, a map smaller than a window is taken, and dropout is off in evaluation."""
    layer = ReducedAttention(8, 2, reduction=reduction, norm_cfg={"type": "LN"}, drop_prob=drop_prob)
    layer.eval()
    x, shortcut, factor = rng.standard_normal((2, 15, 8)), rng.standard_normal((2, 15, 8)), np.array([0.5, 2.0])
    found = layer(var(x), (5, 3), shortcut=var(shortcut), factor=var(factor)).numpy()
    maps = [var(values.reshape(2, 5, 3, 8).transpose(0, 3, 1, 2)) for values in (x, shortcut)]
    on_map = layer.on_map(maps[0], shortcut=maps[1], factor=var(factor)).numpy()
    np.testing.assert_allclose(on_map.reshape(2, 8, 15).transpose(0, 2, 1), found, atol=1e-5)
    if reduction == 1:
        weight, out = layer.attn.in_proj_weight.numpy().astype(np.float64), layer.attn.out_proj
        q, k, v = (x @ weight.T).reshape(2, 15, 3, 2, 4).transpose(2, 0, 3, 1, 4)
        scores = np.exp(q @ k.transpose(0, 1, 3, 2) / 2)
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(2, 15, 8)
        np.testing.assert_allclose(found, shortcut + factor[:, None, None] * (mixed @ out.weight.numpy().T), atol=1e-4)
    if drop_prob:
        layer.train()
        assert not np.allclose(layer.on_map(maps[0], shortcut=maps[1]).numpy(),
                               layer.on_map(maps[0], shortcut=maps[1]).numpy())


def test_close_branch(rng):
    layer, x, shortcut = Linear(3, 4), rng.standard_normal((2, 5, 3)), rng.standard_normal((2, 5, 4))
    scale, factor = rng.standard_normal(4), np.array([0.0, 1.5])
    layer.bias.assign(rng.standard_normal(4).astype(np.float32))
    found = layer.close_branch(var(x), Dropout(0.0), scale=var(scale), factor=var(factor),
                               shortcut=var(shortcut)).numpy()
    exact = shortcut + factor[:, None, None] * scale * (x @ layer.weight.numpy().T.astype(np.float64)
                                                        + layer.bias.numpy())
    np.testing.assert_allclose(found, exact, atol=1e-5)
    with pytest.raises(ConfigError, match="attn_drop_rate is 0.1; accepted: 0"):
        check_attn_drop(0.1)
