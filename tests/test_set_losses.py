"""Losses and costs of heads that classify masks: against NumPy in float64, and by what they promise."""

import itertools

import jittor as jt
import numpy as np
import pytest

from jseg.errors import ConfigError, KernelError
from jseg.losses import match_costs, set_losses
from jseg.losses.assignment import linear_sum_assignment
from jseg.losses.set_criterion import SetCriterion
from jseg.ops import ranks
from jseg.registry import MATCH_COSTS

pytestmark = pytest.mark.usefixtures("few_kernels")
COSTS = [{"type": "ClassificationCost", "weight": 2.0}, {"type": "FocalLossCost", "weight": 20.0, "binary_input": True},
         {"type": "DiceCost", "weight": 1.0, "pred_act": True, "eps": 1.0}]
TRAIN_CFG = {"assigner": {"type": "HungarianAssigner", "match_costs": COSTS}, "sampler": {"type": "MaskPseudoSampler"}}
LOSSES = {"loss_cls": {"type": "CrossEntropyLoss", "loss_weight": 2.0, "class_weight": [1.0, 1.5, 0.5, 0.1]},
          "loss_mask": {"type": "FocalLoss", "loss_weight": 20.0},
          "loss_dice": {"type": "DiceLoss", "naive_dice": True, "eps": 1.0}}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def binary(x, t):
    return -(t * np.log(sigmoid(x)) + (1 - t) * np.log(1 - sigmoid(x)))


def focal(x, t, gamma=2.0, alpha=0.25):
    p = sigmoid(x)
    return binary(x, t) * np.where(t == 1, alpha * (1 - p) ** gamma, (1 - alpha) * p**gamma)


def dice(x, t, eps, naive):
    p, t = sigmoid(x).reshape(len(x), -1), t.reshape(len(t), -1)
    if naive:
        return 1 - (2 * (p * t).sum(1) + eps) / (p.sum(1) + t.sum(1) + eps)
    return 1 - 2 * (p * t).sum(1) / ((p * p).sum(1) + eps + (t * t).sum(1) + eps)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 6), (6, 2), (5, 4)])
def test_the_assignment_is_the_best_of_all(shape, rng):
    for _ in range(20):
        cost = rng.standard_normal(shape)
        rows, columns = linear_sum_assignment(cost)
        assert len(rows) == min(shape) and (np.diff(rows) > 0).all() and len(set(columns)) == len(columns)
        wide = cost if shape[0] <= shape[1] else cost.T
        best = min(sum(wide[i, c] for i, c in enumerate(chosen))
                   for chosen in itertools.permutations(range(wide.shape[1]), len(wide)))
        assert cost[rows, columns].sum() == pytest.approx(best)


