"""Metrics against mmsegmentation's numbers and brute-force counts."""

import importlib.util
import math
import pathlib

import cv2
import numpy as np
import pytest

from jseg.errors import DataError
from jseg.metrics import BoundaryIoU, ConfusionMatrix, mask_boundary

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
    for counts in (ConfusionMatrix(3), BoundaryIoU(3)):
        if "prediction has class" in text and isinstance(counts, BoundaryIoU):
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
