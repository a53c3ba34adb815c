"""Statistics of the channels of a split's pictures, as the model would get them before mean and std."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from jseg.data.bands import percentile_limits, sample_step
from jseg.data.datasets.wrappers import leaves
from jseg.data.transforms import LoadBands

__all__ = ["ChannelStats", "channel_stats"]

PERCENTILES = (1, 2, 98, 99)
_KEPT = 1 << 14  # pixels of each picture that percentiles are taken of


class ChannelStats(NamedTuple):
    """Per channel, in the order of the files (of LoadImageFromFile: blue, green, red).

    Attributes:
        pictures, pixels: how many were read.
        least, most, mean, std: (C,) float64; samples without data count nowhere.
        percentiles: (4, C): 1st, 2nd, 98th, 99th, of a part of each picture's pixels.
        absent: (C,) share of samples without data.
        dtypes: types that the files hold.
    """

    pictures: int
    pixels: int
    least: np.ndarray
    most: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    percentiles: np.ndarray
    absent: np.ndarray
    dtypes: tuple[str, ...]


def channel_stats(dataset: Any, *, count: int | None = None, seed: int = 0,
                  tell: Callable[[int, int], None] = lambda done, total: None) -> ChannelStats:
    """Read pictures with the step of the pipeline that reads them, and nothing after it.

    Args:
        dataset: a dataset or a wrapper.
        count: so many pictures, drawn by `seed`; None reads all.
        tell: called with the pictures done and all.
    Raises:
        DataError: a picture cannot be read.
    """
    pairs = [(part, path) for part in leaves(dataset) for path, _ in part.pairs]
    order = np.random.default_rng(seed).permutation(len(pairs))[:count] if count else range(len(pairs))
    sums, dtypes, kept = _Sums(), set(), []
    for done, place in enumerate(order):
        part, path = pairs[place]
        reader = part.pipeline.reader
        if isinstance(reader, LoadBands):
            stored = reader.stored(path, path)
            img, nodata = reader.scaled(stored, name=path), reader.absent(stored)
        else:
            img, nodata = reader.apply({"img_path": path}, {})["img"], None
            stored = img
        dtypes.add(stored.dtype.name)
        sums.add(img, nodata)
        step = sample_step(img.shape[:2], _KEPT)
        part_of_it = img[::step, ::step].astype(np.float32)
        if nodata is not None:
            part_of_it[nodata[::step, ::step]] = np.nan
        kept.append(part_of_it.reshape(-1, img.shape[2]))
        tell(done + 1, len(order))
    pixels = np.concatenate(kept)[:, None]
    limits = [percentile_limits(pixels, pair, step=1) for pair in (PERCENTILES[:2], PERCENTILES[2:])]
    percentiles = np.array([[pair[i] for pair in of] for of in limits for i in (0, 1)])
    return sums.result(len(order), percentiles, tuple(sorted(dtypes)))


class _Sums:
    """Counts, means and squared deviations per channel, joined picture by picture (Chan, Golub, LeVeque, 1979)."""

    def __init__(self):
        self.parts: list[tuple] = []
        self.count = self.mean = self.squares = None

    def add(self, img: np.ndarray, absent: np.ndarray | None) -> None:
        values = img.reshape(-1, img.shape[2]).astype(np.float64)
        there = np.ones(values.shape, bool) if absent is None else ~absent.reshape(values.shape)
        count = there.sum(0)
        mean = np.where(there, values, 0).sum(0) / np.maximum(count, 1)
        squares = np.where(there, (values - mean) ** 2, 0).sum(0)
        least, most = np.where(there, values, np.inf).min(0), np.where(there, values, -np.inf).max(0)
        if self.count is None:
            self.total, self.count, self.mean, self.squares = len(values), count, mean, squares
            self.least, self.most = least, most
            return
        both = np.maximum(self.count + count, 1)
        change = mean - self.mean
        self.squares = self.squares + squares + change ** 2 * self.count * count / both
        self.mean = self.mean + change * count / both
        self.least, self.most = np.minimum(self.least, least), np.maximum(self.most, most)
        self.count, self.total = self.count + count, self.total + len(values)

    def result(self, pictures: int, percentiles: np.ndarray, dtypes: Sequence[str]) -> ChannelStats:
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return ChannelStats(pictures, self.total, self.least, self.most, self.mean, std, percentiles,
                            1 - self.count / self.total, tuple(dtypes))
