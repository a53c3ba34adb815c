"""Annotations as tools really write them: brush masks, other names, crowds, boxes only, ids as text; what is lost is
counted and ends with status 2.
"""

from __future__ import annotations

import base64
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent),
                str(pathlib.Path(__file__).resolve().parents[3] / "tools" / "convert_datasets")]

import coco_json
import labelme
from fake_encode import decode, encode, rle, write_tree

from jseg.data.prepare import command

SIDE = 16
PHOTO = encode(np.full((SIDE, SIDE, 3), 90, np.uint8), "png")
SQUARE = [2, 2, 9, 2, 9, 9, 2, 9]


def run(module, files: dict, folder: pathlib.Path, capsys, *words: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of a converter's command line on `files` (name -> bytes or a value for JSON)."""
    write_tree({name: data if isinstance(data, bytes) else json.dumps(data).encode() for name, data in files.items()},
               folder / "raw")
    status = command.run(module.convert, [str(folder / "raw"), "--out", str(folder / "out"), "--workers", "1",
                                          "--quiet", *words], out="x",
                         add_arguments=module.add_arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") == (status != 0), said.err
    return status, said.out, said.err


def mask_of(folder: pathlib.Path, name: str = "a") -> np.ndarray:
    return decode((folder / f"out/masks/{name}.png").read_bytes())


# ---- LabelMe
# ------------------------------------------------------------------------------------------------------------------


def notes(*shapes: dict, picture: str = "a.png") -> dict:
    return {"shapes": list(shapes), "imagePath": picture, "imageData": None, "imageHeight": SIDE, "imageWidth": SIDE}


def shape(kind: str, points: list, label: str = "roof", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, **more}


def brush(inside: np.ndarray) -> str:
    return base64.b64encode(encode((inside * 255).astype(np.uint8), "png")).decode()


@pytest.mark.parametrize("corner", [(3, 5), (12, 10), (-2, -3)])
def test_brush_masks_lie_at_their_first_point(corner, tmp_path, capsys, rng):
    inside = rng.random((6, 7)) < 0.5
    x, y = corner
    brushed = shape("mask", [[x, y], [x + 6, y + 5]], mask=brush(inside))
    assert run(labelme, {"a.png": PHOTO, "a.json": notes(brushed)}, tmp_path, capsys)[0] == 0
    want = np.zeros((SIDE + 20, SIDE + 20), np.uint8)
    want[y + 10:y + 16, x + 10:x + 17] = inside
    assert np.array_equal(mask_of(tmp_path), want[10:-10, 10:-10])


def test_oriented_rectangles(tmp_path, capsys):
    turned = shape("oriented_rectangle", [[8, 2], [14, 8], [8, 14], [2, 8]])
    assert run(labelme, {"a.png": PHOTO, "a.json": notes(turned)}, tmp_path, capsys)[0] == 0
    assert mask_of(tmp_path)[8, 3] == 1 and mask_of(tmp_path)[3, 3] == 0


def test_image_path_comes_before_the_stem(tmp_path, capsys):
    other = encode(np.full((SIDE, SIDE, 3), 5, np.uint8), "png")
    files = {"x/a.png": other, "x/IMG 001.png": PHOTO, "x/a.json": notes(picture="..\\photos\\IMG 001.png")}
    status, out, _ = run(labelme, files, tmp_path, capsys)
    assert status == 0 and (tmp_path / "out/images/x/a.png").read_bytes() == PHOTO
    assert "pictures without a .json, passed over: 1" in out
    status, _, err = run(labelme, {"x/b.json": notes(picture="IMG 001.png")}, tmp_path,
                         capsys)  # copied for the next picture, imagePath forgotten
    assert status == 2 and "a.json" in err and "b.json both belong to x/IMG 001.png by their imagePath" in err


def test_other_json_files_are_passed_over_and_counted(tmp_path, capsys):
    files = {"a.png": PHOTO, "a.json": notes(shape("polygon", [[1, 1], [5, 1], [5, 5]])),
             "dataset_info.json": {"name": "mine"}, "list.json": [1]}
    status, out, _ = run(labelme, files, tmp_path, capsys)
    assert status == 0 and "without shapes, passed over (dataset_info.json, list.json): 2" in out
    assert out.endswith("1 done, 0 left out\n")
    status, _, err = run(labelme, {"only/x.json": {}}, tmp_path / "none", capsys)
    assert status == 2 and "none of its 1 .json files is LabelMe's" in err


def test_shapes_of_too_few_points_are_counted_and_end_with_status_2(tmp_path, capsys):
    files = {"a.png": PHOTO, "a.json": notes(shape("polygon", [[1, 1], [9, 9]], "tree"), shape("polygon", [[1, 1],
        [5, 1], [5, 5]]))}
    for _ in range(2):  # the second time from the manifest
        status, out, err = run(labelme, files, tmp_path, capsys)
        assert status == 2 and "left out, shapes of too few points: 1 (" in out and "a.json: shape 1 (tree))" in out
        assert out.endswith("1 done, 1 left out\n") and "1 left out, see above" in err
    assert mask_of(tmp_path)[2, 4] == 1
    assert run(labelme, files, tmp_path, capsys, "--partial")[0] == 0


@pytest.mark.parametrize("broken, text", [
    (notes(shape("polygon", [[1, 1], [float("nan"), 1], [5, 5]])), "coordinate nan"),
    (notes(shape("polygon", [[1, 1], [1e300, 1], [5, 5]])), "coordinate 1e+300"),
    (notes(shape("polygon", [[1], [5, 1], [5, 5]])), "no list of (x, y) numbers"),
    (notes(shape("polygon", None)), "no list of (x, y) numbers"),
    (notes({"points": []}), "has the label None"),
    (notes(shape("polygon", [], "a\nb")), "has the label 'a\\nb'"),
    (notes(shape("mask", [[0, 0]], mask="%%%")), "no PNG in base64"),
    (notes(shape("mask", [[0, 0]], mask=brush(np.ones((40, 4))))), "mask of 4x40"),
    ({**notes(), "imageHeight": 10 ** 12}, "height 1000000000000"),
    ({**notes(), "imageHeight": [1]}, "height [1]"),
    ({**notes(), "shapes": 3}, "no list of shapes"),
    (b"[" * 100_000, "not a JSON file"),
    ("{\"shapes\": [], \"imagePath\": \"Stra\xdfe\"}".encode("latin-1"), "a.json:1: not UTF-8 (byte 0xdf)"),
])
def test_damaged_labelme_files_are_one_line(broken, text, tmp_path, capsys):
    status, _, err = run(labelme, {"a.png": PHOTO, "a.json": broken}, tmp_path, capsys)
    assert status == 2 and text in err and "a.json" in err, err


def test_a_mark_before_the_json_is_dropped(tmp_path, capsys):
    marked = b"\xef\xbb\xbf" + json.dumps(notes(shape("polygon", [[1, 1], [5, 1], [5, 5]]))).encode()
    assert run(labelme, {"a.png": PHOTO, "a.json": marked}, tmp_path, capsys)[0] == 0


# ---- COCO
# ---------------------------------------------------------------------------------------------------------------------


def export(*annotations: dict, categories=("cat", "dog"), file="a.png") -> dict:
    return {"images": [{"id": 1, "file_name": file, "height": SIDE, "width": SIDE}],
            "categories": [{"id": place, "name": name} for place, name in enumerate(categories, 1)],
            "annotations": [{"id": place, "image_id": 1, "category_id": 1, **note} for place,
                            note in enumerate(annotations, 1)]}


def coco(tree: dict, folder: pathlib.Path, capsys, *words: str, **files) -> tuple[int, str, str]:
    return run(coco_json, {"photos/a.png": PHOTO, **files, "instances.json": tree}, folder, capsys, *words)


def test_crowds_keep_their_class_unless_asked(tmp_path, capsys):
    inside = np.zeros((SIDE, SIDE), bool)
    inside[4:8, 3:9] = True
    crowd = {"iscrowd": 1, "segmentation": rle(inside), "category_id": 2}
    status, out, _ = coco(export(crowd), tmp_path, capsys)
    assert status == 0 and "crowd annotations (iscrowd: 1) drawn as their class: 1" in out
    assert "categories without annotations (cat): 1" in out
    assert np.array_equal(mask_of(tmp_path), inside * np.uint8(2))
    status, _, err = coco(export(crowd), tmp_path / "all", capsys, "--crowd", "ignore")
    assert status == 2 and "all 1 annotations are crowds" in err
    status, out, _ = coco(export(crowd, {"segmentation": [[10, 10, 12, 10, 12, 12]]}), tmp_path / "some", capsys,
                          "--crowd", "ignore")
    assert status == 0 and "drawn as 255: 1" in out and mask_of(tmp_path / "some")[5, 5] == 255


def test_exports_for_detection_are_refused_and_single_boxes_counted(tmp_path, capsys):
    boxes = [{"segmentation": []}, {"segmentation": None}, {}]
    status, _, err = coco(export(*boxes), tmp_path, capsys)
    assert status == 2 and "all 3 annotations have boxes only" in err and not list((tmp_path / "out").rglob("*.png"))
    status, out, _ = coco(export(*boxes, {"segmentation": [SQUARE]}), tmp_path, capsys)
    assert status == 2
    assert "left out, annotations that have a box only: 3 (annotation 1, annotation 2, annotation 3)" in out
    assert out.endswith("1 done, 3 left out\n") and mask_of(tmp_path)[5, 5] == 1


def test_outlines_that_cover_nothing_are_counted(tmp_path, capsys):
    outside = [90, 90, 95, 90, 95, 95]
    status, out, _ = coco(export({"segmentation": [[1, 1, 5, 5], SQUARE]}, {"segmentation": [outside]}), tmp_path,
                          capsys)
    assert status == 2 and "outlines of fewer than 3 points: 1 (annotation 1 of a.png" in out
    assert "annotations that cover no pixel: 1 (annotation 2 of a.png" in out and mask_of(tmp_path)[5, 5] == 1


def test_ids_as_text_backslashes_and_the_supercategory(tmp_path, capsys):
    tree = export({"segmentation": [SQUARE], "image_id": "1", "category_id": "10"}, file="sub\\a.png")
    tree["categories"] = [{"id": "10", "name": "cat", "supercategory": "animals"}, {"id": 0.0, "name": "animals",
        "supercategory": "none"}]
    status, out, _ = coco(tree, tmp_path, capsys)
    assert status == 0 and "categories without annotations (animals (the supercategory of others)): 1" in out
    assert (tmp_path / "out/classes.txt").read_text().split() == ["background", "animals", "cat"] and mask_of(tmp_path,
        "sub/a")[5, 5] == 2


def test_a_base_name_that_two_files_have_is_never_guessed(tmp_path, capsys):
    """Once the last of them was taken, without a word."""
    other = {"photos/b/a.png": PHOTO}
    status, _, err = coco(export({"segmentation": [SQUARE]}), tmp_path, capsys, **other)
    assert status == 2 and "the picture 'a.png' may be" in err and "photos/b/a.png" in err
    assert coco(export({"segmentation": [SQUARE]}, file="b/a.png"), tmp_path, capsys, **other)[0] == 0
    tree = export({"segmentation": [SQUARE]}, file="1/a.png")
    tree["images"].append({**tree["images"][0], "id": 2, "file_name": "2/a.png"})
    status, _, err = coco(tree, tmp_path / "one", capsys)
    assert status == 2 and "the pictures '1/a.png' and '2/a.png' are one file by name" in err


def test_names_never_leave_the_output(tmp_path, capsys):
    assert coco(export({"segmentation": [SQUARE]}, file="....//....//C:/../.x/a.png"), tmp_path, capsys)[0] == 0
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")} == {"images/x/a.png",
        "masks/x/a.png"}


def _twice(tree: dict, key: str) -> dict:
    return {**tree, key: tree[key] * 2}


@pytest.mark.parametrize("tree, text", [
    (export({"segmentation": [SQUARE], "image_id": 77}),
     "annotation 1 names picture 77, which is not listed in images"),
    (export({"segmentation": [SQUARE], "category_id": 9}), "annotation 1 names category 9, which is not listed in "
                                                           "categories"),
    (export({"segmentation": [SQUARE], "category_id": None}), "annotation 1: category_id: an id of None"),
    (export({"segmentation": [SQUARE]}, categories=("cat", "cat ")), "the categories 1 and 2 are both named 'cat'"),
    (export(categories=("cat", "do\ng")), "has the name 'do\\ng'"),
    (_twice(export(), "images"), "the id 1 is there twice among the picture entries"),
    (_twice(export(), "categories"), "the id 1 is there twice among the category entries"),
    (export({"segmentation": SQUARE}), "annotation 1: its segmentation is neither"),
    (export({"segmentation": [SQUARE[:-1]]}), "even count"),
    (export({"segmentation": [[1, 1, "x", 2, 3, 3]]}), "no list of (x, y) numbers"),
    (export({"segmentation": {"size": [SIDE, SIDE], "counts": "o" * 100_000}}), "more than 2^60 pixels"),
    (export({"segmentation": {"size": [SIDE, SIDE], "counts": [1e999]}}), "not a run-length mask"),
    (export({"segmentation": {"size": [10 ** 9, 10 ** 9], "counts": [10 ** 18]}}), "does not fit the picture"),
    ({**export(), "images": [{"id": 1, "file_name": "a.png", "height": 10 ** 9, "width": 10 ** 9}]},
     "height 1000000000"),
    ({**export(), "images": [{"id": 1, "file_name": "a.png"}]}, "height None"),
    ({**export(), "images": [{"id": 1, "file_name": 3, "height": 1, "width": 1}]}, "has the file_name 3"),
    ({**export(), "annotations": {}}, "not COCO instances"), ({"images": [1]}, "not COCO instances"),
])
def test_damaged_exports_are_one_line(tree, text, tmp_path, capsys):
    status, _, err = coco(tree, tmp_path, capsys)
    assert status == 2 and text in err and "instances.json" in err, err
    assert not list((tmp_path / "out").rglob("*.png"))


# ---- every converter
# ------------------------------------------------------------------------------------------------------------


def test_orthophotos_of_neither_split_are_said(tmp_path, capsys):
    import fake_tiles
    import potsdam
    raw = fake_tiles.potsdam()
    extra = next(data for name, data in raw.files.items() if "_RGB.tif" in name)
    files = {**raw.files, "more/top_potsdam_9_99_RGB.tif": extra}
    status, out, _ = run(potsdam, files, tmp_path, capsys, "--size", "16", "--partial")
    assert status == 0 and "left out, orthophotos of neither split: 1 (more/top_potsdam_9_99_RGB.tif)" in out
    assert "1 left out" in out.splitlines()[-1]


def test_a_book_of_another_hand_removes_nothing_outside(tmp_path, capsys):
    """The manifest lies in the output folder, which may come from somebody else; files of its outdated lines are
    removed.
    """
    (tmp_path / "victim.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    lines = [{"item": "a.json", "digest": "0", "files": {name: 1}, "notes": {}} for name in ("../victim.txt",
        str(tmp_path / "victim.txt"))]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    text += '[]\n{"item": "a.json"}\n{"item": []}\n' + "[" * 9999 + "\n"
    (tmp_path / "out/.prepare-labelme.jsonl").write_text(text)
    assert run(labelme, {"a.png": PHOTO, "a.json": notes(shape("polygon", [[1, 1], [5, 1], [5, 5]]))}, tmp_path,
               capsys)[0] == 0
    assert (tmp_path / "victim.txt").read_text() == "mine"
