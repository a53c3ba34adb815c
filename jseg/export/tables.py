"""Exporters of what depends on the size of a map: windows, masks, position tables, starting bases.

The model's own functions make NumPy tables of one size; these make the same tables of nodes, for whatever size the
picture has. Where the size is known, the model's own run and their tables are constants. Windows are always nodes: a
table would hold an index for every token.
"""

from __future__ import annotations

from typing import Callable

import numpy as np

from jseg.export import framework
from jseg.export.arithmetic import where
from jseg.export.framework import concat, pad, positions
from jseg.export.graph import Tensor, graph_in_use
from jseg.export.operators import ceiling_division, resized, stands_for
from jseg.export.sizes import Number, Size, largest
from jseg.layers import deformable, rotary, sine_positions, top, windows
from jseg.layers import positions as learned_positions
from jseg.models.backbones import beit, svt
from jseg.models.heads import psa_head, side_adapter_clip_head
from jseg.models.heads.ham_head import NMF2D, evaluation_bases

__all__ = ["METHODS"]


def _varies(numbers) -> bool:
    return any(_varies(n) if isinstance(n, (tuple, list)) else isinstance(n, Size) for n in numbers)


def table_of(function: Callable):
    """Enter an exporter that is for sizes that vary; for others the function itself makes its table."""
    def entered(standin: Callable) -> Callable:
        stands_for(function)(lambda *args: standin(*args) if _varies(args) else function(*args))
        return standin
    return entered


def _counts(size: tuple, side: int) -> tuple[Number, Number]:
    return ceiling_division(size[0], side), ceiling_division(size[1], side)


def _rolled(x: Tensor, axis: int, by: int) -> Tensor:
    """Moved towards the front by `by` places, around the end; to the back where that is negative."""
    keys = [slice(None)] * axis
    at = by if by > 0 else x.shape[axis] + by
    return concat([x[(*keys, slice(at, None))], x[(*keys, slice(None, at))]], axis)


def _cut(x: Tensor, side: int) -> Tensor:
    """(N, rows * side, columns * side, C) -> (N * rows * columns, side * side, C)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // side, side, w // side, side, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n * (h // side) * (w // side), side * side, c)


@stands_for(windows.to_windows)
def _to_windows(x, size, side, shift=0, centred=False):
    n, _, c = x.shape
    edges = [0, 0]
    for length, count in zip(reversed(size), reversed(_counts(size, side))):  # pairs for the last axis come first
        missing = count * side - length
        before = missing // 2 if centred else 0
        edges += [before, missing - before]
    x = pad(x.reshape(n, *size, c), tuple(edges))
    for axis in (1, 2):
        x = _rolled(x, axis, shift) if shift else x
    return _cut(x, side)


@stands_for(windows.from_windows)
def _from_windows(x, size, side, shift=0, centred=False):
    (rows, columns), c = _counts(size, side), x.shape[2]
    n = x.shape[0] // (rows * columns)
    x = x.reshape(n, rows, columns, side, side, c).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(n, rows * side, columns * side, c)
    for axis in (1, 2):
        x = _rolled(x, axis, -shift) if shift else x
    top, left = ((count * side - length) // 2 if centred else 0 for length, count in zip(size, (rows, columns)))
    return x[:, top:top + size[0], left:left + size[1]].reshape(n, size[0] * size[1], c)


@table_of(windows.shift_mask)
def _shift_mask(height, width, side, shift):
    parts = []
    for count in _counts((height, width), side):
        place = positions(count * side)
        parts.append((place >= count * side - side).int32() + (place >= count * side - shift).int32())
    regions = _cut((parts[0].unsqueeze(1) * 3 + parts[1].unsqueeze(0)).unsqueeze(0).unsqueeze(3), side).squeeze(2)
    return where(regions.unsqueeze(2) == regions.unsqueeze(1), graph_in_use().constant(0.0, "float32"), -100.0)


@stands_for(windows.relative_bias)
def _relative_bias(table, index):
    return table[index.int32()].transpose(2, 0, 1)  # (G, L, M)


@table_of(svt.filling_mask)
def _filling_mask(height, width, side):
    rows, columns = _counts((height, width), side)
    down, right = positions(rows * side), positions(columns * side)
    inside = (down < height).unsqueeze(1) & (right < width).unsqueeze(0)
    graph = graph_in_use()
    uneven = [graph.size_tensor(length % side) > 0 for length in (height, width)]
    filled = _cut(inside.int32().unsqueeze(0).unsqueeze(3), side).squeeze(2)
    masked = (filled.unsqueeze(2) != filled.unsqueeze(1)) & (uneven[0] & uneven[1])
    return where(masked, graph.constant(-1000.0, "float32"), 0.0)


@table_of(beit.token_index)
def _token_index(size, window):
    offsets = []
    for length, most in zip(size, window):
        place = positions(length)
        offset = place.unsqueeze(1) - place.unsqueeze(0)
        offsets.append(offset.maximum(1 - most).minimum(most - 1) + (most - 1))
    (h, w), columns = size, 2 * window[1] - 1
    index = offsets[0].unsqueeze(1).unsqueeze(3) * columns + offsets[1].unsqueeze(0).unsqueeze(2)  # (h, w, h, w)
    index, rows = index.reshape(h * w, h * w), (2 * window[0] - 1) * columns
    first = concat([framework.full((1, 1), rows + 2, "int32"), framework.full((1, h * w), rows, "int32")], 1)
    return concat([first, concat([framework.full((h * w, 1), rows + 1, "int32"), index], 1)], 0)


@stands_for(learned_positions.resize_positions)
def _resize_positions(x, grid, size, *, mode="bicubic"):
    if not _varies(size):
        return _of_one_size(x, grid, size, mode)
    (h, w), c = grid, x.shape[2]
    words = {"mode": "cubic", "cubic_coeff_a": -0.75} if mode == "bicubic" else {"mode": "linear"}
    found = resized(x.transpose(0, 2, 1).reshape(1, c, h, w), size, coordinate_transformation_mode="half_pixel",
                    **words)
    return found.reshape(1, c, size[0] * size[1]).transpose(0, 2, 1)


def _of_one_size(x: Tensor, grid: tuple, size: tuple, mode: str) -> Tensor:
    """A constant, by the model's own matrices."""
    if tuple(grid) == tuple(size):
        return x
    matrix = learned_positions.cubic_matrix if mode == "bicubic" else learned_positions.resize_matrix
    down, right = matrix(grid[0], size[0]), matrix(grid[1], size[1])
    values = x.value.reshape(*grid, -1).astype(np.float64)
    values = np.einsum("ah,bw,hwc->abc", down, right, values, optimize=True)
    return x.graph.constant(values.reshape(1, size[0] * size[1], -1), "float32")


