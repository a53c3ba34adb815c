"""Rendered scenes: the same every time, every class in them, readable as a folder dataset, never half written;
and `browse`.
"""

import os

import numpy as np
import pytest

from jseg.cli import main
from jseg.data.datasets import FolderDataset
from jseg.data.io import read_image, read_mask
from jseg.data.render import CLASSES, PALETTE, render_dataset, render_scene
from jseg.errors import DataError

CONFIG = """
train_dataloader:
  batch_size: 2
  dataset:
    type: FolderDataset
    data_root: {root}
    data_prefix: {{img_path: images/train, seg_map_path: masks/train}}
    metainfo: {{classes: [sky, ground, building, tree, car, person]}}
    pipeline: [{{type: LoadImageFromFile}}, {{type: LoadAnnotations}}, {{type: RandomFlip, prob: 0.5}}]
"""


def test_scenes_differ_hold_all_classes_and_repeat():
    scenes = [render_scene((64, 80), np.random.default_rng([0, i])) for i in range(12)]
    shares = np.bincount(np.concatenate([mask.ravel() for _, mask in scenes]), minlength=6) / (12 * 64 * 80)
    assert len(shares) == len(CLASSES) == len(PALETTE) == 6 and shares.min() > 0.02, shares
    for img, mask in scenes:
        assert img.shape == (64, 80, 3) and img.dtype == np.uint8 and mask.shape == (64, 80) and mask.dtype == np.uint8
        assert img.std() > 15
    again = render_scene((64, 80), np.random.default_rng([0, 3]))
    np.testing.assert_array_equal(again[0], scenes[3][0])
    np.testing.assert_array_equal(again[1], scenes[3][1])
    assert len({img.tobytes() for img, _ in scenes}) == 12


def test_dataset_is_atomic_kept_and_read_as_a_folder(tmp_path):
    out, options = tmp_path / "data", {"count_train": 3, "count_val": 2, "size": (48, 64)}

    def fail(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_dataset(out, **options, progress=fail)
    assert os.listdir(tmp_path) == []
    render_dataset(out, **options)
    first, stamp = out / "images" / "train" / "0000.png", os.stat(out).st_ino
    picture = read_image(first)
    render_dataset(out, **options)
    assert os.stat(out).st_ino == stamp
    render_dataset(out, **{**options, "count_val": 1})
    assert os.stat(out).st_ino != stamp and os.listdir(tmp_path) == ["data"]
    np.testing.assert_array_equal(read_image(first), picture)  # depends on seed, part and number only
    np.testing.assert_array_equal(read_mask(out / "masks" / "train" / "0000.png"),
                                  render_scene((48, 64), np.random.default_rng([0, 0, 0]))[1])
    dataset = FolderDataset(data_root=str(out), metainfo={"classes": CLASSES, "palette": PALETTE},
                            pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}])
    assert len(dataset) == 4
    dataset.get(3, np.random.default_rng(0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="mine: exists and holds other files"):
        render_dataset(tmp_path / "mine", **options)


def test_browse_writes_a_sheet(tmp_path, capsys):
    render_dataset(tmp_path / "data", count_train=5, count_val=1, size=(48, 64))
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(root=tmp_path / "data"))
    assert main(["browse", str(config), "--count", "5", "--out", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "5 of 5 samples of train" in printed and "sky " in printed and "ignored 0.0%" in printed
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape[1] > 8 * 240 and sheet.std() > 10
    assert main(["browse", str(config), "--split", "val"]) == 2
    assert "val_dataloader: the config has no such block" in capsys.readouterr().err
