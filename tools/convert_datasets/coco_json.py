"""Your own annotations in COCO's instance format: masks for FolderDataset.

Source: any tool that exports COCO .json (polygons or run lengths).
Licence: yours.
Expected raw tree: one .json with images, annotations, categories; the pictures anywhere below SOURCE under their
file_name. Command: python tools/convert_datasets/coco_json.py export --out data/mine
Expected counts: as many pictures as the json lists.
Label 0 is background and the categories follow in the order of their ids (`--no-background`: the first category is 0
and what no annotation covers is 255). Large areas are drawn first, so that small things on them stay visible. Crowds
(iscrowd: 1, which brush tools write for every object) are drawn as their class; `--crowd ignore` makes them 255. Writes
images/, masks/ and classes.txt. Annotations that cannot be drawn (a box only, fewer than 3 points, outside of the
picture) are counted as left out; an export that has boxes only is refused.
"""

from __future__ import annotations

import pathlib
import re
import sys
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np

from jseg.data.io import check_pair, read_image
from jseg.data.prepare import Item, Job, Remarks, Report, Settings, Source, Writer, command, decode
from jseg.data.prepare.shapes import checked_points, checked_size, decode_rle, fill_polygons
from jseg.errors import ConvertError

OUT = "data/mine"
TOO_FEW, OUTSIDE = "outlines of fewer than 3 points", "annotations that cover no pixel"
BOX_ONLY = "annotations that have a box only"


class Export(NamedTuple):
    """A json that was read: class names, (file name, size, [(label, segment, annotation)]) of each picture, and what
    to report.
    """

    classes: list[str]
    pictures: list[tuple[str, tuple[int, int], list[tuple[int, Any, str]]]]
    notes: dict[str, int]
    boxes: list[str]


def draw(segment: Any, size: tuple[int, int], where: str) -> tuple[np.ndarray, int]:
    """(H, W) bool of one annotation's polygons or run lengths, and how many of its outlines have fewer than 3
    points.
    """
    if isinstance(segment, dict):
        return decode_rle(segment, size, where), 0
    if not isinstance(segment, list) or not all(isinstance(flat, list) for flat in segment):
        raise ConvertError(f"{where}: its segmentation is neither a list of outlines nor run lengths")
    if any(len(flat) % 2 for flat in segment):
        raise ConvertError(f"{where}: an outline needs an even count of at least 6 numbers")
    polygons = [checked_points(zip(flat[::2], flat[1::2]), where) for flat in segment]
    whole = [polygon for polygon in polygons if len(polygon) >= 3]
    return fill_polygons(whole, size), len(polygons) - len(whole)


def convert_one(item: Item, source: Source, writer: Writer, *, background: bool) -> Remarks:
    """Draw the annotations of one picture; `item.values` are the two names, its size, and (label, segment, annotation)
    of each.
    """
    picture_name, mask_name, size, parts = item.values
    data = source.read(item.inputs[0])
    img = decode(read_image, data, source.label(item.inputs[0]))
    check_pair(img, np.broadcast_to(np.uint8(0), size), source.label(item.inputs[0]), item.name)
    mask = np.full(size, 0 if background else 255, np.uint8)
    shapes, left_out = [], {TOO_FEW: [], OUTSIDE: []}
    for label, segment, name in parts:
        shape, few = draw(segment, size, f"{item.name}: {name}")
        left_out[TOO_FEW] += [f"{name} of {item.name}"] * few
        if not few and not shape.any():
            left_out[OUTSIDE].append(f"{name} of {item.name}")
        shapes.append((int(shape.sum()), np.packbits(shape), label))  # packed: a thousand masks of a large picture fit
    for _, packed, label in sorted(shapes, key=lambda shape: -shape[0]):
        mask[np.unpackbits(packed, count=mask.size).view(bool).reshape(size)] = label
    writer.copy(picture_name, source, item.inputs[0], data)
    writer.mask(mask_name, mask)
    return Remarks(left_out={kind: names for kind, names in left_out.items() if names})


