"""What `jseg init` understands of a user's folders: pairs of names, outlines of annotation tools, values and colours.

Referees: COCO's, labelme's and Ultralytics' own code (make_own_golden.py, files and masks in own_golden/), and the
pairs that FolderDataset finds by itself.
"""

import pathlib
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from jseg.data.datasets.folder import FolderDataset
from jseg.data.own.annotations import HIDDEN, annotation_kind, draw, read_annotations
from jseg.data.own.gather import Asked, gather_data
from jseg.data.own.labels import propose_labels
from jseg.data.own.names import known_palette, read_names
from jseg.data.own.pairs import find_pairs
from jseg.data.own.recipe import choose_sizes, class_weights, length_of_run
from jseg.data.own.survey import Survey
from jseg.errors import ConfigError, DataError

GOLDEN = pathlib.Path(__file__).parent / "own_golden"
SIZE = (96, 128)


# --- outlines --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, place, iou, agreement", [
    ("COCO", "coco.json", 0.96, 0.995), ("labelme", "labelme", 1.0, 1.0), ("YOLO", "yolo", 0.9, 0.975)])
def test_outlines_become_the_masks_of_their_tools(kind, place, iou, agreement):
    """COCO's code rounds corners to a fifth of a pixel, Ultralytics' to whole pixels and adds the rim."""
    path = GOLDEN / place
    assert annotation_kind(path, ["a"]) == kind
    names = read_names(str(path / "data.yaml")).names if kind == "YOLO" else ()
    found = read_annotations(path, kind, ["a"], names)
    assert found.names == (["car", "road", "sky"] if kind == "labelme" else ["sky", "road", "car"])
    mask = draw(found.drawings[0], SIZE, {**HIDDEN, **{name: i for i, name in enumerate(found.names, 1)}})
    golden = np.load(GOLDEN / "golden.npz")[kind.lower()]
    assert set(np.unique(mask)) == set(np.unique(golden))
    for value in np.unique(golden):
        both, either = ((mask == value) & (golden == value)).sum(), ((mask == value) | (golden == value)).sum()
        assert both / either >= iou, (value, both, either)
    assert (mask == golden).mean() >= agreement
    if kind == "labelme":
        assert found.notes == ["1 lines and points have no area and were left out"]


@pytest.mark.parametrize("place, name, old, new, text", [
    ("yolo", "a.txt", "0 0.", "0 0.5 0.5 0.2 0.2\n0 0.", "a.txt:1: a box (class, centre, width, height), not"),
    ("yolo", "a.txt", "\n2 ", "\n9 ", "has the class 9, but there are 3 names"),
    ("yolo", "a.txt", "0 0.", "0 7.", "three points from 0 to 1"),
    ("labelme", "a.json", '"imageHeight": 96', '"imageHeight": 95', "was drawn on a picture of 128x95"),
    ("labelme", "a.json", '"circle"', '"cylinder"', "shape_type 'cylinder' is not known"),
    ("labelme", "a.json", '"shapes"', '"forms"', "has no list of shapes"),
    ("", "coco.json", '"category_id": 3', '"category_id": 8', "category 8 is not among the file's categories"),
    ("", "coco.json", '"annotations"', '"notes"', "'annotations' is no list of blocks")])
def test_faults_of_outlines_name_the_file(tmp_path, place, name, old, new, text):
    images = tmp_path / "images"
    images.mkdir()
    for stem in "ab":
        cv2.imwrite(str(images / f"{stem}.png"), np.zeros((*SIZE, 3), np.uint8))
    folder = tmp_path / "labels"
    shutil.copytree(GOLDEN / place, folder)
    file = folder / name
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new, 1))
    masks = file if name == "coco.json" else folder
    with pytest.raises(DataError, match=".") as caught:
        gather_data(Asked(str(images), str(masks), str(tmp_path / "mine.yaml")))
    assert text in str(caught.value) and name.split(".")[0] in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "labels"]  # nothing half made is left


# --- pairs -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("images, masks, form", [
    ("images/{}.jpg", "masks/{}.png", "suffixes"), ("images/{}.jpg", "masks/{}_mask.png", "suffixes"),
    ("i/c/{}_leftImg8bit.png", "m/c/{}_gtFine_labelIds.png", "suffixes"), ("all/{}.jpg", "all/{}_mask.png", "suffixes"),
    ("all/{}.jpg", "all/{}.png", "suffixes"), ("i/{}_sat.jpg", "i/{}_mask.png", "suffixes"),
    ("images/img_{}.png", "masks/label-{}.tif", "list"),
    ("images/{}.v1.png", "masks/{}.v1.bmp", "suffixes")])
