"""What users' own folders hold: labels nobody trains, names that are no names, lists of other systems, masks beside
pictures."""

import cv2
import numpy as np
import pytest
from PIL import Image

from jseg.data.check import check_dataset, quick_check
from jseg.data.datasets import CamVidDataset, FolderDataset
from jseg.errors import ConfigError, DataError

LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
TWO = {"classes": ["background", "building"]}


def write(root, masks, picture=None):
    """Pictures and masks 0.png, 1.png, ... of 8 x 8; `masks` are the values that each mask repeats."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i, values in enumerate(masks):
        cv2.imwrite(str(root / "images" / f"{i}.png"), np.full((8, 8, 3), 40 + i,
                                                               np.uint8) if picture is None else picture)
        cv2.imwrite(str(root / "masks" / f"{i}.png"), np.resize(np.asarray(values, np.uint8), (8, 8)))
    return root


def dataset(root, **options):
    return FolderDataset(**{"data_root": str(root), "metainfo": TWO, "pipeline": LOAD, **options})


def config(root, **options):
    block = {"type": "FolderDataset", "data_root": str(root), "metainfo": TWO, "pipeline": LOAD, **options}
    return {"train_dataloader": {"batch_size": 1, "num_workers": 0, "dataset": block}}


def complaint(call, *arguments, error=DataError, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_masks_of_0_and_255_are_refused(tmp_path):
    root = write(tmp_path, [[0, 255]] * 40)
    words = "255 is present and no other label above 0 in 40 masks, K = 2: nothing of 'building' would be learned"
    text = complaint(quick_check, config(root))
    assert words in text and "set label_map: {255: 1} on the dataset" in text
    fault, = check_dataset(dataset(root)).faults
    assert (fault.kind, fault.values) == ("label", (255,)) and words in fault.text
    assert quick_check(config(root, label_map={255: 1})) == []  # the cure, followed
    mask = dataset(root, label_map={255: "building"}).get(0, np.random.default_rng(0))["gt_seg_map"]
    assert sorted(np.unique(mask)) == [0, 1]


def test_one_mask_with_the_class_among_many_is_enough(tmp_path):
    root = write(tmp_path, [[0, 255]] * 60 + [[0, 1, 255]])
    for seed in range(3):  # whatever 32 masks are looked at first
        assert quick_check({**config(root), "seed": seed}) in ([], ["train: 1 of 2 classes are in none of the 32 masks "
                                                                    "looked at: building"])
    assert quick_check(config(write(tmp_path / "rare", [[0]] * 3))) == [
        "train: 1 of 2 classes are in none of the 3 masks looked at: building"]


@pytest.mark.parametrize("value", [128, 255])
def test_masks_of_two_values_get_the_cure(tmp_path, value):
    root = write(tmp_path, [[0, value]] * 2)
    text = complaint(quick_check, config(root, ignore_index=200))
    assert f"label out of range: {value}" in text and f"set label_map: {{{value}: 1}} on the dataset" in text


def test_a_void_label_has_three_places_or_one(tmp_path):
    root = write(tmp_path, [[0, 1, 2]] * 2)
    text = complaint(quick_check, config(root))
    assert "set ignore_index: 2 on the dataset and on every head, and data_preprocessor.seg_pad_val: 2" in text
    assert "(or, on the dataset alone, label_map: {2: 255})" in text
    report = check_dataset(dataset(root, label_map={2: 255}))
    assert report.ok and report.pixels.tolist() == [44, 42] and report.ignored == 42


@pytest.mark.parametrize("label_map, pixels", [({2: 1}, [22, 42]), ({2: "building", 1: "background"}, [43, 21]),
                                               ({0: 255}, [0, 21])])
def test_label_map_merges(tmp_path, label_map, pixels):
    root = write(tmp_path, [[0, 1, 2]])
    got = check_dataset(dataset(root, label_map={**{2: 255}, **label_map})).pixels.tolist()
    assert got == pixels


def test_label_map_of_a_known_dataset_takes_published_names(tmp_path):
    root = write(tmp_path, [[0, 1, 2, 11]])
    options = {"data_root": str(root), "data_prefix": {"img_path": "images", "seg_map_path": "masks"}, "pipeline": LOAD}
    some = CamVidDataset(**options, metainfo={"classes": ["Building", "Sky"]}, label_map={"Pole": "Building"})
    assert some.get(0, np.random.default_rng(0))["gt_seg_map"][0, :4].tolist() == [1, 0, 0, 255]


@pytest.mark.parametrize("label_map, words", [
    ({2: 7}, "old labels are 0..65535, new ones 0..1 or ignore_index 255"), ({"roof": 1}, "'roof' is no old label"),
    ({1: "bulding"}, "'bulding' is no new label; did you mean 'building'?"), ({True: 1}, "True is no old label"), ([2],
        "expected {old: new}"),
    ({-1: 0}, "old labels are 0..65535")])
def test_label_maps_that_mean_nothing(tmp_path, label_map, words):
    assert words in complaint(dataset, tmp_path, label_map=label_map, error=ConfigError)


@pytest.mark.parametrize("classes, words", [
    ("water", "got 'water', expected a list of names; write [background, water]"), ([False, True],
                                                                                    "read as false, as YAML reads "
                                                                                    "false, no"),
    (["a", True], "read as true, as YAML reads true, yes and on"), (["a", 1], "got 1 among the names"), (["a", None],
        "got None among"),
    (["a", " "], "' ' is no name"), (["a", "\x1b[31m"], "'\\x1b[31m' is no name"), ({"a": 1},
                                                                                    "expected a list of names")])
def test_class_names_are_a_list_of_texts(tmp_path, classes, words):
    assert words in complaint(dataset, tmp_path, metainfo={"classes": classes}, error=ConfigError)
    assert "expected {classes: [...], palette: [...]}" in complaint(dataset, tmp_path, metainfo=[classes],
                                                                    error=ConfigError)


@pytest.mark.parametrize("content", ["\ufeff0\n1\n".encode(), b"0\r\n1\r\n", b"0\r1\r",
                                     b"\xef\xbb\xbfimages/0.png\tmasks/0.png\r\nimages/1.png\tmasks/1.png"])
def test_lists_of_other_systems_are_read(tmp_path, content):
    root = write(tmp_path, [[0, 1]] * 2)
    (root / "list.txt").write_bytes(content)
    assert len(dataset(root, ann_file="list.txt")) == 2


@pytest.mark.parametrize("content, words", [
    ("0\n1\n".encode("utf-16"), "list.txt: not UTF-8 but UTF-16; save it as UTF-8"),
    ("天\n".encode("gbk"), "not UTF-8"),
    ("图片\n".encode("gbk"), "the list is in GBK: save it as UTF-8"), (b"images\\0.png masks\\0.png\n",
                                                                     "a backslash parts no folders here: write /"),
    (b"/images/0.png /masks/0.png\n", "a leading / means the top of the disk: take it off"), (b"sub\\0\n", "write /"),
    (b"a b.png c.png\n", "not in"), (b"x.png y.png\nz\n", "part two paths with a tab where names hold spaces"),
                                            ("a\u200bb\n".encode(), "'a\\u200bb'")])
def test_lists_that_lead_nowhere_say_why(tmp_path, content, words):
    root = write(tmp_path, [[0, 1]] * 2)
    (root / "images" / "0.png").rename(root / "images" / "图片.png")
    (root / "list.txt").write_bytes(content)
    assert words in complaint(len, dataset(root, ann_file="list.txt"))


@pytest.mark.parametrize("img, mask", [(".jpg", "_mask.png"), (".png", "_mask.png"), (".jpg", ".png"), (".png",
    ".seg.png")])
def test_pictures_and_masks_in_one_folder(tmp_path, img, mask):
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"img{i}{img}"), np.full((8, 8, 3), 9, np.uint8))
        cv2.imwrite(str(tmp_path / f"img{i}{mask}"), np.eye(8, dtype=np.uint8))
    both = dataset(tmp_path, data_prefix={"img_path": "", "seg_map_path": ""}, seg_map_suffix=mask)
    assert [tuple(path.rpartition("img")[2] for path in pair) for pair in both.pairs] == [(f"{i}{img}",
        f"{i}{mask}") for i in range(3)]
    (tmp_path / "list.txt").write_text("img2\n")
    assert len(dataset(tmp_path, data_prefix={"img_path": "", "seg_map_path": ""}, seg_map_suffix=mask,
                       ann_file="list.txt")) == 1


def test_samples_that_lose_something_are_noted(tmp_path):
    dark = np.random.default_rng(0).integers(0, 4096, (8, 8, 3)).astype(np.uint16)
    words = "16-bit samples up to"
    assert words in "".join(quick_check(config(write(tmp_path / "dark", [[0, 1]], picture=dark))))
    assert quick_check(config(write(tmp_path / "bright", [[0, 1]], picture=dark * 16))) == []
    four = np.full((8, 8, 4), 9, np.uint8)
    for name, save in (("bands", lambda path: cv2.imwrite(path, four)), ("alpha",
                                                                         lambda path: Image.fromarray(four).save(
                                                                             path))):
        root = write(tmp_path / name, [[0, 1]])
        (root / "images/0.png").unlink()
        save(str(root / "images/0.tif"))
        assert ("4 bands, the first 3 are used" in "".join(quick_check(config(root)))) == (name == "bands")
