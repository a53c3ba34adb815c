"""From logits at head resolution to label maps at each picture's own size, without full-size logits.

mmsegmentation (1.2.2, mmseg/models/segmentors) resizes the logits to the network's input, or to each window of a slide,
adds the windows up and divides by their number, cuts the padding off, undoes the flip, resizes to the picture's own
size and takes the largest. Every step before the last is linear and acts on rows and columns separately, so for one
window all of them together are

    scores = rows @ logits @ columns^T        rows (H_own, h), columns (W_own, w)

and a slide is the sum over its windows (their overlap counts are a product of a row count and a column count); with the
windows' logits laid side by side it is one such product again. The two matrices are made once. There are two roads from
here. The *direct* one gives labels of one pass over the input, whole or as a slide: each row of the matrices has few
values, and `ops.readout` finds the classes from those (`direct_maps`, `LabelReader`). The *summed* one is for test-time
augmentation, which averages the softmax of several such sums as mmsegmentation's SegTTAModel does, for thresholds and
for the scores themselves: they are computed tile by tile, of which only the labels are kept (`window_maps`,
`label_map`), or all scores where they are asked for (`score_map`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import jittor as jt
import numpy as np

from jseg import ops
from jseg.ops.bilinear import Resampling, resampling, resize_matrix, resize_taps

__all__ = ["Frame", "LabelReader", "Window", "choose_classes", "direct_maps", "label_map", "overlaps", "score_map",
           "window_maps", "windows"]

TILE_VALUES = 4_000_000  # scores computed at once: K * rows * columns


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in the network's input and how large it was.

    Args:
        size: (H, W) of the network's input.
        padding: (left, right, top, bottom) pixels that are no picture.
        flip: None, "horizontal" or "vertical": what was done to the picture.
        own_size: (h, w) of the picture's own label map.
    """

    size: tuple[int, int]
    padding: tuple[int, int, int, int]
    flip: str | None
    own_size: tuple[int, int]

    @classmethod
    def from_meta(cls, meta: dict, size: tuple[int, int]) -> "Frame":
        """Read a sample's meta: `ori_shape`, `padding_size` (or `img_shape`,
        for padding on the right and below), `flip`.

        Raises:
            ValueError: the meta contradicts the input's size or names an unknown flip.
        """
        if "padding_size" in meta:
            left, right, top, bottom = (int(v) for v in meta["padding_size"])
        else:
            shape = meta.get("img_shape", size)
            left, right, top, bottom = 0, size[1] - shape[1], 0, size[0] - shape[0]
        if min(left, right, top, bottom) < 0 or left + right >= size[1] or top + bottom >= size[0]:
            raise ValueError(f"predict: padding (left {left}, right {right}, top {top}, bottom {bottom}) does not fit "
                             f"an input of {size}")
        flip = meta.get("flip_direction") or "horizontal" if meta.get("flip") else None
        if flip not in (None, "horizontal", "vertical"):
            raise ValueError(f"predict: flip_direction must be 'horizontal' or 'vertical', got {flip!r}")
        own = meta.get("ori_shape", (size[0] - top - bottom, size[1] - left - right))
        return cls((int(size[0]), int(size[1])), (left, right, top, bottom), flip, (int(own[0]), int(own[1])))

    @property
    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the input that are picture."""
        left, right, top, bottom = self.padding
        return slice(top, self.size[0] - bottom), slice(left, self.size[1] - right)

    def upright(self, labels: np.ndarray) -> np.ndarray:
        """Undo the flip of a map (h, w)."""
        if self.flip is None:
            return labels
        return labels[:, ::-1] if self.flip == "horizontal" else labels[::-1]


@dataclass
class Window:
    """Scores of one window of one picture.

    Shape:
        logits: (h, K, w), rows first, so that a range of rows is one block of memory
        rows: (H_own, h) float32; columns: (W_own, w) float32
    """

    logits: jt.Var
    rows: np.ndarray
    columns: np.ndarray


def windows(length: int, crop: int, stride: int, *, even: bool = False) -> list[tuple[int, int]]:
    """Begin and end of each window along one axis of a slide; the last one is moved back inside, or with `even` all of
    them have the same distance."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    if even and count > 1:
        begins = [i * (length - crop) // (count - 1) for i in range(count)]
        return [(begin, begin + crop) for begin in begins]
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def overlaps(length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """How many of the spans cover each position, (length,)."""
    counts = np.zeros(length)
    for begin, end in spans:
        counts[begin:end] += 1
    return counts


def window_maps(frame: Frame, spans: tuple[tuple[int, int], tuple[int, int]], counts: tuple[np.ndarray, np.ndarray],
                low_size: tuple[int, int], align_corners: bool, once: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The matrices of a window: from its logits' rows (columns) to those of the picture's own label map.

    Args:
        spans: (begin, end) of the window in rows and in columns of the input.
        counts: overlap counts of rows and of columns.
        low_size: (h, w) of the window's logits.
        once: resize straight to the picture's own size, where the window is the whole input and nothing is padded.
    Returns:
        rows (H_own, h) and columns (W_own, w), float32.
    """
    maps = []
    for axis, flipped in ((0, frame.flip == "vertical"), (1, frame.flip == "horizontal")):
        begin, end = spans[axis]
        if once and not any(frame.padding):
            full = np.eye(low_size[axis])[::-1 if flipped else 1]
            maps.append(_resize_rows(full, frame.own_size[axis], align_corners).astype(np.float32))
            continue
        full = np.zeros((frame.size[axis], low_size[axis]))
        full[begin:end] = _resize_rows(np.eye(low_size[axis]), end - begin, align_corners)
        full /= counts[axis][:, None]
        full = full[frame.content[axis]]
        full = full[::-1] if flipped else full
        maps.append(_resize_rows(full, frame.own_size[axis], align_corners).astype(np.float32))
    return maps[0], maps[1]


Spans = tuple[tuple[int, int], ...]


@functools.lru_cache(maxsize=16)
def direct_maps(frame: Frame, spans: tuple[Spans, Spans], low_size: tuple[int, int], align_corners: bool,
                once: bool = False) -> tuple[Resampling, Resampling]:
    """From rows (columns) of the logits, those of all windows one after the other, to those of the picture's own label
    map.

    Args:
        frame: without a flip, which the label map undoes (`Frame.upright`).
        spans: (begin, end) of the windows in rows and in columns of the input; of a whole input one in each.
        low_size: (h, w) of each window's logits.
        once: see `window_maps`.
    """
    maps = []
    for axis in (0, 1):
        if once and not any(frame.padding):
            maps.append(resampling(low_size[axis], frame.own_size[axis], align_corners))
            continue
        inner, content = _windows_map(frame.size[axis], spans[axis], low_size[axis], align_corners), frame.content[axis]
        inner = Resampling(inner.index[content], inner.weights[content], inner.size_in)
        maps.append(resampling(inner.size_out, frame.own_size[axis], align_corners).after(inner))
    return maps[0], maps[1]


def _windows_map(length: int, spans: Spans, low: int, align_corners: bool) -> Resampling:
    """From the logits of all windows of an axis to the mean of those that cover each of its positions."""
    counts = overlaps(length, spans)
    index, weights = np.zeros((2, length, 2 * int(counts.max())))
    before = np.zeros(length, int)  # windows that cover a position and were seen
    for i, (begin, end) in enumerate(spans):
        lower, upper, fraction = resize_taps(low, end - begin, align_corners)
        here, place = np.arange(begin, end), 2 * before[begin:end]
        for source, share in ((lower, 1 - fraction), (upper, fraction)):
            index[here, place], weights[here, place] = i * low + source, share / counts[begin:end]
            place = place + 1
        before[begin:end] += 1
    return Resampling(index.astype(np.int32), weights, len(spans) * low)


@functools.lru_cache(maxsize=64)
def _ready_rows(rows: Resampling, low: int, done: int) -> tuple[int, int, Resampling | None]:
    """What can be read when the last of `done` rows of windows came: the first row of windows that it takes, the first
    that later outputs take, and the map of the ready outputs from the former on; None where no output became ready."""
    first, last = rows.ends()
    begin, end = (int(np.searchsorted(last, count * low)) for count in (done - 1, done))
    later = int(first[end]) // low if end < len(first) else done
    if begin == end:
        return done, later, None
    taken = int(first[begin]) // low
    return taken, later, rows.part(slice(begin, end), slice(taken * low, done * low))


class LabelReader:
    """Reads label maps of pictures that lie alike from the logits of their windows, a row of windows after the other;
    logits are let go as soon as no later output needs them.

    Args:
        maps: from `direct_maps`.
        low: h, rows of a window's logits.
        with_prob: read the winning class's softmax probability too.
    """

    def __init__(self, maps: tuple[Resampling, Resampling], low: int, with_prob: bool = False):
        self.maps, self.low, self.with_prob = maps, low, with_prob
        self._kept: dict[int, jt.Var] = {}  # rows of windows by number
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._done = 0

    def add(self, logits: jt.Var) -> None:
        """Take the logits of the next row of windows, (N, K, h, columns of windows * w)."""
        self._kept[self._done] = logits
        self._done += 1
        taken, later, rows = _ready_rows(self.maps[0], self.low, self._done)
        if rows is None:
            logits.sync()
        else:
            parts = [self._kept[number] for number in range(taken, self._done)]
            found = ops.readout(jt.concat(parts, 2) if len(parts) > 1 else parts[0], (rows, self.maps[1]),
                                with_prob=self.with_prob)
            self._parts.append(tuple(part.numpy() for part in (found if self.with_prob else (found,))))
        self._kept = {number: kept for number, kept in self._kept.items() if number >= later}

    def finish(self) -> tuple[np.ndarray, ...]:
        """Labels (N, H_own, W_own), and with them the probability if wanted."""
        return tuple(parts[0] if len(parts) == 1 else np.concatenate(parts, 1) for parts in zip(*self._parts))


def label_map(views: list[list[Window]], num_classes: int, *, with_prob: bool = False,
              thresholds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Class of every pixel of one picture.

    Args:
        views: one list of windows for each augmentation; each list's windows add up.
        num_classes: K.
        with_prob: also return the class's probability (the mean over the augmentations).
        thresholds: (K,) of `choose_classes`; None: the most likely class.
    Returns:
        labels (H_own, W_own) int32, with thresholds K where there is no class, and the probability in [0, 1] float32 or
        None.
    """
    height, width = views[0][0].rows.shape[0], views[0][0].columns.shape[0]
    labels = np.empty((height, width), np.int32)
    prob = np.empty((height, width), np.float32) if with_prob else None
    for tile in _tiles(height, width, num_classes):
        scores = _tile_scores(views, tile, with_prob or thresholds is not None)  # (rows, K, columns)
        if thresholds is not None:
            labels[tile], value = choose_classes(scores.numpy(), thresholds)
        else:
            best, value = (found.numpy() for found in jt.argmax(scores, 1))
            labels[tile] = best
        if with_prob:
            prob[tile] = value
    return labels, prob


def score_map(views: list[list[Window]], num_classes: int, *, softmax: bool) -> np.ndarray:
    """Scores of every class at every pixel of one picture, (K, H_own, W_own) float32: the mean softmax of the
    augmentations, or without `softmax` the logits of the only one."""
    height, width = views[0][0].rows.shape[0], views[0][0].columns.shape[0]
    scores = np.empty((num_classes, height, width), np.float32)
    for tile in _tiles(height, width, num_classes):
        scores[(slice(None), *tile)] = _tile_scores(views, tile, softmax).numpy().transpose(1, 0, 2)
    return scores


def choose_classes(prob: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes by thresholds of their own.

    A class with a threshold is taken where its probability reaches it; of several such the one with the largest
    multiple of its threshold. Elsewhere the most likely class without a threshold is taken, and where all have one,
    none.

    Args:
        prob: (rows, K, columns) float32, 0 to 1.
        thresholds: (K,) above 0 to 1; NaN for a class without.
    Returns:
        classes (rows, columns), K for none, and their probabilities; for none that of the most likely class.
    """
    bound = ~np.isnan(thresholds)
    multiple = np.where(bound[:, None], prob / np.where(bound, thresholds, 1).astype(np.float32)[:, None], 0)
    found = multiple.argmax(1)  # (rows, columns)
    reached = np.take_along_axis(multiple, found[:, None], 1)[:, 0] >= 1
    rest = np.where(bound[:, None], np.float32(-1), prob)
    labels = np.where(reached, found, rest.argmax(1))
    value = np.take_along_axis(prob, labels[:, None], 1)[:, 0]
    if bound.all():
        labels, value = np.where(reached, found, len(thresholds)), np.where(reached, value, prob.max(1))
    return labels, value


def _tiles(height: int, width: int, num_classes: int) -> Iterator[tuple[slice, slice]]:
    """Parts of a picture whose scores fit into memory."""
    side = max(int(math.sqrt(TILE_VALUES / num_classes)), 16)
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def _tile_scores(views: list[list[Window]], tile: tuple[slice, slice], softmax: bool) -> jt.Var:
    """Logits of a tile for one view; mean softmax for several views or with `softmax`. (rows, K, columns)."""
    total = None
    for view in views:
        scores = None
        for window in view:
            part = _window_scores(window, tile)
            if part is not None:
                scores = part if scores is None else scores + part
        if len(views) > 1 or softmax:
            scores = jt.nn.softmax(scores, 1) / len(views)
        total = scores if total is None else total + scores
    return total


def _window_scores(window: Window, tile: tuple[slice, slice]) -> jt.Var | None:
    """A window's share of a tile, (rows, K, columns); None where they do not meet."""
    rows, columns = window.rows[tile[0]], window.columns[tile[1]]
    high, wide = _nonzero_range(rows), _nonzero_range(columns)
    if high is None or wide is None:
        return None
    part = window.logits[high, :, wide]  # (h', K, w')
    h, k, w = part.shape
    part = jt.matmul(part.reshape(h * k, w), jt.array(np.ascontiguousarray(columns[:, wide].T)))  # (h'*K, columns)
    part = jt.matmul(jt.array(np.ascontiguousarray(rows[:, high])), part.reshape(h, -1))  # (rows, K*columns)
    return part.reshape(rows.shape[0], k, columns.shape[0])


def _nonzero_range(matrix: np.ndarray) -> slice | None:
    """The range of columns that holds every non-zero."""
    used = np.flatnonzero(matrix.any(0))
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else None


def _resize_rows(matrix: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
    """Bilinear resize of a matrix along its rows: (a, b) -> (size, b)."""
    return matrix if matrix.shape[0] == size else resize_matrix(matrix.shape[0], size, align_corners) @ matrix
