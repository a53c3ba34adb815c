"""Metrics against mmsegmentation's numbers and brute-force counts."""

import importlib.util
import math
import pathlib

import cv2
import numpy as np
import pytest

from jseg.errors import DataError
from jseg.metrics import BoundaryIoU, ConfusionMatrix, SmallTargets, mask_boundary

_spec = importlib.util.spec_from_file_location("losses_mmseg",
                                               pathlib.Path(__file__).parent / "parity" / "losses_mmseg.py")
parity = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity)


def fill(counts, pred, label):
    """Feed pictures one by one."""
    for p, t in zip(pred, label):
        counts.update(p, t)
    return counts


@pytest.fixture
def maps(rng):
    """Predictions and labels (3, 20, 30) with 4 classes and ignored areas."""
    pred, label = rng.integers(0, 4, (2, 3, 5, 6)).repeat(4, 2).repeat(5, 3).astype(np.uint8)
    label[:, :3] = 255
    return pred, label


def test_scores_are_mmsegs():
    with np.load(parity.GOLDEN) as file:
        golden = {key: file[key] for key in file.files if key.startswith("metric.") or key == "hash"}
    assert str(golden["hash"]) == parity.script_hash(), ("stale golden file: run python tests/parity/losses_mmseg.py "
                                                         "again")
    result = fill(ConfusionMatrix(7), golden["metric.pred"], golden["metric.label"]).compute(beta=2)
    assert result["metrics"]["aAcc"] == pytest.approx(float(golden["metric.aAcc"]), rel=1e-6)
    for key, value in result["per_class"].items():
        np.testing.assert_allclose(value, golden[f"metric.{key}"], rtol=1e-6, err_msg=key)
        assert result["metrics"][f"m{key}"] == pytest.approx(float(np.nanmean(golden[f"metric.{key}"])), rel=1e-6)
    assert np.isnan(result["per_class"]["IoU"][5]) and result["per_class"]["IoU"][6] == 0


def test_counts_are_brute_force_counts(maps):
    pred, label = maps
    counts = fill(ConfusionMatrix(4), pred, label)
    expected = np.zeros((4, 4), int)
    for p, t in zip(pred.ravel(), label.ravel()):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(counts.matrix, expected)
    assert counts.matrix.dtype == np.int64


def test_parts_add_up(maps):
    pred, label = maps
    whole = fill(ConfusionMatrix(4), pred, label)
    parts = fill(ConfusionMatrix(4), pred[:1], label[:1]) + fill(ConfusionMatrix(4), pred[1:], label[1:])
    np.testing.assert_array_equal(whole.matrix, parts.matrix)
    whole = fill(BoundaryIoU(4), pred, label)
    parts = fill(BoundaryIoU(4), pred[:1], label[:1]) + fill(BoundaryIoU(4), pred[1:], label[1:])
    assert (whole.intersection == parts.intersection).all() and (whole.union == parts.union).all()
    with pytest.raises(ValueError, match="cannot add confusion matrices of 4 and 5 classes"):
        ConfusionMatrix(4) + ConfusionMatrix(5)
    with pytest.raises(ValueError, match="cannot add boundary counts"):
        BoundaryIoU(4) + BoundaryIoU(4, dilation_ratio=0.1)


def test_nothing_counted_gives_nan_without_warnings():
    result = ConfusionMatrix(3).compute()
    assert all(math.isnan(v) for v in result["metrics"].values())
    assert math.isnan(BoundaryIoU(3).compute()["metrics"]["mBoundaryIoU"])


