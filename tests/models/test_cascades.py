"""Pyramids and cascades: HRNet's stages, FPN's extra maps, OCR's classes, PointRend's points, against formulas in
float64.
"""

from __future__ import annotations

import copy

import jittor as jt
import numpy as np
import pytest

from jseg.convert.mmseg_model import translate_model
from jseg.convert.mmseg_notes import Notes
from jseg.errors import ConfigError
from jseg.layers import Conv1d, ConvNormAct, lead_of_best, nearest_resize, top_places
from jseg.models import build_model
from jseg.models.backbones.hrnet import HRNet
from jseg.models.backbones.mscan import MSCAN
from jseg.models.heads.fcn_head import FCNHead
from jseg.models.heads.ocr_head import OCRHead, gather_classes
from jseg.models.heads.point_head import PointHead
from jseg.models.necks.fpn import FPN
from jseg.registry import MODELS

pytestmark = pytest.mark.usefixtures("few_kernels")
GIVEN = {"in_channels": 32, "num_classes": 5, "dropout_ratio": 0.0}


def numbers(rng, *shape) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def point_head(**words) -> PointHead:
    return MODELS.build(
        {**PointHead.TINY, "in_channels": [6], "in_index": [0], "num_classes": 4, "dropout_ratio": 0.0, **words})


@pytest.mark.parametrize(("words", "message"), [
    ({"stage4": {}}, "extra.stage4 has"), ({"stage5": {}}, "accepted: stage1, stage2, stage3 and stage4"),
    ({"stage2": {**HRNet.TINY["extra"]["stage2"], "block": "BASE"}}, "block is 'BASE'; accepted: BASIC, BOTTLENECK"),
    ({"stage2": {**HRNet.TINY["extra"]["stage2"], "num_blocks": [1]}}, "num_branches = 2 numbers each")])
def test_hrnet_mistakes(words, message):
    with pytest.raises(ConfigError, match=message):
        HRNet({**HRNet.TINY["extra"], **words})