def test_an_assignment_of_nothing_and_of_ties():
    assert [len(part) for part in linear_sum_assignment(np.zeros((0, 4)))] == [0, 0]
    assert sorted(linear_sum_assignment(np.ones((4, 4)))[1]) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="NaN or infinite"):
        linear_sum_assignment(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize("block",
                         [{"type": "ClassificationCost", "weight": 2.0}, {"type": "FocalLossCost", "weight": 3.0},
                          {"type": "FocalLossCost", "binary_input": True}, {"type": "DiceCost", "pred_act": True},
                          {"type": "DiceCost", "pred_act": True, "naive_dice": False, "eps": 0.5},
                          {"type": "CrossEntropyLossCost"}],
                         ids=lambda block: "-".join(map(str, block.values())))
def test_costs(block, rng):
    scores, masks = rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 4, 9))
    classes, targets = np.array([4, 1, 0]), (rng.random((2, 3, 9)) > 0.5).astype(np.float64)
    found = MATCH_COSTS.build(block)(*(jt.array(x.astype(np.float32)) for x in (scores, masks)), classes,
                                     jt.array(targets.astype(np.float32)))
    expected, weight = np.zeros((2, 4, 3)), block.get("weight", 1.0)
    for b, q, k in np.ndindex(2, 4, 3):
        x, t = masks[b, q][None], targets[b, k][None]
        if block["type"] == "ClassificationCost":
            value = -softmax(scores)[b, q, classes[k]]
        elif block["type"] == "DiceCost":
            p, eps = sigmoid(x), block.get("eps", 1e-3)
            below = p.sum() + t.sum() if block.get("naive_dice", True) else (p * p).sum() + (t * t).sum()
            value = 1 - (2 * (p * t).sum() + eps) / (below + eps)
        elif block["type"] == "CrossEntropyLossCost":
            value = binary(x, t).mean()
        elif block.get("binary_input"):
            value = focal(x, t).mean()
        else:
            score = scores[b, q, classes[k]]
            value = focal(score, 1.0) - focal(score, 0.0)
        expected[b, q, k] = weight * value
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_values_of_the_losses(rng):
    logits, targets = rng.standard_normal((3, 2, 5)), (rng.random((3, 2, 5)) > 0.5).astype(np.float64)
    x, t = (jt.array(a.astype(np.float32)) for a in (logits, targets))
    np.testing.assert_allclose(set_losses.CrossEntropyLoss(use_sigmoid=True).values(x, t).numpy(),
                               binary(logits, targets), rtol=1e-5)
    for gamma in (2.0, 1.5):
        np.testing.assert_allclose(set_losses.FocalLoss(gamma=gamma).values(x, t).numpy(),
                                   focal(logits, targets, gamma), rtol=2e-5)
    for naive, eps in ((True, 1.0), (False, 1e-3)):
        found = set_losses.DiceLoss(naive_dice=naive, eps=eps).values(x, t).numpy()
        np.testing.assert_allclose(found, dice(logits, targets, eps, naive), rtol=1e-5)
    labels, weights = rng.integers(0, 5, (3, 2)), np.array([1.0, 2.0, 0.5, 0.0, 3.0])
    expected = -np.log(np.take_along_axis(softmax(logits), labels[..., None], 2))[..., 0] * weights[labels]
    found = set_losses.CrossEntropyLoss(class_weight=list(weights)).values(x, labels).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def readings(rng, n=2, queries=5, classes=3, size=(4, 6), layers=2):
    """Random readings, and the label map (N, 8, 12) of pictures that show other classes each."""
    made = [(rng.standard_normal((n, queries, classes + 1)), 3 * rng.standard_normal((n, queries, *size)))
            for _ in range(layers)]
    labels = rng.integers(0, 2, (n, 8, 12)).astype(np.int32)
    labels[-1] = 2
    labels[:, :2] = 255
    return made, labels


def criterion(**more):
    return SetCriterion(3, **{**LOSSES, "train_cfg": TRAIN_CFG, **more})


def as_vars(layers):
    return [tuple(jt.array(x.astype(np.float32)) for x in layer) for layer in layers]


def resized(masks, size):
    from jseg.ops.bilinear_resize.reference import forward
    return forward(masks, size)


