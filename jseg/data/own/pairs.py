"""Which mask belongs to which picture: by what is equal in their names, whatever stands before or after it.

    images/0001.jpg            masks/0001.png
    images/a_leftImg8bit.png   masks/a_gtFine_labelIds.png
    photos/7.jpg               photos/7_mask.png                one folder for both, also 7.jpg and 7.png
    images/img_12.tif          masks/mask_12.tif                a word before the number

Names are compared with their folders (`train/0001`), without the file's suffix.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Callable, Iterable, NamedTuple, Sequence

from jseg.data.datasets.files import IMAGE_SUFFIXES, list_files
from jseg.errors import DataError

__all__ = ["MASK_SUFFIXES", "Pairing", "find_pairs", "parts_of", "stem"]

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".PNG", ".BMP", ".TIF", ".TIFF", ".GIF",
                 ".jpg", ".jpeg", ".JPG", ".JPEG")
_TRAIN, _VAL = re.compile(r"train(ing|set)?\d*"), re.compile(r"(val(id|idation|set)?|dev)\d*")
_GOOD, _BAD = ("trainid", "labelid", "label", "mask", "seg", "gt"), ("color", "colour", "instance", "depth", "poly")
_TAIL = re.compile(r"[ _.\-]")


class Pairing(NamedTuple):
    """What belongs together.

    Attributes:
        images, masks: the two folders.
        pairs: (picture, mask), relative to them, in the order of the pictures.
        image_tail, mask_tail: what follows the common part of the names, before the file's suffix; None where names do
            not have the form common part + tail.
        lone_images, lone_masks: files without a partner.
    """

    images: str
    masks: str
    pairs: list[tuple[str, str]]
    image_tail: str | None
    mask_tail: str | None
    lone_images: list[str]
    lone_masks: list[str]


def stem(path: str) -> str:
    """A relative path without the file's suffix."""
    return os.path.splitext(path)[0]


def find_pairs(images: str | os.PathLike, masks: str | os.PathLike) -> Pairing:
    """Pair the pictures of one folder with the masks of another, or of the same.

    Raises:
        DataError: a folder is missing or empty, or no name of one folder fits one of the other.
    """
    images, masks = os.fspath(images), os.fspath(masks)
    pictures, others = _listed(images, IMAGE_SUFFIXES, "picture"), _listed(masks, MASK_SUFFIXES, "mask")
    one_folder = os.path.realpath(images) == os.path.realpath(masks)
    if one_folder and (pairs := _of_two_suffixes(pictures)):
        return Pairing(images, masks, pairs, "", "", [], [])
    tails = _best_tails(pictures, others, one_folder)
    if tails is not None:
        pairs = _joined(pictures, others, _cut(tails[0]), _cut(tails[1]), images, masks)
        return _pairing(images, masks, pictures, others, pairs, *tails, one_folder)
    for key in (_after_first_word, _numbers):
        pairs = [] if one_folder else _joined(pictures, others, key, key, images, masks)
        if len(pairs) >= 0.5 * min(len(pictures), len(others)):
            return _pairing(images, masks, pictures, others, pairs, None, None, False)
    raise DataError(f"{images} and {masks}: no name of a picture fits one of a mask: pictures are called "
                    f"{', '.join(pictures[:3])}, masks {', '.join(others[:3])}; a mask has its picture's name, with "
                    "any word before or after it")


def parts_of(pairs: Sequence[tuple[str, str]]) -> dict[str, list[int]] | None:
    """The parts that folders name: {"train": [numbers of pairs], "val": [...]}; None where the pictures do not lie in
    folders `train` and `val` (or `training`, `valid`, `validation`)."""
    found: dict[str, list[int]] = {"train": [], "val": []}
    for number, (picture, _) in enumerate(pairs):
        first = picture.split("/")[0].lower() if "/" in picture else ""
        part = "train" if _TRAIN.fullmatch(first) else "val" if _VAL.fullmatch(first) else ""
        if part:
            found[part].append(number)
    return found if all(found.values()) else None


def _listed(folder: str, suffixes: tuple[str, ...], what: str) -> list[str]:
    if not os.path.isdir(folder):
        raise DataError(f"{folder}: no such folder; give the folder of the {what}s")
    files = list_files(folder, suffixes)
    if not files:
        raise DataError(f"{folder}: no {what} in it or below; {what}s end in {', '.join(suffixes[:7])}")
    return files


