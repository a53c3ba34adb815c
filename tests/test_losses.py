"""Losses against mmsegmentation's numbers, finite differences in float64, and the rules for ignored pixels."""

import importlib.util
import pathlib

import jittor as jt
import numpy as np
import pytest

from jseg import losses
from jseg.errors import ConfigError
from jseg.losses.lovasz import _growth
from jseg.losses.targets import class_presence
from jseg.registry import LOSSES, SAMPLERS

pytestmark = pytest.mark.usefixtures("few_kernels")
_spec = importlib.util.spec_from_file_location("losses_mmseg",
                                               pathlib.Path(__file__).parent / "parity" / "losses_mmseg.py")
parity = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity)


@pytest.fixture(scope="module")
def golden():
    """The golden file, checked against its script."""
    with np.load(parity.GOLDEN) as file:
        data = {key: file[key] for key in file.files}
    assert str(data["hash"]) == parity.script_hash(), "stale golden file: run python tests/parity/losses_mmseg.py again"
    return data


def run(loss, logits, labels, **call):
    """Return (loss, gradient) as NumPy."""
    logits = jt.array(logits)
    value = loss(logits, jt.array(labels), **call)
    return float(value.item()), jt.grad(value, logits).numpy()


@pytest.mark.parametrize("name", sorted(parity.CASES))
def test_numbers_and_gradients_are_mmsegs(name, golden):
    kind, arguments, call = parity.CASES[name]
    call = dict(call)
    logits = golden["input." + call.pop("logits", "logits")]
    labels = golden["input." + call.pop("labels", "void")]
    if call.get("pixel_weight"):
        call["pixel_weight"] = jt.array(golden["input.weight"])
    if kind == "TverskyLoss" and arguments.get("ignore_index") == 1:
        # there mmseg clamps 255 to the last class
        labels = np.where(labels == 255, parity.K - 1, labels).astype(np.int32)
    value, grad = run(LOSSES.build({"type": kind, **arguments}), logits, labels, **call)
    print(name, "loss", value, golden[name][0], "max gradient error", np.abs(grad.ravel() - golden[name][1:]).max())
    np.testing.assert_allclose(value, golden[name][0], rtol=3e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(grad.ravel(), golden[name][1:], rtol=1e-4,
                               atol=2e-6 * np.abs(golden[name]).max(), err_msg=name)


@pytest.mark.parametrize("name", sorted(parity.SAMPLERS))
def test_hard_examples_are_mmsegs(name, golden):
    sampler = SAMPLERS.build({"type": "OHEMPixelSampler", **parity.SAMPLERS[name]})
    weight = sampler.sample(jt.array(golden["input.logits"]), jt.array(golden["input.void"]),
                            losses=[losses.CrossEntropyLoss()])
    np.testing.assert_array_equal(weight.numpy(), golden[f"{name}.weight"])


def test_sampler_with_nothing_to_sample():
    labels = jt.array(np.full((1, 4, 4), 255, np.int32))
    for sampler in (losses.OHEMPixelSampler(thresh=0.7), losses.OHEMPixelSampler()):
        assert sampler.sample(jt.ones((1, 3, 2, 2)), labels, losses=[losses.CrossEntropyLoss()]).numpy().sum() == 0


ALL = [losses.CrossEntropyLoss(), losses.CrossEntropyLoss(avg_non_ignore=True),
       losses.CrossEntropyLoss(use_sigmoid=True), losses.DiceLoss(use_sigmoid=False), losses.FocalLoss(),
       losses.LovaszLoss(), losses.LovaszLoss(classes="all"), losses.LovaszLoss(per_image=True), losses.TverskyLoss()]
NAMES = [f"{type(loss).__name__}{i}" for i, loss in enumerate(ALL)]


@pytest.mark.parametrize("loss", ALL, ids=NAMES)
def test_a_batch_of_ignored_pixels_teaches_nothing(loss, rng):
    value, grad = run(loss, rng.standard_normal((2, 3, 2, 2)).astype(np.float32), np.full((2, 4, 4), 255, np.int32))
    # Dice: 1 - 0 / area, as in mmseg
    assert value == pytest.approx(1.0 if isinstance(loss, losses.DiceLoss) else 0.0, abs=1e-6)
    assert np.isfinite(grad).all() and not grad.any()


@pytest.mark.parametrize("loss", ALL, ids=NAMES)
def test_gradient_is_that_of_the_value(loss, rng):
    """Central differences of the float32 value along one direction, at the label size and below it."""
    labels = rng.integers(0, 3, (2, 4, 4)).astype(np.int32)
    labels[0, 0, :2] = 255
    logits = rng.standard_normal((2, 3, 2, 2)).astype(np.float32)
    way = rng.standard_normal(logits.shape).astype(np.float32)
    _, grad = run(loss, logits, labels)
    step = 5e-3
    slope = (run(loss, logits + step * way, labels)[0] - run(loss, logits - step * way, labels)[0]) / (2 * step)
    assert abs(slope - float((grad * way).sum())) < 2e-3 * max(1.0, np.abs(grad).sum())


@pytest.mark.parametrize("loss", ALL, ids=NAMES)
def test_values_under_ignored_pixels_do_not_matter(loss, rng):
    if isinstance(loss, losses.DiceLoss):
        pytest.skip("mmseg's Dice keeps predictions under ignored pixels in its denominator")
    labels = rng.integers(0, 3, (1, 4, 4)).astype(np.int32)
    labels[0, 0] = 255
    logits = rng.standard_normal((1, 3, 4, 4)).astype(np.float32)
    other = logits.copy()
    other[:, :, 0] = 9.0
    assert run(loss, logits, labels)[0] == pytest.approx(run(loss, other, labels)[0], abs=1e-6)
    assert not run(loss, logits, labels)[1][:, :, 0].any()


def test_cross_entropy_in_float64(rng):
    logits = rng.standard_normal((2, 3, 5, 5)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 5, 5)).astype(np.int32)
    labels[1, 2] = 255
    wide = logits.astype(np.float64)
    log_prob = wide - np.log(np.exp(wide).sum(1, keepdims=True))
    terms = [-log_prob[n, labels[n, y, x], y, x] for n, y, x in np.argwhere(labels != 255)]
    assert run(losses.CrossEntropyLoss(), logits, labels)[0] == pytest.approx(sum(terms) / labels.size, rel=1e-6)
    assert run(losses.CrossEntropyLoss(avg_non_ignore=True), logits, labels)[0] == pytest.approx(
        np.mean(terms), rel=1e-6)


