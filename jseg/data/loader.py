"""Batches in a fixed order, prepared by worker processes.

Every random choice of a sample comes from (seed, epoch, index), and every batch is a function of its number alone: any
number of workers, a resumed run and every split over ranks give the same data. Workers import `jseg.data` and never
Jittor (see workers.py).
"""

from __future__ import annotations

import itertools
import time
from typing import Iterator

import numpy as np

from jseg.data.preprocess import Batch, SegDataPreProcessor
from jseg.data.workers import WorkerPool, make_batch
from jseg.errors import DataError

__all__ = ["Batch", "Loader", "permutation"]


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of `count` samples in one epoch; (count,) int64.

    The fourth word keeps this stream apart from the samples' own [seed, epoch, index], which NumPy pads with zeros.
    """
    return np.random.default_rng([seed, epoch, 0, 1]).permutation(count)


class Loader:
    """An iterable of `Batch`.

    Training: an endless stream. Position p = iteration * batch_size + k is sample permutation(epoch)[p % len] of epoch
    p // len; rank r takes the positions of each batch with k % world_size == r. Evaluation: every picture once, in
    order; rank r takes the batches r, r + world_size, ... of those one process would see, whole, so that padding and
    results stay the same.

    The arrays of a batch lie in memory shared with the workers; the place is used again only after they are garbage.

    Args:
        dataset: has `len()`, `get(index, rng)` and `info(index)`.
        preprocessor: stacks samples.
        batch_size: pictures per step over all ranks in training, at least one for each; pictures per batch in
            evaluation.
        num_workers: processes of this rank; 0 prepares batches in this one.
        seed: non-negative.
        training: see above.
        start_iter: number of the first training batch.
        rank, world_size: this process's share.
        split: "train", "val" or "test", for what is said about the data.
    Attributes:
        wait_seconds: time spent waiting for batches since construction.
    Raises:
        ValueError: arguments out of range.
        DataError: from the iterator: a sample cannot be loaded, or a worker died.
    """

    def __init__(self, dataset, preprocessor: SegDataPreProcessor, *, batch_size: int, num_workers: int, seed: int,
                 training: bool, start_iter: int = 0, rank: int = 0, world_size: int = 1, split: str = ""):
        if batch_size < 1 or num_workers < 0 or seed < 0 or start_iter < 0:
            raise ValueError("Loader: batch_size must be >= 1, num_workers, seed and start_iter >= 0; got "
                             f"{batch_size}, {num_workers}, {seed} and {start_iter}")
        if not 0 <= rank < world_size:
            raise ValueError(f"Loader: rank {rank} is not in 0..{world_size - 1} (world_size {world_size})")
        if training and batch_size < world_size:
            raise ValueError(f"Loader: batch_size is {batch_size} (pictures per step over all ranks) and the job has "
                             f"{world_size} ranks; each needs a picture: give a batch_size of at least {world_size}, "
                             f"or start at most {batch_size} ranks")
        self.dataset, self.preprocessor = dataset, preprocessor
        self.batch_size, self.num_workers, self.seed, self.training = batch_size, num_workers, seed, training
        self.start_iter, self.rank, self.world_size, self.split = start_iter, rank, world_size, split
        self.wait_seconds = 0.0
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Batches of this rank in one pass: exact in evaluation; in training the steps that cover the dataset once."""
        if self.training:
            return -(-len(self.dataset) // self.batch_size)
        return len(range(self.rank, -(-len(self.dataset) // self.batch_size), self.world_size))

    def picks(self, number: int) -> list[tuple[int, int]] | None:
        """Return (epoch, index) of every sample of this rank's batch `number`;
        None after the last one of an evaluation.
        """
        count = len(self.dataset)
        if not self.training:
            first = (self.rank + number * self.world_size) * self.batch_size
            return [(0, index) for index in range(first, min(count, first + self.batch_size))] or None
        start = number * self.batch_size
        places = [divmod(start + k, count) for k in range(self.rank, self.batch_size, self.world_size)]
        return [(epoch, int(self._order(epoch)[position])) for epoch, position in places]

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = permutation(len(self.dataset), self.seed, epoch)
        return self._orders[epoch]

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.dataset):
            raise DataError(f"{type(self.dataset).__name__}: no picture to load")
        batches = self._prepared_here() if self.num_workers == 0 else self._prepared_by_workers()
        try:
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.wait_seconds += time.perf_counter() - began
                if batch is None:
                    return
                yield batch
                del batch
        finally:
            batches.close()

    def _prepared_here(self) -> Iterator[Batch]:
        for number in self._numbers():
            picks = self.picks(number)
            if picks is None:
                return
            yield make_batch(self.dataset, self.preprocessor, self.seed, self.training, picks)

    def _prepared_by_workers(self) -> Iterator[Batch]:
        count = self.num_workers if self.training else min(self.num_workers, len(self))
        tasks = ((number, self.picks(number)) for number in self._numbers())
        tasks = itertools.takewhile(lambda task: task[1] is not None, tasks)
        with WorkerPool(self.dataset, self.preprocessor, self.seed, self.training, count) as pool:
            pool.fill(tasks)
            for number in self._numbers():
                if not pool.busy:
                    return
                batch = pool.take(number)
                pool.fill(tasks)  # before the consumer computes, so that no worker idles meanwhile
                yield batch
                del batch

    def _numbers(self) -> Iterator[int]:
        return itertools.count(self.start_iter if self.training else 0)
