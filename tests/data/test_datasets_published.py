"""The published datasets: names, colours, suffixes and zero label as upstream has them;
the base configs read what the converters write.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pathlib
import sys

import cv2
import numpy as np
import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(pathlib.Path(__file__).parent / "prepare"), str(ROOT / "tools" / "convert_datasets")]

import fake_more
import fake_raw
import fake_tiles
from fake_encode import write_tree

from jseg.config import load_config
from jseg.data import Loader, build_dataset
from jseg.data.check import check_dataset
from jseg.data.datasets import LEVIRCDDataset, NYUDataset
from jseg.data.datasets.wrappers import leaves, locate, repeat_factors
from jseg.data.prepare import Settings
from jseg.errors import ConfigError, DataError
from jseg.registry import DATASETS

CITYSCAPES = ("5995d02d6c574d51", "80022b4287c0bf0d")
VESSELS = ("6e8b01fc641c52ab", "a32c96dc6668b1d6")
ISPRS = ("cadd85fc7474f373", "ca00ccbce723a3ab")
# type: classes, digests of names and colours (as in test_datasets.py), picture suffix, mask suffix, reduce_zero_label,
# from mmsegmentation 1.2.2; HSI-Drive from its main branch
PUBLISHED = {
    "BDD100KDataset": (19, *CITYSCAPES, ".jpg", ".png", False),
    "ChaseDB1Dataset": (2, *VESSELS, ".png", "_1stHO.png", False),
    "DarkZurichDataset": (19, *CITYSCAPES, "_rgb_anon.png", "_gt_labelTrainIds.png", False),
    "DRIVEDataset": (2, *VESSELS, ".png", "_manual1.png", False),
    "HRFDataset": (2, *VESSELS, ".png", ".png", False),
    "HSIDrive20Dataset": (11, "78629c9820b1de08", "13a96d5f0e98678c", ".npy", ".png", False),
    "ISPRSDataset": (6, *ISPRS, ".png", ".png", True),
    "LEVIRCDDataset": (2, "40dbaee677399fae", "5e5b807e86f369f2", ".png", ".png", False),
    "LIPDataset": (20, "d36a108cbef95dd5", "16f85429d4590790", ".jpg", ".png", False),
    "LoveDADataset": (7, "84d9d2728c8b80b6", "5e1dddb37a4de0a7", ".png", ".png", True),
    "MapillaryDataset_v1": (66, "db6109de55a9d835", "5cfa82392d321acd", ".jpg", ".png", False),
    "MapillaryDataset_v2": (124, "569f2ee8c65feff2", "9c2c4363b75a563a", ".jpg", ".png", False),
    "NightDrivingDataset": (19, *CITYSCAPES, "_leftImg8bit.png", "_gtCoarse_labelTrainIds.png", False),
    "NYUDataset": (27, "8c71013cb02dcaab", None, ".jpg", ".png", False),
    "PotsdamDataset": (6, *ISPRS, ".png", ".png", True),
    "REFUGEDataset": (3, "90f1058d45ec658f", "49cb69b579329092", ".png", ".png", False),
    "STAREDataset": (2, *VESSELS, ".png", ".ah.png", False),
    "SynapseDataset": (9, "09d032841fd522ed", "e3c6578da060278f", ".jpg", ".png", False),
}
BASES = sorted((ROOT / "configs" / "_base_" / "datasets").glob("*.yaml"))
FAKES = {**fake_raw.FAKES, **fake_tiles.FAKES, **fake_more.FAKES}


def read_by() -> dict[str, list[str]]:
    """Converter -> base configs that train and validate on nothing but the folder it writes to."""
    roots = {}
    for path in BASES:
        cfg = load_config(path)
        roots[path.stem] = {leaf.data_root for split in ("train", "val") for leaf in leaves(build_dataset(cfg, split))}
    found = {}
    for path in sorted((ROOT / "tools" / "convert_datasets").glob("*.py")):
        if path.stem not in ("labelme", "coco_json"):  # people's own annotations: FolderDataset
            out = importlib.import_module(path.stem).OUT
            found[path.stem] = [base for base, places in roots.items() if places == {out}]
    found["voc2012"].remove("pascal_voc12_aug_512x512")  # the same folder, with SBD
    found["voc_aug"].remove("pascal_voc12_512x512")
    return found


READS = read_by()
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def moved(block, root):
    """A dataset block, wrappers too, that reads from `root`."""
    block = dict(block)
    if "data_root" in block:
        block["data_root"] = str(root)
    for key in ("dataset", "datasets"):
        if key in block:
            block[key] = [moved(part, root) for part in block[key]] if key == "datasets" else moved(block[key], root)
    return block


def folder(tmp_path, masks, **options):
    """A FolderDataset block of pictures (2 x 3) with the given masks, by stem."""
    for place in ("images", "masks"):
        (tmp_path / place).mkdir(exist_ok=True)
    for name, mask in masks.items():
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.full((2, 3, 3), len(name), np.uint8))
        if mask is not None:
            cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), np.asarray(mask, np.uint8).reshape(2, 3))
    return {"type": "FolderDataset", "data_root": str(tmp_path), "metainfo": {"classes": ["a", "b", "c"]},
            "pipeline": LOAD, **options}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_colours_and_suffixes(name):
    count, classes, palette, img_suffix, seg_map_suffix, reduce_zero_label = PUBLISHED[name]
    dataset = DATASETS.build({"type": name, "data_root": "nowhere"})
    assert len(dataset.classes) == len(dataset.palette) == count
    assert digest("\n".join(dataset.classes)) == classes
    if palette is not None:
        assert digest(json.dumps([list(colour) for colour in dataset.palette])) == palette
    assert (dataset.img_suffix, dataset.seg_map_suffix, dataset.reduce_zero_label) == (
        img_suffix, seg_map_suffix, reduce_zero_label)


SEGMENTED = [path for path in BASES if "ClsDataPreprocessor" not in path.read_text()]  # the others: classes of pictures


@pytest.mark.parametrize("path", SEGMENTED, ids=lambda p: p.stem)
def test_base_configs_compose_and_pass_check(path, tmp_path):
    from jseg.engine.check import check_config

    count = len(build_dataset(load_config(path), "train").classes)
    parts = [ROOT / "configs/_base_/models/segnext_tiny.yaml", path, ROOT / "configs/_base_/schedules/adamw_20k.yaml"]
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump({"_base_": list(map(str, parts)),
                                     "model": {"decode_head": {"num_classes": count}}}))
    cfg = load_config(whole)
    depth = ["train_dataloader.dataset.pipeline: no LoadAnnotations: there would be nothing to learn from"]
    assert check_config(cfg) == (depth if path.stem == "nyu_480x480" else [])
    assert f"{cfg['data_preprocessor']['size'][0]}x{cfg['data_preprocessor']['size'][1]}" == path.stem.split("_")[-1]
    build_dataset(cfg, "val")
    build_dataset(cfg, "test")


@pytest.mark.parametrize("script", READS)
def test_base_configs_read_what_converters_write(script, tmp_path):
    raw = FAKES[script]()
    write_tree(raw.files, tmp_path / "raw")
    importlib.import_module(script).convert(tmp_path / "raw", tmp_path / "out",
                                            Settings(1, partial=True, progress=False), **raw.options)
    for base in READS[script]:
        cfg = load_config(ROOT / "configs" / "_base_" / "datasets" / f"{base}.yaml")
        for split in ("train", "val"):
            block = moved(cfg[f"{split}_dataloader"]["dataset"], tmp_path / "out")
            report = check_dataset(DATASETS.build({**block, "test_mode": split != "train"}), name=split,
                                   need_masks=script != "nyu")
            assert report.faults == [] and report.pictures > 0, (base, split, report.faults, report.notes)
            assert report.pixels.sum() > 0 or script == "nyu", (base, split, report.notes)


def test_every_class_has_a_base_config():
    types = {type(leaf).__name__ for path in BASES for split in ("train", "val", "test")
             for leaf in leaves(build_dataset(load_config(path), split))}
    assert set(PUBLISHED) <= types
    assert types | {"FolderDataset", "ClassBalancedDataset", "ConcatDataset", "RepeatDataset"} == set(DATASETS.names())


def test_every_converter_has_a_documented_reader():
    """One script, one fake, one class and one base config per dataset, and a line of each in docs/datasets.md."""
    scripts = {path.stem for path in (ROOT / "tools" / "convert_datasets").glob("*.py")}
    assert [name for name, bases in READS.items() if not bases] == []
    text = (ROOT / "docs" / "datasets.md").read_text()
    assert [name for name in scripts if f"`{name}`" not in text] == []
    assert [path.stem for path in BASES if f"`{path.stem}`" not in text] == []
    assert [name for name in DATASETS.names() if f"{name}" not in text and not name.endswith("59")] == []


def test_hsi_drive_ignores_its_zero(tmp_path):
    """A base config on pictures written as its head says."""
    rng = np.random.default_rng(0)
    for split in ("training", "validation", "test"):
        for folder_, array in (("images", rng.integers(0, 255, (200, 400, 3))),
                               ("annotations", rng.integers(0, 11, (200, 400)))):
            (tmp_path / folder_ / split).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / folder_ / split / "a.png"), array.astype(np.uint8))
    cfg = load_config(ROOT / "configs/_base_/datasets/hsi_drive_192x384.yaml")
    for split in ("train", "val", "test"):
        dataset = DATASETS.build({**moved(cfg[f"{split}_dataloader"]["dataset"], tmp_path),
                                  "test_mode": split != "train"})
        report = check_dataset(dataset, name=split)
        assert report.ok and len(report.classes) == 10 and report.ignored > 0 and (report.pixels > 0).all()


@pytest.mark.parametrize("name, kind, count", [("loveda", "LoveDADataset", 3), ("potsdam", "PotsdamDataset", 1),
                                               ("vaihingen", "ISPRSDataset", 1)])
def test_real_aerial_tiles_and_their_zero_label(shared_data, name, kind, count):
    block = {"type": kind, "data_root": str(shared_data / "converted" / name), "pipeline": LOAD,
             "data_prefix": {"img_path": "img_dir", "seg_map_path": "ann_dir"}}
    report = check_dataset(DATASETS.build(block))
    assert (report.faults, report.pictures) == ([], count) and (report.pixels > 0).sum() >= 4
    wrong = check_dataset(DATASETS.build({**block, "reduce_zero_label": False}))
    assert ([fault.kind for fault in wrong.faults] == ["zero label"]
            and "set reduce_zero_label: true" in wrong.faults[0].text)


def test_real_drive_loads_both_observers(shared_data, tmp_path):
    import drive
    drive.convert(shared_data / "raw/drive", tmp_path, Settings(1, partial=True, progress=False))
    block = {"type": "DRIVEDataset", "data_root": str(tmp_path), "pipeline": LOAD,
             "data_prefix": {"img_path": "images/validation", "seg_map_path": "annotations/validation"}}
    first, second = (check_dataset(DATASETS.build({**block, "seg_map_suffix": f"_manual{who}.png"})) for who in "12")
    assert first.ok and second.ok and first.pictures == second.pictures == 2
    shares = [report.pixels[1] / report.pixels.sum() for report in (first, second)]
    assert 0.05 < min(shares) and max(shares) < 0.2 and shares[0] != shares[1]  # vessels


def test_levircd_carries_the_second_picture(tmp_path):
    raw = FAKES["levircd"]()
    write_tree(raw.files, tmp_path / "raw")
    importlib.import_module("levircd").convert(tmp_path / "raw", tmp_path / "out",
                                               Settings(1, partial=True, progress=False), **raw.options)
    prefix = {"img_path": "train/A", "img_path2": "train/B", "seg_map_path": "train/label"}
    dataset = LEVIRCDDataset(data_root=str(tmp_path / "out"), data_prefix=prefix, pipeline=LOAD)
    sample = dataset.get(0, np.random.default_rng(0))
    assert sample["img_path2"] == sample["img_path"].replace("/A/", "/B/") and os.path.isfile(sample["img_path2"])
    os.remove(sample["img_path2"])
    with pytest.raises(DataError, match=r"data_prefix.img_path2: 1 of \d+ files do not exist: .*/B/"):
        len(LEVIRCDDataset(data_root=str(tmp_path / "out"), data_prefix=prefix))
    with pytest.raises(ConfigError, match="unknown key 'img_path3'.*takes img_path, seg_map_path and img_path2"):
        LEVIRCDDataset(data_prefix={"img_path3": "B"})


def test_nyu_knows_rooms_and_depth(tmp_path):
    raw = FAKES["nyu"]()
    write_tree(raw.files, tmp_path / "raw")
    importlib.import_module("nyu").convert(tmp_path / "raw", tmp_path / "out",
                                           Settings(1, partial=True, progress=False))
    dataset = NYUDataset(data_root=str(tmp_path / "out"),
                         data_prefix={"img_path": "images/train", "depth_map_path": "annotations/train"},
                         pipeline=LOAD[:1])
    infos = [dataset.info(i) for i in range(len(dataset))]
    assert [dataset.classes[info["category_id"]] for info in infos] == ["kitchen", "office"]
    depth = dataset.depth(0)
    assert depth.dtype == np.float32 and depth.shape == (12, 18)
    np.testing.assert_allclose(depth.ravel()[:3], [0, 0.04, 0.08], rtol=1e-6)
    assert check_dataset(dataset, need_masks=False).ok
    assert [fault.kind for fault in check_dataset(dataset).faults] == ["missing"]


def test_ignore_lists_leave_pictures_out_before_masks_are_asked_for(tmp_path):
    block = folder(tmp_path, {"p": [0] * 6, "q": [1] * 6, "r": None, "s": [2] * 6})
    with pytest.raises(DataError, match="1 of 4 pictures have no mask"):
        len(DATASETS.build(block))
    (tmp_path / "bad.txt").write_text("r\nq.png\nnot-there\n")
    dataset = DATASETS.build({**block, "ignore_file": "bad.txt"})
    assert [os.path.basename(img) for img, _ in dataset.pairs] == ["p.png", "s.png"]
    (tmp_path / "list.txt").write_text("s\nq\nr\np\n")
    listed = DATASETS.build({**block, "ignore_file": "bad.txt", "ann_file": "list.txt"})
    assert [os.path.basename(img) for img, _ in listed.pairs] == ["s.png", "p.png"]
    (tmp_path / "two.txt").write_text("images/p.png masks/p.png\nimages/q.png masks/q.png\n")
    (tmp_path / "out.txt").write_text("images/q\n")
    assert len(DATASETS.build({**block, "ignore_file": "out.txt", "ann_file": "two.txt"})) == 1
    with pytest.raises(DataError, match="ignore_file: .*bda.txt.*did you mean 'bad.txt'"):
        len(DATASETS.build({**block, "ignore_file": "bda.txt"}))


def test_repeat_factors_follow_the_paper():
    present = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0], [0, 0, 0]], bool)  # shares 0.8, 0.2, 0.2
    np.testing.assert_allclose(repeat_factors(present, 0.8), [1, 2, 2, 1, 1])
    np.testing.assert_allclose(repeat_factors(present, 0.1), np.ones(5))


def test_class_balanced_sampling(tmp_path):
    masks = {f"p{i}": [0] * 6 for i in range(8)}
    block = folder(tmp_path, {**masks, "rare": [0, 1, 0, 0, 255, 255]})
    cache = tmp_path / "classes.json"
    balanced = {"type": "ClassBalancedDataset", "dataset": block, "oversample_thr": 0.5,
                "cache_file": str(cache), "workers": 1}
    dataset = DATASETS.build(balanced)
    assert dataset.order.tolist() == [*range(8), 8, 8, 8]  # sqrt(0.5 / (1 / 9)) = 2.12, rounded up
    assert dataset.info(10)["img_path"].endswith("rare.png") and locate(dataset, 10)[1] == 8
    for seed in (0, 5):  # every random choice comes from (seed, epoch, index)
        a, b = (Loader(DATASETS.build(balanced), None, batch_size=4, num_workers=0, seed=seed, training=True)
                for _ in range(2))
        assert [a.picks(i) for i in range(6)] == [b.picks(i) for i in range(6)]
    kept = json.loads(cache.read_text())
    assert kept["classes_of_pictures"][8] == [0, 1]
    kept["classes_of_pictures"][0] = [2]
    cache.write_text(json.dumps(kept))
    assert DATASETS.build(balanced).order.tolist() == [0, 0, 0, *range(1, 8), 8, 8, 8]  # read from the cache
    folder(tmp_path, {"p0": [2] * 6, "p1": [2] * 6})
    # counted anew: sqrt(0.5 / (2 / 9)) = 1.5
    assert DATASETS.build(balanced).order.tolist() == [0, 0, 1, 1, *range(2, 8), 8, 8, 8]
    folder(tmp_path, {"p0": [7] * 6})
    with pytest.raises(DataError, match=r"p0\.png: label out of range: 7"):
        len(DATASETS.build(balanced))
    with pytest.raises(ConfigError, match="oversample_thr must be above 0 and at most 1, got 1.5"):
        DATASETS.build({**balanced, "oversample_thr": 1.5})


def test_sampling_wrappers_nest(tmp_path):
    block = folder(tmp_path, {"p": [0] * 6, "q": [1] * 6})
    inner = {"type": "ConcatDataset", "datasets": [block, {"type": "RepeatDataset", "dataset": block, "times": 2}]}
    dataset = DATASETS.build({"type": "ClassBalancedDataset", "dataset": inner, "oversample_thr": 0.5, "workers": 1})
    assert len(dataset) == 6 and len(leaves(dataset)) == 2
    labels = [dataset.get(i, np.random.default_rng(0))["gt_seg_map"][0, 0] for i in range(6)]
    assert labels == [0, 1, 0, 1, 0, 1]
