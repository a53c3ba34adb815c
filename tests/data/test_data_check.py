"""`jseg data check`: every planted fault is found, named with its file and counted;
clean data, real data too, has none.
"""

from __future__ import annotations

import json
import os
import time

import cv2
import numpy as np
import pytest
import yaml

from jseg import cli
from jseg.data.check import check_dataset, quick_check, shared_pictures
from jseg.data.datasets import ADE20KDataset, FolderDataset
from jseg.errors import DataError
from jseg.registry import DATASETS

LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]
CLASSES = ["ground", "roof", "tree"]


def write(root, split, count=4, labels=(0, 1, 2), seed=0):
    """Write `count` noise pictures (12 x 16) with masks that hold every one of `labels`."""
    rng = np.random.default_rng([seed, len(split)])
    for i in range(count):
        for kind, array in (("images", rng.integers(0, 256, (12, 16, 3))),
                            ("masks", np.resize(labels, 192).reshape(12, 16))):
            path = root / split / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array.astype(np.uint8))


def block(root, split, **options):
    """A FolderDataset block of one split."""
    prefix = {"img_path": f"{split}/images", "seg_map_path": f"{split}/masks"}
    return {"type": "FolderDataset", "data_root": str(root), "data_prefix": prefix, "metainfo": {"classes": CLASSES},
            "pipeline": LOAD, **options}


def config(root, **options):
    """The data blocks of a config."""
    return {f"{split}_dataloader": {"batch_size": 1, "num_workers": 0, "dataset": block(root, split, **options)}
            for split in ("train", "val")}


@pytest.fixture
def clean(tmp_path):
    """A folder of four training and four validation pairs without any fault."""
    for split in ("train", "val"):
        write(tmp_path, split)
    return tmp_path


def found(root, split="train", **options):
    return check_dataset(DATASETS.build(block(root, split, **options)), name=split)


def only(report, kind):
    """The text of the report's one fault, which is of that kind."""
    assert [fault.kind for fault in report.faults] == [kind], report.faults
    return report.faults[0].text


def test_clean_data_is_counted_exactly(clean):
    report = found(clean)
    assert report.ok and report.notes == [] and report.pictures == 4 and report.sizes == {(12, 16): 4}
    assert (report.pixels.tolist() == [256, 256, 256] and report.pictures_with.tolist() == [4, 4, 4]
            and report.ignored == 0)
    assert quick_check(config(clean)) == []


# plant(folder of a split) -> (kind, words of the line); `quick` tells whether a training run's first look finds it too
def missing_mask(split):
    os.remove(split / "masks" / "2.png")
    return "missing", ["1 of 4 pictures have no mask", "2.png"]


def missing_folder(split):
    os.rename(split / "masks", split / "mask")
    return "missing", ["'masks' is not in", "did you mean 'mask'"]


def out_of_range(split):
    mask = np.zeros((12, 16), np.uint8)
    mask[3, 4:6] = 9
    cv2.imwrite(str(split / "masks" / "1.png"), mask)
    return "label", ["1.png: label out of range: 9 at 2 pixels, first at row 3, column 4", "0..2"]


def other_size(split):
    cv2.imwrite(str(split / "masks" / "1.png"), np.zeros((16, 12), np.uint8))
    return "size", ["1.png is 16x12", "1.png is 12x16", "turned by 90 degrees"]


def cut_mask(split):
    path = split / "masks" / "3.png"
    path.write_bytes(path.read_bytes()[:40])
    return "unreadable", ["3.png", "truncated"]


def empty_picture(split):
    (split / "images" / "3.png").write_bytes(b"")
    return "unreadable", ["3.png: the picture is empty"]


def coloured_mask(split):
    cv2.imwrite(str(split / "masks" / "0.png"), np.full((12, 16, 3), (1, 2, 3), np.uint8))
    return "label", ["0.png: the mask is coloured"]


def starts_at_one(split):
    write(split.parent, split.name, labels=(1, 2, 3))
    return "zero label", ["reduce_zero_label is false, but the masks run from 1 to 3", "(4 hold 3, such as ",
                          "masks/0.png)", "set reduce_zero_label: true"]


