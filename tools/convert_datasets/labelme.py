"""Your own annotations made with LabelMe (or a tool that writes its .json): masks for FolderDataset.

Source: any folder or zip of pictures with their .json beside them (github.com/wkentaro/labelme).
Licence: yours.
Expected raw tree: photo.jpg, photo.json; a json without the picture file works if it holds imageData. A picture of
another name is found by the json's imagePath, which comes before the json's own name.
Command: python tools/convert_datasets/labelme.py annotated --out data/mine --classes background,roof,tree
Expected counts: as many as there are .json files with shapes; pictures without one, and other .json files, are passed
over and counted.
Shapes are polygons, rectangles (also oriented), circles, lines, points with a radius of 1, and masks of brush and AI
tools, drawn in their order, later over earlier; those with too few points are counted as left out. Label `_background_`
or the first class fills what no shape covers; `__ignore__` becomes 255. Without `--classes` the labels found, sorted,
follow `background`. Writes images/, masks/ and classes.txt.
"""

from __future__ import annotations

import base64
import io
import math
import pathlib
import sys
from functools import partial
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np
from PIL import Image

from jseg.data.io import check_pair, read_image, read_mask
from jseg.data.prepare import Item, Job, Remarks, Report, Settings, Source, Writer, command, decode
from jseg.data.prepare.shapes import checked_points, checked_size, fill_polygons
from jseg.errors import ConvertError
from jseg.registry import nearest

OUT = "data/mine"
IGNORE, BACKGROUND = "__ignore__", "_background_"
FEWEST = {"polygon": 3, "rectangle": 2, "oriented_rectangle": 4, "circle": 2, "point": 1, "line": 2, "linestrip": 2}
MOST = {"rectangle": 4, "oriented_rectangle": 4, "circle": 2, "point": 1}  # points of a shape
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_notes(source: Source, name: str) -> dict | None:
    """Parse one json; None if it has no shapes: another tool's file. A ConvertError where it is damaged or has labels
    that are no class names.
    """
    notes = source.json(name)
    if not isinstance(notes, dict) or "shapes" not in notes:
        return None
    if not isinstance(notes["shapes"], list) or not all(isinstance(shape, dict) for shape in notes["shapes"]):
        raise ConvertError(f"{source.label(name)}: not a file of LabelMe: its shapes are no list of shapes")
    for place, shape in enumerate(notes["shapes"], 1):
        label = shape.get("label")
        if not isinstance(label, str) or not label.strip() or not label.isprintable():
            raise ConvertError(f"{source.label(name)}: shape {place} has the label {label!r}; a class needs a name of "
                               "printable characters")
    return notes