def test_ignore_index_inside_the_classes():
    counts = ConfusionMatrix(3, ignore_index=0)
    counts.update(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    assert counts.matrix.sum() == 2 and np.isnan(counts.compute()["per_class"]["IoU"][0])


@pytest.mark.parametrize("pred, label, text", [
    ([[0, 1]], [[0, 7]], r"a.png: label 7 at \(0, 1\), accepted 0..2 and 255"),
    ([[0, 1]], [[-1, 0]], "label -1"),
    ([[0, 5]], [[0, 1]], "prediction has class 5, accepted 0..2"),
    ([[0, 1]], [[0], [1]], "both must cover the same pixels"),
    ([[0.0, 1.0]], [[0, 1]], "integer class maps"),
])
def test_impossible_maps_are_errors(pred, label, text):
    for counts in (ConfusionMatrix(3), BoundaryIoU(3), SmallTargets(3)):
        if "prediction has class" in text and not isinstance(counts, ConfusionMatrix):
            continue
        with pytest.raises(DataError, match=text):
            counts.update(np.array(pred), np.array(label), name="a.png")


def test_prediction_under_ignored_pixels_does_not_matter(maps):
    pred, label = maps
    other = np.where(label == 255, 200, pred).astype(np.uint8)
    np.testing.assert_array_equal(fill(ConfusionMatrix(4), pred, label).matrix,
                                  fill(ConfusionMatrix(4), other, label).matrix)
    np.testing.assert_array_equal(fill(BoundaryIoU(4), pred, label).union, fill(BoundaryIoU(4), other, label).union)


def test_unknown_metric_and_beta():
    with pytest.raises(ValueError, match="unknown metric 'IoU', accepted: mIoU, mDice, mFscore"):
        ConfusionMatrix(2).compute(["IoU"])
    with pytest.raises(ValueError, match="beta"):
        ConfusionMatrix(2).compute(beta=0)


def brute_band(mask, distance):
    """Pixels of the mask with a background or outside pixel within the chessboard distance."""
    h, w = mask.shape
    band = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                band[y, x] |= not (0 <= v < h and 0 <= u < w and mask[v, u])
    return band


@pytest.mark.parametrize("distance", [1, 2, 3, 40])
def test_bands_are_brute_force_bands(distance, rng):
    mask = cv2.resize(rng.random((5, 6)).astype(np.float32), (23, 17)) > 0.4
    np.testing.assert_array_equal(mask_boundary(mask, distance), brute_band(mask, min(distance, 25)))
    full = np.ones((9, 11), bool)
    np.testing.assert_array_equal(mask_boundary(full, distance), brute_band(full, min(distance, 12)))


def test_boundary_iou_is_the_sum_over_pictures(maps):
    pred, label = maps
    result = fill(BoundaryIoU(5, dilation_ratio=0.05), pred, label).compute()
    distance = round(0.05 * math.hypot(20, 30))
    for k in range(4):
        both = either = 0
        for p, t in zip(pred, label):
            a, b = brute_band((t == k), distance), brute_band((p == k) & (t != 255), distance)
            both, either = both + (a & b).sum(), either + (a | b).sum()
        assert result["per_class"]["BoundaryIoU"][k] == pytest.approx(both / either)
    assert np.isnan(result["per_class"]["BoundaryIoU"][4])
    assert result["metrics"]["mBoundaryIoU"] == pytest.approx(result["per_class"]["BoundaryIoU"][:4].mean())


def test_a_perfect_prediction_scores_one(maps):
    _, label = maps
    perfect = np.where(label == 255, 0, label)
    assert fill(BoundaryIoU(4), perfect, label).compute()["metrics"]["mBoundaryIoU"] == 1.0
    assert fill(ConfusionMatrix(4), perfect, label).compute()["metrics"]["mIoU"] == 1.0


def flooded_areas(mask):
    """The areas of a mask by flooding, in the order of their first pixels: lists of (row, column)."""
    areas, left = [], {tuple(place) for place in np.argwhere(mask).tolist()}
    for start in sorted(left):
        if start in left:
            left.remove(start)
            area, open_places = [], [start]
            while open_places:
                y, x = open_places.pop()
                area.append((y, x))
                around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
                left -= around
                open_places += around
            areas.append(area)
    return areas


def centre_of(area):
    """Mean row and column."""
    return sum(y for y, _ in area) / len(area), sum(x for _, x in area) / len(area)


def counted_targets(pred, label, k, distance):
    """(targets, detected, pixels of false alarms) of class k in one picture, by plain loops."""
    guesses = flooded_areas((pred == k) & (label != 255))
    targets, detected = flooded_areas(label == k), 0
    for target in targets:
        for guess in guesses:
            if math.dist(centre_of(target), centre_of(guess)) < distance:
                detected += 1
                guesses.remove(guess)
                break
    return len(targets), detected, sum(map(len, guesses))


def dots(rng, shape=(40, 50), count=25):
    """A map of small blobs of classes 1 and 2 on a background of 0."""
    sky = np.zeros(shape, np.uint8)
    for y, x, h, w in zip(rng.integers(0, shape[0], count), rng.integers(0, shape[1], count),
                          *rng.integers(1, 4, (2, count))):
        sky[y:y + h, x:x + w] = rng.integers(1, 3)
    return sky


@pytest.mark.parametrize("distance", [1.5, 3, 10])
def test_small_targets_are_those_of_plain_loops(distance, rng):
    pairs, halves = [], [SmallTargets(3, distance_px=distance) for _ in range(2)]
    for i in range(6):
        label = dots(rng)
        pred = np.roll(label, rng.integers(0, 3, 2), (0, 1)) * (rng.random(label.shape) < 0.9)
        pred[rng.random(label.shape) < 0.01] = 1
        label[30:36, :20] = 255
        pairs.append((pred, label))
        halves[i % 2].update(pred, label)
    halves[0].join(lambda counts: counts + getattr(halves[1], next(
        name for name, own in vars(halves[0]).items() if own is counts)))
    result = halves[0].compute()
    counted = {k: np.sum([counted_targets(*pair, k, distance) for pair in pairs], axis=0) for k in (1, 2)}
    pixels = sum(int((label != 255).sum()) for _, label in pairs)
    for k, (targets, detected, false) in counted.items():
        assert result["per_class"]["Pd"][k] == detected / targets and result["per_class"]["Fa"][k] == false / pixels
    targets, detected, false = sum(counted.values())
    assert targets > 40 and 0 < detected < targets and false > 0
    assert result["metrics"] == {"Pd": detected / targets, "Fa": false / pixels}
    assert np.isnan(result["per_class"]["Pd"][0]) and np.isnan(result["per_class"]["Fa"][0])


def test_small_targets_by_hand():
    """Three targets; one area 2 pixels off, one 3 (too far), one joined by a corner, and a lone false pixel."""
    label, pred = np.zeros((2, 20, 30), np.uint8)
    label[2:4, 2:4] = label[2:4, 12:14] = label[10, 10] = label[11, 11] = 1
    pred[2:4, 4:6] = pred[5:7, 12:14] = pred[10, 10] = pred[11, 11] = pred[18, 28] = 1
    counts = SmallTargets(2)
    counts.update(pred, label)
    assert counts.compute()["metrics"] == {"Pd": 2 / 3, "Fa": 5 / 600}
    other = SmallTargets(2, background=1)  # the same picture seen the other way round: classes named in reverse
    other.update(1 - pred, 1 - label)
    assert other.compute()["per_class"]["Pd"][0] == 2 / 3
    empty = SmallTargets(2)
    empty.update(pred * 0, label * 0)
    assert math.isnan(empty.compute()["metrics"]["Pd"]) and empty.compute()["metrics"]["Fa"] == 0
    for wrong in ({"distance_px": 0}, {"background": 2}):
        with pytest.raises(ValueError, match="SmallTargets"):
            SmallTargets(2, **wrong)