def test_hrnet_freezes_and_gives_one_map(rng):
    model = HRNet(HRNet.TINY["extra"], frozen_stages=3, multiscale_output=False, zero_init_residual=True)
    (found,) = model(jt.array(numbers(rng, 2, 3, 33, 65)))
    assert tuple(found.shape) == (2, 8, 9, 17) and model.out_channels == [8] and model.strides == [4]
    frozen = {
        key.partition(".")[0]
        for key, value in model.state_dict().items() if value.is_stop_grad() and "running" not in key
    }
    assert frozen == {
        "conv1", "bn1", "conv2", "bn2", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3"
    }
    assert (model.stage2[0].branches[0][0].bn2.weight.numpy() == 0).all()
    assert "stage4.0.fuse_layers.1.0.0.0.weight" not in model.state_dict()


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (3, 4), (2, 13)])
def test_nearest_resize_equals_its_definition(size, rng):
    x = numbers(rng, 2, 3, 3, 4)
    rows, columns = (np.floor(np.arange(out) * np.float32(side / out)).astype(int) for out, side in zip(size, (3, 4)))
    value = jt.array(x)
    found = nearest_resize(value, size)
    np.testing.assert_array_equal(found.numpy(), x[:, :, rows][:, :, :, columns])
    weights = numbers(rng, 2, 3, *size)
    expected = np.zeros_like(x)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            expected[:, :, row, column] += weights[:, :, i, j]
    np.testing.assert_allclose(jt.grad((found * jt.array(weights)).sum(), value).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("source", [False, True, "on_input", "on_lateral", "on_output"])
def test_fpn_extra_maps(source, rng):
    neck = FPN([4, 6, 8],
               5,
               5,
               start_level=1,
               add_extra_convs=source,
               relu_before_extra_convs=True,
               norm_cfg={"type": "BN"},
               no_norm_on_lateral=True,
               upsample_cfg={"mode": "bilinear"})
    maps = [jt.array(numbers(rng, 2, width, side, side + 1)) for width, side in ((4, 17), (6, 9), (8, 5))]
    found = neck(maps)
    assert [tuple(m.shape) for m in found] == [(2, 5, *side) for side in ((9, 10), (5, 6), (3, 3), (2, 2), (1, 1))]
    assert neck.out_channels == [5] * 5 and "lateral_convs.0.bn.weight" not in neck.state_dict()
    assert len(neck.fpn_convs) == (5 if source else 2)


def test_fpn_mistakes():
    with pytest.raises(ConfigError, match="num_outs is 2"):
        FPN([4, 6, 8], 5, 2)
    with pytest.raises(ConfigError, match="add_extra_convs is 'on_top'; accepted"):
        FPN([4, 6], 5, 2, add_extra_convs="on_top")
    with pytest.raises(ConfigError, match="upsample_cfg is .*scale_factor.*; accepted"):
        FPN([4, 6], 5, 2, upsample_cfg={"scale_factor": 2})
    with pytest.raises(ValueError, match="2 maps came, in_channels lists 1"):
        FPN([4], 5, 1)([jt.zeros((1, 4, 2, 2))] * 2)


def test_ocr_gathers_by_the_softmax_over_pixels(rng):
    features, scores = numbers(rng, 2, 6, 4, 5), numbers(rng, 2, 3, 4, 5)
    weights = np.exp(scores.astype(np.float64).reshape(2, 3, 20))
    weights /= weights.sum(2, keepdims=True)
    expected = np.einsum("ncl,nkl->nck", features.reshape(2, 6, 20), weights)
    np.testing.assert_allclose(gather_classes(jt.array(features), jt.array(scores)).numpy()[..., 0],
                               expected,
                               atol=1e-5)
    with pytest.raises(ValueError, match="both heads must read maps of one size"):
        gather_classes(jt.array(features), jt.array(scores[:, :, 1:]))


def test_a_head_that_refines_needs_another_before_it():
    head = {**GIVEN, **OCRHead.TINY}
    with pytest.raises(ConfigError, match="OCRHead refines the scores of a head before it"):
        build_model({"type": "EncoderDecoder", "backbone": dict(MSCAN.TINY), "decode_head": copy.deepcopy(head)})
    first = {**GIVEN, **FCNHead.TINY}
    with pytest.raises(ConfigError, match="auxiliary_head: OCRHead refines"):
        build_model({
            "type": "EncoderDecoder", "backbone": dict(MSCAN.TINY), "decode_head": first,
            "auxiliary_head": copy.deepcopy(head)
        })
    with pytest.raises(ConfigError, match="scale is 2; accepted: above 0 and at most 1"):
        MODELS.build({**head, "scale": 2})


def test_conv1d_is_a_product_over_points(rng):
    layer, x = Conv1d(4, 3), numbers(rng, 2, 4, 7, 1)
    assert tuple(layer.weight.shape) == (3, 4, 1)
    expected = np.einsum("dc,ncp->ndp", layer.weight.numpy()[:, :, 0].astype(np.float64), x[..., 0])
    np.testing.assert_allclose(layer(jt.array(x)).numpy()[..., 0], expected, atol=1e-5)
    block = ConvNormAct(4, 3, 1, conv_cfg={"type": "Conv1d"}, norm_cfg={"type": "BN"})
    block.bn.running_mean.assign(jt.array(numbers(rng, 3)))
    block.eval()
    with jt.no_grad():
        folded = block(jt.array(x)).numpy()
    np.testing.assert_allclose(folded, block(jt.array(x)).numpy(), atol=1e-5)
    with pytest.raises(ConfigError, match="Conv1d has kernel 1"):
        ConvNormAct(4, 3, 3, conv_cfg={"type": "Conv1d"})


def test_top_places_and_lead(rng):
    x = numbers(rng, 3, 50)
    assert [set(row) for row in top_places(jt.array(x), 7).numpy()] == [set(np.argsort(-row)[:7]) for row in x]
    assert sorted(top_places(jt.array(x), 50).numpy()[1]) == list(range(50))
    scores = numbers(rng, 2, 5, 3, 4)
    ordered = np.sort(scores, 1)
    np.testing.assert_allclose(lead_of_best(jt.array(scores)).numpy(), ordered[:, -1] - ordered[:, -2], atol=1e-6)
    assert lead_of_best(jt.ones((1, 3, 2))).numpy().tolist() == [[0.0, 0.0]]


def test_points_of_training_are_undecided_and_within_the_map(rng):
    previous = numbers(rng, 2, 4, 8, 9) + 5 * np.eye(4, dtype=np.float32)[0].reshape(1, 4, 1, 1)
    previous[:, :, :, :4] *= 0.01  # undecided on the left
    previous[:, 0, :, :4] = 0
    head = point_head(num_points=100, importance_sample_ratio=0.7)
    points = head.draw_points(jt.array(previous)).numpy()
    assert points.shape == (2, 100, 2) and points.min() >= 0 and points.max() < 1
    assert (points[:, :70, 0] < 0.5).mean() > 0.95 and 0.2 < (points[:, 70:, 0] < 0.5).mean() < 0.8
    assert point_head(num_points=10, importance_sample_ratio=1.0).draw_points(jt.array(previous)).shape[1] == 10


def test_refinement_changes_the_undecided_positions_only(rng):
    head = point_head(subdivision_steps=1, subdivision_num_points=5)
    head.eval()
    previous, maps = jt.array(numbers(rng, 1, 4, 6, 7)), [jt.array(numbers(rng, 1, 6, 12, 14))]
    refined, plain = (h.refine(maps, previous).numpy()
                      for h in (head, point_head(subdivision_steps=1, subdivision_num_points=1)))
    changed = (refined != plain).any(1)
    assert refined.shape == (1, 4, 12, 14) and 1 <= changed.sum() <= 6
    enlarged = jt.nn.interpolate(previous, (12, 14), mode="bilinear").numpy()
    lead = np.sort(enlarged, 1)[0, -1] - np.sort(enlarged, 1)[0, -2]
    assert set(np.argwhere((np.abs(refined - enlarged)
                            > 1e-5).any(1)[0].ravel()).ravel()) <= set(np.argsort(lead.ravel())[:5])


def test_point_labels_are_the_nearest(rng):
    head = point_head()
    labels = rng.integers(0, 4, (1, 5, 6)).astype(np.int32)
    rows, columns = np.meshgrid(np.arange(5), np.arange(6), indexing="ij")
    points = np.stack([(columns.ravel() + 0.7) / 6, (rows.ravel() + 0.2) / 5], 1)[None].astype(np.float32)
    right = 9.0 * np.eye(4, dtype=np.float32)[labels.ravel()].T[None]
    terms = head.loss((jt.array(right), jt.array(points)), jt.array(labels))
    assert terms["acc_point"].item() == pytest.approx(100) and terms["pointloss_ce"].item() < 0.01 and len(terms) == 2
    with pytest.raises(ValueError, match="call eval"):
        head.scores((None, None), (5, 6))


def test_mmseg_words_of_points_move_into_the_head():
    source = {
        "type": "CascadeEncoderDecoder", "num_stages": 2, "backbone": {"type": "ResNet", "depth": 18},
        "decode_head": [{"type": "FCNHead", "in_channels": 512, "channels": 8, "num_classes": 4},
                        {"type": "PointHead", "in_channels": [64], "in_index": [0], "channels": 8, "num_classes": 4}],
        "train_cfg": {"num_points": 99, "oversample_ratio": 2, "importance_sample_ratio": 0.5},
        "test_cfg": {"mode": "whole", "subdivision_steps": 1, "subdivision_num_points": 77, "scale_factor": 2}
    }
    notes = Notes("a test", "mmseg 1.x")
    model = translate_model(source, notes)
    head = model["decode_head"][1]
    assert {
        key: head[key]
        for key in ("num_points", "oversample_ratio", "importance_sample_ratio", "subdivision_steps",
                    "subdivision_num_points", "scale_factor")
    } == {
        "num_points": 99, "oversample_ratio": 2, "importance_sample_ratio": 0.5, "subdivision_steps": 1,
        "subdivision_num_points": 77, "scale_factor": 2
    }
    assert model["test_cfg"] == {"mode": "whole"} and "train_cfg" not in model and not notes.lines
