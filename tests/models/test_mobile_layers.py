"""Layers of MobileNetV3, LRASPP, ResNeSt and PoolFormer against their definitions in float64; mistakes in configs."""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError
from jseg.layers import AdaptiveConv2d, SqueezeExcitation, avg_pool, window_means
from jseg.models.backbones.mobilenet_v3 import MobileNetV3
from jseg.models.backbones.poolformer import PoolFormer
from jseg.models.backbones.resnest import SplitAttention
from jseg.models.backbones.resnet import ResNetV1d
from jseg.models.heads.lraspp_head import LRASPPHead
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("height", "width"), [(8, 9), (7, 7)])
def test_adaptive_padding_puts_an_odd_pixel_below_and_to_the_right(height, width, rng):
    layer, x = AdaptiveConv2d(2, 3, 3, stride=2), numbers(rng, 1, 2, height, width)
    rows, columns = -(-height // 2), -(-width // 2)
    down, right = (2 * (out - 1) + 3 - side for out, side in ((rows, height), (columns, width)))
    edges = (down // 2, down - down // 2), (right // 2, right - right // 2)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), *edges))
    weight, expected = layer.weight.numpy().astype(np.float64), np.zeros((1, 3, rows, columns))
    for i in range(rows):
        for j in range(columns):
            expected[0, :, i, j] = np.einsum("ochw,chw->o", weight, padded[0, :, 2 * i:2 * i + 3, 2 * j:2 * j + 3])
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "expected"), [((12, 9), (3, 2)), ((5, 4), (1, 1)), ((3, 20), (1, 6))])
def test_window_means(size, expected, rng):
    x = numbers(rng, 2, 3, *size)
    found = window_means(jt.array(x), (5, 4), (3, 3)).numpy()
    assert found.shape == (2, 3, *expected)
    for i in range(expected[0]):
        for j in range(expected[1]):
            window = x[:, :, 3 * i:3 * i + 5, 3 * j:3 * j + 4].astype(np.float64)
            np.testing.assert_allclose(found[:, :, i, j], window.mean((2, 3)), atol=1e-5)


def test_squeeze_excitation(rng):
    layer, x = SqueezeExcitation(64, 4), numbers(rng, 2, 64, 3, 5)
    first, second = (part.conv.weight.numpy()[:, :, 0, 0].astype(np.float64) for part in (layer.conv1, layer.conv2))
    inner = np.maximum(x.astype(np.float64).mean((2, 3)) @ first.T, 0)
    factor = np.clip((inner @ second.T + 3) / 6, 0, 1)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), x * factor[:, :, None, None], atol=1e-5)
    assert first.shape == (16, 64)


@pytest.mark.parametrize(("radix", "groups"), [(1, 2), (2, 1), (3, 2)])
def test_split_attention(radix, groups, rng):
    layer = SplitAttention(12, stride=1, dilation=1, groups=groups, radix=radix, reduction_factor=4,
                           norm_cfg={"type": "BN"})
    layer.eval()
    x = numbers(rng, 2, 12, 5, 6)
    parts = np.maximum(layer.bn0(layer.conv(jt.array(x))).numpy().astype(np.float64), 0).reshape(2, radix, 12, 5, 6)
    whole = jt.array(parts.mean((3, 4)).sum(1).reshape(2, 12, 1, 1).astype(np.float32))
    scores = layer.fc2(jt.maximum(layer.bn1(layer.fc1(whole)), 0.0)).numpy().astype(np.float64)
    if radix == 1:
        weights = 1 / (1 + np.exp(-scores.reshape(2, 1, 12)))
    else:
        scores = np.exp(scores.reshape(2, groups, radix, -1))
        weights = (scores / scores.sum(2, keepdims=True)).transpose(0, 2, 1, 3).reshape(2, radix, 12)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), (parts * weights[..., None, None]).sum(1), atol=1e-5)


def test_keys_of_the_averaging_shortcut_are_mmsegs():
    keys = ResNetV1d(50, stem_channels=8, base_channels=4).state_dict()
    assert {"layer1.0.downsample.1.weight", "layer1.0.downsample.2.bias", "layer2.0.downsample.1.weight"} <= set(keys)
    assert not any(".downsample.0." in key for key in keys)


def test_lraspp_mistakes():
    given = {**LRASPPHead.TINY, "in_channels": [4, 6], "in_index": [0, 1], "num_classes": 3}
    with pytest.raises(ConfigError, match="a width for each map of in_channels but the last"):
        MODELS.build({**given, "branch_channels": [4, 4]})
    with pytest.raises(ConfigError, match="input_transform is 'resize_concat'"):
        MODELS.build({**given, "branch_channels": [4], "input_transform": "resize_concat"})


def test_mobilenet_v3_freezes_its_first_layers_and_names_mistakes(rng):
    model = MobileNetV3(frozen_stages=2, reduction_factor=8)
    frozen = {key.partition(".")[0] for key, value in model.state_dict().items()
              if value.is_stop_grad() and "running" not in key}
    assert frozen == {"layer0", "layer1", "layer2"} and model.strides == [2, 4, 8]
    for words, message in (({"arch": "medium"}, "arch is 'medium'; accepted: small, large"),
                           ({"out_indices": [13]}, "out_indices .* lie in 0 to 12")):
        with pytest.raises(ConfigError, match=message):
            MobileNetV3(**words)


def test_poolformer_freezes_as_upstream_and_names_mistakes():
    words = {key: value for key, value in PoolFormer.TINY.items() if key != "type"}
    model = PoolFormer(**{**words, "frozen_stages": 1, "out_indices": -1})
    frozen = {".".join(key.split(".")[:2]) for key, value in model.state_dict().items() if value.is_stop_grad()}
    assert frozen == {"patch_embed.proj", "network.0"} and model.out_channels == [24] and model.strides == [32]
    for wrong, message in (({"arch": "l12"}, "did you mean 's12'"), ({"out_indices": [7]}, "lie in -7 to 6"),
                           ({"arch": {"layers": [1], "embed_dims": [8, 8]}}, "one number a stage"),
                           ({"pool_size": 4}, "an odd number")):
        with pytest.raises(ConfigError, match=message):
            PoolFormer(**{**words, **wrong})


@pytest.mark.parametrize(("stride", "size"), [(1, (7, 6)), (2, (8, 9))])
def test_a_mean_that_leaves_the_padding_out(stride, size, rng):
    """PoolFormer's pooling, as PyTorch's AvgPool2d with count_include_pad=False."""
    x = numbers(rng, 1, 2, *size)
    found = avg_pool(jt.array(x), 3, stride=stride, padding=1, count_include_pad=False).numpy()
    for i in range(found.shape[2]):
        for j in range(found.shape[3]):
            top, left = i * stride - 1, j * stride - 1
            window = x[:, :, max(top, 0):top + 3, max(left, 0):left + 3].astype(np.float64)
            np.testing.assert_allclose(found[:, :, i, j], window.mean((2, 3)), atol=1e-5)
