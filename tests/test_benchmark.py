"""`jseg benchmark` as a user runs it: processes of their own, compared before they are timed, and what goes wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pathlib
import sys

import jittor as jt
import numpy as np
import pytest
from small_model import small_segnext

from jseg.bench import runtimes
from jseg.bench.runtimes_table import runtimes_table
from jseg.bench.side import HERE, Side, SideError
from jseg.cli import main
from jseg.config import load_config
from jseg.data.render import CLASSES, PALETTE, render_dataset, render_scene
from jseg.engine.checkpoint import load_weights, model_state, save_weights
from jseg.engine.model_file import open_model_file
from jseg.export import verify
from jseg.models import build_model

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'jseg-jittor[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jseg-jittor[onnx]'")

CONFIG = "configs/segnext/segnext_tiny_demo-128x160_cpu.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A small SegNeXt for the six classes of rendered scenes, whose masks have several classes."""
    jt.set_global_seed(3)
    config = small_segnext()
    config["model"]["decode_head"]["num_classes"] = len(CLASSES)
    model = build_model(config)
    model.decode_head.conv_seg.weight.assign(model.decode_head.conv_seg.weight * 100)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, model_state(model), {"config": config, "classes": list(CLASSES),
                                            "palette": [list(c) for c in PALETTE]})
    return path


@pytest.fixture(scope="module")
def exported(checkpoint) -> pathlib.Path:
    """Its labels from uint8 pictures."""
    out = checkpoint.with_name("labels.onnx")
    assert main(["export", str(checkpoint), str(out), "--normalize", "--no-verify"]) == 0
    return out


def changed(path: pathlib.Path, out: pathlib.Path, change) -> pathlib.Path:
    """A copy of an ONNX file after `change(proto)`."""
    proto = onnx.load(str(path))
    change(proto)
    onnx.save(proto, str(out))
    return out


