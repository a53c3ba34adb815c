"""Image classifiers: any backbone can be one; mixing, smoothing and loss against NumPy."""

from __future__ import annotations

import jittor as jt
import numpy as np
import pytest

from jseg.engine.dry_step import dry_step
from jseg.errors import ConfigError
from jseg.models import build_model
from jseg.models.backbones.convnext import ConvNeXt
from jseg.models.backbones.mscan import MSCAN
from jseg.models.backbones.swin_transformer import SwinTransformer
from jseg.models.image_classifier import (Mixing, cut_box, mix_batch, one_hot, smoothed, soft_cross_entropy)
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
BACKBONES = [name for name in MODELS.names() if ".backbones." in MODELS.get(name).__module__]


def classifier(backbone: dict, **head) -> dict:
    widths = MODELS.build(dict(backbone)).out_channels
    return {"type": "ImageClassifier", "backbone": dict(backbone),
            "head": {"num_classes": 4, "in_channels": widths[-1], "label_smooth_val": 0.1, **head},
            "train_cfg": {"augments": [{"type": "Mixup", "alpha": 0.8}, {"type": "CutMix", "alpha": 1.0}]}}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_can_be_a_classifier(name):
    """A training batch flows through each as far as shapes tell."""
    model = classifier(MODELS.get(name).TINY)
    assert dry_step({"model": model, "train_dataloader": {"batch_size": 2}, "data_preprocessor": {}}) == []


def test_the_means_of_several_maps_are_joined(rng):
    model = build_model(classifier(MSCAN.TINY, in_index=[1, 3], in_channels=48))
    model.eval()
    x = jt.array(rng.standard_normal((2, 3, 64, 64)).astype(np.float32))
    maps = [m.numpy() for m in model.backbone(x)]
    vectors = np.concatenate([maps[1].mean((2, 3)), maps[3].mean((2, 3))], 1)
    np.testing.assert_allclose(model(x).numpy(), vectors @ model.head.fc.weight.numpy().T + model.head.fc.bias.numpy(),
                               atol=1e-5)


