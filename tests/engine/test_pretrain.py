"""Pretraining end to end on small folders of classes: exact resume, scores, the page, the way into a segmentor."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
import time

import cv2
import jittor as jt
import numpy as np
import pytest
from small_run import finish, lasting, lines, make_datasets, small_config, start, wait_for

from jseg.cli import main
from jseg.config import dump_config, load_config
from jseg.data.build import build_loader
from jseg.engine.checkpoint import CheckpointError, load_weights
from jseg.engine.evaluate import evaluate
from jseg.engine.model_file import build_any, open_model_file
from jseg.engine.optim import EMA, AdamW, ParamGroup

ROOT = pathlib.Path(__file__).parents[2]
CLASSES = ("disc", "box", "ring")


def make_classes(folder: pathlib.Path, count: int, rng) -> None:
    """`count` pictures of 40 x 48 of each class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            img = rng.integers(60, 120, (40, 48, 3), dtype=np.uint8)
            x, y, colour = int(rng.integers(14, 34)), int(rng.integers(14, 26)), rng.integers(150, 250, 3).tolist()
            if name == "box":
                cv2.rectangle(img, (x - 9, y - 9), (x + 9, y + 9), colour, -1)
            else:
                cv2.circle(img, (x, y), 11, colour, -1 if name == "disc" else 2)
            cv2.imwrite(str(folder / name / f"{i}.png"), img)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    make_classes(folder / "train", 8, rng)
    make_classes(folder / "val", 5, rng)
    return folder


def small_recipe(pictures: pathlib.Path) -> dict:
    """The shipped recipe with a small MSCAN, small pictures and twelve steps; the average follows statistics too."""
    config = load_config("pretrain/mscan-tiny_imagenet-224x224_300e")
    config["model"].update(
        backbone={"type": "MSCAN", "embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "mlp_ratios": [2, 2, 2, 2],
                  "drop_path_rate": 0.1},
        head={"type": "LinearClsHead", "num_classes": 3, "in_channels": 32, "label_smooth_val": 0.1})
    for part, batch in (("train", 6), ("val", 4)):
        loader = config[f"{part}_dataloader"]
        loader.update(batch_size=batch, num_workers=0)
        loader["dataset"]["data_root"] = str(pictures)
    config["train_dataloader"]["dataset"]["pipeline"][1]["scale"] = 32
    config["val_dataloader"]["dataset"]["pipeline"][1]["shortest_edge"] = 36
    config["val_dataloader"]["dataset"]["pipeline"][2]["crop_size"] = 32
    config["param_scheduler"] = [{"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 4},
                                 {"type": "CosineAnnealingLR", "begin": 4, "by_epoch": False}]
    config["train_cfg"].update(max_epochs=None, max_iters=12, val_interval=6, ckpt_interval=2, log_interval=1, keep=1,
                               ema={"decay": 0.7, "update_buffers": True})
    return {**config, "seed": 2}


@pytest.fixture
def config(pictures):
    return small_recipe(pictures)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """The folder of a run that nobody stopped, and its config."""
    config = small_recipe(pictures)
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish(start(config, folder), folder)
    return folder, config


def test_a_run_killed_twice_equals_one_never_killed(finished, tmp_path, plain_children):
    whole, config = finished
    killed = tmp_path / "killed"
    for target in (3, 8):
        process = start(config, killed, "--resume")
        wait_for(process, killed, target)
        time.sleep(0.02)
        process.kill()
        process.wait()
    finish(start(config, killed, "--resume"), killed)
    assert lasting(killed) == lasting(whole)
    assert [e["iter"] for e in lasting(whole) if "loss" in e] == list(range(1, 13))
    for name in ("last/weights", "last/state", "best"):
        ours, theirs = (load_weights(folder / f"{name}.safetensors")[0] for folder in (killed, whole))
        assert ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours), name
    state = load_weights(whole / "last" / "state.safetensors")[0]
    assert "ema.backbone.block1.0.norm1.running_mean" in state and "ema.head.fc.weight" in state


def test_what_a_run_leaves_and_how_it_is_scored(finished, tmp_path, capsys, monkeypatch):
    whole, config = finished
    entry = next(e for e in lines(whole) if "loss" in e)
    assert {"head.loss", "head.acc_top1", "grad_norm", "lr"} <= set(entry)
    result = json.loads((whole / "metrics.json").read_text())
    assert result["task"] == "classification" and result["classes"] == sorted(CLASSES) and result["images"] == 15
    model, stored = build_any(whole)
    assert stored["model"]["head"]["num_classes"] == 3
    found = np.zeros((3, 3), int)
    for batch in build_loader(config, "val"):
        for truth, guess in zip(batch.labels, model(jt.array(batch.images)).numpy().argmax(1)):
            found[truth, guess] += 1
    assert result["confusion"] == found.tolist()
    assert result["metrics"]["top1"] == pytest.approx(np.trace(found) / 15) and result["metrics"]["top5"] == 1.0
    assert [row["Acc"] for row in result["per_class"]] == pytest.approx((np.diag(found) / 5).tolist())
    assert evaluate(whole, progress=False)["confusion"] == found.tolist()
    assert main(["val", "--checkpoint", str(whole), "--out", str(tmp_path / "r.json")]) == 0
    assert f"top-1 {100 * np.trace(found) / 15:.2f} %, top-5 100.00 %, 15 pictures" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["metrics"] == result["metrics"]
    assert main(["report", str(whole)]) == 0
    page = (whole / "report.html").read_text()
    assert "top-1" in page and "percent of the true class&#x27;s pictures" in page.replace("'", "&#x27;")
    wrong = 15 - np.trace(found)
    assert page.count("taken for") >= min(wrong, 4) and len(list((whole / "eval").glob("worst_*"))) == min(wrong, 4)
    assert main(["report", str(whole), str(tmp_path / "r.json"), "--out", str(tmp_path / "both.html")]) == 0
    assert "Accuracy of the classes" in (tmp_path / "both.html").read_text()
    with pytest.raises(CheckpointError, match="holds a classifier of whole pictures.*jseg train CONFIG --weights"):
        open_model_file(whole)


