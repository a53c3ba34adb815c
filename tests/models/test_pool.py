"""Pooling against windows cut one by one in NumPy, the facts of which are PyTorch's."""

import jittor as jt
import numpy as np
import pytest

from jseg.layers import adaptive_avg_pool, adaptive_max_pool, avg_pool, max_pool

pytestmark = pytest.mark.usefixtures("few_kernels")


def cut(x: np.ndarray, kernel: int, stride: int, padding: int, fill: float) -> np.ndarray:
    """Every window, (N, C, H', W', kernel * kernel)."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)], constant_values=fill)
    h, w = ((side - kernel) // stride + 1 for side in x.shape[2:])
    rows = [np.stack([x[:, :, i * stride:i * stride + kernel, j * stride:j * stride + kernel].reshape(*x.shape[:2], -1)
                      for j in range(w)], 2) for i in range(h)]
    return np.stack(rows, 2)


@pytest.mark.parametrize("size", [(5, 7), (3, 6), (2, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_windows_that_reach_into_the_padding(size, stride, rng):
    x = rng.standard_normal((2, 3, *size)).astype(np.float32)
    windows = {fill: cut(x.astype(np.float64), 3, stride, 1, fill) for fill in (0.0, np.nan, -np.inf)}
    for got, want in ((avg_pool(jt.array(x), 3, stride=stride, padding=1), windows[0.0].mean(-1)),
                      (avg_pool(jt.array(x), 3, stride=stride, padding=1, count_include_pad=False),
                       np.nanmean(windows[np.nan], -1)),
                      (max_pool(jt.array(x), 3, stride=stride, padding=1), windows[-np.inf].max(-1))):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 5), (8, 10), (3, 7), (9, 12), (1, 1)], ids=str)
def test_grids_of_any_size(grid, rng):
    x = rng.standard_normal((2, 3, 8, 10)).astype(np.float32)
    cells = [[(i * side // count, -(-(i + 1) * side // count)) for i in range(count)]
             for side, count in zip((8, 10), grid)]
    for pool, reduce in ((adaptive_avg_pool, np.mean), (adaptive_max_pool, np.max)):
        want = [[reduce(x[:, :, a:b, c:d].astype(np.float64), (2, 3)) for c, d in cells[1]] for a, b in cells[0]]
        np.testing.assert_allclose(pool(jt.array(x), grid).numpy(), np.array(want).transpose(2, 3, 0, 1), atol=1e-6)
