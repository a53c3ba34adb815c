"""Write tests/data/own_golden: annotations as COCO's, labelme's and Ultralytics' own code writes them, and the masks
that the same code makes of them.

    python tests/data/make_own_golden.py        in an environment with pycocotools 2.0.11, opencv-python-headless, and
                                                the unpacked wheels of labelme 6.3.1 and ultralytics 8.4.190 on
                                                PYTHONPATH (neither is imported as a whole, so their dependencies are
                                                not needed)

coco.json: outlines, an outline in two parts, compressed and plain run lengths. labelme/: polygon, rectangle, circle,
a pasted mask, a line and `__ignore__`. yolo/: outlines from 0 to 1. golden.npz: masks (H, W) uint8 by name.
"""

import ast
import base64
import importlib.util
import io
import json
import pathlib
import sys
import types

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

HERE = pathlib.Path(__file__).parent / "own_golden"
SIZE = 96, 128  # height, width
CLASSES = ["sky", "road", "car"]


def functions_of(module: str, *names: str) -> dict:
    """Functions of a module's file, without importing the module."""
    parts = module.split(".")
    path = next(place for entry in sys.path if (place := pathlib.Path(entry, *parts).with_suffix(".py")).is_file())
    tree = ast.parse(path.read_text())
    space = {"np": np, "cv2": cv2, "json": json, "base64": base64, "Any": object, "__version__": "6.3.1",
             "_RESERVED_TOP_LEVEL_KEYS": (), "LabelFileWriteError": OSError}
    body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    exec(compile(ast.Module([ast.parse("from __future__ import annotations").body[0], *body], []), str(path), "exec"),
         space)
    return space


def blob(rng, centre, radius, count):
    """An outline of `count` corners around a centre."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, count))
    away = radius * rng.uniform(0.6, 1.0, count)
    return np.stack([centre[0] + away * np.cos(angle), centre[1] + away * np.sin(angle)], 1).round(2)


def make_coco(rng) -> dict[str, np.ndarray]:
    height, width = SIZE
    filled = np.zeros(SIZE, np.uint8)
    cv2.circle(filled, (90, 60), 18, 1, -1)
    packed = coco_mask.encode(np.asfortranarray(filled))
    plain = np.zeros(SIZE, np.uint8)
    plain[70:90, 5:60] = 1
    runs = np.flatnonzero(np.diff(np.concatenate([[0], plain.ravel("F"), [0]]))).tolist()
    counts = np.diff([0, *runs, plain.size]).tolist()
    rows = [(1, 1, [blob(rng, (40, 40), 30, 9).ravel().tolist()]),
            (2, 3, [blob(rng, (30, 40), 8, 6).ravel().tolist(), blob(rng, (100, 20), 12, 8).ravel().tolist()]),
            (3, 2, {"size": [height, width], "counts": packed["counts"].decode()}),
            (4, 2, {"size": [height, width], "counts": counts})]
    annotations = []
    for number, category, segmentation in rows:
        code = segmentation if isinstance(segmentation, dict) else coco_mask.merge(
            coco_mask.frPyObjects(segmentation, height, width))
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            code = coco_mask.frPyObjects(segmentation, height, width)
        annotations.append({"id": number, "image_id": 7, "category_id": category, "segmentation": segmentation,
                            "area": float(coco_mask.area(code)), "iscrowd": int(isinstance(segmentation, dict)),
                            "bbox": coco_mask.toBbox(code).tolist()})
    content = {"info": {}, "licenses": [],
               "images": [{"id": 7, "file_name": "a.png", "height": height, "width": width}],
               "annotations": annotations,
               "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(CLASSES, 1)]}
    (HERE / "coco.json").write_text(json.dumps(content))
    coco, mask = COCO(str(HERE / "coco.json")), np.zeros(SIZE, np.uint8)
    for row in sorted(coco.loadAnns(coco.getAnnIds(7)), key=lambda row: -row["area"]):
        mask[coco.annToMask(row) > 0] = row["category_id"]
    return {"coco": mask}


def make_labelme(rng) -> dict[str, np.ndarray]:
    sys.modules["labelme"], stub = types.ModuleType("labelme"), types.ModuleType("labelme._label_file")
    stub.ShapeDict = dict
    sys.modules["labelme._label_file"] = stub
    path = next(place for entry in sys.path if (place := pathlib.Path(entry, "labelme/utils/shape.py")).is_file())
    spec = importlib.util.spec_from_file_location("labelme_shape", path)
    shape_module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shape_module)
    bitmap = rng.random((12, 20)) > 0.3
    buffer = io.BytesIO()
    Image.fromarray(bitmap.astype(np.uint8) * 255).save(buffer, "PNG")

    def shape(label, points, kind, **more):
        return {"label": label, "points": np.asarray(points, float).tolist(), "group_id": None, "description": "",
                "shape_type": kind, "flags": {}, "mask": None, **more}

    shapes = [shape("sky", blob(rng, (60, 30), 25, 7), "polygon"),
              shape("road", [[100.5, 80.25], [20, 60]], "rectangle"), shape("car", [[70, 60], [80, 66.5]], "circle"),
              shape("__ignore__", [[5, 5], [20, 5], [5, 20]], "polygon"),
              shape("sky", [[0, 90], [127, 90]], "line"),
              shape("car", [[100, 10], [119, 21]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())]
    (HERE / "labelme").mkdir(exist_ok=True)
    functions_of("labelme._label_file", "write_label_file")["write_label_file"](
        str(HERE / "labelme" / "a.json"), shapes=shapes, image_path="a.png", image_height=SIZE[0], image_width=SIZE[1])
    values = {name: number for number, name in enumerate(["car", "road", "sky"], 1)}
    drawn = [{**entry, "mask": bitmap} for entry in shapes if entry["shape_type"] != "line"]
    mask, _ = shape_module.shapes_to_label((*SIZE, 3), drawn, {**values, "__ignore__": 255})
    return {"labelme": mask.astype(np.uint8)}


def make_yolo(rng) -> dict[str, np.ndarray]:
    draw = functions_of("ultralytics.data.utils", "polygon2mask")["polygon2mask"]
    outlines = [(0, blob(rng, (50, 50), 35, 9)), (2, blob(rng, (90, 40), 25, 12)), (1, blob(rng, (40, 60), 20, 8))]
    (HERE / "yolo").mkdir(exist_ok=True)
    mask, lines = np.zeros(SIZE, np.uint8), []
    for number, outline in outlines:
        outline = np.clip(outline, 0, [SIZE[1], SIZE[0]])
        lines.append(" ".join([str(number), *(f"{value:.6f}" for value in (outline / [SIZE[1], SIZE[0]]).ravel())]))
        mask[draw(SIZE, [outline.ravel()]) > 0] = number + 1
    (HERE / "yolo" / "a.txt").write_text("\n".join(lines) + "\n")
    (HERE / "yolo" / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n" + "".join(
        f"  {number}: {name}\n" for number, name in enumerate(CLASSES)))
    return {"yolo": mask}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    generator = np.random.default_rng(5)
    np.savez_compressed(HERE / "golden.npz", **make_coco(generator), **make_labelme(generator), **make_yolo(generator))
