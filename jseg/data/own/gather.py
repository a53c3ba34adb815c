"""All that a config says about a user's data: files paired or outlines drawn, masks surveyed, classes named, pictures
divided into those to train on and those to evaluate on.

Nothing is written into the user's folders. Where masks must be drawn from outlines, they go to a folder beside the
config, `<config>_masks/`; where file names have no common form, a list of pairs goes beside it, `<config>_pairs.txt`.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Sequence

from jseg.data.colours import spread_colours
from jseg.data.datasets.files import IMAGE_SUFFIXES, list_files
from jseg.data.datasets.folder import FolderDataset
from jseg.data.own.annotations import BACKGROUND, HIDDEN, Annotations, annotation_kind, draw, read_annotations
from jseg.data.own.labels import Labels, propose_labels
from jseg.data.own.names import Names, find_names, read_names
from jseg.data.own.pairs import Pairing, find_pairs, parts_of, stem
from jseg.data.own.recipe import split_seed
from jseg.data.own.survey import Survey, survey_masks
from jseg.data.samples import shown_size
from jseg.data.write import write_mask
from jseg.errors import ConfigError, DataError
from jseg.files import write_atomically

__all__ = ["Asked", "OwnData", "gather_data"]

_FILES = ("data_root", "data_prefix", "img_suffix", "seg_map_suffix", "ann_file")  # arguments that find files


@dataclass(frozen=True)
class Asked:
    """What a user says about the data.

    Attributes:
        images, masks: folders; `masks` may be a COCO file.
        out: the config to write.
        classes: a file of names, or names with commas; None looks for a file.
        ignore: values, or RGB colours, that count nowhere.
        val_images, val_masks: folders of the pictures to evaluate on.
        train_list, val_list: lists of pictures, as `ann_file` takes them.
        val_ratio: share of the pictures to evaluate on, between 0 and 1.
        folds: of cross-validation; 0 for none.
        progress: show bars on stderr.
    """

    images: str
    masks: str
    out: str
    classes: str | None = None
    ignore: tuple = ()
    val_images: str | None = None
    val_masks: str | None = None
    train_list: str | None = None
    val_list: str | None = None
    val_ratio: float = 0.2
    folds: int = 0
    progress: bool = False


@dataclass
class OwnData:
    """Where the pictures are and what their masks mean.

    Attributes:
        block: arguments of FolderDataset that both parts share.
        train, val: those that differ (`split`, `data_prefix`, `ann_file`).
        labels: what the masks hold; `kind` of masks, in words.
        pixels: of each class; pictures: that hold it.
        sizes: (height, width) -> pictures.
        count: all pictures, and those to train on.
        comment: what the division is, in words.
        notes: what was found and assumed.
        made: files and folders that were written.
        samples: some of the pictures.
    """

    block: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    val: dict[str, Any] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    kind: str = ""
    pixels: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    sizes: Counter = field(default_factory=Counter)
    count: tuple[int, int] = (0, 0)
    comment: str = ""
    notes: list[str] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)

    def remove(self) -> None:
        """Take back what was written."""
        for path in self.made:
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            elif os.path.exists(path):
                os.unlink(path)
        self.made.clear()


def gather_data(asked: Asked) -> OwnData:
    """Find out all that a config says about the data.

    Raises:
        DataError, ConfigError: the data cannot be understood; nothing is left behind then.
    """
    data = OwnData()
    try:
        names = _given_names(asked)
        masks, names = _drawn_masks(asked, names, data)
        if asked.train_list or asked.val_list:
            parts = _parts_of_lists(asked, masks, data)
        elif asked.val_images or asked.val_masks:
            parts = _parts_of_folders(asked, masks, data)
        else:
            parts = _parts_of_one_folder(asked, masks, data)
        pairs = [pair for part in parts for pair in part]
        survey = survey_masks(pairs, progress=asked.progress)
        data.labels = propose_labels(survey, names, asked.ignore)
        _describe_masks(data, survey)
        if len(parts) == 1:
            _divide(asked, data, parts[0], survey)
            pairs = parts[0]
        else:
            data.count = len(pairs), len(parts[0])
        data.samples = [image for image, _ in pairs[:8]]
        return data
    except BaseException:
        data.remove()
        raise


# --- names and outlines ----------------------------------------------------------------------------------------------
def _given_names(asked: Asked) -> Names | None:
    if asked.classes is not None:
        return read_names(asked.classes)
    folder = os.path.abspath(asked.masks if os.path.isdir(asked.masks) else os.path.dirname(asked.masks))
    above = os.path.dirname(folder)
    near = [folder, os.path.abspath(asked.images), above, os.path.dirname(os.path.abspath(asked.images))]
    if os.path.basename(folder) in ("train", "val", "training", "validation"):  # labels/train: data.yaml lies above
        near.append(os.path.dirname(above))
    return find_names(near)


def _drawn_masks(asked: Asked, names: Names | None, data: OwnData) -> tuple[str, Names | None]:
    """The folder of masks: the given one, or a new one where outlines were drawn; and the names."""
    if not os.path.isdir(asked.images):
        raise DataError(f"{asked.images}: no such folder; give the folder of the pictures")
    if not os.path.exists(asked.masks):
        raise DataError(f"{asked.masks}: does not exist; give the folder of the masks, or a COCO file")
    files = list_files(asked.images, IMAGE_SUFFIXES)
    by_stem = {stem(file): file for file in files}
    kind = annotation_kind(asked.masks, list(by_stem))
    if kind is None:
        if not os.path.isdir(asked.masks):
            raise DataError(f"{asked.masks}: expected a folder of masks, or a COCO file (.json)")
        return asked.masks, names
    if asked.val_images or asked.val_masks:
        raise ConfigError(f"--val-images and --val-masks go with masks, not with {kind} outlines; put both parts into "
                          "one folder (train/ and val/ below it), or give --train-list and --val-list")
    found = read_annotations(asked.masks, kind, list(by_stem), names.names if names else ())
    folder = Path(asked.out).with_suffix("").as_posix() + "_masks"
    _draw_all(found, by_stem, asked, folder, data)
    data.kind = f"{kind} outlines"
    source = names.source if names and kind == "YOLO" else f"the {kind} file" + "s" * (kind != "COCO")
    return folder, Names([BACKGROUND, *found.names], None, source)


def _draw_all(found: Annotations, by_stem: dict[str, str], asked: Asked, folder: str, data: OwnData) -> None:
    """Write a mask for every picture that has an annotation, into a folder that must be new."""
    if os.path.lexists(folder):
        raise ConfigError(f"{folder}: the masks that are drawn from the outlines go there, but it exists and is not "
                          "overwritten; remove it, or give another --out")
    indices = {**HIDDEN, **{name: number for number, name in enumerate(found.names, 1)}}
    palette = [(0, 0, 0), *spread_colours(len(found.names))]
    palette += [(255, 255, 255)] * (256 - len(palette))
    draft = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.tmp-{os.getpid()}")
    data.made += [draft, folder]
    for drawing in found.drawings:
        path = os.path.join(asked.images, by_stem[drawing.picture])
        write_mask(os.path.join(draft, f"{drawing.picture}.png"), draw(drawing, shown_size(path), indices), palette)
    os.rename(draft, folder)
    rest = len(by_stem) - len(found.drawings)
    data.notes += [f"the outlines are drawn as masks into {folder}; training reads those: draw again (with another "
                   "--out) when outlines change", *found.notes]
    data.notes += [f"{rest} pictures have no {found.kind} annotation and are left out"] if rest else []


def _describe_masks(data: OwnData, survey: Survey) -> None:
    labels = data.labels
    data.kind = data.kind or ("masks of colours" if survey.kind == "rgb" else
                              "masks of class numbers, with a palette" if survey.palette else "masks of class numbers")
    if survey.kind == "rgb":
        data.block["mask_format"] = "rgb"
        data.block.update({"ignore_colors": [list(colour) for colour in labels.ignored]} if labels.ignored else {})
    elif labels.reduce_zero_label:
        data.block["reduce_zero_label"] = True
    elif labels.label_map:
        data.block["label_map"] = labels.label_map
    data.pixels = [survey.pixels.get(value, 0) for value in labels.values]
    data.pictures = [len(survey.pictures.get(value, ())) for value in labels.values]
    data.sizes = survey.sizes
    data.notes += labels.notes


# --- which pictures --------------------------------------------------------------------------------------------------
def _common(*folders: str) -> tuple[str, list[str]]:
    """The folder that holds all of them, absolute, and each relative to it."""
    whole = [os.path.abspath(folder) for folder in folders]
    root = os.path.commonpath(whole)
    names = [os.path.relpath(folder, root) for folder in whole]
    return root, ["" if name == os.curdir else name for name in names]


def _suffixes(pairing: Pairing) -> dict[str, Any] | None:
    """img_suffix and seg_map_suffix by which FolderDataset pairs in the same way; None where it cannot."""
    if pairing.image_tail is None or not pairing.pairs:
        return None
    ends = sorted({pairing.image_tail + os.path.splitext(image)[1] for image, _ in pairing.pairs})
    masks = {pairing.mask_tail + os.path.splitext(mask)[1] for _, mask in pairing.pairs}
    if len(masks) > 1:
        return None
    own_end = {"img_suffix": ends[0] if len(ends) == 1 else ends} if pairing.image_tail or len(ends) == 1 else {}
    mask_end = masks.pop()
    return {**own_end, **({"seg_map_suffix": mask_end} if mask_end != ".png" else {})}


def _block_of(pairing: Pairing, prefix: dict[str, str], root: str) -> dict[str, Any] | None:
    """A FolderDataset block that gives the pairs of `pairing`; None where none does."""
    suffixes = _suffixes(pairing)
    if suffixes is None:
        return None
    if pairing.image_tail == "" and not pairing.lone_images and not pairing.lone_masks:
        suffixes.pop("img_suffix", None)  # pictures of any suffix, also such as come later
    block = {"data_root": root, "data_prefix": prefix, **suffixes}
    try:
        dataset = FolderDataset(metainfo={"classes": ["a", "b"]}, **block)
        found = [tuple(map(os.path.realpath, pair)) for pair in dataset.pairs]
    except (DataError, ConfigError):
        return None
    return block if sorted(found) == sorted(tuple(map(os.path.realpath, pair)) for pair in _whole(pairing)) else None


def _paired(images: str, masks: str, data: OwnData) -> Pairing:
    pairing = find_pairs(images, masks)
    second = "masks belong to no picture, or are a second one of it, and are not used"
    for names, what in ((pairing.lone_images if not data.kind else [], "pictures have no mask and are left out"),
                        (pairing.lone_masks, second)):
        if names:
            data.notes.append(f"{len(names)} {what}: {', '.join(names[:3])}" + ("..." if len(names) > 3 else ""))
    return pairing


def _whole(pairing: Pairing) -> list[tuple[str, str]]:
    return [(os.path.join(pairing.images, image), os.path.join(pairing.masks, mask)) for image, mask in pairing.pairs]


def _write_list(asked: Asked, name: str, pairs: Sequence[tuple[str, str]], data: OwnData) -> str:
    """Write a list of pairs beside the config; its absolute path."""
    path = Path(asked.out).with_suffix("").as_posix() + f"_{name}.txt"
    if os.path.lexists(path):
        raise ConfigError(f"{path}: the list of pictures and masks goes there, but it exists and is not overwritten; "
                          "remove it, or give another --out")
    lines = "".join(f"{os.path.abspath(image)}\t{os.path.abspath(mask)}\n" for image, mask in pairs)
    data.made.append(path)
    write_atomically(path, lines.encode())
    data.notes.append(f"{path} lists which mask belongs to which picture")
    return os.path.abspath(path)


def _parts_of_one_folder(asked: Asked, masks: str, data: OwnData) -> list[list[tuple[str, str]]]:
    """Train and val where folders say so, else one part that is still to be divided."""
    pairing = _paired(asked.images, masks, data)
    root, (images, mask_folder) = _common(asked.images, masks)
    block = _block_of(pairing, {"img_path": images, "seg_map_path": mask_folder}, root)
    whole, named = _whole(pairing), parts_of(pairing.pairs)
    if named is None:
        data.block = block or {"ann_file": _write_list(asked, "pairs", whole, data)}
        return [whole]
    parts = [[whole[number] for number in named[part]] for part in ("train", "val")]
    data.comment = "train and val are the folders of these names"
    folders = [{pair[i].split("/")[0] for pair in (pairing.pairs[number] for number in named[part])}
               for part in ("train", "val") for i in (0, 1)]
    if block is not None and all(len(found) == 1 for found in folders):
        names = [found.pop() for found in folders]
        data.block = {key: value for key, value in block.items() if key != "data_prefix"}
        data.train, data.val = ({"data_prefix": {"img_path": os.path.join(images, names[i]),
                                                 "seg_map_path": os.path.join(mask_folder, names[i + 1])}}
                                for i in (0, 2))
    else:
        data.train, data.val = ({"ann_file": _write_list(asked, part, pairs, data)}
                                for part, pairs in zip(("train", "val"), parts))
    left = len(whole) - len(parts[0]) - len(parts[1])
    data.notes += [f"{left} pictures lie in other folders than train and val and are left out"] if left else []
    return parts


def _parts_of_folders(asked: Asked, masks: str, data: OwnData) -> list[list[tuple[str, str]]]:
    if not (asked.val_images and asked.val_masks):
        raise ConfigError("--val-images and --val-masks go together; give both")
    pairings = [_paired(asked.images, masks, data), _paired(asked.val_images, asked.val_masks, data)]
    root, names = _common(asked.images, masks, asked.val_images, asked.val_masks)
    blocks = [_block_of(pairing, {"img_path": names[2 * i], "seg_map_path": names[2 * i + 1]}, root)
              for i, pairing in enumerate(pairings)]
    parts = [_whole(pairing) for pairing in pairings]
    if all(blocks):
        shared = {key: value for key, value in blocks[0].items() if blocks[1].get(key) == value}
        data.block = shared
        data.train, data.val = ({key: value for key, value in block.items() if key not in shared} for block in blocks)
        if set(data.train) == set(data.val):
            return parts
    data.block = {}
    data.train, data.val = ({"ann_file": _write_list(asked, part, pairs, data)}
                            for part, pairs in zip(("train", "val"), parts))
    return parts


def _parts_of_lists(asked: Asked, masks: str, data: OwnData) -> list[list[tuple[str, str]]]:
    if not (asked.train_list and asked.val_list):
        raise ConfigError("--train-list and --val-list go together; give both")
    pairing = _paired(asked.images, masks, data)
    root, (images, mask_folder) = _common(asked.images, masks)
    data.block = {"data_root": root, "data_prefix": {"img_path": images, "seg_map_path": mask_folder},
                  **(_suffixes(pairing) or {})}
    data.block.pop("img_suffix", None) if not pairing.image_tail else None
    data.train, data.val = ({"ann_file": os.path.abspath(given)} for given in (asked.train_list, asked.val_list))
    data.comment = "train and val are as listed"
    return [FolderDataset(metainfo={"classes": ["a", "b"]}, **data.block, **part).pairs
            for part in (data.train, data.val)]


def _divide(asked: Asked, data: OwnData, pairs: list[tuple[str, str]], survey: Survey) -> None:
    """Divide one set of pictures by a hash of their names, so that every class is in both parts where that can be."""
    split = {"folds": asked.folds, "fold": 0} if asked.folds else {"val_ratio": asked.val_ratio}
    if len(pairs) < max(2, asked.folds):
        raise DataError(f"{asked.images}: {len(pairs)} picture(s) with masks cannot be divided into train and val; "
                        f"at least {max(2, asked.folds)} are needed")
    block = {"metainfo": {"classes": ["a", "b"]}, **{key: data.block[key] for key in _FILES if key in data.block}}
    whole = FolderDataset(**block)
    names = dict(zip((image for image, _ in whole.pairs), whole.hashed_names(whole.pairs)))
    held = [survey.pictures.get(value, ()) for value in data.labels.values]
    order = {os.path.realpath(image): number for number, (image, _) in enumerate(pairs)}
    place = {order[os.path.realpath(path)]: number for number, path in enumerate(names)}
    split["seed"] = split_seed(list(names.values()), [[place[number] for number in numbers] for numbers in held], split)
    data.train, data.val = ({"split": {"part": part, **split}} for part in ("train", "val"))
    count = len(FolderDataset(**block, **data.train).pairs)
    data.count = len(pairs), count
    data.comment = (f"fold 0 of {asked.folds}" if asked.folds else f"{count} to train on, {len(pairs) - count} to "
                    "evaluate on, by a hash of the names; frames of one video belong in one part: --train-list")
    only = [name for name, numbers in zip(data.labels.names, held) if len(numbers) == 1]
    data.notes += [f"{', '.join(only)}: in one picture only, so not in both parts"] if only else []
