"""The options that single converters have: strides, sizes, skipped pictures, unknown colours, class forms."""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import pytest

sys.path[:0] = [str(pathlib.Path(__file__).parent),
                str(pathlib.Path(__file__).resolve().parents[3] / "tools" / "convert_datasets")]

import camvid
import cityscapes
import coco_json
import fake_more
import fake_raw
import fake_tiles
import isaid
import labelme
import potsdam
import voc2012
from fake_encode import decode, write_tree

from jseg.data.prepare import Settings
from jseg.errors import ConvertError

QUIET = Settings(workers=1, partial=True, progress=False)


def mask_of(path: pathlib.Path) -> np.ndarray:
    return decode(path.read_bytes())


def test_potsdam_true_stride(tmp_path):
    raw = fake_tiles.potsdam()
    write_tree(raw.files, tmp_path / "raw")
    potsdam.convert(tmp_path / "raw", tmp_path / "out", QUIET, size=16, overlap=8)
    tiles = {path.stem for path in (tmp_path / "out/ann_dir/val").iterdir()}
    assert tiles == {f"5_15_{x}_{y}_{x + 16}_{y + 16}" for y in (0, 8, 16, 24) for x in (0, 8, 16, 24, 32, 36)}
    assert np.array_equal(mask_of(tmp_path / "out/ann_dir/val/5_15_8_8_24_24.png")[8:, 8:],
                          raw.want["ann_dir/val/5_15_16_16_32_32.png"][:8, :8])


def test_potsdam_unknown_colours_get_the_index_asked_for(tmp_path):
    raw = fake_tiles.potsdam()
    raw.files[raw.mask] = raw.unknown
    write_tree(raw.files, tmp_path / "raw")
    potsdam.convert(tmp_path / "raw", tmp_path / "out", QUIET, size=16, unknown=6)
    assert mask_of(tmp_path / "out/ann_dir/train/2_10_0_0_16_16.png")[3, 5] == 6


def test_potsdam_takes_no_other_kind_of_picture_and_nested_archives(tmp_path):
    raw = fake_tiles.potsdam()
    files = {f"Potsdam.zip/{path}": data for path, data in raw.files.items()}
    files["Potsdam.zip/3_Ortho_IRRG.zip/top_potsdam_2_10_IRRG.tif"] = b"another kind"
    files["Potsdam.zip/5_Labels_all.zip/top_potsdam_2_10_label.tif"] = b"another kind"
    write_tree(files, tmp_path / "raw")
    potsdam.convert(tmp_path / "raw" / "Potsdam.zip", tmp_path / "out", QUIET, size=16)
    assert np.array_equal(mask_of(tmp_path / "out/img_dir/train/2_10_0_0_16_16.png"),
                          raw.want["img_dir/train/2_10_0_0_16_16.png"])
    assert not list((tmp_path / "out").glob(".scratch*"))


def test_isaid_width_is_width(tmp_path):
    raw = fake_tiles.isaid()
    write_tree(raw.files, tmp_path / "raw")
    isaid.convert(tmp_path / "raw", tmp_path / "out", QUIET, width=24, height=12, overlap=0)
    assert {mask_of(path).shape for path in (tmp_path / "out/ann_dir/train").iterdir()} == {(12, 24)}
    assert (tmp_path / "out/img_dir/train/P0000_8_20_17_41.png").is_file()


def test_isaid_skips_only_what_is_asked_for(tmp_path):
    raw = fake_tiles.isaid()
    raw.files[raw.mask] = raw.resized
    write_tree(raw.files, tmp_path / "raw")
    with pytest.raises(Exception, match="P0000.*is 41x20.*but its mask"):
        isaid.convert(tmp_path / "raw", tmp_path / "out", QUIET, **raw.options)
    report = isaid.convert(tmp_path / "raw", tmp_path / "out", QUIET, **raw.options, skip=("P0000",))
    assert "left out as asked: P0000" in str(report) and not list((tmp_path / "out").rglob("P0000*"))


