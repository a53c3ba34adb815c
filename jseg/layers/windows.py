"""Maps cut into square windows and put together again, shifted and filled up where asked,
and the tables that attention in windows needs.

Papers: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, sec. 3.2; Chu
et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, sec. 3.2. Facts:
mmsegmentation 1.2.2, mmseg/models/backbones/swin.py (Apache-2.0).

Filling up, shifting and cutting are one gather, whose gradient is the gather of the way back; upstream runs three
operations.
"""

from __future__ import annotations

import functools

import jittor as jt
import numpy as np

__all__ = ["cut_windows", "from_windows", "relative_bias", "relative_index", "shift_mask", "to_windows",
           "window_counts"]


class _Gather(jt.Function):
    """Tokens by index, zeros for -1; every token is taken at most once, and `back` says where it went."""

    def execute(self, x, index, back):
        self.index, self.back = index, back
        return _take_tokens(x, index)

    def grad(self, dy):
        return _take_tokens(dy, self.back), None, None


def _take_tokens(x: jt.Var, index: np.ndarray) -> jt.Var:
    """(N, L, C) -> (N, len(index), C)."""
    n, _, c = x.shape
    return x.reindex([n, len(index), c], ["i0", "@e0(i1)", "i2"], extras=[jt.array(index)])


def to_windows(x: jt.Var, size: tuple[int, int], side: int, shift: int = 0, centred: bool = False) -> jt.Var:
    """Cut a map into windows of side x side, zeros below and to the right filling the last ones.

    Args:
        size: (H, W).
        side: of the windows, in tokens.
        shift: tokens by which the filled map is rolled up and left before it is cut, 0 <= shift < side.
        centred: fill up on all sides, one more below and to the right where the number is odd.
    Shape:
        x: (N, H * W, C) -> (N * windows, side * side, C), windows by row and column
    """
    order, back = _token_orders(*size, side, shift, centred)
    return _Gather.apply(x, order, back).reshape(-1, side * side, x.shape[2])


def from_windows(x: jt.Var, size: tuple[int, int], side: int, shift: int = 0, centred: bool = False) -> jt.Var:
    """The way back of `to_windows`. Shape: (N * windows, side * side, C) -> (N, H * W, C)."""
    order, back = _token_orders(*size, side, shift, centred)
    return _Gather.apply(x.reshape(-1, len(order), x.shape[2]), back, order)


def window_counts(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Windows along the rows and columns of a map."""
    return -(-size[0] // side), -(-size[1] // side)


@functools.lru_cache(maxsize=64)
def _token_orders(height: int, width: int, side: int, shift: int, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each token of the windows its place in the map, or -1; for each token of the map its place in the windows."""
    rows, columns = window_counts((height, width), side)
    places = np.full((rows * side, columns * side), -1, np.int32)
    top, left = ((rows * side - height) // 2, (columns * side - width) // 2) if centred else (0, 0)
    places[top:top + height, left:left + width] = np.arange(height * width).reshape(height, width)
    order = cut_windows(np.roll(places, (-shift, -shift), (0, 1)), side).reshape(-1)
    back = np.empty(height * width, np.int32)
    inside = order >= 0
    back[order[inside]] = np.flatnonzero(inside)
    return order, back


def cut_windows(values: np.ndarray, side: int) -> np.ndarray:
    """Cut an array (h * side, w * side) into (h * w, side * side), windows by row and column."""
    h, w = values.shape[0] // side, values.shape[1] // side
    return np.ascontiguousarray(values.reshape(h, side, w, side).transpose(0, 2, 1, 3).reshape(h * w, side * side))


@functools.lru_cache(maxsize=64)
def shift_mask(height: int, width: int, side: int, shift: int) -> np.ndarray:
    """What is added to the scores of shifted windows: -100 between tokens that were no neighbours before the roll.

    Returns:
        (windows, side * side, side * side) float32, 0 or -100.
    """
    rows, columns = window_counts((height, width), side)
    parts = [np.searchsorted([count * side - side, count * side - shift], np.arange(count * side), side="right")
             for count in (rows, columns)]
    regions = cut_windows(parts[0][:, None] * 3 + parts[1][None, :], side)
    return np.where(regions[:, :, None] != regions[:, None, :], np.float32(-100), np.float32(0))


@functools.lru_cache(maxsize=32)
def relative_index(height: int, width: int) -> np.ndarray:
    """Row in a table of (2 height - 1)(2 width - 1) relative positions for each pair of tokens of a window.

    Returns:
        (height * width, height * width) int64, query first.
    """
    rows, columns = (np.arange(length)[:, None] - np.arange(length)[None, :] + length - 1 for length in (height, width))
    index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]  # (h, w, h, w)
    return index.reshape(height * width, height * width)


def relative_bias(table: jt.Var, index: jt.Var) -> jt.Var:
    """What a table of relative positions adds to the scores.

    Shape:
        table: (T, G), a value for each relative position and head; index: (L, M), rows of the table, as whole numbers
        of any type -> (G, L, M)
    """
    return table.reindex([table.shape[1], *index.shape], ["@e0(i1,i2)", "i0"], extras=[index.int32()])