def test_convnext_takes_the_mean_before_its_last_norm(rng):
    block = {**ConvNeXt.TINY, "gap_before_final_norm": True, "out_indices": [3]}
    model = MODELS.build(block)
    model.norm3.weight.assign(jt.array(rng.uniform(0.5, 1.5, 32).astype(np.float32)))
    x = jt.array(rng.standard_normal((2, 3, 64, 96)).astype(np.float32))
    twin = MODELS.build({**block, "gap_before_final_norm": False})
    twin.load_state_dict({**model.state_dict("numpy"), "norm3.weight": np.ones(32, np.float32)})
    twin.norm3 = lambda x: x
    mean = twin(x)[0].numpy().mean((2, 3))
    centred = mean - mean.mean(1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * model.norm3.weight.numpy()
    found = model(x)[0].numpy()
    assert found.shape == (2, 32, 1, 1)
    np.testing.assert_allclose(found[:, :, 0, 0], wanted, atol=1e-4)
    with pytest.raises(ConfigError, match="one vector a picture"):
        MODELS.build({**block, "out_indices": [2, 3]})
    head = {"type": "FCNHead", "in_channels": 32, "channels": 8, "num_classes": 3}
    with pytest.raises(ConfigError, match="one vector a picture"):
        MODELS.build({"type": "EncoderDecoder", "backbone": block, "decode_head": head})


def test_swin_leaves_maps_of_one_window_where_they_are(rng):
    """On a map of one window a shift with its mask changes what is seen; pad_small_map: false does not shift."""
    x = jt.array(rng.standard_normal((1, 3, 24, 24)).astype(np.float32))
    block = {**SwinTransformer.TINY, "out_indices": [0, 1, 2, 3], "window_size": 6, "depths": [2, 2, 2, 2]}
    outs = []
    for small in (True, False):
        jt.set_global_seed(0)
        model = MODELS.build({**block, "pad_small_map": small})
        for stage in model.stages:
            for part in stage.blocks:
                table = part.attn.w_msa.relative_position_bias_table
                table.assign(jt.array(np.random.standard_normal(table.shape).astype(np.float32)))
        outs.append([m.numpy() for m in model(x)])
    assert outs[0][0].shape[2:] == (6, 6) and np.abs(outs[0][0] - outs[1][0]).max() > 1e-3


def reference_mix(images, targets, weight, share):
    """NumPy float64; the partner is half a batch away."""
    others = np.roll(np.arange(len(images)), -(len(images) // 2))
    images, targets = images.astype(np.float64), targets.astype(np.float64)
    return (images * weight + images[others] * (1 - weight), targets * share + targets[others] * (1 - share))


@pytest.mark.parametrize("count", [4, 5])
def test_mixing_and_loss_against_numpy(count, rng):
    images = rng.standard_normal((count, 3, 8, 12)).astype(np.float32)
    labels = rng.integers(0, 6, count).astype(np.int32)
    top, bottom, left, right = cut_box((8, 12), 0.6, 1, 10)
    assert (top, bottom, left, right) == (0, 4, 7, 12)  # sides 5 and 7 around (1, 10), cut at the edges
    weight = np.ones((8, 12), np.float32)
    weight[top:bottom, left:right] = 0
    share = 1 - 20 / 96
    mixed, targets = mix_batch(jt.array(images), one_hot(jt.array(labels), 6), weight, share)
    wanted, soft = reference_mix(images, np.eye(6)[labels], weight, share)
    np.testing.assert_allclose(mixed.numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(targets.numpy(), soft, atol=1e-6)
    logits = 4 * rng.standard_normal((count, 6)).astype(np.float32)
    soft = soft * 0.9 + 0.1 / 6
    np.testing.assert_allclose(smoothed(targets, 0.1).numpy(), soft, atol=1e-6)
    logs = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    assert soft_cross_entropy(jt.array(logits), jt.array(soft.astype(np.float32))).item() == pytest.approx(
        -(soft * logs).sum(1).mean(), rel=1e-5)


def test_ranks_mix_the_pairs_of_one_process(rng):
    """Rank r of 2 holds pictures r, r + 2, ...; their partners are there, too."""
    images = rng.standard_normal((8, 3, 4, 4)).astype(np.float32)
    targets, weight = np.eye(8, dtype=np.float32), rng.uniform(0, 1, (4, 4)).astype(np.float32)
    whole = mix_batch(jt.array(images), jt.array(targets), weight, 0.3)
    for rank in (0, 1):
        part = mix_batch(jt.array(images[rank::2]), jt.array(targets[rank::2]), weight, 0.3)
        for ours, every in zip(part, whole):
            np.testing.assert_array_equal(ours.numpy(), every.numpy()[rank::2])


def test_draws_follow_their_probabilities_and_the_seed():
    mixing = Mixing([{"type": "Mixup", "alpha": 0.8, "prob": 0.2}, {"type": "CutMix", "alpha": 1.0, "prob": 0.3}])
    draws = [mixing.draw((16, 24), np.random.RandomState(i)) for i in range(600)]
    kinds = ["none" if share == 1.0 and weight.min() == 1 else "mix" if np.ptp(weight) == 0 else "cut"
             for weight, share in draws]
    shares = {kind: kinds.count(kind) / 600 for kind in set(kinds)}
    assert shares["mix"] == pytest.approx(0.2, abs=0.05) and shares["cut"] == pytest.approx(0.3, abs=0.06)
    for (weight, share), kind in zip(draws, kinds):
        assert weight.mean() == pytest.approx(share, abs=1e-6)  # the target's share is the pictures'
    again = mixing.draw((16, 24), np.random.RandomState(5))
    np.testing.assert_array_equal(again[0], draws[5][0])
    assert Mixing([{"type": "Mixup", "alpha": 0.8}, {"type": "CutMix", "alpha": 1.0}]).probs == [0.5, 0.5]


@pytest.mark.parametrize(("augments", "words"), [
    ([{"type": "Mixup"}], "needs 'alpha'"), ([{"type": "Mixing", "alpha": 1.0}], "expected Mixup or CutMix"),
    ([{"type": "Mixup", "alpha": 1.0, "prob": 0.7}, {"type": "CutMix", "alpha": 1.0, "prob": 0.7}], "more than 1"),
    ("Mixup", "expected a list of blocks")])
def test_wrong_augments_are_told(augments, words):
    with pytest.raises(ConfigError, match=words):
        Mixing(augments)
