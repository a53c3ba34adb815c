"""Datasets made of datasets: one after the other, one several times, or pictures of rare classes more often.

As in mmengine's dataset_wrapper.py (Apache-2.0). Class balancing: LVIS (Gupta, Dollar, Girshick, CVPR 2019), sec. 5.
Deviations: the parts of a ConcatDataset must have the same class names; a dataset is repeated to change what an epoch
means only; ClassBalancedDataset counts classes in the masks (mmengine asks the dataset for `get_cat_ids`, which no
segmentation dataset has).
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import os
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.data.datasets.base import SegDataset
from jseg.data.samples import Reading, Sample, inspect_mask
from jseg.errors import ConfigError, DataError
from jseg.files import write_atomically
from jseg.registry import DATASETS
from jseg.text import read_text

__all__ = ["ClassBalancedDataset", "ConcatDataset", "RepeatDataset", "classes_of_pictures", "leaves", "locate",
           "repeat_factors"]


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
                raise ConfigError(f"ConcatDataset: datasets[{i}] has classes {part.classes}, datasets[0] "
                                  f"{self.classes}; give all the same metainfo.classes")
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
        self.classes, self.palette, self.ignore_index = (self.dataset.classes, self.dataset.palette,
                                                         self.dataset.ignore_index)

    def __len__(self) -> int:
        return len(self.dataset) * self.times

    def info(self, index: int) -> dict[str, Any]:
        """See SegDataset.info."""
        return self.dataset.info(index % len(self.dataset))

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See SegDataset.get."""
        return self.dataset.get(index % len(self.dataset), rng)


@DATASETS.register()
class ClassBalancedDataset:
    """Pictures of rare classes several times in an epoch.

    A class in the share f of the pictures asks for max(1, sqrt(oversample_thr / f)) times; a picture appears as often
    as its most demanding class asks, rounded up. Every mask is read once, in parallel, when the length is first needed.

    Args:
        dataset: a dataset block with masks.
        oversample_thr: share of pictures, above 0 and at most 1, below which a class is rare.
        cache_file: where to keep the classes of each picture (JSON) for the next start; they are counted anew when
            files changed.
        workers: processes that read masks; None takes one per core.
        test_mode: True for evaluation; handed on.
    Raises:
        ConfigError: `oversample_thr` is out of range.
        DataError: later: a mask is missing, unreadable or holds a label out of range.
    """

    def __init__(self, dataset: Mapping | SegDataset, oversample_thr: float, cache_file: str = "",
                 workers: int | None = None, test_mode: bool = False):
        if not 0 < oversample_thr <= 1:
            raise ConfigError("ClassBalancedDataset: oversample_thr must be above 0 and at most 1, got "
                              f"{oversample_thr}")
        self.dataset, self.oversample_thr = _built(dataset, "ClassBalancedDataset.dataset", test_mode), oversample_thr
        self.cache_file, self.workers = os.path.expanduser(cache_file), workers
        self.classes, self.palette, self.ignore_index = (self.dataset.classes, self.dataset.palette,
                                                         self.dataset.ignore_index)
        self._order: np.ndarray | None = None

    @property
    def order(self) -> np.ndarray:
        """The picture behind each sample: (len,) int64, sorted."""
        if self._order is None:
            factors = repeat_factors(self._present(), self.oversample_thr)
            self._order = np.repeat(np.arange(len(factors)), np.ceil(factors).astype(np.int64))
        return self._order

    def _present(self) -> np.ndarray:
        """Which classes each picture holds: (pictures, K) bool; from the cache if it fits."""
        key = self._key() if self.cache_file else ""
        if self.cache_file and os.path.isfile(self.cache_file):
            try:
                kept = json.loads(read_text(self.cache_file, what="cache_file"))
                if kept["key"] == key:
                    return _table(kept["classes_of_pictures"], len(self.classes))
            except (DataError, ValueError, KeyError, TypeError, IndexError, RecursionError):
                pass  # damaged or of another kind: count again and replace it
        found = classes_of_pictures(self.dataset, workers=self.workers)
        if self.cache_file:
            write_atomically(self.cache_file, json.dumps({"key": key, "classes_of_pictures": found}).encode())
        return _table(found, len(self.classes))

    def _key(self) -> str:
        """A digest of all that the answer depends on: mask files with size and time, and how they are read."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for part in leaves(self.dataset):
            digest.update(repr((part.reduce_zero_label, part.label_map, part.color_map, part.ignore_index)).encode())
        for index in range(len(self.dataset)):
            path = self.dataset.info(index)["seg_map_path"]
            state = os.stat(path)
            digest.update(f"{path}|{state.st_size}|{state.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.order)

    def info(self, index: int) -> dict[str, Any]:
        """See SegDataset.info."""
        return self.dataset.info(int(self.order[index]))

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See SegDataset.get."""
        return self.dataset.get(int(self.order[index]), rng)


