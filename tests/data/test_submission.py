"""Files for evaluation servers hold the publishers' ids."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "convert_datasets"))

from jseg.data.datasets import ADE20KDataset, CityscapesDataset
from jseg.data.io import read_mask, write_mask
from jseg.data.submission import SUBMISSIONS, check_classes, submission_ids, submission_name
from jseg.errors import DataError


def test_cityscapes_ids_are_those_of_the_publishers_table(tmp_path, rng):
    """The converter's table, which goes the other way, gives the labels back."""
    import cityscapes
    labels = rng.integers(0, 19, (7, 9)).astype(np.uint8)
    labels.ravel()[:19] = np.arange(19)
    path = tmp_path / submission_name("frankfurt_000000_000294_leftImg8bit")
    write_mask(path, submission_ids(labels, "cityscapes"))
    assert path.name == "frankfurt_000000_000294_leftImg8bit.png"
    assert np.array_equal(cityscapes.FROM_IDS.indices(read_mask(path), "x"), labels)
    for place, name in enumerate(CityscapesDataset.METAINFO["classes"]):
        assert cityscapes.LABELS[name] == (SUBMISSIONS["cityscapes"].ids[place], place)


def test_ade20k_ids_begin_at_1():
    labels = np.arange(150, dtype=np.uint8).reshape(10, 15)
    assert np.array_equal(submission_ids(labels, "ade20k"), labels + 1)


def test_only_the_benchmarks_own_classes_are_taken():
    for form, dataset in (("cityscapes", CityscapesDataset), ("ade20k", ADE20KDataset)):
        classes = list(dataset.METAINFO["classes"])
        check_classes(classes, form)
        check_classes([name.strip().title() for name in classes], form)
        with pytest.raises(DataError, match=f"--format {form}: the checkpoint has {len(classes) - 1} classes"):
            check_classes(classes[:-1], form)
        with pytest.raises(DataError, match="class 1 of the checkpoint is"):
            check_classes([classes[0], classes[2], classes[1], *classes[3:]], form)


@pytest.mark.parametrize("labels", [np.full((2, 2), 19, np.uint8), np.full((2, 2), -1), np.zeros((2, 2)), np.zeros(4,
    np.uint8)])
def test_labels_outside_of_the_classes(labels):
    with pytest.raises(ValueError, match="labels from 0 to 18"):
        submission_ids(labels, "cityscapes")
