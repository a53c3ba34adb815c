"""HuasdorffDisstanceLoss against loops in float64."""

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError
from jseg.losses import HuasdorffDisstanceLoss
from jseg.registry import LOSSES


def squares_by_loops(labels: np.ndarray) -> np.ndarray:
    found = np.zeros(labels.shape)
    for n, y, x in np.argwhere(labels > 0):
        zeros = np.argwhere(labels[n] == 0)
        found[n, y, x] = ((zeros - (y, x)) ** 2).sum(1).min() if len(zeros) else 0
    return found


def expected(logits: np.ndarray, labels: np.ndarray, weights, ignored: int) -> tuple[float, np.ndarray]:
    """(loss, gradient) in float64."""
    prob = np.exp(logits.astype(np.float64))
    prob /= prob.sum(1, keepdims=True)
    target = np.where((labels == 255) | (labels == ignored), 0, labels)
    distance = squares_by_loops(target) + squares_by_loops(prob.argmax(1))
    k, slope, loss = prob.shape[1], np.zeros_like(prob), 0.0
    for i in range(1, k):
        if i != ignored:
            loss += weights[i] * ((prob[:, i] - target) ** 2 * distance).mean() / k
            slope[:, i] = weights[i] * 2 * (prob[:, i] - target) * distance / target.size / k
    return loss, prob * (slope - (prob * slope).sum(1, keepdims=True))


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0]])
@pytest.mark.parametrize("ignored", [255, 2])
def test_values_and_gradients(weights, ignored, rng):
    labels = np.kron(rng.integers(0, 3, (2, 3, 3)), np.ones((3, 3), int)).astype(np.int32)
    labels[0, :2, :2] = 255
    logits = (2 * rng.standard_normal((2, 3, 9, 9))).astype(np.float32)
    given = jt.array(logits)
    value = HuasdorffDisstanceLoss(class_weight=weights, ignore_index=ignored, loss_weight=0.5)(given, jt.array(labels))
    loss, gradient = expected(logits, labels, weights or [1.0] * 3, ignored)
    assert loss > 0 and value.item() == pytest.approx(0.5 * loss, rel=1e-5)
    np.testing.assert_allclose(jt.grad(value, given).numpy(), 0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_without_background_or_foreground_nothing_is_far(rng):
    logits = np.zeros((1, 2, 4, 4), np.float32)
    logits[:, 0] = 3.0  # background everywhere
    for label in (0, 1, 255):
        labels = np.full((1, 4, 4), label, np.int32)
        assert HuasdorffDisstanceLoss()(jt.array(logits), jt.array(labels)).item() == 0


def test_mistakes():
    with pytest.raises(ConfigError, match="accepted: 'none', 'mean', 'sum'"):
        LOSSES.build({"type": "HuasdorffDisstanceLoss", "reduction": "max"})
    with pytest.raises(ValueError, match="remove the sampler"):
        HuasdorffDisstanceLoss()(jt.ones((1, 2, 4, 4)), jt.zeros((1, 4, 4)).int32(), pixel_weight=jt.ones((1, 4, 4)))
