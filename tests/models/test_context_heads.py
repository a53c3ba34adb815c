"""Parts of the context heads against NumPy in float64, what they refuse, and what moves outside of the gradient."""

from __future__ import annotations

import copy

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError
from jseg.layers import DisentangledNonLocal2d, NonLocal2d
from jseg.models.heads.ann_head import ANNHead
from jseg.models.heads.dm_head import DynamicFilter
from jseg.models.heads.ema_head import ExpectationMaximization
from jseg.models.heads.enc_head import EncHead, Encoding
from jseg.models.heads.iterative_decode_head import IterativeDecodeHead
from jseg.models.heads.psa_head import PSAHead
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
PLAIN = {"norm_cfg": None, "act_cfg": None}


def drawn(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    x = np.exp(x - x.max(axis, keepdims=True))
    return x / x.sum(axis, keepdims=True)


def head(entry: type, **words):
    """A head from its specimen with other words."""
    return MODELS.build({**copy.deepcopy(dict(entry.TINY)), "in_channels": 8, "num_classes": 5, **words})


def test_encoding_sums_weighted_residuals(rng):
    layer, x = Encoding(6, 3), drawn(rng, 2, 6, 4, 5)
    codes, scale = (v.numpy().astype(np.float64) for v in (layer.codewords, layer.scale))
    residuals = x.reshape(2, 6, 20).transpose(0, 2, 1)[:, :, None].astype(np.float64) - codes
    weights = softmax(scale * (residuals**2).sum(3), 2)
    expected = (weights[..., None] * residuals).sum(1)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_without_the_presence_loss_there_is_no_layer_for_it(rng):
    words = {"in_channels": [4, 8], "in_index": [0, 1]}
    maps = [jt.array(drawn(rng, 2, 4, 6, 7)), jt.array(drawn(rng, 2, 8, 3, 4))]
    labels = jt.array(rng.integers(0, 5, (2, 12, 14)).astype(np.int32))
    for used in (True, False):
        model = head(EncHead, use_se_loss=used, **words)
        assert ("loss_se" in model.loss(model(maps), labels)) == used == ("se_layer.weight" in model.state_dict())


@pytest.mark.parametrize("entry", [NonLocal2d, DisentangledNonLocal2d])
@pytest.mark.parametrize("mode", ["dot_product", "embedded_gaussian"])
def test_non_local_weights(entry, mode, rng):
    more = {} if entry is NonLocal2d else {"temperature": 0.5}
    layer, x = entry(6, mode=mode, **more), drawn(rng, 2, 6, 3, 4)
    for name in ("g", "theta", "phi", "conv_out"):
        conv = getattr(layer, name).conv
        conv.weight = jt.array(drawn(rng, *conv.weight.shape))
    tokens = x.reshape(2, 6, 12).transpose(0, 2, 1).astype(np.float64)

    def projected(name, values):
        conv = getattr(layer, name)
        conv = getattr(conv, "conv", conv)
        return values @ conv.weight.numpy()[:, :, 0, 0].T.astype(np.float64) + conv.bias.numpy()

    queries, keys, values = (projected(name, tokens) for name in ("theta", "phi", "g"))
    if more:
        queries, keys = (v - v.mean(1, keepdims=True) for v in (queries, keys))
    scores = queries @ keys.transpose(0, 2, 1)
    weights = scores / 12 if mode == "dot_product" else softmax(scores / 3**0.5 / more.get("temperature", 1.0), 2)
    y = weights @ values
    if more:
        y = y + softmax(projected("conv_mask", tokens), 1).transpose(0, 2, 1) @ values
    expected = x + projected("conv_out", y).transpose(0, 2, 1).reshape(x.shape)
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_modes_of_non_local_blocks():
    with pytest.raises(ConfigError, match="'concatenation'; accepted: embedded_gaussian, gaussian, dot_product"):
        NonLocal2d(8, mode="concatenation")
    with pytest.raises(ConfigError, match="mode is 'gaussian'; accepted: embedded_gaussian, dot_product"):
        DisentangledNonLocal2d(8, mode="gaussian", temperature=1.0)


@pytest.mark.parametrize("side", [2, 3, 4])
def test_dynamic_filters_of_any_side(side, rng):
    layer, x = DynamicFilter(side, False, 4, 3, PLAIN), drawn(rng, 2, 4, 8, 12)
    filters = layer.filter_gen_conv(_cells(x, side)).numpy().astype(np.float64)
    maps = layer.input_redu_conv(jt.array(x)).numpy().astype(np.float64)
    padded = np.pad(maps, ((0, 0), (0, 0), *[(side // 2, (side - 1) // 2)] * 2))
    expected = sum(padded[:, :, i:i + 8, j:j + 12] * filters[:, :, i, j][..., None, None]
                   for i, j in np.ndindex(side, side))
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, rtol=1e-4, atol=1e-4)


def _cells(x: np.ndarray, side: int) -> jt.Var:
    """Means over a grid with PyTorch's edges."""
    def edges(length):
        return [(i * length // side, -(-(i + 1) * length // side)) for i in range(side)]

    rows = [[x[:, :, a:b, c:d].mean((2, 3)) for c, d in edges(x.shape[3])] for a, b in edges(x.shape[2])]
    return jt.array(np.array(rows).transpose(2, 3, 0, 1).copy())


def test_expectation_maximisation_moves_its_bases_in_training_only(rng):
    layer, x = ExpectationMaximization(5, 3, 2, 0.1), drawn(rng, 2, 5, 4, 6)
    first = layer.bases.numpy().astype(np.float64)
    pixels, bases = x.reshape(2, 5, 24).astype(np.float64), np.repeat(first, 2, 0)

    def unit(values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    for _ in range(2):
        shares = softmax(pixels.transpose(0, 2, 1) @ bases, 2)
        bases = unit(pixels @ (shares / shares.sum(1, keepdims=True)))
    expected = (bases @ shares.transpose(0, 2, 1)).reshape(x.shape)
    layer.eval()
    np.testing.assert_allclose(layer(jt.array(x)).numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.bases.numpy(), first.astype(np.float32))
    layer.train()
    layer(jt.array(x)).sync()
    np.testing.assert_allclose(layer.bases.numpy(), 0.9 * first + 0.1 * unit(bases.mean(0, keepdims=True)), atol=1e-6)
    with pytest.raises(ConfigError, match="num_stages 0"):
        ExpectationMaximization(5, 3, 0, 0.1)


@pytest.mark.parametrize("kind", ["collect", "distribute", "bi-direction"])
def test_compact_weights_are_those_of_absolute_positions(kind, rng):
    words = {"psa_type": kind, "shrink_factor": 1, "mask_size": [3, 4]}
    compact, wide = head(PSAHead, compact=True, **words), head(PSAHead, **words)
    x, weights = jt.array(drawn(rng, 2, 8, 3, 4)), drawn(rng, 2, 12, 12)  # [from, to] of absolute positions
    for name, suffix in wide.branches:
        relative = np.zeros((2, 12, 3, 4), np.float32)
        absolute = np.zeros((2, 12, 12), np.float32)
        for r, c, a, b in np.ndindex(3, 4, 3, 4):
            other = a + r - 1, b + c - 1
            if 0 <= other[0] < 3 and 0 <= other[1] < 4:
                here, there = a * 4 + b, other[0] * 4 + other[1]
                relative[:, r * 4 + c, a, b] = weights[:, here, there]
                place = (there, here) if name == "collect" else (here, there)
                absolute[:, place[0], place[1]] = weights[:, here, there]
        given = absolute.transpose(0, 2, 1) if compact._turned(name) else absolute
        found = compact._attended(x, jt.array(given.reshape(2, 12, 3, 4).copy()), name)
        np.testing.assert_allclose(found.numpy(), wide._attended(x, jt.array(relative), name).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="12 cells, the shrunk map 3 x 5"):
        compact([jt.zeros((2, 8, 3, 5))])
    with pytest.raises(ConfigError, match="psa_type is 'both'"):
        head(PSAHead, psa_type="both")


def test_a_shared_projection_is_there_once():
    keys = {"context.stages.0.key_project.conv.weight": 1, "context.stages.0.query_project.conv.weight": 1,
            "fusion.stages.0.query_project.conv.weight": 2}
    assert ANNHead.remap_keys(keys) == {key: n for key, n in keys.items() if "context.stages.0.query" not in key}
    with pytest.raises(ConfigError, match="query_scales is .2.; accepted: a list of ones"):
        head(ANNHead, in_channels=[8, 8], query_scales=[2])


def test_mistakes_in_k_net_blocks():
    block = copy.deepcopy(dict(IterativeDecodeHead.TINY))
    block["kernel_generate_head"].update(in_channels=8, num_classes=5)
    stage = block["kernel_update_head"][0]
    for change, text in [({"num_stages": 3}, "must be a list of as many blocks"),
                         ({"kernel_update_head": [{**stage, "num_classes": 4}] * 2}, "num_classes 4 and in_channels 8"),
                         ({"kernel_update_head": [{**stage, "num_head": 4}] * 2}, "did you mean 'num_heads'"),
                         ({"kernel_update_head": [{**stage, "conv_kernel_size": 3}] * 2}, "conv_kernel_size is 3"),
                         ({"kernel_update_head": [{**stage, "kernel_updator_cfg": {"type": "DynamicConv"}}] * 2},
                          "unknown part of K-Net"),
                         ({"kernel_generate_head": {"type": "EncHead", "in_channels": [8], "in_index": [0],
                                                    "channels": 8, "num_classes": 5}},
                          "does more than classify one map")]:
        with pytest.raises(ConfigError, match=text):
            MODELS.build({**copy.deepcopy(block), **change})