def outline(shape: dict, where: str) -> list[tuple[float, float]] | None:
    """The polygon of a shape; points and lines get a width of about 3 pixels. None if it has too few points to be
    drawn.
    """
    kind, points = shape.get("shape_type") or "polygon", checked_points(shape.get("points"), where)
    count, fewest = len(points), FEWEST.get(kind)
    if fewest is None or count > MOST.get(kind, count):
        raise ConvertError(f"{where}: a shape of type {kind!r} with {count} points cannot be drawn; accepted are "
                           "polygon (3 or more points), "
                           "rectangle (2), oriented_rectangle (4), circle (2), line, linestrip, point and mask")
    if count < fewest:
        return None
    if kind in ("polygon", "oriented_rectangle"):
        return points
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points[0], points[count // 2]
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind in ("circle", "point"):
        return _round(*points[0], math.dist(*points) if kind == "circle" else 1.0)
    return points + points[-2:0:-1] if count > 2 else [*points, points[0]]


def brushed(shape: dict, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool of a shape of type "mask": a PNG in base64 whose first pixel lies at the first point; what reaches
    over the border is cut off.
    """
    points = checked_points(shape.get("points"), where)
    try:
        data = base64.b64decode(shape["mask"], validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            width, height = picture.size
    except Exception as error:  # no text, no base64, no picture
        raise ConvertError(f"{where}: its mask is no PNG in base64 ({type(error).__name__})") from error
    if not points or height > size[0] + 1 or width > size[1] + 1:
        raise ConvertError(f"{where}: a mask of {width}x{height} at {len(points)} points in a picture of "
                           f"{size[1]}x{size[0]}; it needs the corner "
                           "where it begins and must not be larger than the picture")
    inside, drawn = decode(read_mask, data, where) > 0, np.zeros(size, bool)
    left, top = round(points[0][0]), round(points[0][1])
    rows, columns = (slice(max(start, 0), max(start + length, 0)) for start, length in ((top, height), (left, width)))
    part = drawn[rows, columns]
    part[:] = inside[max(-top, 0):, max(-left, 0):][:part.shape[0], :part.shape[1]]
    return drawn


def _round(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    return [(x + radius * math.cos(2 * math.pi * i / 64), y + radius * math.sin(2 * math.pi * i / 64))
            for i in range(64)]


def convert_one(item: Item, source: Source, writer: Writer, *, classes: tuple[str, ...]) -> Remarks:
    """Draw the shapes of one json and copy its picture."""
    notes, where = read_notes(source, item.inputs[0]), source.label(item.inputs[0])
    data = source.read(item.inputs[1]) if len(item.inputs) > 1 else inner_picture(notes, where)
    img = decode(read_image, data, source.label(item.inputs[-1]))
    size = checked_size(notes.get("imageHeight") or img.shape[0], notes.get("imageWidth") or img.shape[1], where)
    check_pair(img, np.broadcast_to(np.uint8(0), size), item.inputs[-1], where)
    mask, left_out = np.zeros(size, np.uint8), []
    for place, shape in enumerate(notes["shapes"], 1):
        label, name = shape["label"], f"{where}: shape {place} ({shape['label']})"
        if label not in classes and label not in (IGNORE, BACKGROUND):
            raise ConvertError(f"{where}: label {label!r} is not one of the classes{nearest(label, classes)} "
                               f"({', '.join(classes)}); add it to --classes, or rename it to {IGNORE} if it counts "
                               "nowhere")
        index = 255 if label == IGNORE else 0 if label == BACKGROUND else classes.index(label)
        if shape.get("shape_type") == "mask":
            mask[brushed(shape, size, name)] = index
        elif (polygon := outline(shape, name if "points" not in shape else where)) is None:
            left_out.append(name)
        else:
            mask[fill_polygons([polygon], size)] = index
    writer.data(item.values[0], data)
    writer.mask(item.values[1], mask)
    return Remarks(left_out={"shapes of too few points": left_out} if left_out else {})


def inner_picture(notes: dict, where: str) -> bytes:
    """The picture inside of a json."""
    try:
        return base64.b64decode(notes["imageData"], validate=True)
    except (TypeError, ValueError) as error:
        raise ConvertError(f"{where}: its imageData is no base64 ({error}); put the picture beside it") from error


def picture_of(stem: str, named: Any, source: Source) -> str | None:
    """Name in the source of a json's picture: what imagePath names beside the json, or else a picture with the json's
    stem.
    """
    if isinstance(named, str):
        beside = stem.rpartition("/")[0]
        file = named.replace("\\", "/").rsplit("/", 1)[-1]
        if (path := f"{beside}/{file}" if beside else file) in source and path.lower().endswith(SUFFIXES):
            return path
    return next((stem + end for suffix in SUFFIXES for end in (suffix, suffix.upper()) if stem + end in source), None)


def convert(src, out, settings: Settings = Settings(), *, classes: tuple[str, ...] = ()) -> Report:
    """Convert LabelMe annotations in `src` to `out`;
    `classes` are the names from index 0 on, empty takes what is found.
    """
    with Job("labelme", src, out, {}, settings) as job:
        source, items, labels, foreign, owners = job.source, [], set(), [], {}
        for (stem,), name in source.find(r"((?:.+/)?[^/]+)\.json", "LabelMe files (.json)").items():
            notes = read_notes(source, name)
            if notes is None:
                foreign.append(name)
                continue
            picture = picture_of(stem, notes.get("imagePath"), source)
            if picture is None and not notes.get("imageData"):
                raise ConvertError(f"{source.label(name)}: its picture {notes.get('imagePath')!r} is neither beside "
                                   "it nor inside; put it there")
            if picture is not None and owners.setdefault(picture, name) != name:
                raise ConvertError(f"{source.label(owners[picture])} and {source.label(name)} both belong to "
                                   f"{picture} by their imagePath; mend the "
                                   "imagePath of one, or leave it out of the source")
            labels.update(shape["label"] for shape in notes["shapes"])
            suffix = picture[picture.rindex("."):] if picture else ".png"
            items.append((name, (name, *([picture] if picture else [])),
                          (f"images/{stem}{suffix}", f"masks/{stem}.png")))
        if not items:
            raise ConvertError(f"{source.where}: none of its {len(foreign)} .json files is LabelMe's: they have no "
                               f"shapes ({', '.join(foreign[:3])})")
        classes = tuple(classes) or ("background", *sorted(labels - {IGNORE, BACKGROUND, "background"}))
        if len(classes) > 255 or len(set(classes)) < len(classes):
            raise ConvertError(f"--classes: {len(classes)} names; accepted are up to 255 different ones")
        work = partial(convert_one, classes=classes)
        job.expected = {"images": len(items), "masks": len(items)}
        report = job.run([Item(name, work, inputs, values) for name, inputs, values in items], {"classes.txt": classes})
        alone = sum(name.lower().endswith(SUFFIXES) and name not in owners for name in source.names)
        report.notes.update({"pictures without a .json, passed over": alone} if alone else {})
        report.notes.update({f".json files without shapes, passed over ({', '.join(foreign[:3])})": len(foreign)}
                            if foreign else {})
        return report


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--classes", type=lambda text: tuple(name.strip() for name in text.split(",")), default=(),
                        metavar="A,B,C",
                        help="class names from index 0 on (default: background and the labels found)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
