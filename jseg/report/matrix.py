"""A confusion matrix as an SVG heat map, and the mistakes in it as a list."""

from __future__ import annotations

import html
from typing import Sequence

import numpy as np

__all__ = ["heat_map", "top_mistakes", "row_shares"]

NUMBERS_UP_TO = 24  # classes; with more, cells carry no numbers, and the matrix scrolls in a box of its own
TIPS_UP_TO = 60     # classes; with more, small shares carry no tooltip


def row_shares(confusion: Sequence[Sequence[int]]) -> np.ndarray:
    """Return each row divided by its sum: (K, K) float64, zeros for a class without pixels."""
    counts = np.asarray(confusion, np.float64)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def heat_map(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw the matrix, row = truth, column = prediction, shade = share of the true class's pixels.

    Cells keep their size on every screen; where they do not fit, they scroll under names that stay in sight.

    Returns:
        One `<div>` element: names of the rows and columns beside an `<svg>`, whose cells have tooltips. Hits use the
        page's accent colour, mistakes its warning colour.
    """
    shares, k = row_shares(confusion), len(classes)
    cell = max(24, min(44, 520 // k)) if k <= NUMBERS_UP_TO else max(12, 640 // k)
    side = cell * k
    cells = "".join(_cell(shares[i, j], classes[i], classes[j], j * cell, i * cell, cell, i == j, k)
                    for i in range(k) for j in range(k) if shares[i, j] >= 0.0005)
    names = "".join(f'<span title="{html.escape(name)}">{html.escape(name)}</span>' for name in classes)
    tall = " tall" if k > NUMBERS_UP_TO else ""
    return (f'<div class="heat{tall}" style="--cell:{cell}px" role="group" tabindex="0" '
            f'aria-label="confusion matrix"><div class="corner"></div><div class="columns">{names}</div>'
            f'<div class="rows">{names}</div><svg class="matrix" width="{side}" height="{side}" '
            f'viewBox="0 0 {side} {side}" role="img" aria-label="rows: true class, columns: predicted class">{cells}'
            f'<rect class="edge" width="{side}" height="{side}"/></svg></div>')


def _cell(share: float, truth: str, guess: str, x: int, y: int, size: int, hit: bool, k: int) -> str:
    kind = "hit" if hit else "miss"
    tip = f"{truth}: {100 * share:.1f} % {'found' if hit else 'taken for ' + guess}"
    tip = f"<title>{html.escape(tip)}</title>" if k <= TIPS_UP_TO or share >= 0.02 else ""
    box = (f'<rect class="{kind}" x="{x}" y="{y}" width="{size}" height="{size}" '
           f'fill-opacity="{min(1.0, share ** 0.7):.3f}">{tip}</rect>')
    if k > NUMBERS_UP_TO or share < 0.005:
        return box
    dark = " on" if share > 0.45 else ""
    return box + (f'<text class="number{dark}" x="{x + size / 2:.1f}" y="{y + size / 2 + 4:.1f}" '
                  f'text-anchor="middle">{100 * share:.0f}</text>')


def top_mistakes(confusion: Sequence[Sequence[int]], classes: Sequence[str], count: int = 10) -> list[
    tuple[str, str, float, float]]:
    """List the mistakes that cover the most pixels: (true class, predicted class,
    share of the class, share of all pixels).
    """
    counts = np.asarray(confusion, np.float64)
    shares, total = row_shares(confusion), max(counts.sum(), 1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    return [(classes[i], classes[j], float(shares[i, j]), float(counts[i, j] / total))
            for i, j in pairs if wrong[i, j] > 0]
