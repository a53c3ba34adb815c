"""Your own annotations made with LabelMe (or a tool that writes its .json): masks for FolderDataset.

Source: any folder or zip of pictures with their .json beside them (github.com/wkentaro/labelme).
Licence: yours.
Expected raw tree: photo.jpg, photo.json; a json without the picture file works if it holds imageData.
Command: python tools/convert_datasets/labelme.py annotated --out data/mine --classes background,roof,tree
Expected counts: as many as there are .json files; pictures without one are left out.
Shapes are polygons, rectangles, circles, lines and points with a radius of 1, drawn in their order, later over earlier. Label
`_background_` or the first class fills what no shape covers; `__ignore__` becomes 255. Without `--classes` the labels found, sorted, follow
`background`. Writes images/, masks/ and classes.txt.
"""

from __future__ import annotations

import base64
import json
import math
import pathlib
import sys
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np

from jseg.data.io import check_pair, read_image
from jseg.data.prepare import Item, Job, Report, Settings, Source, Writer, command, decode
from jseg.data.prepare.shapes import fill_polygons
from jseg.errors import ConvertError
from jseg.registry import nearest

OUT = "data/mine"
IGNORE, BACKGROUND = "__ignore__", "_background_"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_notes(source: Source, name: str) -> dict:
    """Parse one json; raise a ConvertError if it is not LabelMe's."""
    try:
        notes = json.loads(source.read(name))
        if not isinstance(notes["shapes"], list) or any("label" not in shape for shape in notes["shapes"]):
            raise ValueError("no list of shapes with labels")
        return notes
    except (ValueError, KeyError, TypeError) as error:
        raise ConvertError(f"{source.label(name)}: not a file of LabelMe ({type(error).__name__}: {error})") from error


def outline(shape: dict, where: str) -> list[tuple[float, float]]:
    """The polygon of a shape; points and lines get a width of about 3 pixels."""
    kind, points = shape.get("shape_type") or "polygon", [tuple(map(float, point)) for point in shape["points"]]
    if kind == "polygon" and len(points) >= 3:
        return points
    if kind == "rectangle" and len(points) in (2, 4):
        (x0, y0), (x1, y1) = points[0], points[len(points) // 2]
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind == "circle" and len(points) == 2:
        return _round(*points[0], math.dist(*points))
    if kind == "point" and len(points) == 1:
        return _round(*points[0], 1.0)
    if kind in ("line", "linestrip") and len(points) >= 2:
        return points + points[-2:0:-1] if len(points) > 2 else [*points, points[0]]
    raise ConvertError(f"{where}: a shape of type {kind!r} with {len(points)} points cannot be drawn; accepted are polygon (3 or more points), "
                       "rectangle (2), circle (2), line, linestrip and point")


def _round(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    return [(x + radius * math.cos(2 * math.pi * i / 64), y + radius * math.sin(2 * math.pi * i / 64)) for i in range(64)]


def convert_one(item: Item, source: Source, writer: Writer, *, classes: tuple[str, ...]) -> None:
    """Draw the shapes of one json and copy its picture."""
    notes, where = read_notes(source, item.inputs[0]), source.label(item.inputs[0])
    data = source.read(item.inputs[1]) if len(item.inputs) > 1 else base64.b64decode(notes["imageData"])
    img = decode(read_image, data, source.label(item.inputs[-1]))
    mask = np.zeros(img.shape[:2], np.uint8)
    check_pair(img, np.empty((notes.get("imageHeight") or img.shape[0], notes.get("imageWidth") or img.shape[1])), item.inputs[-1], where)
    for shape in notes["shapes"]:
        label = shape["label"]
        if label not in classes and label not in (IGNORE, BACKGROUND):
            raise ConvertError(f"{where}: label {label!r} is not one of the classes{nearest(label, classes)} ({', '.join(classes)}); add it to "
                               f"--classes, or rename it to {IGNORE} if it counts nowhere")
        index = 255 if label == IGNORE else 0 if label == BACKGROUND else classes.index(label)
        mask[fill_polygons([outline(shape, where)], mask.shape)] = index
    writer.data(item.values[0], data)
    writer.mask(item.values[1], mask)


def convert(src, out, settings: Settings = Settings(), *, classes: tuple[str, ...] = ()) -> Report:
    """Convert LabelMe annotations in `src` to `out`; `classes` are the names from index 0 on, empty takes what is found."""
    with Job("labelme", src, out, {}, settings) as job:
        source, items = job.source, []
        found = source.find(r"((?:.+/)?[^/]+)\.json", "LabelMe files (.json)")
        notes = {key[0]: read_notes(source, name) for key, name in found.items()}
        if not classes:
            labels = {shape["label"] for note in notes.values() for shape in note["shapes"]} - {IGNORE, BACKGROUND, "background"}
            classes = ("background", *sorted(labels))
        if len(classes) > 255 or len(set(classes)) < len(classes):
            raise ConvertError(f"--classes: {len(classes)} names; accepted are up to 255 different ones")
        work = partial(convert_one, classes=tuple(classes))
        for stem, note in notes.items():
            picture = next((stem + end for suffix in SUFFIXES for end in (suffix, suffix.upper()) if stem + end in source), None)
            if picture is None and not note.get("imageData"):
                raise ConvertError(f"{source.label(stem + '.json')}: its picture {note.get('imagePath')!r} is neither beside it nor "
                                   "inside; put it there")
            suffix = picture[len(stem):] if picture else ".png"
            inputs = (f"{stem}.json", *([picture] if picture else []))
            items.append(Item(f"{stem}.json", work, inputs, (f"images/{stem}{suffix}", f"masks/{stem}.png")))
        job.expected = {"images": len(items), "masks": len(items)}
        return job.run(items, {"classes.txt": classes})


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--classes", type=lambda text: tuple(text.split(",")), default=(), metavar="A,B,C",
                        help="class names from index 0 on (default: background and the labels found)")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