def zero_is_nothing(split):
    write(split.parent, split.name, labels=(0, 1, 2, 3))
    return "zero label", ["the masks run from 0 to 3 for 3 classes",
                          "either 0 means unlabelled and 3 is 'tree': set reduce_zero_label: true",
                          "or 3 means unlabelled: set ignore_index: 3"]


PLANTS = [missing_mask, missing_folder, out_of_range, other_size, cut_mask, empty_picture, coloured_mask, starts_at_one,
          zero_is_nothing]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_planted_faults_are_found_and_named(clean, plant):
    kind, words = plant(clean / "train")
    text = only(found(clean), kind)
    assert all(word in text for word in words), text
    with pytest.raises(DataError) as caught:
        quick_check(config(clean))
    assert str(caught.value).startswith("train: ") and words[0] in str(caught.value)
    assert found(clean, "val").ok


def test_a_wrong_zero_label_is_told_in_both_directions(clean):
    text = only(found(clean, reduce_zero_label=True), "zero label")  # 0 is a class, but would be ignored
    assert ("reduce_zero_label is true, but no mask holds 3, which would be 'tree'" in text
            and "33.3 % of the pixels" in text)
    assert "set reduce_zero_label: false" in text
    write(clean, "train", labels=(0, 1, 2, 255))
    assert "255 marks unlabelled pixels already" in only(found(clean, reduce_zero_label=True), "zero label")
    # a sample proves nothing
    assert any("no mask holds 3" in note for note in quick_check(config(clean, reduce_zero_label=True)))
    write(clean, "train", labels=(0, 1, 2, 3))
    assert found(clean, reduce_zero_label=True).ok
    assert any("2 of 3 classes never occur: roof, tree" in note for note in (write(clean, "train", labels=(1,)), found(
        clean, reduce_zero_label=True))[1].notes)


def test_a_published_dataset_with_its_zero_label_switched_off(shared_data):
    sample = {"data_root": str(shared_data / "raw/ade20k/sampleData"),
              "data_prefix": {"img_path": "images", "seg_map_path": "annotations"}}
    right = check_dataset(ADE20KDataset(**sample, pipeline=LOAD))
    assert right.ok and right.pictures == 3 and (right.pixels > 0).sum() > 10
    text = only(check_dataset(ADE20KDataset(**sample, pipeline=LOAD, reduce_zero_label=False)), "zero label")
    assert ("ADE20KDataset: reduce_zero_label is false, but the published masks have 0 for unlabelled and 1 for 'wall'"
            in text)


def test_duplicates_across_splits_are_found_by_pixels(clean):
    picture = cv2.imread(str(clean / "train" / "images" / "1.png"))
    cv2.imwrite(str(clean / "val" / "images" / "3.bmp"), picture)  # another name, another format
    os.remove(clean / "val" / "images" / "3.png")
    reports = [found(clean, split) for split in ("train", "val")]
    assert all(report.ok for report in reports)
    fault, = shared_pictures(reports)
    assert fault.kind == "duplicate" and "1 pictures are in train and in val" in fault.text
    assert "train/images/1.png" in fault.text and "val/images/3.bmp" in fault.text
    cv2.imwrite(str(clean / "train" / "images" / "2.png"), picture)
    assert any("1.png and" in note and "2.png show the same pixels" in note for note in found(clean).notes)


def test_notes_name_what_may_be_intended(clean):
    cv2.imwrite(str(clean / "train" / "masks" / "0.png"), np.full((12, 16), 255, np.uint8))
    cv2.imwrite(str(clean / "train" / "masks" / "lone.png"), np.zeros((12, 16), np.uint8))
    notes = "\n".join(found(clean).notes)
    assert "1 masks have no picture: lone.png" in notes and "1 of 4 masks hold ignored pixels only" in notes
    report = found(clean, metainfo={"classes": [*CLASSES, "pool"]})
    assert report.ok and "1 of 4 classes never occur: pool" in "\n".join(report.notes)


def test_wrappers_processes_and_pipelines(clean):
    again = {"type": "RepeatDataset", "dataset": block(clean, "val"), "times": 3}
    both = {"type": "ConcatDataset", "datasets": [block(clean, "train"), again]}
    report = check_dataset(DATASETS.build(both), workers=2)
    assert report.ok and report.pictures == 8 and report.pixels.tolist() == [512] * 3
    other_size(clean / "val")
    assert only(check_dataset(DATASETS.build(both)), "size")
    early = [{"type": "RandomCrop", "crop_size": [4, 4]}, *LOAD]
    assert "pipeline[0] RandomCrop: KeyError: 'img'" in only(found(clean, pipeline=early), "pipeline")


