"""Who answers for what: the cheapest one-to-one assignment of predictions to targets.

Papers: Kuhn, "The Hungarian Method for the Assignment Problem", 1955; Crouse, "On Implementing 2D Rectangular
Assignment Algorithms", IEEE Trans. AES 52(4), 2016 (shortest augmenting paths, as in SciPy's `linear_sum_assignment`).
Written out here rather than taken from SciPy: neither Jittor nor jseg needs SciPy otherwise, a picture has a few dozen
classes, and the loop below takes about a millisecond for them.
"""

from __future__ import annotations

import numpy as np

__all__ = ["linear_sum_assignment"]


def linear_sum_assignment(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the assignment whose costs have the least sum.

    Args:
        cost: (R, C) numbers, all finite.
    Returns:
        rows in rising order, and the column of each: (min(R, C),) int64 both.
    Raises:
        ValueError: `cost` is no matrix, or a value is NaN or infinite.
    """
    cost = np.asarray(cost, np.float64)
    if cost.ndim != 2:
        raise ValueError(f"linear_sum_assignment: cost is {cost.shape}; accepted: (rows, columns)")
    if not np.isfinite(cost).all():
        raise ValueError("linear_sum_assignment: a cost is NaN or infinite; the predictions have diverged, lower the "
                         "learning rate")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = linear_sum_assignment(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count, width = cost.shape
    row_price, column_price = np.zeros(count), np.zeros(width)
    row_of, column_of = np.full(width, -1), np.full(count, -1)
    for row in range(count):
        reached, length, before = _shortest_path(cost, row, row_price, column_price, row_of)
        end = reached[-1]
        inner = reached[:-1]
        row_price[row] += length[end]
        row_price[row_of[inner]] += length[end] - length[inner]
        column_price[reached] -= length[end] - length[reached]
        column = end  # give every column of the path to the row before it
        while column >= 0:
            owner = before[column]
            row_of[column] = owner
            column_of[owner], column = column, column_of[owner]
    return np.arange(count), column_of


def _shortest_path(cost: np.ndarray, row: int, row_price: np.ndarray, column_price: np.ndarray,
                   row_of: np.ndarray) -> tuple:
    """Dijkstra's way from a row to the nearest free column:
    columns in the order they were reached, lengths, and the row before each.
    """
    width = cost.shape[1]
    length, before, is_open = np.full(width, np.inf), np.full(width, -1), np.ones(width, bool)
    reached, low = [], 0.0
    while True:
        through = low + cost[row] - row_price[row] - column_price
        better = is_open & (through < length)
        length[better], before[better] = through[better], row
        column = int(np.argmin(np.where(is_open, length, np.inf)))
        low = length[column]
        is_open[column] = False
        reached.append(column)
        if row_of[column] < 0:
            return np.array(reached), length, before
        row = row_of[column]
