"""Pooling with PyTorch's windows: maximum, mean, and means over a grid of any size."""

from __future__ import annotations

import functools

import jittor as jt
import numpy as np
from jittor import nn

__all__ = ["adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "halve_map", "max_pool", "pool_to_size",
           "window_means"]


def max_pool(x: jt.Var, kernel_size: int, *, stride: int | None = None, padding: int = 0,
             ceil_mode: bool = False) -> jt.Var:
    """Largest value of each window, as PyTorch's MaxPool2d; padding never wins.
    Shape: (N, C, H, W) -> (N, C, H', W').
    """
    return _pool_windows(x, kernel_size, stride, padding, ceil_mode, "maximum")


def halve_map(x: jt.Var, *, ceil_mode: bool = False) -> jt.Var:
    """Largest value of each 2x2 window, where PyTorch's MaxPool2d leaves nothing of a side of 1: that stays 1.
    Shape: (N, C, H, W) -> (N, C, H // 2, W // 2), rounded up in `ceil_mode` or where a side is 1.
    """
    return max_pool(x, 2, stride=2, ceil_mode=ceil_mode or any(side < 2 for side in x.shape[2:]))


def pool_to_size(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """Largest values of windows of one size, which make a map of `size`; zeros on all sides fill it up to whole
    windows (they count, as in MMCV's merging cells).

    Shape:
        x: (N, C, H, W) -> (N, C, h, w), windows of ceil(H / h) x ceil(W / w)
    """
    edges, windows = [], []
    for side, cells in zip(x.shape[2:], size):
        missing = -(-side // cells) * cells - side
        edges = [missing // 2, missing - missing // 2, *edges]  # the width's come first
        windows += [cells, (side + missing) // cells]
    x = nn.pad(x, edges) if any(edges) else x
    return x.reshape(*x.shape[:2], *windows).max([3, 5])


def avg_pool(x: jt.Var, kernel_size: int, *, stride: int | None = None, padding: int = 0, ceil_mode: bool = False,
             count_include_pad: bool = True) -> jt.Var:
    """Mean of each window, as PyTorch's AvgPool2d. Shape: (N, C, H, W) -> (N, C, H', W').

    Where windows reach into the padding, Jittor's operator counts it whatever it is told, unless in `ceil_mode`: there
    its means are scaled up.
    """
    y = _pool_windows(x, kernel_size, stride, padding, ceil_mode, "mean", count_include_pad)
    if count_include_pad or ceil_mode or not padding or min(x.shape[2:]) <= kernel_size:
        return y
    for axis in (2, 3):
        spans = _window_spans(x.shape[axis], kernel_size, stride or kernel_size, padding, False)
        inside = [end - begin for begin, end, _ in spans]
        factors = jt.array((kernel_size / np.array(inside)).astype(np.float32)).stop_grad()
        y = y * factors.reshape((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1))
    return y


def adaptive_avg_pool(x: jt.Var, size: int | tuple[int, int]) -> jt.Var:
    """Means over a grid of `size` cells, whose edges are PyTorch's AdaptiveAvgPool2d's:
    floor(i H / h) to ceil((i + 1) H / h).

    Shape:
        x: (N, C, H, W) -> (N, C, h, w); h and w may exceed H and W.
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    n, c, h, w = x.shape
    if (rows, columns) == (1, 1):
        return x.mean([2, 3], keepdims=True)
    if (rows, columns) == (h, w):
        return x
    return _weighted_sums(x, _cell_shares(h, rows), _cell_shares(w, columns))


def adaptive_max_pool(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """Largest values over the grid of `adaptive_avg_pool`. Shape: (N, C, H, W) -> (N, C, h, w)."""
    for axis, cells in zip((2, 3), size):
        length = x.shape[axis]
        if cells == length:
            continue
        if length % cells == 0:
            x = x.reshape(*x.shape[:axis], cells, length // cells, *x.shape[axis + 1:]).max(axis + 1)
            continue
        begin = np.arange(cells) * length // cells
        end = -(-(np.arange(cells) + 1) * length // cells)
        places = np.minimum(begin[:, None] + np.arange((end - begin).max()), end[:, None] - 1).astype(np.int32)
        x = x[:, :, jt.array(places)].max(3) if axis == 2 else x[:, :, :, jt.array(places)].max(4)
    return x


def window_means(x: jt.Var, kernel_size: tuple[int, int], stride: tuple[int, int]) -> jt.Var:
    """Means of large windows, as PyTorch's AvgPool2d without padding; a window is cut to a map that is smaller.

    Shape:
        x: (N, C, H, W) -> (N, C, (H - kernel) // stride + 1, ...), at least 1
    """
    rows, columns = (_window_shares(side, min(kernel, side), step)
                     for side, kernel, step in zip(x.shape[2:], kernel_size, stride))
    return _weighted_sums(x, rows, columns)


def _weighted_sums(x: jt.Var, rows: np.ndarray, columns: np.ndarray) -> jt.Var:
    """rows x columns^T for each plane, as two matrix products. Shape: (N, C, H, W), (h, H), (w, W) -> (N, C, h, w)."""
    n, c, h, w = x.shape
    x = jt.matmul(x.reshape(n * c * h, w), jt.array(columns.T.copy()))  # (N*C*H, w)
    x = x.reshape(n * c, h, -1).transpose(0, 2, 1).reshape(-1, h)  # (N*C*w, H)
    return jt.matmul(x, jt.array(rows.T.copy())).reshape(n, c, -1, len(rows)).transpose(0, 1, 3, 2)  # (N, C, h, w)


@functools.lru_cache(maxsize=64)
def _window_shares(length: int, kernel: int, stride: int) -> np.ndarray:
    """(cells, length) float32: the share of each position in the mean of each window."""
    shares = np.zeros(((length - kernel) // stride + 1, length), np.float32)
    for i, row in enumerate(shares):
        row[i * stride:i * stride + kernel] = 1.0 / kernel
    return shares


@functools.lru_cache(maxsize=64)
def _cell_shares(length: int, cells: int) -> np.ndarray:
    """(cells, length) float32: the share of each position in the mean of each cell."""
    shares = np.zeros((cells, length), np.float32)
    for i in range(cells):
        begin, end = i * length // cells, -(-(i + 1) * length // cells)
        shares[i, begin:end] = 1.0 / (end - begin)
    return shares


def _pool_windows(x, kernel_size, stride, padding, ceil_mode, op, count_include_pad=True):
    """`op` ("maximum" or "mean") of each window, by Jittor's operator where it takes the map."""
    if min(x.shape[2:]) > kernel_size:
        return nn.Pool(kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode, op=op,
                       count_include_pad=count_include_pad)(x)
    return _pool_small_maps(x, kernel_size, stride or kernel_size, padding, ceil_mode, op, count_include_pad)


def _pool_small_maps(x, kernel_size, stride, padding, ceil_mode, op, count_include_pad):
    """Maps no larger than the window, which Jittor's operator refuses: one reduction for each window."""
    spans = [_window_spans(side, kernel_size, stride, padding, ceil_mode) for side in x.shape[2:]]
    lines = []
    for top, bottom, high in spans[0]:
        cells = []
        for left, right, wide in spans[1]:
            cell = x[:, :, top:bottom, left:right]
            if op == "maximum":
                cells.append(cell.max([2, 3], keepdims=True))
            else:
                cells.append(cell.sum([2, 3], keepdims=True) / (high * wide if count_include_pad
                                                                else (bottom - top) * (right - left)))
        lines.append(jt.concat(cells, 3))
    return jt.concat(lines, 2)


def _window_spans(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> list[tuple[int, int, int]]:
    """(begin, end, length with padding) of each window along one axis."""
    reach = length + 2 * padding - kernel
    count = (-(-reach // stride) if ceil_mode else reach // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + padding:
        count -= 1  # a window may not begin in the padding behind
    starts = [i * stride - padding for i in range(count)]
    return [(max(s, 0), min(s + kernel, length), min(s + kernel, length + padding) - s) for s in starts]