def test_sigmoid_form_survives_huge_logits():
    value, grad = run(losses.CrossEntropyLoss(use_sigmoid=True), np.array([[[[-200.0, 200.0]]]], np.float32),
                      np.array([[[1, 0]]], np.int32))
    assert value == pytest.approx(200.0) and np.isfinite(grad).all()


def test_lovasz_weights_are_the_growth_of_the_jaccard_loss(rng):
    error, member = rng.random(40).astype(np.float32), (rng.random(40) < 0.4).astype(np.float32)
    valid = rng.random(40) < 0.8
    member *= valid
    expected, wrong, before = np.zeros(40), set(), 0.0
    for i in sorted(np.flatnonzero(valid), key=lambda i: -error[i]):
        wrong.add(i)
        truth = {j for j in range(40) if member[j]}
        guess = truth ^ wrong
        now = 1 - len(truth & guess) / len(truth | guess) if truth | guess else 0.0
        expected[i], before = now - before, now
    np.testing.assert_allclose(_growth(jt.array(error), jt.array(member), jt.array(valid)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("block, text", [
    ({"type": "CrossEntropyLoss", "use_mask": True}, "mask classification"),
    ({"type": "CrossEntropyLoss", "reduction": "none"}, "accepted: 'mean', 'sum'"),
    ({"type": "CrossEntropyLoss", "class_weights": [1]}, "did you mean 'class_weight'"),
    ({"type": "CrossEntropyLoss", "class_weight": [[1.0]]}, "list of numbers"),
    ({"type": "FocalLoss", "use_sigmoid": False}, "only the sigmoid form"),
    ({"type": "FocalLoss", "alpha": 2.0}, "accepted 0-1"),
    ({"type": "LovaszLoss", "classes": "some"}, "accepted: 'present', 'all'"),
    ({"type": "LovaszLoss", "per_image": True, "reduction": "none"}, "reduction"),
    ({"type": "TverskyLoss", "alpha": 0.5}, "add up to 1"),
    ({"type": "OHEMPixelSampler"}, "unknown loss 'OHEMPixelSampler'"),
])
def test_wrong_arguments_say_what_is_accepted(block, text):
    with pytest.raises(ConfigError, match=text):
        LOSSES.build(block, "model.decode_head.loss_decode")


@pytest.mark.parametrize("loss, shapes, text", [
    (losses.DiceLoss(), ((1, 3, 4), (1, 4, 4)), "accepted"),
    (losses.FocalLoss(class_weight=[1.0, 2.0]), ((1, 3, 4, 4), (1, 4, 4)), "class_weight has 2 values"),
    (losses.LovaszLoss(loss_type="binary"), ((1, 3, 4, 4), (1, 4, 4)), "'binary' takes 1"),
    (losses.LovaszLoss(classes=[7]), ((1, 3, 4, 4), (1, 4, 4)), "names class 7"),
])
def test_wrong_shapes_say_what_came(loss, shapes, text):
    with pytest.raises(ValueError, match=text):
        loss(jt.zeros(shapes[0]), jt.zeros(shapes[1], dtype="int32"))


def test_region_losses_refuse_or_skip_pixel_weights(rng):
    logits, labels = jt.array(rng.standard_normal((1, 3, 4, 4)).astype(np.float32)), jt.zeros((1, 4, 4), dtype="int32")
    weight = jt.ones((1, 4, 4)) * 0.5
    with pytest.raises(ValueError, match="takes no pixel_weight"):
        losses.DiceLoss()(logits, labels, pixel_weight=weight)
    for loss in (losses.LovaszLoss(), losses.TverskyLoss()):
        assert loss(logits, labels, pixel_weight=weight).item() == loss(logits, labels).item()


def test_class_weights_from_files(tmp_path):
    np.save(tmp_path / "w.npy", np.array([1.0, 2.0]))
    (tmp_path / "w.json").write_text("[1.0, 2.0]")
    for name in ("w.npy", "w.json"):
        assert losses.CrossEntropyLoss(class_weight=str(tmp_path / name)).class_weight.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="neither .npy nor .json"):
        losses.CrossEntropyLoss(class_weight="w.pkl")


@pytest.mark.parametrize("block", [{"type": "CrossEntropyLoss", "use_sigmoid": True},
                                   {"type": "FocalLoss", "gamma": 0.0, "alpha": 0.5}],
                         ids=["sigmoid", "focal"])
def test_a_sum_over_millions_of_values_keeps_its_digits(block, rng):
    logits = rng.standard_normal((4, 8, 256, 384)).astype(np.float32)
    labels = rng.integers(0, 8, (4, 256, 384)).astype(np.int32)
    signed = logits.astype(np.float64) * np.where(labels[:, None] == np.arange(8).reshape(1, 8, 1, 1), -1, 1)
    expected = np.log1p(np.exp(signed)).mean() * block.get("alpha", 1.0)
    assert LOSSES.build(block)(jt.array(logits), jt.array(labels)).item() == pytest.approx(expected, rel=2e-6)


def test_presence_of_classes(rng):
    labels = rng.choice([0, 2, 3, 7, 255], (3, 5, 6)).astype(np.int32)
    labels[1] = 255
    expected = [[float((picture == k).any()) for k in range(5)] for picture in labels]
    np.testing.assert_array_equal(class_presence(labels, 5), np.array(expected, np.float32))
    np.testing.assert_array_equal(class_presence(labels, 5, ignore_index=2)[:, 2], 0.0)


@pytest.mark.parametrize(
    "words", [{}, {"reduction": "sum", "loss_weight": 0.2}, {"class_weight": [1.0, 2.0, 0.5]}], ids=str)
def test_cross_entropy_of_elements_in_float64(words, rng):
    logits, targets = rng.standard_normal((4, 3)).astype(np.float32), (rng.random((4, 3)) < 0.5).astype(np.float32)
    share = 1 / (1 + np.exp(-logits.astype(np.float64)))
    weight = np.array(words.get("class_weight", [1.0] * 3))
    terms = -weight * targets * np.log(share) - (1 - targets) * np.log(1 - share)
    expected = words.get("loss_weight", 1.0) * (terms.sum() if words.get("reduction") == "sum" else terms.mean())
    value = losses.CrossEntropyLoss(use_sigmoid=True, **words).elements(jt.array(logits), jt.array(targets))
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_losses_without_a_form_for_elements_say_so():
    for loss in (losses.DiceLoss(), losses.CrossEntropyLoss()):
        with pytest.raises(ValueError, match="use_sigmoid: true"):
            loss.elements(jt.zeros((2, 3)), jt.zeros((2, 3)))
    with pytest.raises(ValueError, match="must be equal"):
        losses.CrossEntropyLoss(use_sigmoid=True).elements(jt.zeros((2, 3)), jt.zeros((2, 4)))