def id_text(value: Any, what: str) -> str:
    """An id as text: 1, 1.0 and "1" are the same, as tools that write JSON through other formats mix them."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConvertError(f"{what}: an id of {value!r}; accepted are numbers and text")
    whole = isinstance(value, float) and abs(value) < 2 ** 53 and value == int(value)
    return str(int(value)) if whole else str(value).strip()


def tables(tree: Any, where: str) -> list[list[dict]]:
    """The lists of pictures, annotations and categories."""
    found = [tree.get(key) if isinstance(tree, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in found):
        raise ConvertError(f"{where}: not COCO instances; it needs the lists images, annotations and categories, "
                           "whose entries name each other")
    return found


def by_id(rows: list[dict], what: str, where: str) -> dict[str, dict]:
    """Rows by their id; a ConvertError where one is missing or there twice."""
    found: dict[str, dict] = {}
    for row in rows:
        number = id_text(row.get("id"), f"{where}: {what} {row.get('name', row.get('file_name', ''))!r}")
        if number in found:
            raise ConvertError(f"{where}: the id {number} is there twice among the {what} entries; each needs its own")
        found[number] = row
    return found


def class_names(categories: dict[str, dict], where: str) -> dict[str, str]:
    """Category id -> name, in the order of the ids; names are refused that are no line of classes.txt, or there
    twice.
    """
    def rank(number: str) -> tuple:  # numbers by their value, then text
        return (0, int(number), "") if re.fullmatch(r"-?[0-9]{1,18}", number) else (1, 0, number)
    order = sorted(categories, key=rank)
    names: dict[str, str] = {}
    for number in order:
        name = categories[number].get("name")
        name = name.strip() if isinstance(name, str) else name
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ConvertError(f"{where}: category {number} has the name {name!r}; a class needs a name of printable "
                               "characters")
        other = next((known for known, text in names.items() if text == name), None)
        if other is not None:
            raise ConvertError(f"{where}: the categories {other} and {number} are both named {name!r}; rename one, or "
                               "give the annotations of both "
                               "one category_id")
        names[number] = name
    return names


def read_export(tree: Any, where: str, background: bool, crowd: str) -> Export:
    """Check a json and sort its annotations to their pictures.

    Raises:
        ConvertError: the file is no such export; an entry names another that is not there; all annotations are boxes,
        or crowds to be ignored.
    """
    images, annotations, categories = tables(tree, where)
    classes, pictures = class_names(by_id(categories, "category", where), where), by_id(images, "picture", where)
    if len(classes) + background > 255:
        raise ConvertError(f"{where}: {len(classes)} categories; masks hold up to 255 classes")
    labels = {number: place + background for place, number in enumerate(classes)}
    parts: dict[str, list] = {number: [] for number in pictures}
    used, crowds, boxes = Counter(), 0, []
    for place, note in enumerate(annotations):
        name = f"annotation {note.get('id', f'number {place + 1} in the list')}"
        picture, category = (id_text(note.get(key), f"{where}: {name}: {key}") for key in ("image_id", "category_id"))
        if picture not in parts:
            raise ConvertError(f"{where}: {name} names picture {picture}, which is not listed in images")
        if category not in labels:
            raise ConvertError(f"{where}: {name} names category {category}, which is not listed in categories")
        used[category] += 1
        if not note.get("segmentation"):
            boxes.append(name)
            continue
        crowds += bool(note.get("iscrowd"))
        parts[picture].append((255 if note.get("iscrowd") and crowd == "ignore" else labels[category],
                               note["segmentation"], name))
    if boxes and len(boxes) == len(annotations):
        raise ConvertError(f"{where}: all {len(boxes)} annotations have boxes only (their segmentation is empty): an "
                           "export for detection; export "
                           "polygons or masks")
    if crowd == "ignore" and crowds and crowds == len(annotations) - len(boxes):
        raise ConvertError(f"{where}: all {crowds} annotations are crowds (iscrowd: 1), as brush tools write them, "
                           "and --crowd ignore would leave no "
                           "object; leave the option out")
    rows = [(file_name(image, where), checked_size(image.get("height"), image.get("width"),
                                                   f"{where}: picture {number}"), parts[number])
            for number, image in pictures.items()]
    drawn = "their class" if crowd == "keep" else "255"
    notes = {f"crowd annotations (iscrowd: 1) drawn as {drawn}": crowds} if crowds else {}
    above = {row.get("supercategory") for row in categories}
    unused = [name + " (the supercategory of others)" * (name in above)
              for number, name in classes.items() if not used[number]]
    if unused:
        notes[f"categories without annotations ({', '.join(unused[:8])})"] = len(unused)
    return Export(list(classes.values()), rows, notes, boxes)


def file_name(image: dict, where: str) -> str:
    """The picture's name with "/", as tools on any system write it."""
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConvertError(f"{where}: picture {image.get('id')} has the file_name {name!r}; expected the name of its "
                           "file")
    return name.replace("\\", "/")


