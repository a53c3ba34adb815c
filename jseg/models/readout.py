"""From logits at head resolution to label maps at each picture's own size, without full-size logits.

mmsegmentation (1.2.2, mmseg/models/segmentors) resizes the logits to the network's input, or to each window of a slide,
adds the windows up and divides by their number, cuts the padding off, undoes the flip, resizes to the picture's own
size and takes the largest. Every step before the last is linear and acts on rows and columns separately, so for one
window all of them together are

    scores = rows @ logits @ columns^T        rows (H_own, h), columns (W_own, w)

and a slide is the sum over its windows (their overlap counts are a product of a row count and a column count). The two
matrices are made once. There are two roads from here. The *direct* one is for one pass over the whole input: each row
of the matrices has two or three values, and `ops.upsample_argmax` finds the classes from those (`direct_maps`). The
*summed* one is for slides and for test-time augmentation, which averages the softmax of several such sums as
mmsegmentation's SegTTAModel does: the scores are computed tile by tile, of which only the labels are kept
(`window_maps`, `label_map`), or all scores where they are asked for (`score_map`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import jittor as jt
import numpy as np

from jseg.ops.bilinear import Resampling, resize_matrix

__all__ = ["Frame", "Window", "choose_classes", "direct_maps", "label_map", "overlaps", "score_map", "window_maps",
           "windows"]

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


@functools.lru_cache(maxsize=16)
def direct_maps(frame: Frame, low_size: tuple[int, int], align_corners: bool,
                once: bool = False) -> tuple[Resampling, Resampling]:
    """From rows (columns) of the logits of the whole input to those of the picture's own label map.

    Args:
        frame: without a flip, which the label map undoes (`Frame.upright`).
        low_size: (h, w) of the logits.
        once: see `window_maps`.
    """
    ones = np.ones(frame.size[0]), np.ones(frame.size[1])
    maps = window_maps(frame, ((0, frame.size[0]), (0, frame.size[1])), ones, low_size, align_corners, once)
    return Resampling.from_matrix(maps[0]), Resampling.from_matrix(maps[1])


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
