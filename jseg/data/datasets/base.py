"""The base of all datasets: which picture goes with which mask, and what the values in a mask mean.

Vocabulary and meaning follow mmsegmentation 1.2.2, mmseg/datasets/basesegdataset.py (Apache-2.0). Deviations:
- files are looked up when first needed, so class names and colours are known without any data on disk;
- a missing folder, a picture without a mask, a mask of another size and a label out of range are errors that name the
  file;
- `ann_file` also takes lines of two paths, "picture mask"; `ignore_file` leaves pictures out;
- classes outside of a subset map to `ignore_index`, not to a fixed 255;
- missing colours are spread over what eyes can tell apart, not drawn at random.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Mapping, Sequence

import numpy as np

from jseg.data.colours import spread_colours
from jseg.data.datasets.files import chosen_pictures, describe_missing, list_files, listed_hint, read_list
from jseg.data.io import check_pair
from jseg.data.labels import check_labels
from jseg.data.transforms import Compose
from jseg.errors import ConfigError, DataError
from jseg.registry import nearest

__all__ = ["SegDataset", "named_colours"]


def named_colours(*entries: tuple) -> dict[str, tuple]:
    """Turn ("name", red, green, blue) entries into a METAINFO of classes and palette."""
    return {"classes": tuple(entry[0] for entry in entries), "palette": tuple(tuple(entry[1:]) for entry in entries)}


class SegDataset:
    """Pictures with one label map each.

    A picture `<img_path>/<stem><img_suffix>` belongs to the mask `<seg_map_path>/<stem><seg_map_suffix>`; folders are
    read recursively and in sorted order. Subclasses set the class attributes; None as an argument means the class's own
    value.

    Args:
        data_root: folder that `data_prefix` and `ann_file` are relative to (absolute ones stay as they are).
        data_prefix: `{img_path: ..., seg_map_path: ...}`; without `seg_map_path` the dataset has no masks.
        pipeline: transform blocks applied to each sample, in order.
        ann_file: text file that selects pictures: one stem per line (a suffix may stay), or "picture mask" with two
            paths.
        ignore_file: text file of pictures to leave out, one per line, written as in `ann_file`; they need no mask.
        img_suffix: end of picture names, ".jpg"; a tuple takes any of them.
        seg_map_suffix: end of mask names that replaces the picture's suffix.
        reduce_zero_label: True for masks in which 0 is unlabelled and classes start at 1 (ADE20K): 0 becomes 255, k
            becomes k - 1.
        metainfo: `{classes: [...], palette: [[r, g, b], ...]}`; for a known dataset the classes may be a subset in any
            order.
        ignore_index: label that counts nowhere, 0..255; the heads and `data_preprocessor.seg_pad_val` must have the
            same.
        label_map: `{old: new}` merges or renames labels: old is a value of the masks (after `reduce_zero_label`) or the
            published name of a class, new an index or name of this dataset's classes, or `ignore_index`.
        test_mode: True for evaluation; the loader sets it for `val` and `test`.
        indices: use only the first n pictures (a number) or these positions (a list).
    Raises:
        ConfigError: classes or colours do not fit each other or the dataset.
        DataError: later, when files are first needed and something about them is wrong.
    """

    METAINFO: ClassVar[dict[str, tuple]] = {}
    IMG_SUFFIX: ClassVar[str | tuple[str, ...]] = ".jpg"
    SEG_MAP_SUFFIX: ClassVar[str] = ".png"
    REDUCE_ZERO_LABEL: ClassVar[bool] = False
    NEEDS_ANN_FILE: ClassVar[bool] = False
    VOID_LABELS: ClassVar[tuple[int, ...]] = ()          # values in the published masks that mean "nothing"
    # data_prefix key -> suffix of one more file per picture; "" stands for the picture's own suffix
    EXTRA_FILES: ClassVar[dict[str, str]] = {}
    LIST_ROOTS: ClassVar[tuple[str, ...]] = ()           # path beginnings in published lists that stand for data_root

    def __init__(self, *, data_root: str | None = None, data_prefix: dict | None = None, pipeline: Sequence = (),
                 ann_file: str = "", ignore_file: str = "", img_suffix: str | None = None,
                 seg_map_suffix: str | None = None, reduce_zero_label: bool | None = None, metainfo: dict | None = None,
                 ignore_index: int = 255, test_mode: bool = False,
                 indices: int | Sequence[int] | None = None, label_map: dict | None = None):
        self.data_root = os.path.expanduser(str(data_root or ""))
        self.data_prefix = _checked_prefix(data_prefix, ("img_path", "seg_map_path", *self.EXTRA_FILES))
        self.ann_file = self._under_root(ann_file) if ann_file else ""
        self.ignore_file = self._under_root(ignore_file) if ignore_file else ""
        if self.NEEDS_ANN_FILE and not self.ann_file:
            raise ConfigError(f"{type(self).__name__}: needs 'ann_file', the list of pictures of a split, because its "
                              "picture folder holds more pictures than masks")
        self.img_suffix = self.IMG_SUFFIX if img_suffix is None else _suffixes(img_suffix)
        self.seg_map_suffix = self.SEG_MAP_SUFFIX if seg_map_suffix is None else seg_map_suffix
        self.reduce_zero_label = self.REDUCE_ZERO_LABEL if reduce_zero_label is None else bool(reduce_zero_label)
        self.ignore_index, self.test_mode, self.indices = int(ignore_index), test_mode, indices
        self.classes, self.palette = self._names_and_colours(metainfo or {})
        self.given_label_map = self._given_label_map(label_map or {})
        self.label_map = self._label_map()
        self.color_map: dict[tuple[int, int, int], int] | None = None
        self.pipeline = Compose(pipeline)
        self._pairs: list[tuple[str, str | None]] | None = None
        self._missing: list[str] | None = None  # what `scan` found to be missing; None: raise instead

    # ---- names, colours, values --------------------------------------------------------------------------------------

    def _names_and_colours(self, metainfo: dict) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
        if not isinstance(metainfo, Mapping):
            raise ConfigError(f"{type(self).__name__}: metainfo: got {metainfo!r}, expected "
                              f"{{classes: [...], palette: [...]}}")
        for key in metainfo:
            if key not in ("classes", "palette"):
                raise ConfigError(f"{type(self).__name__}: metainfo: unknown key "
                                  f"{key!r}{nearest(key, ('classes', 'palette'))}")
        known = self.METAINFO.get("classes", ())
        classes = _checked_names(metainfo.get("classes", known), type(self).__name__)
        for name in classes if known else ():
            if name not in known:
                raise ConfigError(f"{type(self).__name__}: metainfo.classes: {name!r} is not one of its {len(known)} "
                                  f"classes{nearest(name, known)}")
        if not classes:
            raise ConfigError(f"{type(self).__name__}: no class names; give metainfo: {{classes: [name of 0, name of "
                              f"1, ...]}}")
        if len(set(classes)) < len(classes):
            raise ConfigError(f"{type(self).__name__}: metainfo.classes names a class twice: {', '.join(classes)}")
        palette = metainfo.get("palette")
        if palette is None and known:
            palette = [self.METAINFO["palette"][known.index(name)] for name in classes]
        elif palette is None:
            palette = spread_colours(len(classes))
        palette = _checked_colours(palette, type(self).__name__)
        wrong = [colour for colour in palette if len(colour) != 3 or min(colour) < 0 or max(colour) > 255]
        if wrong or len(palette) != len(classes):
            raise ConfigError(f"{type(self).__name__}: metainfo.palette has {len(palette)} colours for {len(classes)} "
                              "classes"
                              + (f"; {list(wrong[0])} is not [red, green, blue] with 0..255" if wrong else ""))
        return classes, palette

    def _given_label_map(self, label_map: dict) -> dict[int, int]:
        """The argument `label_map` with indices for names."""
        where, known = f"{type(self).__name__}: label_map", self.METAINFO.get("classes", self.classes)
        if not isinstance(label_map, Mapping):
            raise ConfigError(f"{where}: got {label_map!r}, expected {{old: new}}, for example {{2: 1}}")
        mapping = {}
        for old, new in label_map.items():
            for value, names, side in ((old, known, "old"), (new, self.classes, "new")):
                odd = isinstance(value, bool) or not isinstance(value, (int, str))
                if odd or isinstance(value, str) and value not in names:
                    raise ConfigError(f"{where}: {value!r} is no {side} label{nearest(value, names)}; give an index, "
                                      f"or one of "
                                      f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}")
            old = known.index(old) if isinstance(old, str) else old
            mapping[old] = new = self.classes.index(new) if isinstance(new, str) else new
            if not 0 <= old <= 65535 or not (0 <= new < len(self.classes) or new == self.ignore_index):
                raise ConfigError(f"{where}: {{{old}: {new}}}: old labels are 0..65535, new ones "
                                  f"0..{len(self.classes) - 1} or ignore_index "
                                  f"{self.ignore_index}")
        return mapping

    def _label_map(self) -> dict[int, int] | None:
        """Map values of the files (after `reduce_zero_label`) to labels where they differ; None: nothing to change."""
        known = self.METAINFO.get("classes", self.classes)
        mapping = {old: self.classes.index(name) if name in self.classes else self.ignore_index
                   for old, name in enumerate(known)}
        mapping.update({value: self.ignore_index for value in self.VOID_LABELS})
        mapping.update(self.given_label_map)
        return {old: new for old, new in mapping.items() if old != new} or None

    # ---- files -------------------------------------------------------------------------------------------------------

    def _under_root(self, path: str) -> str:
        return os.path.join(self.data_root, os.path.expanduser(path))

    @property
    def pairs(self) -> list[tuple[str, str | None]]:
        """(picture path, mask path or None) of every sample; looked up on first use."""
        if self._pairs is None:
            self._pairs = chosen_pictures(self._complete(self._find_pairs()), self.indices, type(self).__name__)
        return self._pairs

    def scan(self) -> tuple[list[tuple[str, str | None]], list[str]]:
        """Look the files up as `pairs` does, but go on where something is missing:
        (the complete pairs, a text for each fault).
        """
        self._missing = missing = []
        try:
            pairs = chosen_pictures(self._complete(self._find_pairs()), self.indices, type(self).__name__)
            self._pairs = None if missing else pairs
            return pairs, missing
        except DataError as error:
            return [], [*missing, str(error)]
        finally:
            self._missing = None

    def _report_missing(self, text: str) -> None:
        if self._missing is None:
            raise DataError(text)
        self._missing.append(text)

    def _find_pairs(self) -> list[tuple[str, str | None]]:
        name = type(self).__name__
        if self.ann_file:
            if not os.path.isfile(self.ann_file):
                raise DataError(describe_missing(f"{name}: ann_file", self.ann_file))
            lines = read_list(self.ann_file)
            if not lines:
                raise DataError(f"{self.ann_file}: the list is empty; {name} expects one stem or \"picture mask\" a "
                                "line")
            if isinstance(lines[0], tuple):
                return self._pairs_of_lines(lines)
            return self._pairs_of_stems([self._without_suffix(line) for line in lines], listed=True)
        folder = self._folder("img_path")
        files = self._pictures(folder)
        if not files:
            raise DataError(describe_missing(f"{name}: no picture ending in {_spelled(self.img_suffix)}",
                                             folder, empty=True))
        return self._pairs_of_stems(files, listed=False)

    def _pictures(self, folder: str) -> list[str]:
        """The pictures in a folder, relative to it; where masks lie in the same folder, what ends like a mask is
        none."""
        files, masks = list_files(folder, self.img_suffix), self.data_prefix.get("seg_map_path")
        if masks is None or os.path.realpath(self._under_root(masks)) != os.path.realpath(folder):
            return files
        return [file for file in files if not file.endswith(self.seg_map_suffix)]

    def _left_out(self) -> set[str]:
        """The stems in `ignore_file`."""
        if not self.ignore_file:
            return set()
        if not os.path.isfile(self.ignore_file):
            raise DataError(describe_missing(f"{type(self).__name__}: ignore_file", self.ignore_file))
        lines = read_list(self.ignore_file)
        return {self._without_suffix(line if isinstance(line, str) else line[0]) for line in lines}

    def _complete(self, pairs: list) -> list:
        """Keep the pairs whose extra files exist."""
        for key in self.EXTRA_FILES:
            if self.data_prefix.get(key) is None:
                continue
            self._folder(key)
            absent = [path for path in (self._extra(key, pair[0]) for pair in pairs) if not os.path.isfile(path)]
            if absent:
                self._report_missing(_some_missing(f"{type(self).__name__}: data_prefix.{key}: {len(absent)} of "
                                         f"{len(pairs)} files do not exist",
                                         absent, "each picture needs one"))
                pairs = [pair for pair in pairs if os.path.isfile(self._extra(key, pair[0]))]
        return pairs

    def _extra(self, key: str, img_path: str) -> str:
        """The file of `key` that belongs to a picture."""
        name = os.path.relpath(img_path, self._under_root(self.data_prefix["img_path"]))
        suffix = self.EXTRA_FILES[key]
        return os.path.join(self._under_root(self.data_prefix[key]), self._without_suffix(name) + suffix
                            if suffix else name)

    def _folder(self, key: str) -> str:
        folder = self._under_root(self.data_prefix[key])
        if not os.path.isdir(folder):
            raise DataError(describe_missing(f"{type(self).__name__}: data_prefix.{key}", folder))
        return folder

    def _without_suffix(self, name: str) -> str:
        for suffix in (self.img_suffix,) if isinstance(self.img_suffix, str) else self.img_suffix:
            if name.endswith(suffix):
                return name[:len(name) - len(suffix)]
        return name

    def _pairs_of_stems(self, names: list[str], listed: bool) -> list[tuple[str, str | None]]:
        """Join folder, stem and suffix; `names` are stems (listed) or files relative to the picture folder."""
        pictures, masks = self._folder("img_path"), None
        if self.data_prefix.get("seg_map_path") is not None:
            masks = self._folder("seg_map_path")
        left_out = self._left_out()
        names = [name for name in names if self._without_suffix(name) not in left_out]
        if listed:
            by_stem = {self._without_suffix(file): file for file in self._pictures(pictures)}
            absent = [stem for stem in names if stem not in by_stem]
            if absent:
                there = ", ".join(sorted(by_stem.values())[:3]) or "nothing"
                self._report_missing(_some_missing(f"{self.ann_file}: {len(absent)} of {len(names)} listed pictures "
                                         f"are not in {pictures} with the end {_spelled(self.img_suffix)}", absent,
                                         f"there: {there}{listed_hint(absent, by_stem)}"))
            names = [by_stem[stem] for stem in names if stem in by_stem]
        wanted = [None if masks is None else self._without_suffix(file) + self.seg_map_suffix for file in names]
        if masks is not None:
            there = set(list_files(masks, ""))
            absent = [name for name in wanted if name not in there]
            if absent:
                self._report_missing(_some_missing(f"{masks}: {len(absent)} of {len(names)} pictures have no mask "
                                         f"ending in {self.seg_map_suffix!r}", absent,
                                         f"there: {', '.join(sorted(there)[:3]) or 'nothing'}; check seg_map_path and "
                                         "seg_map_suffix"))
            return [(os.path.join(pictures, file), os.path.join(masks, mask)) for file, mask in zip(names, wanted)
                    if mask in there]
        return [(os.path.join(pictures, file), None) for file in names]

    def _pairs_of_lines(self, lines: list[tuple[str, str]]) -> list[tuple[str, str | None]]:
        left_out = self._left_out()
        pairs = [tuple(self._listed_path(path) for path in line)
                 for line in lines if self._without_suffix(line[0]) not in left_out]
        absent = [path for pair in pairs for path in pair if not os.path.isfile(path)]
        if absent:
            gone = set(absent)
            hint = listed_hint([path for line in lines for path in line if self._listed_path(path) in gone])
            self._report_missing(_some_missing(f"{self.ann_file}: {len(absent)} of {2 * len(pairs)} listed files do "
                                               "not exist",
                                     absent, f"paths count from data_root {self.data_root or os.curdir!r}{hint}"))
        gone = set(absent)
        return [pair for pair in pairs if gone.isdisjoint(pair)]

    def _listed_path(self, path: str) -> str:
        for root in self.LIST_ROOTS:
            if path.startswith(root):
                return self._under_root(path[len(root):])
        return self._under_root(path)

    # ---- samples -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.pairs)

    def info(self, index: int) -> dict[str, Any]:
        """Return img_path, seg_map_path (None without masks) and the extra files' paths of one sample."""
        img_path, seg_map_path = self.pairs[index]
        return {"img_path": img_path, "seg_map_path": seg_map_path, **self.extra_files(img_path)}

    def extra_files(self, img_path: str) -> dict[str, str]:
        """The further files that belong to a picture, by their keys in `data_prefix`."""
        return {key: self._extra(key, img_path) for key in self.EXTRA_FILES if self.data_prefix.get(key) is not None}

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Load one sample and run the pipeline on it.

        Args:
            index: 0 <= index < len(self).
            rng: source of every random choice of the pipeline.
        Returns:
            the sample: img (H, W, 3) uint8 BGR, gt_seg_map (H, W), paths and shapes.
        Raises:
            DataError: a file is unreadable, its mask does not fit, or a transform failed; the text names the file.
        """
        return self._run(index, rng, len(self.pipeline.transforms))

    def _run(self, index: int, rng: np.random.Generator, steps: int) -> dict[str, Any]:
        """The sample after the first `steps` transforms."""
        sample = {**self.info(index), "reduce_zero_label": self.reduce_zero_label, "label_map": self.label_map,
                  "color_map": self.color_map}
        checked = False
        for place in range(steps):
            with self.pipeline.named_errors(place, sample) as step:
                if hasattr(step, "extra_indices"):  # a mosaic: other samples, as far transformed as this one
                    others = step.extra_indices(len(self), rng)
                    sample["mix_results"] = [self._run(other, rng, place) for other in others]
                sample = step(sample, rng)
            if not checked and sample.get("gt_seg_map") is not None:
                self._check_mask(sample)
                checked = True
        return sample

    def _check_mask(self, sample: dict) -> None:
        """Raise unless the mask, just read, has its picture's own size and only known labels."""
        mask = sample["gt_seg_map"]
        if "ori_shape" in sample:
            check_pair(np.broadcast_to(np.uint8(0), sample["ori_shape"][:2]), mask, sample["img_path"],
                       sample["seg_map_path"])
        check_labels(mask, len(self.classes), self.ignore_index, sample["seg_map_path"])


