"""Datasets: published names and colours, what mask values mean, how files are found,
and errors that name the file and the cure.
"""

import hashlib
import json

import cv2
import numpy as np
import pytest

from jseg.data.datasets import CamVidDataset, FolderDataset, PascalContextDataset, PascalContextDataset59, SegDataset
from jseg.errors import ConfigError, DataError
from jseg.registry import DATASETS

# sha256 (first 16 digits) of "\n".join(classes) and json.dumps(palette), taken from METAINFO of mmsegmentation 1.2.2
PUBLISHED = {
    "ADE20KDataset": (150, "2133f0a0e71146d0", "5ab25d7f9334ae47"),
    "CityscapesDataset": (19, "5995d02d6c574d51", "80022b4287c0bf0d"),
    "COCOStuffDataset": (171, "8ea44449837dceb3", "a840213391baa2cc"),
    "PascalVOCDataset": (21, "301e5e4e2a9a7ab6", "095bb35f9f5352a1"),
    "PascalContextDataset": (60, "e29ff1a0eaea71eb", "89c41e07d69c7a01"),
    "PascalContextDataset59": (59, "cd808465f06a1616", "48b94982d1a6ce83"),
    "iSAIDDataset": (16, "b6f9abbf6e4ced87", "1aa84a1da21ad93f"),
}
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
ABC = {"classes": ["a", "b", "c"]}


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.fixture
def pictures(tmp_path):
    """A function that writes `{name: mask or None}` as pictures with masks under tmp_path and returns tmp_path."""

    def write(masks, mask_suffix=".png", img_suffix=".png"):
        for name, mask in masks.items():
            img = tmp_path / "images" / (name + img_suffix)
            target = tmp_path / "masks" / (name + mask_suffix)
            img.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(img), np.full((2, 3, 3), 7, np.uint8))
            if mask is not None:
                cv2.imwrite(str(target), np.asarray(mask, np.uint8))
        return tmp_path

    return write


def load(dataset, index=0):
    return dataset.get(index, np.random.default_rng(0))


def folder(root, **options):
    return FolderDataset(**{"data_root": str(root), "metainfo": ABC, "pipeline": LOAD, **options})


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_colours_are_the_published_ones(name):
    count, classes, palette = PUBLISHED[name]
    options = {"ann_file": "list.txt"} if DATASETS.get(name).NEEDS_ANN_FILE else {}
    dataset = DATASETS.build({"type": name, "data_root": "nowhere", **options})  # known without any file
    assert len(dataset.classes) == len(dataset.palette) == count and len(set(dataset.classes)) == count
    assert digest("\n".join(dataset.classes)) == classes
    assert digest(json.dumps([list(colour) for colour in dataset.palette])) == palette
    assert dataset.reduce_zero_label == (name in ("ADE20KDataset", "PascalContextDataset59"))


def test_camvid_reads_its_list_and_ignores_void(shared_data):
    dataset = CamVidDataset(data_root=str(shared_data / "camvid"), ann_file="train.txt", pipeline=LOAD)
    assert (len(dataset), len(dataset.classes)) == (367, 11)
    sample = load(dataset)
    raw = cv2.imread(dataset.info(0)["seg_map_path"], cv2.IMREAD_UNCHANGED)
    assert (raw == 11).any() and sample["img"].shape == (360, 480, 3)
    np.testing.assert_array_equal(sample["gt_seg_map"], np.where(raw == 11, 255, raw))
    by_folder = CamVidDataset(data_root=str(shared_data / "camvid"),
                              data_prefix={"img_path": "train", "seg_map_path": "trainannot"})
    assert sorted(dataset.pairs) == by_folder.pairs


def test_real_ade20k_and_voc_masks_are_in_range(shared_data):
    raw = shared_data / "raw"
    ade = raw / "ade20k" / "sampleData"
    blocks = [{"type": "ADE20KDataset", "data_root": str(ade),
               "data_prefix": {"img_path": "images", "seg_map_path": "annotations"}},
              {"type": "FolderDataset", "data_root": str(raw / "voc_samples"),
               "data_prefix": {"img_path": "", "seg_map_path": ""},
               "img_suffix": ".jpg",
               "metainfo": {"classes": list(DATASETS.get("PascalVOCDataset").METAINFO["classes"])}}]
    for block, count in zip(blocks, (3, 4)):
        dataset = DATASETS.build({**block, "pipeline": LOAD})
        labels = np.unique(np.concatenate([load(dataset, i)["gt_seg_map"].ravel() for i in range(len(dataset))]))
        assert len(dataset) == count and len(labels) > 3 and labels[labels != 255].max() < len(dataset.classes)


def test_a_subset_of_classes_renumbers_labels_and_colours(pictures):
    root = pictures({"x": [[0, 1, 2], [3, 255, 4]]})
    prefix = {"img_path": "images", "seg_map_path": "masks"}
    options = {"data_root": str(root), "data_prefix": prefix, "img_suffix": ".png", "ann_file": "list.txt",
               "pipeline": LOAD}
    (root / "list.txt").write_text("x.png\n\n")
    names = PascalContextDataset.METAINFO["classes"]
    dataset = PascalContextDataset(**options, metainfo={"classes": [names[3], names[1]]})
    assert dataset.palette == (PascalContextDataset.METAINFO["palette"][3], PascalContextDataset.METAINFO["palette"][1])
    np.testing.assert_array_equal(load(dataset)["gt_seg_map"], [[255, 1, 255], [0, 255, 255]])
    reduced = PascalContextDataset59(**options, metainfo={"classes": [names[2], names[4]]})
    np.testing.assert_array_equal(load(reduced)["gt_seg_map"], [[255, 255, 0], [255, 255, 1]])
    with pytest.raises(ConfigError, match="'grasss' is not one of its 60 classes; did you mean 'grass'"):
        PascalContextDataset(**options, metainfo={"classes": ["grasss"]})


