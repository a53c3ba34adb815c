"""Targets made from label maps, against loops in NumPy."""

import jittor as jt
import numpy as np
import pytest

from jseg.losses.targets import detail_map, edge_map

LAPLACIAN = np.array([-1, -1, -1, -1, 8, -1, -1, -1, -1], np.float32).reshape(1, 1, 3, 3)
FUSION = np.array([0.6, 0.3, 0.1], np.float32).reshape(1, 3, 1, 1)


def blocks(rng, h: int, w: int) -> np.ndarray:
    """(2, h, w) labels in blocks of 5 pixels, some ignored."""
    coarse = rng.integers(0, 4, (2, -(-h // 5), -(-w // 5)))
    labels = np.kron(coarse, np.ones((5, 5), np.int32))[:, :h, :w].astype(np.int32)
    return np.where(rng.random(labels.shape) < 0.05, 255, labels).astype(np.int32)


def edges_by_loops(labels: np.ndarray, width: int) -> np.ndarray:
    n, h, w = labels.shape
    thin = np.zeros((n, h, w), np.int32)
    for b, y, x in np.ndindex(n, h, w):
        for down, right in ((-1, 0), (0, 1), (1, 1), (1, -1)):
            i, j = y + down, x + right
            if (0 <= i < h and 0 <= j < w and 255 not in (labels[b, y, x], labels[b, i, j])
                and labels[b, y, x] != labels[b, i, j]):
                thin[b, y, x] = 1
    thick = np.zeros_like(thin)
    for b, y, x in np.argwhere(thin):
        first, last = width - 1 - width // 2, width // 2  # the window of a pixel begins width // 2 before it
        thick[b, max(y - first, 0):y + last + 1, max(x - first, 0):x + last + 1] = 1
    return thick


def details_by_loops(labels: np.ndarray, laplacian, fusion, threshold: float = 0.1) -> np.ndarray:
    n, h, w = labels.shape
    padded = np.pad(labels.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    total = np.zeros((n, h, w))
    for i, stride in enumerate((1, 2, 4)):
        rows, columns = -(-h // stride), -(-w // stride)
        response = np.zeros((n, rows, columns))
        for b, y, x in np.ndindex(n, rows, columns):
            response[b, y, x] = (padded[b, y * stride:y * stride + 3,
                                        x * stride:x * stride + 3] * laplacian[0, 0]).sum() > threshold
        for b, y, x in np.ndindex(n, h, w):
            total[b, y, x] += float(fusion[0, i, 0, 0]) * response[b, int(y * rows / h), int(x * columns / w)]
    return (total > np.float32(threshold)).astype(np.int32)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_edges(width, rng):
    labels = blocks(rng, 17, 23)
    found = edge_map(jt.array(labels), width=width).numpy()
    expected = edges_by_loops(labels, width)
    assert found.dtype == np.int32 and 0 < expected.mean() < 1
    np.testing.assert_array_equal(found, expected)


def test_edges_are_those_of_opencv(rng):
    """The transform's dilation, from where the anchor of an even kernel is known."""
    cv2 = pytest.importorskip("cv2")
    labels = blocks(rng, 19, 21)
    thin = edge_map(jt.array(labels), width=1).numpy().astype(np.uint8)
    for width in (2, 3, 4):
        kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (width, width))
        expected = np.stack([cv2.dilate(picture, kernel) for picture in thin])
        np.testing.assert_array_equal(edge_map(jt.array(labels), width=width).numpy(), expected)


def test_edges_of_nothing():
    assert not edge_map(jt.full((1, 6, 6), 255).int32()).numpy().any()
    assert not edge_map(jt.ones((1, 6, 6)).int32()).numpy().any()
    with pytest.raises(ValueError, match="width is 0"):
        edge_map(jt.ones((1, 6, 6)).int32(), width=0)


@pytest.mark.parametrize(("h", "w"), [(16, 24), (17, 23), (3, 5)])
def test_details(h, w, rng):
    labels = blocks(rng, h, w)
    found = detail_map(jt.array(labels), jt.array(LAPLACIAN), jt.array(FUSION)).numpy()
    expected = details_by_loops(labels, LAPLACIAN.astype(np.float64), FUSION.astype(np.float64) * (1 - 1e-6))
    assert found.dtype == np.int32 and 0 < expected.mean() < 1
    np.testing.assert_array_equal(found, expected)


def test_details_with_other_filters(rng):
    laplacian, fusion = (rng.standard_normal((1, 1, 3, 3)).astype(np.float32),
                         rng.standard_normal((1, 3, 1, 1)).astype(np.float32))
    labels = blocks(rng, 16, 16)
    found = detail_map(jt.array(labels), jt.array(laplacian), jt.array(fusion), threshold=0.3).numpy()
    np.testing.assert_array_equal(found, details_by_loops(labels, laplacian, fusion, 0.3))


def test_the_coarsest_scale_alone_is_no_detail():
    labels = np.zeros((1, 8, 8), np.int32)
    labels[0, 4, 4] = 1
    found = detail_map(jt.array(labels), jt.array(LAPLACIAN), jt.array(FUSION)).numpy()[0]
    # the pixel of scale 1 and the two by two of scale 2, not the four by four of scale 4
    assert found.sum() == 4 and found[4:6, 4:6].all()