def _checked_prefix(prefix: dict | None, keys: tuple[str, ...]) -> dict:
    prefix = {"img_path": "", "seg_map_path": ""} if prefix is None else dict(prefix)
    for key in prefix:
        if key not in keys:
            raise ConfigError(f"data_prefix: unknown key {key!r}{nearest(key, keys)}; it takes {', '.join(keys[:-1])} "
                              f"and {keys[-1]}")
    return {"img_path": "", **prefix}


def _checked_names(names: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Class names as a tuple; ConfigError unless they are a list of texts."""
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        shown = f"[background, {names}]" if isinstance(names, str) else "[background, ...]"
        raise ConfigError(f"{dataset}: metainfo.classes: got {names!r:.200}, expected a list of names; write {shown}")
    for name in names:
        if isinstance(name, bool):
            words = "true, yes and on" if name else "false, no and off"
            raise ConfigError(f"{dataset}: metainfo.classes: a name is read as {str(name).lower()}, as YAML reads "
                              f"{words}; put it in quotes")
        if not isinstance(name, str):
            raise ConfigError(f"{dataset}: metainfo.classes: got {name!r:.200} among the names; names are text: put it "
                              f"in quotes")
        if not name.strip() or not name.isprintable():
            raise ConfigError(f"{dataset}: metainfo.classes: {name!r:.200} is no name; names are printable text")
    return tuple(names)


def _checked_colours(palette: Sequence, dataset: str) -> tuple[tuple[int, ...], ...]:
    try:
        return tuple(tuple(int(channel) for channel in colour) for colour in palette)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{dataset}: metainfo.palette: got {palette!r:.200}, expected [[red, green, blue], ...] with "
                          f"0..255") from error


def _suffixes(value: str | Sequence[str]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def _spelled(suffix: str | tuple[str, ...]) -> str:
    return repr(suffix) if isinstance(suffix, str) else " or ".join(suffix)


def _some_missing(what: str, names: Sequence[str], hint: str) -> str:
    more = "" if len(names) <= 5 else f" and {len(names) - 5} more"
    return f"{what}: {', '.join(names[:5])}{more} ({hint})"
