"""Models for pictures of any number of channels: first convolutions, the dry step, runs whose signal is in one band."""

import json

import cv2
import jittor as jt
import numpy as np
import pytest
from small_run import small_config

from jseg import InferenceSegmentor, cli
from jseg.config import dump_config
from jseg.engine.channels import adapted, input_axes, with_channels
from jseg.engine.checkpoint import model_state
from jseg.engine.fine_tune import start_from
from jseg.engine.own_model import find_model
from jseg.engine.train import train
from jseg.models import build_model

CLASSES = ["ground", "disc"]


def bands_config(folder, channels, loader, suffix, mean=None, std=None):
    """`small_config` on pictures that LoadBands reads; no colour distortion."""
    made = small_config(folder)
    made["model"]["backbone"].update(in_channels=channels, drop_path_rate=0.0, drop_rate=0.0)
    made["model"]["decode_head"].update(num_classes=2, dropout_ratio=0.0,
                                         in_channels=[16, 16, 32, 32], in_index=[0, 1, 2, 3])
    made["data_preprocessor"].update(bgr_to_rgb=False, mean=mean or [100.0] * channels, std=std or [100.0] * channels,
                                     size=[64, 64])
    for split, random in (("train", True), ("val", False)):
        dataset = made[f"{split}_dataloader"]["dataset"]
        steps = [{"type": "RandomFlip", "prob": 0.5}, {"type": "BandDistortion", "offset": 0.1}] if random else []
        dataset.update(metainfo={"classes": CLASSES}, img_suffix=suffix, pipeline=[
            {"type": "LoadBands", "channels": channels, **loader}, {"type": "LoadAnnotations"}, *steps])
    made["param_scheduler"] = [{"type": "PolyLR", "power": 0.9, "begin": 0, "end": 80, "by_epoch": False}]
    made["train_cfg"].update(max_iters=80, val_interval=80, ckpt_interval=80, log_interval=40,
                             accumulative_counts=1, ema=None)
    return made


def tiff(path, img):
    """Write (H, W, C) uint16 as uncompressed grey pages."""
    cv2.imwritemulti(str(path), [np.ascontiguousarray(img[..., band]) for band in range(img.shape[2])])


def make_set(folder, write, rng):
    """Discs that `write` puts into one band; all other bands are noise."""
    for part, count in (("train", 12), ("val", 3)):
        for name in ("images", "masks", "depth"):
            (folder / part / name).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((64, 64), np.uint8)
            cv2.circle(mask, rng.integers(18, 46, 2).tolist(), int(rng.integers(12, 18)), 1, -1)
            cv2.imwrite(str(folder / part / "masks" / f"{i}.png"), mask)
            write(folder / part, str(i), mask, rng)


def six_bands(folder, name, mask, rng):
    img = rng.integers(0, 8000, (64, 64, 6)).astype(np.uint16)
    img[..., 4] = 2000 + 4000 * mask.astype(int) + rng.integers(0, 1500, mask.shape)
    tiff(folder / "images" / f"{name}.tif", img)


def with_depth(folder, name, mask, rng):
    cv2.imwrite(str(folder / "images" / f"{name}.png"), rng.integers(0, 255, (64, 64, 3)).astype(np.uint8))
    depth = (900 + 700 * mask.astype(int) + rng.integers(0, 300, mask.shape)).astype(np.uint16)
    cv2.imwrite(str(folder / "depth" / f"{name}.png"), depth)


def grey(folder, name, mask, rng):
    cv2.imwrite(str(folder / "images" / f"{name}.png"),
                (60 + 90 * mask + rng.integers(0, 50, mask.shape)).astype(np.uint8))


SETS = {"six bands": (six_bands, 6, {"scale": "percentile", "view": [4, 1, 0]}, ".tif"),
        "depth": (with_depth, 4, {"files": [{}, {"images": "depth"}], "scale": "fixed",
                                  "range": [[0, 255], [0, 255], [0, 255], [800, 2000]]}, ".png"),
        "grey": (grey, 1, {}, ".png")}