@pytest.mark.parametrize("way", ["load_from", "init_cfg"])
def test_a_segmentor_starts_from_the_backbone(finished, tmp_path, way, capsys):
    from jseg.engine.train import train
    whole, _ = finished
    config = small_config(make_datasets(tmp_path / "pictures"))
    config["model"]["backbone"] = {"type": "MSCAN", "embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
                                   "mlp_ratios": [2, 2, 2, 2]}
    config["model"]["decode_head"].update(in_channels=[16, 16, 32])
    config["optimizer"]["lr"] = 1e-12
    config["train_cfg"].update(max_iters=1, val_interval=None, accumulative_counts=1, ema=None)
    del config["val_dataloader"], config["param_scheduler"]
    if way == "load_from":
        config["load_from"] = str(whole)
    else:
        config["model"]["backbone"]["init_cfg"] = {"type": "Pretrained", "checkpoint": str(whole),
                                                   "prefix": "backbone."}
        (tmp_path / "c.yaml").write_text(dump_config(config))
        config = load_config(tmp_path / "c.yaml")
        assert config["load_only"] == "backbone" and "init_cfg" not in config["model"]["backbone"]
    train(config, work_dir=tmp_path / "run")
    told = capsys.readouterr().err
    ours, theirs = load_weights(tmp_path / "run" / "last")[0], load_weights(whole)[0]
    keys = [key for key in theirs if key.startswith("backbone.") and "running" not in key]
    assert len(keys) > 50
    for key in keys:
        np.testing.assert_allclose(ours[key], theirs[key], atol=1e-6, err_msg=key)
    assert ("    head.fc: " in told) == (way == "load_from")


def test_the_command_counts_the_classes_of_a_folder(pictures, tmp_path, monkeypatch, capsys):
    from jseg.cli import pretrain
    config = load_config("pretrain/mscan-small_imagenet-224x224_300e")
    given = pretrain.with_data(config, str(pictures))
    assert given["model"]["head"]["num_classes"] == 3 and given["model"]["backbone"]["variant"] == "small"
    assert given["val_dataloader"]["dataset"]["data_root"] == str(pictures)
    assert main(["pretrain", "segnext/segnext_tiny_camvid-240x320_cpu"]) == 2
    assert "is no classifier" in capsys.readouterr().err
    assert main(["pretrain", "pretrain/mscan-tiny_imagenet-224x224_300e", "--data", str(tmp_path)]) == 2
    assert "found 0 classes in train/" in capsys.readouterr().err


def test_mistakes_in_a_config_are_told(config):
    from jseg.engine.check import check_config
    assert check_config(config) == []
    config["model"]["head"].update(in_channels=33)
    config["train_cfg"]["save_best"] = "mIoU"
    config["evaluator"] = {"metrics": ["mIoU"]}
    config["data_preprocessor"] = {"type": "SegDataPreProcessor"}
    config["train_dataloader"]["dataset"]["classes"] = ["a", "b"]
    faults = "\n".join(check_config(config))
    for words in ("model.head.in_channels: got 33, but maps [-1] of this MSCAN have 32", "save_best: got 'mIoU'",
                  "evaluator: got", "takes ClsDataPreprocessor", "model.head.num_classes: got 3"):
        assert words in faults, faults


def test_an_average_follows_running_statistics():
    weights, mean = jt.zeros((3,)), jt.zeros((2,))
    group = ParamGroup(0.1, 0.0, ["w"], [weights])
    group.lay_out()
    average, wanted = EMA(AdamW([group]), decay=0.9, buffers={"n.running_mean": mean}), None
    for value in (1.0, 2.0, 4.0):
        mean.update(jt.array(np.full(2, value, np.float32)))
        average.update()
        wanted = value if wanted is None else 0.9 * wanted + 0.1 * value
    with average.in_place():
        np.testing.assert_allclose(mean.numpy(), wanted, rtol=1e-6)
        mean.update(mean + 5)  # what evaluation must not leave behind
    np.testing.assert_array_equal(mean.numpy(), [4.0, 4.0])
    np.testing.assert_allclose(average.state_dict()["ema.n.running_mean"], wanted, rtol=1e-6)


@pytest.mark.skipif(not (shutil.which("mpirun") and shutil.which("mpicc")), reason="no mpirun or mpicc here")
def test_two_ranks_train_and_score_as_one_process(config, finished, tmp_path):
    config["train_dataloader"]["batch_size"] = 8
    config["train_cfg"].update(max_iters=2, val_interval=2)
    runs = []
    for ranks in (1, 2):
        folder = tmp_path / f"ranks_{ranks}"
        (tmp_path / "c.yaml").write_text(dump_config(config))
        job = ["launch", "--cpu", "-n", "2"] if ranks == 2 else []
        done = subprocess.run([sys.executable, "-m", "jseg", *job, "pretrain", str(tmp_path / "c.yaml"), "--work-dir",
                               str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        runs.append((lines(folder), json.loads((folder / "metrics.json").read_text()), load_weights(folder)[0]))
    (one, scored, weights), (two, twin, others) = runs
    for a, b in zip(one, two):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["head.acc_top1"] == b["head.acc_top1"]
    assert scored["images"] == twin["images"] == 15 and len(one) == len(two) == 3
    worst = max(float(np.abs(weights[key] - others[key]).max()) for key in weights)
    assert worst < 1e-3, worst
