"""Pictures of classes: a folder for each class, as torchvision's ImageFolder and ImageNet as it is unpacked.

    dataset:
      type: ImageFolder
      data_root: data/imagenet
      data_prefix: train          # data/imagenet/train/<class>/<any depth>/<picture>
      pipeline: [...]

Words and meaning: mmpretrain 1.2 mmpretrain/datasets/custom.py (Apache-2.0). Deviations: class folders without a
picture are classes too; hidden files are left out; a class that `classes` names and that has no folder is an error.
"""

from __future__ import annotations

import os
from typing import Any, Sequence

import numpy as np

from jseg.data.colours import spread_colours
from jseg.data.datasets.files import IMAGE_SUFFIXES, chosen_pictures, describe_missing, list_files, read_list
from jseg.data.transforms import Compose
from jseg.errors import ConfigError, DataError
from jseg.registry import DATASETS, nearest

__all__ = ["ImageFolder"]


@DATASETS.register()
class ImageFolder:
    """Pictures, each with the class whose folder it lies in.

    Args:
        data_root: folder that `data_prefix` and `classes` are relative to.
        data_prefix: the split's folder in it.
        pipeline: transform blocks applied to each sample, in order.
        classes: names of the folders in the order of the labels, or a text file with one a line; None takes all
            folders, sorted.
        img_suffix: end of picture names, or several.
        test_mode: True for evaluation; the loader sets it.
        indices: use only the first n pictures (a number) or these positions (a list).
    Attributes:
        palette: a colour for each class, for charts.
        ignore_index: -1: every picture has a class.
    Raises:
        ConfigError: `classes` is no list of different names.
        DataError: later, when files are first needed and something about them is wrong.
    """

    ignore_index = -1

    def __init__(self, *, data_root: str | None = None, data_prefix: str = "", pipeline: Sequence = (),
                 classes: str | Sequence[str] | None = None, img_suffix: str | Sequence[str] | None = None,
                 test_mode: bool = False, indices: int | Sequence[int] | None = None):
        self.data_root = os.path.expanduser(str(data_root or ""))
        if not isinstance(data_prefix, str):
            raise ConfigError(f"ImageFolder: data_prefix: got {data_prefix!r:.200}, expected the split's folder, such "
                              "as train")
        self.data_prefix, self.test_mode, self.indices = data_prefix, test_mode, indices
        self.given_classes = classes if classes is None or isinstance(classes, str) else _different_names(classes)
        suffixes = IMAGE_SUFFIXES if img_suffix is None else img_suffix
        self.img_suffix = suffixes if isinstance(suffixes, str) else tuple(suffixes)
        self.pipeline = Compose(pipeline)
        self._classes: tuple[str, ...] | None = None
        self._samples: list[tuple[str, int]] | None = None

    @property
    def folder(self) -> str:
        """The split's folder."""
        return os.path.join(self.data_root, self.data_prefix)

    @property
    def classes(self) -> tuple[str, ...]:
        """K names, in the order of the labels; looked up on first use where the config names none."""
        if self._classes is None:
            self._classes = self._found_classes()
        return self._classes

    def _found_classes(self) -> tuple[str, ...]:
        if isinstance(self.given_classes, tuple):
            return self.given_classes
        if self.given_classes is not None:
            path = os.path.join(self.data_root, self.given_classes)
            if not os.path.isfile(path):
                raise DataError(describe_missing("ImageFolder: classes", path))
            return _different_names(["".join(line) for line in read_list(path)])
        found = sorted(entry.name for entry in os.scandir(self._existing_folder())
                       if entry.is_dir() and not entry.name.startswith("."))
        if len(found) < 2:
            raise DataError(f"{self.folder}: {len(found)} folders in it; expected one for each class, two or more, "
                            "with its pictures")
        return tuple(found)

    def _existing_folder(self) -> str:
        if not os.path.isdir(self.folder):
            raise DataError(describe_missing("ImageFolder: data_prefix", self.folder))
        return self.folder

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...]:
        """(K, 3) RGB."""
        return spread_colours(len(self.classes))

    @property
    def samples(self) -> list[tuple[str, int]]:
        """(path, label) of every picture, class by class; looked up on first use."""
        if self._samples is None:
            self._samples = chosen_pictures(self._found_samples(), self.indices, "ImageFolder")
        return self._samples

    @property
    def pairs(self) -> list[tuple[str, None]]:
        """(picture path, None) of every sample: there are no masks."""
        return [(path, None) for path, _ in self.samples]

    def _found_samples(self) -> list[tuple[str, int]]:
        root, found = self._existing_folder(), []
        for label, name in enumerate(self.classes):
            inside = os.path.join(root, name)
            if not os.path.isdir(inside):
                others = [entry.name for entry in os.scandir(root) if entry.is_dir()]
                raise DataError(f"{root}: no folder for the class {name!r}{nearest(name, others)}; each class needs "
                                "one, in every split")
            found += [(os.path.join(inside, file), label) for file in list_files(inside, self.img_suffix)]
        if not found:
            raise DataError(describe_missing("ImageFolder: no picture", root, empty=True))
        return found

    def __len__(self) -> int:
        return len(self.samples)

    def info(self, index: int) -> dict[str, Any]:
        """Return img_path and gt_label of one sample."""
        path, label = self.samples[index]
        return {"img_path": path, "gt_label": label}

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Load one sample and run the pipeline on it.

        Args:
            index: 0 <= index < len(self).
            rng: source of every random choice of the pipeline.
        Returns:
            the sample: img (H, W, 3) uint8 or float32 BGR, gt_label, paths and shapes.
        Raises:
            DataError: a file is unreadable, or a transform failed; the text names the file.
        """
        return self.pipeline(self.info(index), rng)


def _different_names(names: Sequence[str]) -> tuple[str, ...]:
    wrong = [name for name in names if not isinstance(name, str) or not name.strip() or not name.isprintable()]
    if wrong or len(set(names)) < len(names) or len(names) < 2:
        why = f"{wrong[0]!r:.100} is no name" if wrong else "two or more, each once, are needed"
        raise ConfigError(f"ImageFolder: classes: {why}; give the names of the class folders, or a file with one a "
                          "line")
    return tuple(names)
