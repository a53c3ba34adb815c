"""Datasets made of datasets: one after the other, or one several times; as in mmengine's dataset_wrapper.py (Apache-2.0).

Deviation: the parts of a ConcatDataset must have the same class names, and a dataset is repeated to change what an epoch means only.
"""

from __future__ import annotations

import bisect
import itertools
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.data.datasets.base import SegDataset
from jseg.errors import ConfigError
from jseg.registry import DATASETS

__all__ = ["ConcatDataset", "RepeatDataset"]


@DATASETS.register()
class ConcatDataset:
    """Datasets one after the other.

    Args:
        datasets: dataset blocks, each with its own pipeline.
        test_mode: True for evaluation; handed on.
    Raises:
        ConfigError: no dataset, or their class names differ.
    """

    def __init__(self, datasets: Sequence[Mapping | SegDataset], test_mode: bool = False):
        if not datasets:
            raise ConfigError("ConcatDataset: datasets is empty; give at least one dataset block")
        self.datasets = [_built(part, f"ConcatDataset.datasets[{i}]", test_mode) for i, part in enumerate(datasets)]
        self.classes, self.palette = self.datasets[0].classes, self.datasets[0].palette
        self.ignore_index = self.datasets[0].ignore_index
        for i, part in enumerate(self.datasets):
            if part.classes != self.classes:
                raise ConfigError(f"ConcatDataset: datasets[{i}] has classes {part.classes}, datasets[0] {self.classes}; "
                                  "give all the same metainfo.classes")
        self._ends: list[int] | None = None

    def __len__(self) -> int:
        if self._ends is None:
            self._ends = list(itertools.accumulate(len(part) for part in self.datasets))
        return self._ends[-1]

    def _place(self, index: int) -> tuple[SegDataset, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} samples")
        part = bisect.bisect_right(self._ends, index)
        return self.datasets[part], index - (self._ends[part - 1] if part else 0)

    def info(self, index: int) -> dict[str, Any]:
        """See SegDataset.info."""
        part, local = self._place(index)
        return part.info(local)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See SegDataset.get."""
        part, local = self._place(index)
        return part.get(local, rng)


@DATASETS.register()
class RepeatDataset:
    """A dataset `times` times over, so that an epoch is that much longer.

    Args:
        dataset: a dataset block.
        times: >= 1.
        test_mode: True for evaluation; handed on.
    Raises:
        ConfigError: `times` is below 1.
    """

    def __init__(self, dataset: Mapping | SegDataset, times: int, test_mode: bool = False):
        if times < 1:
            raise ConfigError(f"RepeatDataset: times must be at least 1, got {times}")
        self.dataset, self.times = _built(dataset, "RepeatDataset.dataset", test_mode), times
        self.classes, self.palette, self.ignore_index = self.dataset.classes, self.dataset.palette, self.dataset.ignore_index

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def info(self, index: int) -> dict[str, Any]:
        """See SegDataset.info."""
        return self.dataset.info(index % len(self.dataset))

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See SegDataset.get."""
        return self.dataset.get(index % len(self.dataset), rng)


def _built(part, where: str, test_mode: bool):
    return DATASETS.build({"test_mode": test_mode, **part}, where) if isinstance(part, Mapping) else part
