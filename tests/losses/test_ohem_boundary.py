"""OhemCrossEntropy and BoundaryLoss against NumPy in float64."""

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError
from jseg.losses import BoundaryLoss, OhemCrossEntropy
from jseg.registry import LOSSES

CLASS_WEIGHT = [0.5, 1.0, 2.0]


def run(loss, logits, labels, **call):
    """(value, gradient) as NumPy."""
    logits = jt.array(logits)
    value = loss(logits, jt.array(labels), **call)
    return float(value.item()), jt.grad(value, logits).numpy()


def batch(rng):
    labels = rng.integers(0, 3, (2, 6, 7)).astype(np.int32)
    labels[0, :2] = 255
    return (2 * rng.standard_normal((2, 3, 6, 7))).astype(np.float32), labels


def hard_mean(logits, labels, thres, min_kept, weights):
    """(loss, gradient) by loops, float64."""
    wide = logits.astype(np.float64)
    prob = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    places = [tuple(place) for place in np.argwhere(labels != 255)]
    true = {(n, y, x): prob[n, labels[n, y, x], y, x] for n, y, x in places}
    ranked = sorted(true.values())
    bar = max(ranked[min(min_kept, len(ranked) - 1)], thres)
    hard = [place for place in places if true[place] < bar]
    total, gradient = 0.0, np.zeros_like(wide)
    for n, y, x in hard:
        weight = weights[labels[n, y, x]] / len(hard)
        total -= weight * np.log(true[n, y, x])
        gradient[n, :, y, x] = weight * prob[n, :, y, x]
        gradient[n, labels[n, y, x], y, x] -= weight
    return total, gradient, len(hard)


@pytest.mark.parametrize(("thres", "min_kept"), [(0.7, 100000), (0.3, 5), (0.0, 20), (1.0, 1), (0.5, 0)])
@pytest.mark.parametrize("weights", [None, CLASS_WEIGHT])
def test_hard_pixels_alone_count(thres, min_kept, weights, rng):
    logits, labels = batch(rng)
    loss = OhemCrossEntropy(thres=thres, min_kept=min_kept, class_weight=weights, loss_weight=0.4)
    value, gradient = run(loss, logits, labels)
    expected, slope, kept = hard_mean(logits, labels, thres, max(min_kept, 1), weights or [1.0] * 3)
    assert 0 < kept <= (labels != 255).sum()
    assert value == pytest.approx(0.4 * expected, rel=1e-5)
    np.testing.assert_allclose(gradient, 0.4 * slope, rtol=1e-4, atol=1e-7)


def test_nothing_to_learn_from(rng):
    logits, labels = batch(rng)
    nothing = np.full_like(labels, 255)
    one = np.zeros((1, 1, 1), np.int32)  # the only pixel is the easiest one
    for values, targets in ((logits, nothing), (logits[:1, :, :1, :1], one)):
        value, gradient = run(OhemCrossEntropy(thres=0.0), values, targets)
        assert value == 0 and not gradient.any()


def test_two_labels_may_be_ignored(rng):
    logits, labels = batch(rng)
    both = np.where(labels == 1, 255, labels).astype(np.int32)
    assert run(OhemCrossEntropy(ignore_label=1), logits, labels)[0] == pytest.approx(
        run(OhemCrossEntropy(), logits, both)[0], rel=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_edges_weigh_as_much_as_the_rest(share, rng):
    edge = (rng.random((2, 5, 6)) < share).astype(np.int32)
    edge[0, 0, :3] = 255
    logits = (3 * rng.standard_normal((2, 1, 5, 6))).astype(np.float32)
    value, gradient = run(BoundaryLoss(loss_weight=20.0), logits, edge)
    x, positive, negative = logits[:, 0].astype(np.float64), edge == 1, edge == 0
    weight = (positive * negative.sum() + negative * positive.sum()) / (positive.sum() + negative.sum())
    terms = weight * (np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x * positive)
    assert value == pytest.approx(20 * terms.sum() / edge.size, rel=1e-5, abs=1e-7)
    slope = 20 * weight * (1 / (1 + np.exp(-x)) - positive) / edge.size
    np.testing.assert_allclose(gradient[:, 0], slope, rtol=1e-4, atol=1e-6)


def test_small_logits_are_upsampled(rng):
    logits, edge = rng.standard_normal((1, 1, 3, 3)).astype(np.float32), (rng.random((1, 6, 6)) < 0.4).astype(np.int32)
    from jseg import ops
    full = ops.bilinear_resize(jt.array(logits), (6, 6), align_corners=True).numpy()
    assert run(BoundaryLoss(), logits, edge, align_corners=True)[0] == pytest.approx(
        run(BoundaryLoss(), full, edge)[0], rel=1e-5)


@pytest.mark.parametrize(("block", "text"), [
    ({"type": "OhemCrossEntropy", "thres": 1.5}, "accepted: a probability"),
    ({"type": "OhemCrossEntropy", "thresh": 0.5}, "did you mean 'thres'")])
def test_mistakes(block, text):
    with pytest.raises(ConfigError, match=text):
        LOSSES.build(block)


def test_other_mistakes():
    logits, labels = jt.ones((1, 2, 4, 4)), jt.zeros((1, 4, 4)).int32()
    with pytest.raises(ValueError, match="it takes one"):
        BoundaryLoss()(logits, labels)
    with pytest.raises(ValueError, match="remove the sampler"):
        OhemCrossEntropy()(logits, labels, pixel_weight=jt.ones((1, 4, 4)))