@table_of(sine_positions._sine_table)
def _sine_positions(size, num_feats, temperature, normalize, scale, eps, offset):
    graph = graph_in_use()
    wavelength = graph.constant(temperature ** (2 * (np.arange(num_feats) // 2) / num_feats), "float32")
    is_sine = graph.constant(np.arange(num_feats) % 2 == 0, "bool")
    axes = []
    for length in size:
        place = positions(length).float32() + 1.0
        if normalize:
            place = (place + offset) / (graph.size_tensor(length, "float32") + eps) * scale
        angle = place.unsqueeze(1) / wavelength  # (length, F)
        axes.append(where(is_sine, angle.graph.add("Sin", [angle]), angle.graph.add("Cos", [angle])))
    rows = axes[0].unsqueeze(1).broadcast((*size, num_feats))
    columns = axes[1].unsqueeze(0).broadcast((*size, num_feats))
    return concat([rows, columns], 2).reshape(1, size[0] * size[1], 2 * num_feats)


@table_of(rotary._turning_table)
def _turning_table(size, width, base, stretch):
    graph = graph_in_use()
    frequency = graph.constant(base ** -(np.arange(width // 4) * 4 / width) * (2 * np.pi * stretch), "float32")
    rows, columns = (((positions(side).float32() + 0.5) / graph.size_tensor(side, "float32") * 2.0 - 1.0).unsqueeze(1)
                     * frequency for side in size)  # (h, D / 4), (w, D / 4)
    parts = [rows.unsqueeze(1).broadcast((*size, width // 4)), columns.unsqueeze(0).broadcast((*size, width // 4))]
    angle = concat(parts * 2, 2).reshape(size[0] * size[1], width)
    return framework.stack([graph.add("Cos", [angle]), graph.add("Sin", [angle])], 0)


@table_of(deformable._cell_centres)
def _grid(sizes):
    graph, centres, cells = graph_in_use(), [], []
    for h, w in sizes:
        down, right = (graph.size_tensor(side, "float32") for side in (h, w))
        x = ((positions(w).float32() + 0.5) / right).unsqueeze(0).broadcast((h, w))
        y = ((positions(h).float32() + 0.5) / down).unsqueeze(1).broadcast((h, w))
        centres.append(framework.stack([x, y], 2).reshape(h * w, 2))
        cells.append(framework.stack([1.0 / right, 1.0 / down], 0))
    centres, cells = concat(centres, 0), framework.stack(cells, 0)
    return (centres.reshape(1, centres.shape[0], 1, 1, 1, 2), cells.reshape(1, 1, 1, len(sizes), 1, 2))


@stands_for(top.top_places)
def _top_places(x, count):
    graph = x.graph
    graph.append("TopK", [x.named(), graph.sizes([count])], axis=1, sorted=0)
    places = graph.name("places")
    graph.nodes[-1].output.append(places)  # the first result has the values
    return Tensor(graph, places, (x.shape[0], count), "int64").int32()


def _fixed_bases(self, batch: Number) -> Tensor:
    """The bases of evaluation, of one picture: the first product repeats them for each."""
    bases = (graph_in_use().constant(evaluation_bases(self.spatial, self.dimension, self.rank)) if self.rand_init
             else self.bases)  # (S, D, R)
    if self.spatial == 1:
        return bases.broadcast((batch, *bases.shape[1:]))
    every = bases.unsqueeze(0).broadcast((batch, *bases.shape))
    return every.reshape(batch * self.spatial, *bases.shape[1:])


@table_of(side_adapter_clip_head.hidden_queries)
def _hidden_queries(count, length):
    place = positions(count)
    apart = where(place.unsqueeze(1) == place.unsqueeze(0), graph_in_use().constant(0.0, "float32"), -np.inf)
    return concat([apart, framework.zeros((count, length))], 1).unsqueeze(0)


@table_of(psa_head.shrunk_size)
def _shrunk_size(size, factor):
    graph, found = graph_in_use(), []
    uneven = [side % factor for side in size]
    by_corners = _both_above_zero(*uneven)
    for side in size:  # (side - 1) // factor + 1 where both sides are uneven, else side // factor
        found.append(side // factor + by_corners)
    return tuple(found), graph.size_tensor(by_corners) > 0


def _both_above_zero(a: Number, b: Number) -> Number:
    """1 where both are, else 0."""
    product = a * b
    return product - largest(product - 1, 0)


METHODS = {(NMF2D, "starting_bases"): _fixed_bases}
