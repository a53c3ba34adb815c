"""A user's own pictures: a folder of images, a folder of masks, names and colours in the config.

    dataset:
      type: FolderDataset
      data_root: data/roofs
      data_prefix: {img_path: images, seg_map_path: masks}
      metainfo: {classes: [ground, roof], palette: [[90, 60, 30], [200, 30, 30]]}
      split: {part: train, val_ratio: 0.2, seed: 0}
      pipeline: [...]

Masks hold class indices (0 is the first class, `ignore_index` counts nowhere) or, with `mask_format: rgb`, the colours
of the palette.
"""

from __future__ import annotations

import hashlib
from typing import Sequence

from jseg.data.datasets.base import SegDataset
from jseg.data.datasets.files import IMAGE_SUFFIXES
from jseg.errors import ConfigError, DataError
from jseg.registry import DATASETS, nearest
from jseg.rules import is_integer

__all__ = ["FolderDataset", "validation_names"]


@DATASETS.register()
class FolderDataset(SegDataset):
    """Pictures and masks in two folders, subfolders included;
    a mask has its picture's relative path with another suffix.

    Args:
        metainfo: `{classes: [...], palette: [[r, g, b], ...]}`; the palette may be left out for index masks.
        mask_format: "index", or "rgb" for masks painted in the palette's colours.
        ignore_colors: RGB colours of an "rgb" mask that count nowhere.
        split: `{part: train | val, val_ratio: 0.2, seed: 0}` divides the pictures by a hash of their names, so that a
            picture keeps its part when others are added (but for those at the border); None takes all. For
            cross-validation `{part: train | val, folds: 5, fold: 0, seed: 0}`: every fifth picture in the order of the
            hash is for validation, another fifth with each fold. It also divides the
            pictures of a list (`ann_file`).
        img_suffix: None takes .jpg, .jpeg, .png, .bmp, .tif, .tiff and .webp, small or capital.
        data_root, data_prefix, pipeline, ann_file, ignore_file, seg_map_suffix, reduce_zero_label, ignore_index,
        test_mode, indices,
            label_map: SegDataset's.
    Raises:
        ConfigError: arguments contradict each other.
    """

    IMG_SUFFIX = IMAGE_SUFFIXES

    def __init__(self, *, metainfo: dict, data_root: str | None = None, data_prefix: dict | None = None,
                 pipeline: Sequence = (), mask_format: str = "index", ignore_colors: Sequence[Sequence[int]] = (),
                 split: dict | None = None, ann_file: str = "", ignore_file: str = "",
                 img_suffix: str | Sequence[str] | None = None, seg_map_suffix: str | None = None,
                 reduce_zero_label: bool = False, ignore_index: int = 255, test_mode: bool = False,
                 indices: int | Sequence[int] | None = None, label_map: dict | None = None):
        prefix = {"img_path": "images", "seg_map_path": "masks"} if data_prefix is None else data_prefix
        super().__init__(data_root=data_root, data_prefix=prefix, pipeline=pipeline, ann_file=ann_file,
                         ignore_file=ignore_file, img_suffix=img_suffix, seg_map_suffix=seg_map_suffix,
                         reduce_zero_label=reduce_zero_label, metainfo=metainfo, ignore_index=ignore_index,
                         test_mode=test_mode, indices=indices, label_map=label_map)
        if mask_format not in ("index", "rgb"):
            raise ConfigError(f"FolderDataset: mask_format is {mask_format!r}{nearest(mask_format, ('index', 'rgb'))}; "
                              "it takes index or rgb")
        if mask_format == "rgb":
            self.color_map = self._color_map(metainfo, ignore_colors)
        elif ignore_colors:
            raise ConfigError("FolderDataset: ignore_colors goes with mask_format: rgb; for index masks set "
                              "ignore_index")
        self.split = None if split is None else _checked_split(split)

    def _color_map(self, metainfo: dict, ignore_colors: Sequence) -> dict[tuple[int, int, int], int]:
        if metainfo.get("palette") is None:
            raise ConfigError("FolderDataset: mask_format: rgb needs metainfo.palette, the colour of each class in the "
                              "masks")
        if self.reduce_zero_label:
            raise ConfigError(
                "FolderDataset: reduce_zero_label has no meaning with mask_format: rgb; use ignore_colors")
        colours = {}
        for colour, label in [*zip(self.palette, range(len(self.classes))),
                              *((tuple(c), self.ignore_index) for c in ignore_colors)]:
            if colour in colours:
                raise ConfigError(f"FolderDataset: colour {list(colour)} is given twice in palette and ignore_colors; "
                                  "with mask_format: rgb every class needs a colour of its own")
            colours[colour] = label
        return colours

    def _find_pairs(self) -> list[tuple[str, str | None]]:
        pairs = super()._find_pairs()
        stems = {}
        for img_path, _ in pairs:
            other = stems.setdefault(self._without_suffix(img_path), img_path)
            if other != img_path:
                raise DataError(f"{img_path} and {other} share one mask; rename one, or set img_suffix")
        if self.split is None:
            return pairs
        names = self.hashed_names(pairs)
        chosen = validation_names(names, self.split)
        if not 0 < len(chosen) < len(pairs):
            root = self._under_root(self.data_prefix["img_path"])
            raise DataError(f"{root}: {len(pairs)} picture(s) cannot be split into "
                            f"{self.split.get('folds') or 'two'} parts; add pictures or leave out split")
        return [pair for pair, name in zip(pairs, names) if (name in chosen) == (self.split["part"] == "val")]

    def hashed_names(self, pairs: Sequence[tuple[str, str | None]]) -> list[str]:
        """The names of pairs as `split` hashes them: the pictures' paths below their folder."""
        root = self._under_root(self.data_prefix["img_path"])
        return [path[len(root):] if path.startswith(root) else path for path, _ in pairs]


def validation_names(names: Sequence[str], split: dict) -> set[str]:
    """The pictures that a `split` block of FolderDataset takes for validation.

    Args:
        names: paths of the pictures below the folder of pictures.
        split: `{val_ratio, seed}` or `{folds, fold, seed}`.
    """
    order = sorted(names, key=lambda name: _hash(name, split["seed"]))
    if split.get("folds"):
        return set(order[split["fold"]::split["folds"]])
    return set(order[:min(max(round(len(names) * split["val_ratio"]), 1), len(names) - 1)])


def _hash(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{name.strip('/')}".encode()).hexdigest()


def _checked_split(split: dict) -> dict:
    folds = {"fold": 0, **split} if "folds" in split or "fold" in split else {"val_ratio": 0.2, **split}
    split = {"seed": 0, **folds}
    known = ("part", "folds", "fold", "seed") if "folds" in split or "fold" in split else ("part", "val_ratio", "seed")
    for key in split:
        if key not in known:
            raise ConfigError(f"FolderDataset: split: unknown key {key!r}{nearest(key, known)} (known: "
                              f"{', '.join(known)})")
    count, fold = split.get("folds"), split.get("fold")
    if "fold" in split and not (is_integer(count) and is_integer(fold) and count >= 2 and 0 <= fold < count):
        raise ConfigError(f"FolderDataset: split: got folds {count!r} and fold {fold!r}; expected 2 folds or more, and "
                          "a fold from 0 to below their number")
    if split.get("part") not in ("train", "val"):
        raise ConfigError(f"FolderDataset: split.part must be train or val, got {split.get('part')!r}")
    if not 0 < split.get("val_ratio", 0.2) < 1:
        raise ConfigError(f"FolderDataset: split.val_ratio must lie between 0 and 1, got {split['val_ratio']!r}")
    return split