def test_names_are_paired(tmp_path, images, masks, form):
    stems = ["1", "01_2", "x-10"] if form == "suffixes" else ["1", "2", "10"]
    for i, stem in enumerate(stems):
        for pattern, array in ((images, np.zeros((8, 8, 3))), (masks, np.full((8, 8), i % 2))):
            path = tmp_path / pattern.format(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array.astype(np.uint8))
    roots = [tmp_path / pattern.split("/")[0] for pattern in (images, masks)]
    pairing = find_pairs(*roots)
    assert sorted(pairing.pairs) == sorted((images.format(s).partition("/")[2], masks.format(s).partition("/")[2])
                                           for s in stems)
    data = gather_data(Asked(*map(str, roots), str(tmp_path / "mine.yaml"), val_ratio=0.3))
    assert ("ann_file" in data.block) == (form == "list") == (tmp_path / "mine_pairs.txt").is_file()
    block = {"metainfo": {"classes": data.labels.names}, **data.block}
    parts = [FolderDataset(**block, **part).pairs for part in (data.train, data.val)]
    assert sorted(parts[0] + parts[1]) == sorted((str(tmp_path / images.format(s)), str(tmp_path / masks.format(s)))
                                                 for s in stems)


def test_many_masks_of_one_picture_and_strangers(tmp_path):
    for name in ("a", "b", "c"):
        for end in ("gt_color", "gt_labelIds", "gt_instanceIds"):
            (tmp_path / "m").mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / "m" / f"{name}_{end}.png"), np.zeros((4, 4), np.uint8))
        (tmp_path / "i").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "i" / f"{name}.png"), np.zeros((4, 4, 3), np.uint8))
    assert find_pairs(tmp_path / "i", tmp_path / "m").mask_tail == "_gt_labelIds"
    other = tmp_path / "other"
    other.mkdir()
    cv2.imwrite(str(other / "zebra.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="no name of a picture fits one of a mask: pictures are called a.png"):
        find_pairs(tmp_path / "i", other)


def test_folders_train_and_val_stay_as_they_are(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        for i in range(count):
            for kind, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
                (tmp_path / kind / part).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / kind / part / f"{i}.png"), np.full(shape, i % 2, np.uint8))
    data = gather_data(Asked(str(tmp_path / "images"), str(tmp_path / "masks"), str(tmp_path / "mine.yaml")))
    assert data.count == (5, 3) and data.train == {"data_prefix": {"img_path": "images/train",
                                                                   "seg_map_path": "masks/train"}}


# --- values and colours ----------------------------------------------------------------------------------------------
def labels_of(values, names=None, ignore=(), kind="index", palette=None):
    survey = Survey(kind=kind, pictures={value: [0, 1] for value in values}, palette=palette or {})
    survey.pixels.update(values if isinstance(values, dict) else {value: 100 for value in values})
    return propose_labels(survey, read_names(names) if names else None, ignore)


@pytest.mark.parametrize("values, names, ignore, classes, mapped", [
    ([0, 1, 2, 255], None, (), ["background", "class_1", "class_2"], {}),
    ([0, 255], None, (), ["background", "class_1"], {255: 1}),
    ([0, 85, 170, 255], None, (), ["background", "class_85", "class_170", "class_255"], {85: 1, 170: 2, 255: 3}),
    ([1, 2, 3], "a,b,c", (), ["a", "b", "c"], {1: 0, 2: 1, 3: 2}),
    ([0, 1, 2, 7], "a,b,c", (), ["a", "b", "c"], {7: 255}),
    ([0, 1, 2, 3], "a,b,c", (0,), ["a", "b", "c"], "reduce_zero_label"),
    ([0, 1, 2, 3], "a,b,c", (3,), ["a", "b", "c"], {3: 255}),
    ([0, 255], "ground,roof", (), ["ground", "roof"], {255: 1}),
    ([0, 7, 8, 11], None, (0,), ["class_7", "class_8", "class_11"], {7: 0, 8: 1, 11: 2, 0: 255})])
def test_values_become_classes(values, names, ignore, classes, mapped):
    labels = labels_of(values, names, ignore)
    assert labels.names == classes
    assert labels.reduce_zero_label if mapped == "reduce_zero_label" else labels.label_map == mapped


def test_colours_become_classes(tmp_path):
    camvid = [(128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0)]
    labels = labels_of(camvid, kind="rgb")
    assert labels.names == ["Sky", "Road", "Car"] and labels.ignored == [(0, 0, 0)]
    assert known_palette([(128, 128, 128), (1, 2, 3), (4, 5, 6)]) is None
    made = labels_of({(0, 0, 0): 10, (9, 9, 200): 50, (200, 9, 9): 90000, (9, 200, 9): 1}, kind="rgb")
    assert made.names == ["background", "class_1", "class_2"] and made.made_up
    assert made.values == [(0, 0, 0), (200, 9, 9), (9, 9, 200)] and made.ignored == [(9, 200, 9)]
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroof tile:200,9,9::\n"
                                           "tree:9,9,200::\n")
    given = labels_of([(9, 9, 200), (0, 0, 0), (200, 9, 9)], str(tmp_path / "labelmap.txt"), kind="rgb")
    assert dict(zip(given.names, given.values)) == {"background": (0, 0, 0), "roof tile": (200, 9, 9),
                                                    "tree": (9, 9, 200)}
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nurban,0,255,255\nwater,0,0,255\n")
    assert read_names(str(tmp_path / "class_dict.csv"))[:2] == (["urban", "water"], [(0, 255, 255), (0, 0, 255)])


