"""A confusion matrix as an SVG heat map, and the mistakes in it as a list."""

from __future__ import annotations

import html
from typing import Sequence

import numpy as np

__all__ = ["heat_map", "top_mistakes", "row_shares"]

NUMBERS_UP_TO = 24   # classes; with more, cells carry no numbers
NAMES_UP_TO = 60     # classes; with more, the axes carry no names


def row_shares(confusion: Sequence[Sequence[int]]) -> np.ndarray:
    """Return each row divided by its sum: (K, K) float64, zeros for a class without pixels."""
    counts = np.asarray(confusion, np.float64)
    return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def heat_map(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Draw the matrix, row = truth, column = prediction, shade = share of the true class's pixels.

    Returns:
        One `<svg>` element; cells have tooltips. Hits use the page's accent colour, mistakes its warning colour.
    """
    shares, k = row_shares(confusion), len(classes)
    cell = max(5, min(44, 520 // k if k < 20 else 900 // k))
    named = k <= NAMES_UP_TO
    margin = 16 + (max(min(len(name), 18) for name in classes) * 6.4 if named else 0)
    left, top, side = margin, margin, cell * k
    width = left + max(side, 210) + 8  # the line below the matrix needs about 210
    parts = [f'<svg class="matrix" viewBox="0 0 {width:.0f} {top + side + 24:.0f}" '
             f'style="max-width:{width:.0f}px" role="img" aria-label="confusion matrix">']
    for i in range(k):
        for j in range(k):
            if shares[i, j] >= 0.0005:
                parts.append(_cell(shares[i, j], classes[i], classes[j], left + j * cell, top + i * cell,
                                   cell, i == j, k))
    if named:
        size = min(11, cell - 1)
        for i, name in enumerate(classes):
            short, middle = html.escape(name if len(name) <= 18 else name[:17] + "…"), i * cell + cell / 2
            row = f'x="{left - 6:.1f}" y="{top + middle + 3.5:.1f}" text-anchor="end"'
            column = f'transform="translate({left + middle + 3.5:.1f} {top - 6:.1f}) rotate(-90)"'
            parts += [f'<text class="tick" style="font-size:{size}px" {place}>{short}</text>'
                      for place in (row, column)]
    parts.append(f'<rect class="edge" x="{left:.1f}" y="{top:.1f}" width="{side}" height="{side}"/>'
                 f'<text class="axis" x="{left:.1f}" y="{top + side + 18:.1f}">predicted class (rows: true '
                 'class)</text></svg>')
    return "".join(parts)


def _cell(share: float, truth: str, guess: str, x: float, y: float, size: int, hit: bool, k: int) -> str:
    kind = "hit" if hit else "miss"
    tip = f"{truth}: {100 * share:.1f} % {'found' if hit else 'taken for ' + guess}"
    tip = f"<title>{html.escape(tip)}</title>" if k <= NAMES_UP_TO or share >= 0.02 else ""
    box = (f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{size}" height="{size}" '
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