def take_the_smallest(proto) -> None:
    next(node for node in proto.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"


def test_a_table_over_runtimes(checkpoint, exported, tmp_path, monkeypatch, capsys):
    """Right ones are timed and evaluated, a wrong file shows that it is, what is missing is said."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else find(name, *a))
    data = render_dataset(tmp_path / "data", count_train=1, count_val=3, size=(96, 128))
    assert main(["val", CONFIG, "--set", f"val_dataloader.dataset.data_root={data}", "--set",
                 "val_dataloader.dataset.indices=2", *model_words(checkpoint), "--checkpoint", str(checkpoint), "--out",
                 str(tmp_path / "val.json")]) == 0
    expected = json.loads((tmp_path / "val.json").read_text())["metrics"]["mIoU"]
    wrong = changed(exported, tmp_path / "wrong.onnx", take_the_smallest)
    capsys.readouterr()
    assert main(["benchmark", str(checkpoint), "--size", "96", "128", "--threads", "1", "--repeat", "1",
                 "--data", CONFIG, "--set", f"val_dataloader.dataset.data_root={data}", "--images", "2",
                 "--int8", str(wrong), "--json", str(tmp_path / "out.json")]) == 1
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["size"], found["threads"], found["images"]) == ([96, 128], 1, 2)
    assert str(tmp_path) not in found["machine"]["command"] and found["machine"]["versions"]["ONNX Runtime"]
    rows = {f"{row['runtime']} {row['precision']}": row for row in found["rows"]}
    assert list(rows) == ["jseg float32", "ONNX Runtime float32", "ONNX Runtime int8", "OpenVINO float32",
                          "OpenVINO bf16", "OpenVINO int8"]
    for name in ("jseg float32", "ONNX Runtime float32"):
        row = rows[name]
        assert row["equal"] >= 0.999 and row["miou"] == pytest.approx(expected, abs=2e-3), name
        assert row["q1_ms"] <= row["median_ms"] <= row["q3_ms"] and row["peak_bytes"] > 1e7 and row["file_bytes"] > 1e4
        assert min(row["import_s"], row["open_s"], row["first_s"]) > 0
    assert rows["jseg float32"]["miou"] == expected and rows["jseg float32"]["ratio"]["median"] == 1.0
    assert "median_ms" not in rows["ONNX Runtime int8"] and rows["ONNX Runtime int8"]["equal"] < 0.9
    shown = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "|" in line}
    assert "wrong: " in shown["ONNX Runtime int8"] and "90.0 % are asked" in shown["ONNX Runtime int8"]
    assert "not installed: pip install 'jseg-jittor[openvino]'" in shown["OpenVINO bf16"]
    assert f"{100 * expected:.2f} %" in shown["jseg float32"]


def model_words(checkpoint: pathlib.Path) -> list[str]:
    """The checkpoint's model for a config file that has another one."""
    model = load_weights(checkpoint)[1]["config"]["model"]
    return ["--set", f"model={json.dumps(model)}"]


def test_both_runtimes_give_the_files_labels(exported, tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'jseg-jittor[openvino]'")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8))
    found = []
    for kind in ("onnxruntime", "openvino"):
        with Side(kind, [sys.executable, str(HERE / "runtime_side.py"), kind], threads=1) as side:
            opened = side.ask("open", file=str(exported), images=str(tmp_path / "images.npy"), threads=1,
                              precision="float32", bases=None)
            assert len(opened["seconds"]) == 1 and kind in side.ready["side"]
            side.ask("infer", images=str(tmp_path / "images.npy"), out=str(tmp_path / "out.npy"))
            found.append(np.load(tmp_path / "out.npy"))
    assert found[0].shape == (1, 64, 96) and (found[0] == found[1]).mean() > 0.999


def test_mmsegmentation_gives_the_checkpoints_labels(checkpoint, tmp_path):
    python = os.environ.get("JSEG_REFEREE_PYTHON")
    if not python:
        pytest.skip("no PyTorch with MMSegmentation: make parity runs this")
    file = open_model_file(checkpoint)
    picture = render_scene((64, 96), np.random.default_rng(0))[0][None]
    job = runtimes.Comparison(file, (64, 96), threads=1, torch=python)
    entry, model = runtimes.Entry("torch", "float32"), file.build()
    images = verify.normalised(picture, model[1])
    runtimes._write_files(job, [entry], None, model[0], tmp_path, lambda line: None)
    with contextlib.ExitStack() as sides:
        labels = runtimes._started(job, entry, picture, images, model[0], tmp_path, 0, sides)
    expected = np.stack(model[0].predict(images, [{}]))
    assert "MMSegmentation 1." in entry.row["version"] and len(np.unique(expected)) > 1
    assert labels.dtype == np.uint8 and (labels == expected).mean() > 0.999


class FakeSide:
    """A side whose runs take `seconds`, until it breaks."""

    def __init__(self, seconds: float, runs: int = 10**6):
        self.seconds, self.left = seconds, runs

    def run(self, count: int) -> list[float]:
        self.left -= 1
        if self.left < 0:
            raise SideError("it: was killed; most likely the machine's memory does not suffice")
        return [self.seconds] * count

    def ask(self, do: str) -> dict:
        return {"bytes": 2**20}


def test_a_side_that_dies_while_it_is_timed_is_left_out():
    entries = [runtimes.Entry("jseg", "float32", side=FakeSide(0.2)),
               runtimes.Entry("onnxruntime", "float32", side=FakeSide(0.1, runs=2)),
               runtimes.Entry("openvino", "float32", side=FakeSide(0.4))]
    runtimes._time(entries, 3, lambda line: None)
    assert [entry.runs for entry in entries] == [True, False, True] and "was killed" in entries[1].row["failed"]
    assert entries[2].row["ratio"]["median"] == pytest.approx(2.0) and entries[0].row["peak_bytes"] == 2**20
    lines = runtimes_table([entry.row for entry in entries])
    assert len({len(line) for line in lines}) == 1 and "400 (400-400)" in lines[4] and "not measured" in lines[4]
    assert "was killed" in lines[3]
    entries[0].side = FakeSide(0.2, runs=1)
    with pytest.raises(SideError, match="was killed"):  # there is nothing to compare with
        runtimes._time(entries, 3, lambda line: None)


@pytest.mark.parametrize("words, said", [
    (["--size", "32", "512"], "from 64x64 on"), (["--threads", "0"], "--threads 0: must be at least 1"),
    (["--images", "3"], "--images is about the data; give --data CONFIG"), (["--int8", "SCORES"], "gives logits"),
    (["--against-torch", "nowhere/python"], "nowhere/python: cannot be run"),
    (["--int8", "nowhere.onnx"], "cannot be read"), (["--data", CONFIG], "runs/demo/data")])
def test_what_cannot_be_meant_is_refused_first(checkpoint, exported, tmp_path, words, said, capsys, monkeypatch):
    def give_scores(proto):
        facts = next(item for item in proto.metadata_props if item.key == "jseg")
        facts.value = facts.value.replace('"name": "labels"', '"name": "logits"')
    if "SCORES" in words:
        words = ["--int8", str(changed(exported, tmp_path / "scores.onnx", give_scores))]
    if "--data" in words:
        words = words + ["--set", "val_dataloader.dataset.data_root=" + str(tmp_path / "runs/demo/data")]
    monkeypatch.setattr(runtimes, "Side", None)  # nothing may be started
    assert main(["benchmark", str(checkpoint), *words]) == 2
    assert said in capsys.readouterr().err
