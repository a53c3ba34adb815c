"""Outlines drawn in annotation tools as index masks: COCO JSON, labelme JSON, YOLO polygon text.

Formats: COCO `instances_*.json` (cocodataset.org, "format-data"), with polygons and run lengths; labelme 4 to 6, a JSON
file per picture; Ultralytics YOLO "segment", a text file per picture with lines `class x1 y1 x2 y2 ...` from 0 to 1,
names in `data.yaml` or `classes.txt`. Class 0 is "background", what no outline covers.

Where outlines overlap, COCO's smaller one lies on top (its files have no order); labelme's and YOLO's later one, as
labelme's own export draws them. labelme's pixels are those of that export. Deviations from it: lines and points have
no area and are left out; `__ignore__` is the ignored value, not -1.
"""

from __future__ import annotations

import base64
import json
import math
import os
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np
from PIL import Image, ImageDraw

from jseg.data.datasets.files import list_files
from jseg.data.io import read_mask
from jseg.data.own.pairs import stem
from jseg.data.prepare.shapes import checked_points, checked_size, decode_rle, fill_polygons, polygon_inside
from jseg.errors import DataError
from jseg.text import printable, read_text

__all__ = ["BACKGROUND", "HIDDEN", "IGNORED", "Annotations", "Drawing", "annotation_kind", "draw", "read_annotations"]

BACKGROUND, IGNORED = "background", 255
MOST_BYTES = 2 << 30   # of a COCO file
_UNDRAWN = ("line", "linestrip", "point", "points")  # labelme shapes without area
# names with a fixed value
HIDDEN = {"__ignore__": IGNORED, "_background_": 0, BACKGROUND: 0}


class Drawing(NamedTuple):
    """The outlines of one picture.

    Attributes:
        source: the file they stand in, for messages.
        picture: the picture's name as the file has it, or its stem where the file has none.
        size: (height, width) as the file has it; None where it has none.
        shapes: (class name, kind, geometry) from bottom to top.
    """

    source: str
    picture: str
    size: tuple[int, int] | None
    shapes: list[tuple[str, str, Any]]


class Annotations(NamedTuple):
    """All that an annotation folder or file holds: `kind` (COCO, labelme, YOLO), `names` of the classes without
    background, `drawings`, `notes` of what was left out."""

    kind: str
    names: list[str]
    drawings: list[Drawing]
    notes: list[str]


def annotation_kind(masks: str | os.PathLike, stems: Sequence[str]) -> str | None:
    """What `masks` is: "COCO", "labelme", "YOLO", or None for mask pictures.

    Args:
        masks: a folder or a file.
        stems: names of the pictures without suffix, relative to their folder.
    """
    masks = os.fspath(masks)
    if os.path.isfile(masks):
        return "COCO" if masks.lower().endswith(".json") else None
    wanted = set(stems)
    for kind, suffix in (("labelme", ".json"), ("YOLO", ".txt")):
        files = list_files(masks, suffix)
        if sum(stem(file) in wanted for file in files) >= 0.5 * min(len(wanted), max(len(files), 1)) and files:
            return kind
    return None


def read_annotations(masks: str | os.PathLike, kind: str, stems: Sequence[str],
                     names: Sequence[str] = ()) -> Annotations:
    """Read every outline.

    Args:
        masks: a folder, or COCO's file.
        kind: from `annotation_kind`.
        stems: of the pictures; files of other names are left out.
        names: of YOLO's classes, where no file beside the labels has them; of the others the order.
    Raises:
        DataError: a file is no such annotation; the text names file and place.
    """
    readers = {"COCO": _read_coco, "labelme": _read_labelme, "YOLO": _read_yolo}
    found = readers[kind](os.fspath(masks), list(stems), list(names))
    if not found.drawings:
        raise DataError(f"{masks}: no {kind} annotation belongs to one of the {len(stems)} pictures, whose names "
                        f"begin {', '.join(list(stems)[:3])}")
    if kind == "YOLO" or not names:
        return found
    missing = [name for name in found.names if name not in names]
    if missing:
        raise DataError(f"{masks}: has the class {missing[0]!r}, which is not among the names given "
                        f"({', '.join(names)}); add it, or leave the names out")
    return found._replace(names=[name for name in names if name not in HIDDEN])


def draw(drawing: Drawing, size: tuple[int, int], indices: dict[str, int]) -> np.ndarray:
    """Paint the outlines of one picture.

    Args:
        drawing: its outlines.
        size: (height, width) of the picture.
        indices: class name -> value.
    Returns:
        (H, W) uint8, 0 where there is no outline.
    Raises:
        DataError: an outline cannot be read, or was drawn on a picture of another size.
    """
    if drawing.size is not None and drawing.size != tuple(size):
        (h, w), (dh, dw) = size, drawing.size
        raise DataError(f"{drawing.source}: was drawn on a picture of {dw}x{dh} (width x height), but "
                        f"{drawing.picture} is {w}x{h}; resize the picture back, or draw again")
    mask = np.zeros(size, np.uint8)
    for name, kind, geometry in drawing.shapes:
        where = f"{drawing.source}: a shape of class {name!r}"
        mask[_inside(kind, geometry, size, where)] = indices[name]
    return mask