def best_by_trying(scores, masks, labels, classes):
    """(query of each class) by trying every way, costs in float64 at the masks' size."""
    h, w = masks.shape[1:]
    small = labels[::labels.shape[0] // h, ::labels.shape[1] // w]
    cost = np.zeros((len(masks), len(classes)))
    for q, k in np.ndindex(*cost.shape):
        t = (small == classes[k]).astype(np.float64)
        cost[q, k] = (-2.0 * softmax(scores)[q, classes[k]] + 20.0 * focal(masks[q], t).mean()
                      + dice(masks[q][None], t[None], 1.0, True)[0])
    ways = itertools.permutations(range(len(masks)), len(classes))
    return min(ways, key=lambda way: sum(cost[q, k] for k, q in enumerate(way)))


def test_a_whole_step_against_numpy(rng):
    layers, labels = readings(rng)
    found = criterion()(as_vars(layers), jt.array(labels))
    assert sorted(found) == ["d0.loss_cls", "d0.loss_dice", "d0.loss_mask", "loss_cls", "loss_dice", "loss_mask"]
    weights = np.array(LOSSES["loss_cls"]["class_weight"])
    for prefix, (scores, masks) in zip(("d0.", ""), layers):
        wanted, logits, targets = np.full((2, 5), 3), [], []
        for i in range(2):
            classes = [c for c in np.unique(labels[i]) if c != 255]
            for query, c in zip(best_by_trying(scores[i], masks[i], labels[i], classes), classes):
                wanted[i, query] = c
                logits.append(masks[i, query])
                targets.append((labels[i] == c).astype(np.float64))
        logits, targets = resized(np.stack(logits)[:, None], (8, 12))[:, 0], np.stack(targets)
        nll = -np.log(np.take_along_axis(softmax(scores), wanted[..., None], 2))[..., 0]
        assert found[f"{prefix}loss_cls"].item() == pytest.approx(
            2.0 * (nll * weights[wanted]).sum() / weights[wanted].sum(), rel=1e-5)
        assert found[f"{prefix}loss_mask"].item() == pytest.approx(20.0 * focal(logits, targets).mean(), rel=1e-5)
        assert found[f"{prefix}loss_dice"].item() == pytest.approx(dice(logits, targets, 1.0, True).mean(), rel=1e-5)


def test_gradients_against_differences(rng):
    layers, labels = readings(rng, layers=1)
    variables = as_vars(layers)
    found = criterion()(variables, jt.array(labels))
    for name, place in (("loss_cls", 0), ("loss_mask", 1), ("loss_dice", 1)):
        direction = rng.standard_normal(layers[0][place].shape)
        exact = float((jt.grad(found[name], variables[0][place]).numpy() * direction).sum())
        ends = []
        for step in (1e-2, -1e-2):
            moved = list(layers[0])
            moved[place] = moved[place] + step * direction
            ends.append(criterion()(as_vars([tuple(moved)]), jt.array(labels))[name].item())
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(exact, rel=2e-2, abs=1e-3)


def test_points_stand_for_pixels(rng, monkeypatch):
    """With points on the pixels' centres, losses at points are those at pixels."""
    layers, labels = readings(rng, size=(8, 12), layers=1)
    centres = np.stack(np.meshgrid((np.arange(12) + 0.5) / 12, (np.arange(8) + 0.5) / 8),
                       2).reshape(1, -1, 2).astype(np.float32)
    monkeypatch.setattr(ranks, "rand", lambda shape: jt.array(np.repeat(centres, shape[0], 0)))
    words = {**TRAIN_CFG, "num_points": 96, "oversample_ratio": 1.0, "importance_sample_ratio": 0.0}
    at_points = criterion(train_cfg=words, at_points=True)(as_vars(layers), jt.array(labels))
    for name, value in criterion()(as_vars(layers), jt.array(labels)).items():
        assert at_points[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_points_are_undecided_ones(rng):
    made = criterion(train_cfg={**TRAIN_CFG, "num_points": 40}, at_points=True)
    jt.set_global_seed(0)
    logits = np.broadcast_to(np.linspace(-8, 8, 16, dtype=np.float32), (3, 1, 16, 16)).copy()
    points = made._chosen_points(jt.array(logits), np.array([1, 2])).numpy()
    assert points.shape == (3, 40, 2) and points.min() >= 0 and points.max() < 1
    near = np.abs(points[:, :30, 0] - 0.5)  # undecided in the middle column
    assert near.max() < 0.2 < np.abs(points[:, 30:, 0] - 0.5).max()


def test_pictures_that_show_nothing(rng):
    layers, labels = readings(rng)
    variables = as_vars(layers)
    found = criterion()(variables, jt.full((2, 8, 12), 255).int32())
    assert found["loss_mask"].item() == found["loss_dice"].item() == 0 < found["loss_cls"].item()
    assert np.abs(jt.grad(sum(found.values()), variables[0][1]).numpy()).max() == 0
    labels[0] = 255
    assert np.isfinite([value.item() for value in criterion()(as_vars(layers), jt.array(labels)).values()]).all()


def test_mistakes():
    with pytest.raises(ConfigError, match="num_classes \\+ 1 = 4"):
        criterion(loss_cls={"type": "CrossEntropyLoss", "class_weight": [1.0, 1.0, 1.0]})
    with pytest.raises(ConfigError, match="did you mean 'DiceCost'"):
        criterion(train_cfg={"assigner": {"type": "HungarianAssigner", "match_costs": [{"type": "DiceCosts"}]}})
    with pytest.raises(ConfigError, match="words of points are \\['num_points'\\]"):
        criterion(train_cfg={**TRAIN_CFG, "num_points": 10})
    with pytest.raises(ConfigError, match="unknown key 'num_point'.*did you mean 'num_points'"):
        criterion(train_cfg={**TRAIN_CFG, "num_point": 10}, at_points=True)
    with pytest.raises(ConfigError, match="has no assigner"):
        criterion(train_cfg=None)([], jt.zeros((1, 2, 2)).int32())
    with pytest.raises(KernelError, match="outside the 3 classes"):
        criterion()([], jt.full((1, 2, 2), 7).int32())
    with pytest.raises(ValueError, match="use_sigmoid is false"):
        match_costs.CrossEntropyLossCost(use_sigmoid=False)
    for kind, words in (("CrossEntropyLoss", {"reduction": "sum"}), ("FocalLoss", {"activated": True}),
                        ("DiceLoss", {"use_sigmoid": False})):
        with pytest.raises(ValueError, match=kind):
            getattr(set_losses, kind)(**words)
