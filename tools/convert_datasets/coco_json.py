"""Your own annotations in COCO's instance format: masks for FolderDataset.

Source: any tool that exports COCO .json (polygons or run lengths).
Licence: yours.
Expected raw tree: one .json with images, annotations, categories; the pictures anywhere below SOURCE under their file_name.
Command: python tools/convert_datasets/coco_json.py export --out data/mine
Expected counts: as many pictures as the json lists.
Label 0 is background and the categories follow in the order of their ids (`--no-background`: the first category is 0 and what no
annotation covers is 255). Large areas are drawn first, so that small things on them stay visible; crowds become 255. Writes images/, masks/ and
classes.txt.
"""

from __future__ import annotations

import json
import pathlib
import sys
from functools import partial

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))  # jseg from this checkout, installed or not

import numpy as np

from jseg.data.io import check_pair, read_image
from jseg.data.prepare import Item, Job, Report, Settings, Source, Writer, command, decode
from jseg.data.prepare.shapes import decode_rle, fill_polygons
from jseg.errors import ConvertError

OUT = "data/mine"


def draw(segment, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool of one annotation's polygons or run lengths."""
    if isinstance(segment, dict):
        return decode_rle(segment, size, where)
    polygons = [list(zip(flat[::2], flat[1::2])) for flat in segment]
    if any(len(polygon) < 3 or len(flat) % 2 for polygon, flat in zip(polygons, segment)):
        raise ConvertError(f"{where}: an outline needs an even count of at least 6 numbers")
    return fill_polygons(polygons, size)


def convert_one(item: Item, source: Source, writer: Writer, *, background: bool) -> None:
    """Draw the annotations of one picture; `item.values` are the two names, its size, and (area, index, segment) of each."""
    picture_name, mask_name, size, parts = item.values
    data = source.read(item.inputs[0])
    img = decode(read_image, data, source.label(item.inputs[0]))
    check_pair(img, np.empty(size), source.label(item.inputs[0]), item.name)
    mask = np.full(size, 0 if background else 255, np.uint8)
    shapes = [(draw(segment, size, item.name), index) for index, segment in parts]
    for shape, index in sorted(shapes, key=lambda pair: -int(pair[0].sum())):
        mask[shape] = index
    writer.copy(picture_name, source, item.inputs[0], data)
    writer.mask(mask_name, mask)


def convert(src, out, settings: Settings = Settings(), *, background: bool = True) -> Report:
    """Convert COCO annotations in `src` to `out`; `background` makes it class 0."""
    with Job("coco_json", src, out, {}, settings) as job:
        source = job.source
        found = source.find(r"((?:.+/)?[^/]+)\.json", "annotation files (.json)")
        if len(found) > 1:
            raise ConvertError(f"{source.where}: {len(found)} .json files ({', '.join(list(found.values())[:3])}, ...); give one at a time")
        name = next(iter(found.values()))
        try:
            notes = json.loads(source.read(name))
            categories = sorted(notes["categories"], key=lambda category: category["id"])
            index = {category["id"]: place + background for place, category in enumerate(categories)}
            parts: dict = {picture["id"]: [] for picture in notes["images"]}
            for note in notes["annotations"]:
                parts[note["image_id"]].append((255 if note.get("iscrowd") else index[note["category_id"]], note["segmentation"]))
            rows = [(p["file_name"], (p["height"], p["width"]), parts[p["id"]]) for p in notes["images"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ConvertError(f"{source.label(name)}: not COCO instances ({type(error).__name__}: {error}); it needs images, annotations and "
                               "categories that name each other") from error
        files = {file.rsplit("/", 1)[-1]: file for file in source.names}
        lacking = [file for file, _, _ in rows if file not in source and file.rsplit("/", 1)[-1] not in files]
        if lacking:
            raise ConvertError(f"{source.where}: {len(lacking)} of {len(rows)} pictures are missing: {', '.join(lacking[:5])}")
        if len(categories) + background > 255:
            raise ConvertError(f"{source.label(name)}: {len(categories)} categories; masks hold up to 255 classes")
        items = []
        for file, size, shapes in rows:
            member, short = file if file in source else files[file.rsplit("/", 1)[-1]], file.lstrip("/").replace("../", "")
            items.append(Item(f"{file} in {source.label(name)}", partial(convert_one, background=background), (member,),
                              (f"images/{short}", f"masks/{short.rsplit('.', 1)[0]}.png", size, shapes)))
        job.expected = {"images": len(items), "masks": len(items)}
        return job.run(items, {"classes.txt": ["background"] * background + [category["name"] for category in categories]})


def add_arguments(parser) -> None:
    """The options of this converter."""
    parser.add_argument("--no-background", dest="background", action="store_false", help="what no annotation covers is 255, not class 0")


if __name__ == "__main__":
    sys.exit(command.run(convert, out=OUT, add_arguments=add_arguments))
