"""Line charts as SVG text, without a plotting library.
Colours come from the page's CSS variables, so charts follow its theme.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from jseg.report.style import COLOURS, CSS

__all__ = ["Series", "colour_class", "line_chart", "stacked", "nice_ticks", "tick_text", "smooth"]

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 40
MAX_POINTS = 500


@dataclass
class Series:
    """One line of a chart.

    Args:
        name: for the legend.
        x, y: equally long; points whose y is None, NaN or infinite are left out.
        smoothed: draw the raw values faintly behind their moving average.
        dots: mark the points, with a tooltip each; for few points.
        colour: number of the line's colour; None: its place in the chart.
        faint: show the raw values behind a smoothed line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    smoothed: bool = False
    dots: bool = False
    colour: int | None = None
    faint: bool = True

    def points(self) -> np.ndarray:
        """Return the finite points, (P, 2) float64."""
        pairs = [(x, y) for x, y in zip(self.x, self.y) if y is not None and math.isfinite(y)]
        return np.asarray(pairs, np.float64).reshape(-1, 2)


def line_chart(series: Sequence[Series], *, x_label: str = "iteration", y_label: str = "", percent: bool = False,
               from_zero: bool = False, key: bool = True) -> str:
    """Draw series over a shared axis and return one `<svg>` element.

    Args:
        x_label, y_label: axis titles.
        percent: y values are ratios; ticks read as percent.
        from_zero: the y axis starts at 0.
        key: name the lines in the chart.
    Returns:
        SVG text with `viewBox`, so it scales to its container; a note instead of lines when no point is finite.
    """
    curves = [(s, _thinned(s.points())) for s in series]
    drawn = [points for _, points in curves if len(points)]
    head = (f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_safe(y_label)} over '
            f'{_safe(x_label)}">')
    if not drawn:
        return (f'{head}<text class="tick" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">nothing '
                'logged</text></svg>')
    every = np.concatenate(drawn)
    visible = np.concatenate([_shown_range(s, points) for s, points in curves if len(points)])
    x_range = (min(0.0, every[:, 0].min()), max(every[:, 0].max(), 1e-9))
    x_ticks = nice_ticks(*x_range)
    y_ticks = nice_ticks(0.0 if from_zero else visible.min(), visible.max())
    frame = _Frame(x_range, (y_ticks[0], y_ticks[-1]))
    parts = [head, *_grid(frame, x_ticks, y_ticks, percent), *_titles(x_label, y_label)]
    for i, (one, points) in enumerate(curves):
        if len(points):
            parts += _curve(one, points, frame, i if one.colour is None else one.colour, percent)
    if key and len(series) > 1:
        parts += _key([s.name for s in series])
    return "".join([*parts, "</svg>"])


def stacked(charts: Sequence[str]) -> str:
    """One SVG file's text with charts of `line_chart` below each other, readable on a page of its own."""
    size = f'<svg width="{WIDTH}" height="{HEIGHT}" '
    placed = "".join(f'<g transform="translate(0 {i * HEIGHT})">{chart.replace("<svg ", size, 1)}</g>'
                     for i, chart in enumerate(charts))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {len(charts) * HEIGHT}"><style>{CSS}</style>'
            f'<rect width="100%" height="100%" fill="var(--card)"/>{placed}</svg>\n')


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return rising round numbers (1, 2, 2.5 or 5 times a power of ten apart) that enclose [low, high]."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread / 2, high + spread / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float, *, percent: bool = False) -> str:
    """Write a tick in few letters: 20k, 1.5M, 0.25, 6e-5, 35 %."""
    if percent:
        return f"{100 * value:.6g} %"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def colour_class(index: int) -> str:
    """CSS classes of the colour of line `index`."""
    return f"s{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Centred moving average over `window` values.

    At the start the window grows from 1, so that a steep beginning is not flattened; at the end it is cut off, so that
    the last noisy value does not show as a hook.
    """
    values = np.asarray(values, np.float64)
    index = np.arange(len(values))
    first = index - np.minimum(index, window // 2)
    end = np.minimum(index + np.minimum(index, window // 2) + 1, len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[end] - sums[first]) / (end - first)


class _Frame:
    """Data to drawing coordinates."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]):
        self.x_range, self.y_range = x_range, y_range

    def x(self, value):
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value):
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(self, points: np.ndarray) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(self.x(points[:, 0]), self.y(points[:, 1])))