def _of_two_suffixes(files: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs in one folder whose names differ in the suffix alone: a.jpg is the picture, a.png its mask."""
    by_stem: dict[str, list[str]] = {}
    for name in files:
        by_stem.setdefault(stem(name), []).append(name)
    pairs = [sorted(names, key=lambda name: not name.lower().endswith((".jpg", ".jpeg")))
             for names in by_stem.values() if len(names) == 2]
    fits = all(first.lower().endswith((".jpg", ".jpeg")) and not second.lower().endswith((".jpg", ".jpeg"))
               for first, second in pairs)
    return [tuple(pair) for pair in pairs] if fits and 2 * len(pairs) >= len(by_stem) else []


def _pairing(images, masks, pictures, others, pairs, image_tail, mask_tail, one_folder) -> Pairing:
    used = {mask for _, mask in pairs}, {picture for picture, _ in pairs}
    lone_images = [] if one_folder else [name for name in pictures if name not in used[1]]
    lone_masks = [] if one_folder else [name for name in others if name not in used[0]]
    return Pairing(images, masks, pairs, image_tail, mask_tail, lone_images, lone_masks)


def _tails(names: Iterable[str]) -> dict[str, set[str]]:
    """Each tail that names may be cut by, with the parts before it; "" cuts nothing."""
    found: dict[str, set[str]] = {"": set()}
    for name in names:
        whole = stem(name)
        found[""].add(whole)
        start = whole.rfind("/") + 2
        for match in _TAIL.finditer(whole, start):
            found.setdefault(whole[match.start():], set()).add(whole[:match.start()])
    return found


def _best_tails(pictures: Sequence[str], masks: Sequence[str], one_folder: bool) -> tuple[str, str] | None:
    """The tails of pictures and masks that join most names; None where fewer than half of them fit."""
    of_pictures, of_masks = _tails(pictures), _tails(masks)
    least = 0.3 * len(pictures) if one_folder else 0.5 * min(len(pictures), len(masks))
    best, found = None, None
    # a tail that many names share says what a file is; the number of a frame ("_001") does not
    common = [[(tail, bases) for tail, bases in tails.items() if len(bases) >= max(least, 1)]
              for tails in (of_pictures, of_masks)]
    for tail, bases in common[0]:
        for other, mask_bases in common[1]:
            if one_folder and (tail == other or not other):
                continue
            count = len(bases & mask_bases)
            if count < max(least, 1):
                continue
            rank = (count, _liking(other), -len(tail), -len(other))
            if best is None or rank > best:
                best, found = rank, (tail, other)
    return found


def _liking(tail: str) -> int:
    word = tail.lower()
    return (sum(len(_GOOD) - i for i, good in enumerate(_GOOD) if good in word)
            - 100 * sum(bad in word for bad in _BAD))


def _cut(tail: str) -> Callable[[str], str | None]:
    return lambda name: stem(name)[:len(stem(name)) - len(tail)] if stem(name).endswith(tail) else None


def _after_first_word(name: str) -> str | None:
    folder, _, file = stem(name).rpartition("/")
    rest = re.sub(r"^[^\W\d_]+[ _.\-]?", "", file)
    return f"{folder}/{rest}" if rest else None


def _numbers(name: str) -> str | None:
    return "-".join(str(int(number)) for number in re.findall(r"\d+", stem(name))) or None


def _joined(pictures: Sequence[str], masks: Sequence[str], cut: Callable, cut_mask: Callable, images: str,
            mask_folder: str) -> list[tuple[str, str]]:
    """Pairs of equal keys; files that share a key are refused, since a guess could be wrong."""
    by_key: dict[str, str] = {}
    double = Counter(filter(None, map(cut_mask, masks)))
    for mask in masks:
        key = cut_mask(mask)
        if key is not None:
            by_key[key] = mask
    pairs, seen = [], {}
    for picture in pictures:
        key = cut(picture)
        mask = by_key.get(key) if key is not None else None
        if mask is None or os.path.join(images, picture) == os.path.join(mask_folder, mask):
            continue
        if double[key] > 1 or key in seen:
            what = f"{seen[key]} and {picture}" if key in seen else f"{double[key]} masks"
            raise DataError(f"{images}: {what} have the common name {key!r}; take one of them out, so that each "
                            "picture has one mask")
        seen[key] = picture
        pairs.append((picture, mask))
    return pairs