def test_isaid_counts_as_original_jseg_and_wants_all_pictures(tmp_path, monkeypatch):
    """Tiles of 16 stand for 800: a picture of one row or one column of tiles counts once, P1527 not at all."""
    raw = fake_tiles.isaid()
    files = {path.replace("P0001", "P1527"): data for path, data in raw.files.items()}
    write_tree(files, tmp_path / "raw")
    monkeypatch.setattr(isaid, "DEVKIT_TILES", (16, 16, 4))
    for _ in range(2):  # the second time from the manifest
        report = str(isaid.convert(tmp_path / "raw", tmp_path / "out", QUIET, **raw.options))
        assert "train files as original JSeg counts them (documented: 28029): 8\n" in report  # P0000: 2 rows of 4 tiles
        assert "val files as original JSeg counts them (documented: 9512): 2" in report
    whole = Settings(workers=1, progress=False)
    with pytest.raises(ConvertError, match="2 train pictures, but 1411 are published.*--partial"):
        isaid.convert(tmp_path / "raw", tmp_path / "out", whole, **raw.options)
    monkeypatch.setattr(isaid, "PICTURES", {"train": 2, "val": 3})
    with pytest.raises(ConvertError, match="2 val pictures, but 3 are published"):
        isaid.convert(tmp_path / "raw", tmp_path / "out", whole, **raw.options)


def test_cityscapes_label_ids_and_polygons_agree(tmp_path):
    raw = fake_raw.cityscapes()
    write_tree(raw.files, tmp_path / "raw")
    for labels in ("labelIds", "polygons"):
        cityscapes.convert(tmp_path / "raw", tmp_path / labels, QUIET, labels=labels)
        for name, want in raw.want.items():
            if name.endswith("TrainIds.png"):
                assert np.array_equal(mask_of(tmp_path / labels / name), want), (labels, name)
    write_tree({path: data for path, data in raw.files.items() if "labelIds" not in path}, tmp_path / "no_ids")
    with pytest.raises(ConvertError, match=r"no files of gtFine \(labelIds\) train"):
        cityscapes.convert(tmp_path / "no_ids", tmp_path / "out", QUIET, labels="labelIds")
    assert cityscapes.convert(tmp_path / "no_ids", tmp_path / "out", QUIET).written == 4


def test_cityscapes_unknown_polygon_label(tmp_path):
    raw = fake_raw.cityscapes()
    name = raw.mask.replace("labelIds.png", "polygons.json")
    raw.files[name] = raw.files[name].replace(b'"sky"', b'"skyy"')
    write_tree(raw.files, tmp_path / "raw")
    with pytest.raises(ConvertError, match="polygons.json: label 'skyy' is not one of the 35 of Cityscapes"):
        cityscapes.convert(tmp_path / "raw", tmp_path / "out", QUIET, labels="polygons")


def test_camvid_32_classes_and_size(tmp_path):
    raw = fake_more.camvid()
    write_tree(raw.files, tmp_path / "raw")
    camvid.convert(tmp_path / "raw", tmp_path / "out", QUIET, classes=32, size=(6, 9))
    names = (tmp_path / "out/classes.txt").read_text().split()
    assert len(names) == 32 and names[:2] == ["Animal", "Archway"] and names[30:] == ["Void", "Wall"]
    mask = mask_of(tmp_path / "out/trainannot/0001TP_006690.png")
    assert mask.shape == (6, 9) and set(np.unique(mask)) <= {names.index(name) for name in fake_more.CAMVID}
    assert mask_of(tmp_path / "out/train/0001TP_006690.png").shape == (6, 9, 3)


def test_coco_json_without_background(tmp_path):
    raw = fake_more.coco_json()
    write_tree(raw.files, tmp_path / "raw")
    coco_json.convert(tmp_path / "raw", tmp_path / "out", QUIET, background=False)
    want = np.array([255, 0, 1], np.uint8)[raw.want["masks/a.png"]]
    assert np.array_equal(mask_of(tmp_path / "out/masks/a.png"), want)
    assert (tmp_path / "out/classes.txt").read_text().split() == ["roof", "tree"]


def test_labelme_finds_the_classes_and_refuses_odd_shapes(tmp_path):
    raw = fake_more.labelme()
    write_tree(raw.files, tmp_path / "raw")
    labelme.convert(tmp_path / "raw", tmp_path / "out", QUIET)
    assert np.array_equal(mask_of(tmp_path / "out/masks/a.png"), raw.want["masks/a.png"])
    raw.files["a.json"] = raw.files["a.json"].replace(b'"rectangle"', b'"spline"')
    write_tree(raw.files, tmp_path / "raw")
    with pytest.raises(ConvertError, match=r"a\.json: a shape of type 'spline' with 2 points cannot be drawn"):
        labelme.convert(tmp_path / "raw", tmp_path / "out", QUIET)


def test_voc_colours():
    assert (voc2012.voc_colours()[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
            and voc2012.voc_colours()[255] == (224, 224, 192))