def test_a_user_folder_with_index_masks_subfolders_and_a_split(pictures):
    root = pictures({f"{part}/{i}": [[0, 1, 2], [2, 255, 1]] for part in ("day", "night") for i in range(10)},
                    "_mask.png", ".JPG")
    whole = folder(root, seg_map_suffix="_mask.png")
    assert len(whole) == 20 and whole.info(0)["seg_map_path"].endswith("masks/day/0_mask.png")
    np.testing.assert_array_equal(load(whole)["gt_seg_map"], [[0, 1, 2], [2, 255, 1]])
    parts = [folder(root, seg_map_suffix="_mask.png", split={"part": part, "val_ratio": 0.3}).pairs
             for part in ("train", "val")]
    assert [len(part) for part in parts] == [14, 6] and sorted(parts[0] + parts[1]) == whole.pairs
    (root / "some.txt").write_text("night/3\nday/1.JPG\n")
    listed = folder(root, seg_map_suffix="_mask.png", ann_file="some.txt", indices=[1])
    assert listed.info(0)["img_path"].endswith("images/day/1.JPG") and len(listed) == 1
    assert len(set(whole.palette)) == 3


def test_a_user_folder_with_rgb_masks(pictures):
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 0]], [[0, 255, 0], [9, 9, 9], [0, 0, 0]]], np.uint8)
    root = pictures({"x": rgb[..., ::-1]})
    options = {"metainfo": {"classes": ["red", "green"], "palette": [[255, 0, 0], [0, 255, 0]]}, "mask_format": "rgb"}
    dataset = folder(root, **options, ignore_colors=[[0, 0, 0], [9, 9, 9]])
    np.testing.assert_array_equal(load(dataset)["gt_seg_map"], [[0, 1, 255], [1, 255, 255]])
    with pytest.raises(DataError, match=r"masks/x\.png: colour .*\(9, 9, 9\).*row 1, column 1"):
        load(folder(root, **options, ignore_colors=[[0, 0, 0]]))
    with pytest.raises(ConfigError, match="needs metainfo.palette"):
        folder(root, mask_format="rgb")


def test_missing_files_are_named_with_what_is_there(pictures, tmp_path):
    root = pictures({"a": [[0] * 3] * 2, **{f"b{i}": None for i in range(7)}})
    with pytest.raises(DataError,
                       match=r"masks: 7 of 8 pictures have no mask ending in '\.png': b0\.png, .*b4\.png and 2 more "
                                        r"\(there: a\.png; check"):
        len(folder(root))
    with pytest.raises(DataError, match=r"data_prefix\.img_path: .*'imagess' is not in .*holds images, masks.*; did "
                                        r"you mean 'images'"):
        len(folder(root, data_prefix={"img_path": "imagess/day", "seg_map_path": "masks"}))
    with pytest.raises(DataError, match=r"no picture ending in '\.jpg' in .*images \(holds a\.png"):
        len(folder(root, img_suffix=".jpg"))
    (root / "list.txt").write_text("a\nzz\n")
    with pytest.raises(DataError, match=r"list\.txt: 1 of 2 listed pictures are not in .*images .*: zz"):
        len(folder(root, ann_file="list.txt"))
    (root / "list.txt").write_text("images/a.png masks/a.png\nimages/q.png masks/q.png\n")
    with pytest.raises(DataError, match=r"list\.txt: 2 of 4 listed files do not exist: .*images/q\.png"):
        len(folder(root, ann_file="list.txt"))
    with pytest.raises(ConfigError, match="needs 'ann_file'"):
        DATASETS.build({"type": "PascalVOCDataset", "data_root": str(tmp_path)})


def test_masks_that_do_not_fit_are_named(pictures):
    root = pictures({"big": [[0] * 4] * 2, "high": [[0, 1, 3], [0, 0, 7]]})
    with pytest.raises(DataError, match=r"images/big\.png is 3x2 .*masks/big\.png is 4x2"):
        load(folder(root), 0)
    with pytest.raises(DataError, match=r"masks/high\.png: label out of range: 3 at 1 pixel, first at row 0, column 2"):
        load(folder(root), 1)
    (root / "images" / "high.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"images/high\.png: the picture is empty"):
        load(folder(root), 1)


def test_wrappers_keep_order_and_check_classes(pictures):
    root = pictures({"a": [[0] * 3] * 2, "b": [[1] * 3] * 2})
    block = {"type": "FolderDataset", "data_root": str(root), "metainfo": ABC, "pipeline": LOAD}
    dataset = DATASETS.build({"type": "ConcatDataset",
                              "datasets": [block, {"type": "RepeatDataset", "dataset": block, "times": 2}]})
    assert [load(dataset, i)["gt_seg_map"][0, 0] for i in range(len(dataset))] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(ConfigError, match=r"datasets\[1\] has classes"):
        DATASETS.build({"type": "ConcatDataset", "datasets": [block, {**block, "metainfo": {"classes": ["x"]}}]})
    with pytest.raises(ConfigError, match="metainfo.palette has 1 colours for 3 classes"):
        SegDataset(metainfo={**ABC, "palette": [[0, 0, 0]]})