def _inside(kind: str, geometry: Any, size: tuple[int, int], where: str) -> np.ndarray:
    if kind == "rle":
        return decode_rle(geometry, size, where)
    if kind == "bitmap":
        return _pasted(geometry, size, where)
    if kind == "ratios":  # YOLO
        points = [(x * size[1], y * size[0]) for x, y in _points(geometry, where, 3)]
        return polygon_inside(points, size)
    if kind == "outlines":  # COCO
        covered = np.zeros(size, bool)
        for outline in geometry:
            covered |= polygon_inside(_points(outline, where, 3), size)
        return covered
    points = _points(geometry, where, 3 if kind == "polygon" else 2)  # labelme
    if kind == "polygon":
        return fill_polygons([points], size)
    canvas = Image.new("1", size[::-1])
    (x, y), (other_x, other_y) = points[0], points[len(points) // 2]  # a rectangle may have its four corners
    if kind == "circle":
        radius = math.hypot(x - other_x, y - other_y)
        ImageDraw.Draw(canvas).ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    else:
        box = (min(x, other_x), min(y, other_y), max(x, other_x), max(y, other_y))
        ImageDraw.Draw(canvas).rectangle(box, outline=1, fill=1)
    return np.asarray(canvas)


def _points(points: Any, where: str, least: int) -> list[tuple[float, float]]:
    points = checked_points(points, where)
    if len(points) < least:
        raise DataError(f"{where}: {len(points)} points; an outline has at least {least}")
    return points


def _pasted(geometry: tuple[Any, str], size: tuple[int, int], where: str) -> np.ndarray:
    """labelme's shape "mask": a PNG in base64 within the box of two points."""
    (x, y), (right, bottom) = [(int(px), int(py)) for px, py in _points(geometry[0], where, 2)[:2]]
    try:
        bitmap = read_mask(base64.b64decode(geometry[1], validate=True)) > 0
    except (ValueError, TypeError, DataError) as error:
        raise DataError(f"{where}: its mask is no picture in base64 ({error})") from error
    if (bottom - y + 1, right - x + 1) != bitmap.shape or min(x, y) < 0 or right >= size[1] or bottom >= size[0]:
        raise DataError(f"{where}: a mask of {bitmap.shape[1]}x{bitmap.shape[0]} does not fit its box ({x}, {y}) to "
                        f"({right}, {bottom}) in a picture of {size[1]}x{size[0]}")
    covered = np.zeros(size, bool)
    covered[y:bottom + 1, x:right + 1] = bitmap
    return covered


def _json(path: str, what: str) -> dict:
    try:
        content = json.loads(read_text(path, what=what, most_bytes=MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a {what}, got a JSON {type(content).__name__}")
    return content


def _rows(content: dict, key: str, path: str, needed: Sequence[str]) -> list[dict]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(needed) <= set(row) for row in rows):
        raise DataError(f"{path}: {key!r} is no list of blocks with {', '.join(needed)}; expected a COCO file with "
                        "images, annotations and categories")
    return rows


# --- COCO ------------------------------------------------------------------------------------------------------------
def _read_coco(path: str, stems: list[str], names: list[str]) -> Annotations:
    if os.path.isdir(path):
        raise DataError(f"{path}: COCO annotations are one file; give that file")
    content = _json(path, "COCO file")
    classes = {}
    for row in sorted(_rows(content, "categories", path, ("id", "name")), key=lambda row: _id(row["id"]).zfill(12)):
        classes[_id(row["id"])] = printable(row["name"])
    if len(set(classes.values())) < len(classes):
        raise DataError(f"{path}: two categories have the same name; rename one")
    by_stem, by_file = {name: name for name in stems}, {name.rpartition("/")[2]: name for name in stems}
    drawings, strangers = {}, 0
    for row in _rows(content, "images", path, ("id", "file_name", "height", "width")):
        named = stem(str(row["file_name"]).replace("\\", "/"))
        known = by_stem.get(named) or by_file.get(named.rpartition("/")[2])
        if known is None:
            strangers += 1
            continue
        size = checked_size(row["height"], row["width"], f"{path}: image {row['id']}")
        drawings[_id(row["id"])] = Drawing(path, known, size, [])
    sized: dict[Any, list] = {key: [] for key in drawings}
    for row in _rows(content, "annotations", path, ("image_id", "category_id", "segmentation")):
        if _id(row["image_id"]) in drawings:
            sized[_id(row["image_id"])].append(_coco_shape(row, classes, path))
    for key, drawing in drawings.items():
        drawing.shapes.extend(shape for _, shape in sorted(sized[key], key=lambda found: -found[0]) if shape)
    boxes = sum(shape is None for found in sized.values() for _, shape in found)
    if boxes and not any(drawing.shapes for drawing in drawings.values()):
        raise DataError(f"{path}: its {boxes} annotations are boxes without outlines; segmentation needs outlines or "
                        "run lengths")
    notes = [f"{strangers} images of the file are not among the pictures"] if strangers else []
    notes += [f"{boxes} annotations have a box and no outline and were left out"] if boxes else []
    return Annotations("COCO", [name for name in classes.values() if name not in HIDDEN], list(drawings.values()),
                       notes)


def _id(value: Any) -> str:
    """An id as text: 1, 1.0 and "1" are the same, since tools mix them."""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value).strip()


def _coco_shape(row: dict, classes: dict, path: str) -> tuple[float, tuple[str, str, Any] | None]:
    """(area, shape) of one annotation; None for a box without outline."""
    where, segmentation = f"{path}: annotation {row.get('id')}", row["segmentation"]
    if _id(row["category_id"]) not in classes:
        raise DataError(f"{where}: category {row['category_id']!r} is not among the file's categories")
    name = classes[_id(row["category_id"])]
    area = row.get("area") if isinstance(row.get("area"), (int, float)) else 0.0
    if isinstance(segmentation, dict):
        return area, (name, "rle", segmentation)
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise DataError(f"{where}: segmentation is neither a list of outlines nor run lengths")
    outlines = [list(zip(part[::2], part[1::2])) for part in segmentation if len(part) >= 6]
    return (area, (name, "outlines", outlines)) if outlines else (area, None)


# --- labelme ---------------------------------------------------------------------------------------------------------
def _read_labelme(folder: str, stems: list[str], names: list[str]) -> Annotations:
    drawings, found, undrawn, wanted = [], set(), 0, set(stems)
    for file in list_files(folder, ".json"):
        if stem(file) not in wanted:
            continue
        path = os.path.join(folder, file)
        content = _json(path, "labelme file")
        shapes = content.get("shapes")
        if not isinstance(shapes, list):
            raise DataError(f"{path}: has no list of shapes; expected a file that labelme saved")
        size = None
        if content.get("imageHeight") and content.get("imageWidth"):
            size = checked_size(content["imageHeight"], content["imageWidth"], path)
        drawing = Drawing(path, stem(file), size, [])
        for number, shape in enumerate(shapes):
            made = _labelme_shape(shape, f"{path}: shape {number}")
            undrawn += made is None
            if made:
                drawing.shapes.append(made)
                found.add(made[0])
        drawings.append(drawing)
    notes = [f"{undrawn} lines and points have no area and were left out"] if undrawn else []
    return Annotations("labelme", sorted(found - set(HIDDEN)), drawings, notes)


def _labelme_shape(shape: Any, where: str) -> tuple[str, str, Any] | None:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or "points" not in shape:
        raise DataError(f"{where}: expected a block with label and points")
    kind = shape.get("shape_type") or "polygon"
    if kind in _UNDRAWN:
        return None
    if kind == "mask":
        return printable(shape["label"]), "bitmap", (shape["points"], shape.get("mask"))
    kinds = {"polygon": "polygon", "oriented_rectangle": "polygon", "rectangle": "rectangle", "circle": "circle"}
    if kind not in kinds:
        raise DataError(f"{where}: shape_type {kind!r} is not known; accepted: {', '.join([*kinds, 'mask'])}")
    return printable(shape["label"]), kinds[kind], shape["points"]


# --- YOLO ------------------------------------------------------------------------------------------------------------
def _read_yolo(folder: str, stems: list[str], names: list[str]) -> Annotations:
    wanted, drawings, most = set(stems), [], -1
    for file in list_files(folder, ".txt"):
        if stem(file) not in wanted:
            continue
        path = os.path.join(folder, file)
        drawing = Drawing(path, stem(file), None, [])
        for number, outline in _yolo_lines(path):
            most = max(most, number)
            drawing.shapes.append((str(number), "ratios", outline))
        drawings.append(drawing)
    if names and most >= len(names):
        raise DataError(f"{folder}: has the class {most}, but there are {len(names)} names ({', '.join(names)}); "
                        "classes count from 0")
    names = names or [f"class_{number + 1}" for number in range(most + 1)]
    named = [drawing._replace(shapes=[(names[int(number)], kind, outline) for number, kind, outline in drawing.shapes])
             for drawing in drawings]
    return Annotations("YOLO", names, named, [])


def _yolo_lines(path: str) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    for line, text in enumerate(read_text(path, what="YOLO label").splitlines(), 1):
        words = text.split()
        if not words:
            continue
        try:
            number, values = int(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise DataError(f"{path}:{line}: expected `class x1 y1 x2 y2 ...`, got {text[:60]!r}") from error
        if len(values) == 4:
            raise DataError(f"{path}:{line}: a box (class, centre, width, height), not an outline; segmentation needs "
                            "labels with outlines, `class x1 y1 x2 y2 x3 y3 ...`")
        if len(values) < 6 or len(values) % 2 or number < 0 or not all(-0.01 <= value <= 1.01 for value in values):
            raise DataError(f"{path}:{line}: expected a class from 0 on and at least three points from 0 to 1, got "
                            f"{text[:60]!r}")
        yield number, list(zip(values[::2], values[1::2]))