def repeat_factors(present: np.ndarray, threshold: float) -> np.ndarray:
    """How often each picture should appear.

    Args:
        present: (pictures, K) bool, which classes a picture holds.
        threshold: share of pictures, 0..1, below which a class is rare.
    Returns:
        (pictures,) float64, each >= 1; a picture without any class gets 1.
    """
    share = present.mean(axis=0) if len(present) else np.ones(present.shape[1])
    wanted = np.array([max(1.0, math.sqrt(threshold / f)) if f > 0 else 1.0 for f in share])  # (K,)
    return np.where(present, wanted, 1.0).max(axis=1, initial=1.0)


def leaves(dataset) -> list[SegDataset]:
    """The plain datasets inside wrappers, in order, each once."""
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if inner == [None]:
        return [dataset]
    return list({id(leaf): leaf for part in inner for leaf in leaves(part)}.values())


def locate(dataset, index: int) -> tuple[SegDataset, int]:
    """The plain dataset behind one sample of a wrapper, and the sample's place in it."""
    while not isinstance(dataset, SegDataset):
        if isinstance(dataset, ConcatDataset):
            dataset, index = dataset._place(index)
        elif isinstance(dataset, ClassBalancedDataset):
            dataset, index = dataset.dataset, int(dataset.order[index])
        else:
            dataset, index = dataset.dataset, index % len(dataset.dataset)
    return dataset, index


def classes_of_pictures(dataset, *, workers: int | None = None, progress: bool = True) -> list[list[int]]:
    """Read every mask: the labels that occur in each sample, sorted, ignored pixels left out.

    Raises:
        DataError: a mask is missing, unreadable or holds a label out of range; the text names it.
    """
    from jseg.data.prepare.parallel import default_workers, map_items  # only where masks are counted

    parts = leaves(dataset)
    numbers = {id(part): i for i, part in enumerate(parts)}
    items = []
    for index in range(len(dataset)):
        part, local = locate(dataset, index)
        paths = part.info(local)
        if paths["seg_map_path"] is None:
            raise DataError(f"{type(part).__name__}: {paths['img_path']} has no mask: classes cannot be balanced "
                            f"without masks")
        items.append(Sample(paths["seg_map_path"], paths["img_path"], paths["seg_map_path"], {}, numbers[id(part)]))
    classes = []
    for item, found in map_items(inspect_mask, tuple(map(Reading.of, parts)), items,
                                 workers=workers or default_workers(),
                                 title="classes", progress=progress):
        if found.faults:
            raise DataError(found.faults[0].text)
        classes.append(sorted(set(found.labels) - {parts[item.part].ignore_index}))
    return classes


def _table(classes_of_pictures: Sequence[Sequence[int]], count: int) -> np.ndarray:
    table = np.zeros((len(classes_of_pictures), count), bool)
    for row, classes in zip(table, classes_of_pictures):
        row[list(classes)] = True
    return table


def _built(part, where: str, test_mode: bool):
    return DATASETS.build({"test_mode": test_mode, **part}, where) if isinstance(part, Mapping) else part