@pytest.mark.parametrize("name", SETS)
def test_a_run_finds_the_signal_in_its_band(name, tmp_path, capsys):
    write, channels, loader, suffix = SETS[name]
    make_set(tmp_path / "set", write, np.random.default_rng(0))
    file = tmp_path / "a.yaml"
    file.write_text(dump_config(bands_config(tmp_path / "set", channels, loader, suffix)))
    assert cli.main(["data", "stats", str(file), "--quiet", "--out", str(tmp_path / "stats.json")]) == 0
    found = json.loads((tmp_path / "stats.json").read_text())
    config = bands_config(tmp_path / "set", channels, loader, suffix, found["mean"], found["std"])
    config["work_dir"] = str(tmp_path / "run")
    file.write_text(dump_config(config))
    assert f"mean: [{found['mean'][0]:.6g}" in capsys.readouterr().out
    assert cli.main(["check", str(file)]) == 0 and cli.main(["data", "check", str(file), "--quiet"]) == 0
    result = train(config)
    assert result["best"]["score"] > 0.8, result
    segmentor = InferenceSegmentor(tmp_path / "run")
    pictures = tmp_path / "set/val/images"
    first = sorted(pictures.iterdir())[0]
    labels = segmentor.infer(pictures)
    assert len(labels) == 3
    mask = cv2.imread(str(tmp_path / f"set/val/masks/{first.stem}.png"), 0)
    assert (labels[0] == mask).mean() > 0.93
    np.testing.assert_array_equal(segmentor.infer(segmentor.reader.stored(str(first))), labels[0])
    out = tmp_path / "out"
    assert cli.main(["predict", str(tmp_path / "run"), str(pictures), "--out", str(out), "--no-legend"]) == 0
    assert cv2.imread(str(out / f"{first.stem}_overlay.png")).shape == (64, 64, 3)
    assert cli.main(["browse", str(file), "--out", str(tmp_path / "sheet.png"), "--view", "0"]) == 0


def test_check_names_channels_that_do_not_fit(tmp_path, capsys):
    make_set(tmp_path / "set", six_bands, np.random.default_rng(0))
    config = bands_config(tmp_path / "set", 6, {}, ".tif")
    config["model"]["backbone"]["in_channels"] = 3
    config["data_preprocessor"].update(mean=[1.0] * 4, std=[1.0] * 4)
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert cli.main(["check", str(tmp_path / "a.yaml")]) == 2
    told = capsys.readouterr().err
    assert "model.backbone.in_channels: got 3, but train_dataloader.dataset.pipeline.0.channels gives 6" in told
    assert "data_preprocessor.mean: got 4 values" in told


@pytest.mark.parametrize("asked, names", [("segnext-tiny", 1), ("bisenetv1", 2), ("fpn_poolformer_s12", 1),
                                          ("lraspp_mobilenet-v3-d8", 1)])
def test_the_tensors_that_see_pictures_are_found_in_any_model(asked, names):
    block = find_model(asked).block
    found = input_axes(block)
    assert len(found) == names and set(found.values()) == {1}
    assert all(tuple(build_model(with_channels(block, 5)).state_dict()[name].shape)[1] == 5 for name in found)


def test_first_convolutions_keep_what_was_learned(tmp_path):
    block = small_config(tmp_path)["model"]
    old, new_block = build_model(block), with_channels(block, 5)
    old.eval()
    pictures = np.random.default_rng(0).normal(size=(1, 5, 32, 32)).astype(np.float32)
    grey_like = np.repeat(pictures[:, :1], 5, axis=1)
    for how, ours, theirs in (("zero", pictures, pictures[:, :3]), ("mean", grey_like, grey_like[:, :3])):
        model = build_model(new_block)
        told = start_from(model, new_block, ["a", "b", "c"], model_state(old), ["a", "b", "c"], source="w",
                          first_conv=how)
        model.eval()
        assert f"3 channels for 5, load_first_conv: {how}" in told
        with jt.no_grad():
            np.testing.assert_allclose(model(jt.array(ours)).numpy(), old(jt.array(theirs)).numpy(), atol=2e-4)
    weight = np.random.default_rng(1).normal(size=(2, 3, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(adapted(weight, 1, 7, "repeat").sum(1)[0, 0, 0],
                               weight[0, [0, 1, 2, 0, 1, 2, 0], 0, 0].sum() * 3 / 7, rtol=1e-5)
    np.testing.assert_allclose(adapted(weight, 1, 1, "mean")[:, 0], weight.sum(1), rtol=1e-5)