def _thinned(points: np.ndarray) -> np.ndarray:
    """Average neighbours until at most `MAX_POINTS` are left; the last point stays exact."""
    if len(points) <= MAX_POINTS:
        return points
    size = -(-len(points) // MAX_POINTS)
    groups = [points[i:i + size] for i in range(0, len(points), size)]
    return np.concatenate([[group.mean(0) for group in groups[:-1]], points[-1:]])


def _shown_range(series: Series, points: np.ndarray) -> np.ndarray:
    """Values that the y axis must hold: of a smoothed curve, without the few raw spikes far above the rest."""
    if not series.smoothed or len(points) < 20:
        return points[:, 1]
    even = smooth(points[:, 1], _window(len(points)))
    return np.concatenate([even, np.clip(points[:, 1], *np.percentile(points[:, 1], [0.5, 99.5]))])


def _window(count: int) -> int:
    return max(3, count // 15) | 1


def _curve(series: Series, points: np.ndarray, frame: _Frame, index: int, percent: bool) -> list[str]:
    colour = colour_class(index)
    inside = points.copy()
    inside[:, 1] = np.clip(inside[:, 1], *frame.y_range)
    parts = []
    if series.smoothed and len(points) >= 8:
        even = np.column_stack([points[:, 0], smooth(points[:, 1], _window(len(points)))])
        if series.faint:
            parts.append(f'<path class="line raw {colour}" d="{frame.path(inside)}"/>')
        parts.append(f'<path class="line {colour}" d="{frame.path(even)}"/>')
    else:
        parts.append(f'<path class="line {colour}" d="{frame.path(inside)}"/>')
    if series.dots or len(points) == 1:
        for x, y in points[-200:]:
            text = f"{series.name}: {tick_text(y, percent=percent) if not percent else f'{100 * y:.2f} %'} at {x:g}"
            parts.append(f'<circle class="dot {colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2">'
                         f"<title>{_safe(text)}</title></circle>")
    return parts


def _grid(frame: _Frame, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> list[str]:
    parts = []
    for value in y_ticks:
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" '
                     f'text-anchor="end">{tick_text(value, percent=percent)}</text>')
    low, high = frame.x_range
    for value in x_ticks:
        if low <= value <= high:
            x = frame.x(value)
            parts.append(f'<line class="grid mark" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" '
                         f'y2="{HEIGHT - BOTTOM + 4}"/><text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" '
                         f'text-anchor="middle">{tick_text(value)}</text>')
    return parts


def _titles(x_label: str, y_label: str) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return [f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" '
            f'text-anchor="middle">{_safe(x_label)}</text>',
            f'<text class="axis upright" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{_safe(y_label)}</text>']


def _key(names: Sequence[str]) -> list[str]:
    """The names of the lines along the top, in as many rows as they need."""
    parts, x, y = [], LEFT + 10, TOP + 8
    for i, name in enumerate(names):
        width = 44 + 9 * len(name)
        if x + width > WIDTH and x > LEFT + 10:
            x, y = LEFT + 10, y + 20
        parts.append(f'<line class="line {colour_class(i)}" x1="{x}" x2="{x + 16}" y1="{y}" y2="{y}"/>'
                     f'<text class="tick key" x="{x + 21}" y="{y + 4}">{_safe(name)}</text>')
        x += width
    return parts


def _safe(text: str) -> str:
    return html.escape(str(text), quote=True)