def found_pictures(source: Source, files: list[str], where: str) -> dict[str, str]:
    """File name -> name in the source: the same path, or else the only file with that path at its end, or else of that
    base name.
    """
    named: dict[str, list[str]] = {}
    for name in source.names:
        named.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    found: dict[str, str] = {}
    for file in files:
        same = named.get(file.rsplit("/", 1)[-1], [])
        ends = [name for name in same if name == file] or [name for name in same if name.endswith(f"/{file}")] or same
        if len(ends) > 1:
            raise ConvertError(f"{where}: the picture {file!r} may be {source.label(ends[0])} or "
                               f"{source.label(ends[1])}; put the folder into its "
                               "file_name, or leave one of them out of the source")
        found.update({file: ends[0]} if ends else {})
    lacking = [file for file in files if file not in found]
    if lacking:
        raise ConvertError(f"{where}: {len(lacking)} of {len(files)} pictures are missing: {', '.join(lacking[:5])}")
    twice = next((name for name, count in Counter(found.values()).items() if count > 1), None)
    if twice is not None:
        both = [file for file in files if found[file] == twice]
        raise ConvertError(f"{where}: the pictures {both[0]!r} and {both[1]!r} are one file by name, "
                           f"{source.label(twice)}; give the missing one as well")
    return found


def convert(src, out, settings: Settings = Settings(), *, background: bool = True, crowd: str = "keep") -> Report:
    """Convert COCO annotations in `src` to `out`.

    Args:
        background: it is class 0.
        crowd: "keep" draws annotations with iscrowd: 1 as their class, "ignore" as 255.
    """
    with Job("coco_json", src, out, {}, settings) as job:
        source = job.source
        found = source.find(r"((?:.+/)?[^/]+)\.json", "annotation files (.json)")
        if len(found) > 1:
            raise ConvertError(f"{source.where}: {len(found)} .json files ({', '.join(list(found.values())[:3])}, "
                               "...); give one at a time")
        name = next(iter(found.values()))
        export = read_export(source.json(name), source.label(name), background, crowd)
        if len({file for file, _, _ in export.pictures}) < len(export.pictures):
            twice = Counter(file for file, _, _ in export.pictures).most_common(1)[0][0]
            raise ConvertError(f"{source.label(name)}: the picture {twice!r} is listed twice under two ids; leave one "
                               "of them out")
        members = found_pictures(source, [file for file, _, _ in export.pictures], source.label(name))
        items = []
        for file, size, parts in export.pictures:
            parts_of = (part.lstrip(".") for part in file.split("/"))  # neither upwards nor hidden
            short = "/".join(part for part in parts_of if part and not re.fullmatch("[A-Za-z]:", part))
            items.append(Item(f"{file} in {source.label(name)}", partial(convert_one, background=background),
                              (members[file],),
                              (f"images/{short}", f"masks/{short.rsplit('.', 1)[0]}.png", size, parts)))
        job.expected = {"images": len(items), "masks": len(items)}
        job.leave_out(BOX_ONLY, export.boxes)
        report = job.run(items, {"classes.txt": ["background"] * background + export.classes})
        report.notes.update(export.notes)
        return report


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--no-background", dest="background", action="store_false",
                        help="what no annotation covers is 255, not class 0")
    parser.add_argument("--crowd", choices=("keep", "ignore"), default="keep",
                        help="annotations with iscrowd: 1 become their class, or 255 (default: %(default)s)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
