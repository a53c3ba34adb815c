"""Predicted labels as the files that evaluation servers of benchmarks take: the publisher's ids instead of class
indices.

Servers want one grey PNG for each picture, of the picture's own size, named like the picture:

- cityscapes: the ids of the publisher's label table (road is 7, bicycle 33), https://www.cityscapes-dataset.com/submit
- ade20k: class index + 1 (wall is 1; 0 would be "no class"), http://sceneparsing.csail.mit.edu

As `format_results` of MMSegmentation 1.2.2 writes them (mmseg/datasets/cityscapes.py, ade.py;
mmseg/evaluation/metrics/iou_metric.py; Apache-2.0).
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Sequence

import numpy as np

from jseg.data.datasets import ADE20KDataset, CityscapesDataset
from jseg.errors import DataError

__all__ = ["SUBMISSIONS", "check_classes", "submission_ids", "submission_name"]

_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of train ids 0 to 18


class _Form(NamedTuple):
    """The classes in their order, and the id to write for each."""

    classes: Callable[[], Sequence[str]]
    ids: tuple[int, ...]


SUBMISSIONS = {"cityscapes": _Form(lambda: CityscapesDataset.METAINFO["classes"], _CITYSCAPES_IDS),
               "ade20k": _Form(lambda: ADE20KDataset.METAINFO["classes"], tuple(range(1, 151)))}


def check_classes(classes: Sequence[str], form: str) -> None:
    """Make sure that a model's classes are the benchmark's, in its order; call it once, before anything is predicted.

    Args:
        classes: names as in the checkpoint.
        form: a key of `SUBMISSIONS`.
    Raises:
        DataError: another number of classes, or another name at some place.
        KeyError: no such form.
    """
    wanted = [name.strip().lower() for name in SUBMISSIONS[form].classes()]
    given = [name.strip().lower() for name in classes]
    if given == wanted:
        return
    cure = f"only a model of its {len(wanted)} classes can be submitted: use one, or leave --format out"
    if len(given) != len(wanted):
        raise DataError(f"--format {form}: the checkpoint has {len(given)} classes ({', '.join(classes[:4])}, ...); "
                        f"{cure}")
    place = next(index for index, (one, other) in enumerate(zip(given, wanted)) if one != other)
    raise DataError(f"--format {form}: class {place} of the checkpoint is {classes[place]!r}, of the benchmark "
                    f"{wanted[place]!r}; {cure}")


def submission_ids(labels: np.ndarray, form: str) -> np.ndarray:
    """Turn class indices into the ids that the server expects.

    Args:
        labels: (H, W) class indices, at the size of the picture.
        form: a key of `SUBMISSIONS`.
    Returns:
        (H, W) uint8, for `jseg.data.io.write_mask` without a palette.
    Raises:
        ValueError: labels outside of the classes.
    """
    ids = np.array(SUBMISSIONS[form].ids, np.uint8)
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or (
            labels.size and not 0 <= labels.min() <= labels.max() < len(ids)):
        raise ValueError(f"submission_ids: expected (H, W) labels from 0 to {len(ids) - 1}, got {labels.shape} "
                         f"{labels.dtype}")
    return ids[labels]


def submission_name(stem: str) -> str:
    """The file that belongs to a picture, by the picture's name without its suffix: the servers pair the two by
    name.
    """
    return f"{stem}.png"