def test_the_quick_check_compares_classes_and_is_quick(shared_data, clean):
    cfg = config(clean)
    cfg["val_dataloader"]["dataset"]["metainfo"] = {"classes": ["ground", "tree", "roof"]}
    with pytest.raises(DataError, match="train has the classes ground, roof, tree, val has ground, tree, roof"):
        quick_check(cfg)
    camvid = {"type": "CamVidDataset", "data_root": str(shared_data / "camvid"), "pipeline": LOAD}
    cfg = {f"{split}_dataloader": {"dataset": {**camvid, "ann_file": f"{split}.txt"}} for split in ("train", "val")}
    began = time.perf_counter()
    assert quick_check(cfg) == []
    assert time.perf_counter() - began < 5  # 0.3 s on a free machine
    same = {"train_dataloader": {"dataset": block(clean, "val")}, "val_dataloader": {"dataset": block(clean, "val")}}
    note, = quick_check(same)
    assert note.startswith("val: 4 of 4 pictures are training pictures: ")
    datasets = {"train": FolderDataset(**{key: value for key, value in block(clean, "train").items() if key != "type"})}
    assert quick_check({"train_dataloader": {}}, datasets=datasets) == []


def run(tmp_path, cfg, capsys, *words):
    """Run the command on a config; return status, output and errors."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(cfg))
    status = cli.main(["data", "check", str(path), "--workers", "1", "--quiet", *words])
    text = capsys.readouterr()
    return status, text.out, text.err


def test_the_command(clean, capsys):
    cfg = config(clean)
    sheet, out = clean / "sheet.png", clean / "out.json"
    status, text, errors = run(clean, cfg, capsys, "--sheet", str(sheet), "--out", str(out), "--count", "2")
    assert (status, errors) == (0, "") and "no faults" in text and "33.333 %" in text and f"written: {sheet}" in text
    assert cv2.imread(str(sheet)).shape[1] > 400
    whole = json.loads(out.read_text())
    assert [part["pictures"] for part in whole["splits"]] == [4, 4] and whole["splits"][0]["classes"][1] == {
        "name": "roof", "pixels": 256, "pictures": 4}
    missing_mask(clean / "val")
    out_of_range(clean / "train")
    os.link(clean / "train/images/0.png", clean / "val/images/extra.png")
    cv2.imwrite(str(clean / "val/masks/extra.png"), np.ones((12, 16), np.uint8))
    status, text, errors = run(clean, cfg, capsys, "--sheet", str(sheet))
    assert status == 2 and errors.splitlines()[-1] == "faults: 1 label, 1 missing, 1 duplicate"
    assert ("label: train: " in errors and "missing: val: " in errors and "duplicate: 1 pictures" in errors
            and "written" in text)
    status, text, errors = run(clean, cfg, capsys, "--quick")
    assert status == 2 and "train: " in errors and "val: " in errors and "Traceback" not in errors
    status, text, errors = run(clean, cfg, capsys, "--split", "val", "--set",
                               "val_dataloader.dataset.seg_map_suffix=.jpg")
    assert status == 2 and "4 of" not in text and "have no mask ending in '.jpg'" in errors


def test_many_faults_are_counted_and_few_printed(clean, capsys):
    write(clean, "train", count=9, labels=(0, 1, 7, 9))
    status, _, errors = run(clean, config(clean), capsys, "--split", "train")
    assert (status == 2 and errors.count("label: train: ") == 5 and "label: and 4 more (--all)" in errors
            and "faults: 9 label" in errors)
    status, _, errors = run(clean, config(clean), capsys, "--split", "train", "--all")
    assert errors.count("label: train: ") == 9
    write(clean, "val", count=9, labels=(0, 1, 7, 9))
    with pytest.raises(DataError, match="and 8 more faults; `jseg data check` lists all"):
        quick_check(config(clean))
    assert cli.main(["data", "check", "nowhere.yaml"]) == 2
    assert cli.main(["data", "chekc"]) == 2