@pytest.mark.parametrize("values, names, ignore, kind, text", [
    ([0, 1, 2, 3], "a,b,c", (), "index", "say which of the two counts nowhere"),
    ([0, 1, 5, 6, 9], "a,b", (), "index", "2 names, but the masks hold 5 values"),
    ([3], None, (), "index", "needs two or more"), ([0, 1], None, ((0, 0, 0),), "index", "hold numbers: give a number"),
    ([(1, 2, 3), (4, 5, 6), (7, 8, 9)], "a,b,c", (), "rgb", "write the colour beside each name"),
    ([0, 1], "a,a", (), "index", "names 'a' twice")])
def test_what_cannot_be_known_is_asked(values, names, ignore, kind, text):
    with pytest.raises(ConfigError, match=text):
        labels_of(values, names, ignore, kind)


def test_a_palette_file_gives_names_and_a_smoothed_mask_is_refused(tmp_path):
    for folder in ("i", "m"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = Image.fromarray(rng.integers(0, 3, (16, 16)).astype(np.uint8))
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])  # Pascal VOC's first four
        picture.save(tmp_path / "m" / f"{number}.png")
        cv2.imwrite(str(tmp_path / "i" / f"{number}.jpg"), np.zeros((16, 16, 3), np.uint8))
    asked = Asked(str(tmp_path / "i"), str(tmp_path / "m"), str(tmp_path / "mine.yaml"))
    data = gather_data(asked)
    assert data.kind.endswith("with a palette") and data.labels.colours[:2] == [(0, 0, 0), (128, 0, 0)]
    cv2.imwrite(str(tmp_path / "m" / "1.png"), rng.integers(0, 255, (32, 16, 3)).astype(np.uint8))
    cv2.imwrite(str(tmp_path / "i" / "1.jpg"), np.zeros((32, 16, 3), np.uint8))
    with pytest.raises(DataError, match="1.png: .* different colours; this is no mask of classes"):
        gather_data(asked)
    cv2.imwrite(str(tmp_path / "m" / "1.png"), np.zeros((16, 15), np.uint8))
    with pytest.raises(DataError, match="is 16x32 .* but its mask .* is 15x16"):
        gather_data(asked)


def test_numbers_from_the_pictures():
    assert choose_sizes({(360, 480): 9}) == ((480, 360), (352, 480), False)
    assert choose_sizes({(3000, 4000): 5}) == ((1024, 768), (512, 512), True)
    assert choose_sizes({(360, 480): 9}, (512, 512)).crop == (512, 512)
    assert length_of_run(24, 4) == (300, 50) and length_of_run(100_000, 8)[0] == 8000
    assert class_weights([100, 400, 25, 0]) == [1.0, 0.5, 2.0, 1.0]


def test_every_picture_is_validated_once_over_the_folds(tmp_path):
    for i in range(7):
        for kind, shape in (("images", (4, 4, 3)), ("masks", (4, 4))):
            (tmp_path / kind).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / kind / f"{i}.png"), np.zeros(shape, np.uint8))
    block = {"data_root": str(tmp_path), "metainfo": {"classes": ["a", "b"]}}
    seen = []
    for fold in range(3):
        train, val = (FolderDataset(**block, split={"part": part, "folds": 3, "fold": fold}).pairs
                      for part in ("train", "val"))
        assert not set(train) & set(val) and len(train) + len(val) == 7
        seen += val
    assert sorted(seen) == sorted(FolderDataset(**block).pairs)
    with pytest.raises(ConfigError, match="a fold from 0 to below their number"):
        FolderDataset(**block, split={"part": "val", "folds": 3, "fold": 3})
