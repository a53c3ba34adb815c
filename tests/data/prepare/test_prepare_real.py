"""Real samples of the publishers convert, and load through their dataset classes."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "tools" / "convert_datasets"))

import ade20k
import camvid
import cityscapes
import coco_stuff164k
import drive
import isaid
from fake_encode import decode, encode

from jseg.data.datasets import ADE20KDataset, CamVidDataset, CityscapesDataset, COCOStuffDataset, iSAIDDataset
from jseg.data.io import read_image, read_mask
from jseg.data.prepare import Settings

SETTINGS = Settings(workers=1, partial=True, progress=False)
LOAD = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}]


def load_all(dataset) -> np.ndarray:
    """Load every sample (which checks sizes and labels); return the label histogram."""
    counts = np.zeros(256, np.int64)
    for index in range(len(dataset)):
        sample = dataset.get(index, np.random.default_rng(0))
        counts += np.bincount(sample["gt_seg_map"].ravel(), minlength=256)
    return counts


def test_ade20k(shared_data, tmp_path):
    ade20k.convert(shared_data / "raw/ade20k", tmp_path, SETTINGS)
    dataset = ADE20KDataset(data_root=str(tmp_path),
                            data_prefix={"img_path": "images/validation", "seg_map_path": "annotations/validation"},
                            pipeline=LOAD)
    assert len(dataset) == 3 and (load_all(dataset)[:150] > 0).sum() >= 10


def test_cityscapes(shared_data, tmp_path):
    cityscapes.convert(shared_data / "raw/cityscapes", tmp_path, Settings(1, partial=True, link=True, progress=False))
    for split, count in (("train", 4), ("val", 1)):
        dataset = CityscapesDataset(data_root=str(tmp_path),
                                    data_prefix={"img_path": f"leftImg8bit/{split}", "seg_map_path": f"gtFine/{split}"},
                                    pipeline=LOAD)
        assert len(dataset) == count and load_all(dataset)[0] > 100_000  # road
    assert next((tmp_path / "leftImg8bit/train/aachen").iterdir()).is_symlink()


def test_coco_stuff164k(shared_data, tmp_path):
    coco_stuff164k.convert(shared_data / "raw/coco_stuff", tmp_path, SETTINGS)
    for split, count in (("train2017", 8), ("val2017", 4)):
        dataset = COCOStuffDataset(data_root=str(tmp_path),
                                   data_prefix={"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
                                   pipeline=LOAD)
        assert len(dataset) == count and (load_all(dataset)[:171] > 0).sum() > 10


def test_isaid(shared_data, tmp_path):
    report = isaid.convert(shared_data / "raw/isaid", tmp_path, SETTINGS)
    for split in ("train", "val"):
        dataset = iSAIDDataset(data_root=str(tmp_path),
                               data_prefix={"img_path": f"img_dir/{split}", "seg_map_path": f"ann_dir/{split}"},
                               pipeline=LOAD)
        assert len(dataset) == report.counts[f"img_dir/{split}"] > 0
        counts = load_all(dataset)
        assert counts[0] > 0 and counts[1:16].sum() > 0


def test_drive(shared_data, tmp_path):
    drive.convert(shared_data / "raw/drive", tmp_path, SETTINGS)
    masks = sorted((tmp_path / "annotations").rglob("*.png"))
    assert [str(path.relative_to(tmp_path / "annotations")) for path in masks] == [
        "training/21_manual1.png", "training/22_manual1.png", "validation/01_manual1.png", "validation/01_manual2.png",
        "validation/02_manual1.png", "validation/02_manual2.png"]
    for path in masks:
        mask = read_mask(path)
        # vessels cover some percent
        assert mask.shape == (584, 565) and 0.03 < mask.mean() < 0.25 and mask.max() == 1, path
    assert read_image(tmp_path / "images/validation/01.png").shape == (584, 565, 3)


def test_camvid_round_trip(shared_data, tmp_path):
    """Paint real labels in the published colours; the converter gives the labels and the split back."""
    colors = {label: color for _, color, label in reversed(camvid.CLASSES)}
    table = np.array([colors[label] for label in range(12)], np.uint8)
    for split in ("train", "val"):
        for path in sorted((shared_data / "camvid" / f"{split}annot").glob("*.png"))[:3]:
            target = tmp_path / "raw"
            target.mkdir(exist_ok=True)
            (target / path.name).write_bytes((shared_data / "camvid" / split / path.name).read_bytes())
            (target / f"{path.stem}_L.png").write_bytes(encode(table[decode(path.read_bytes())], "png"))
    camvid.convert(tmp_path / "raw", tmp_path / "out", SETTINGS)
    for split in ("train", "val"):
        dataset = CamVidDataset(data_root=str(tmp_path / "out"), ann_file=f"{split}.txt", pipeline=LOAD)
        assert len(dataset) == 3 and load_all(dataset)[:11].sum() > 0
        for path in (tmp_path / "out" / f"{split}annot").iterdir():
            assert np.array_equal(read_mask(path), read_mask(shared_data / "camvid" / f"{split}annot" / path.name))


@pytest.mark.parametrize("split", ["train", "val"])
def test_camvid_split_is_segnets(shared_data, split):
    for path in (shared_data / "camvid" / split).glob("*.png"):
        sequence, frame = path.stem.split("_")
        assert camvid.split_of(sequence, int(frame.lstrip("f"))) == split
