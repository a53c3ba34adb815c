"""`jseg quantize` as a user runs it, on pictures whose masks are what the float file says: mIoU 100 % before."""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys

import cv2
import numpy as np
import pytest
from small_model import CLASSES, save_small_segnext

from jseg import InferenceSegmentor
from jseg.cli import main
from jseg.config import dump_config
from jseg.engine.model_file import open_model_file

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'jseg-jittor[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jseg-jittor[onnx]'")

from jseg.export import int8, quantize  # noqa: E402
from jseg.export.exported import metadata_of, open_exported  # noqa: E402
from jseg.export.layers import layers_of  # noqa: E402
from jseg.export.verify import open_session  # noqa: E402

PICTURES = {"train": 5, "val": 3}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Exported files by their output, and a config whose data the file of labels made."""
    folder = tmp_path_factory.mktemp("quantize")
    checkpoint = save_small_segnext(folder / "small.safetensors")
    found = {}
    for name, words in (("labels", ["--normalize"]), ("logits", ["--size", "64", "96"])):
        found[name] = folder / f"{name}.onnx"
        assert main(["export", str(checkpoint), str(found[name]), "--output", name, *words]) == 0
    config, segmentor = open_model_file(checkpoint).config, InferenceSegmentor(found["labels"])
    rng = np.random.default_rng(0)
    for split, count in PICTURES.items():
        for i in range(count):
            coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            picture, name = cv2.resize(coarse, (96, 64), interpolation=cv2.INTER_CUBIC), f"{i}.png"
            for part, array in (("images", picture), ("masks", segmentor.infer(picture))):
                (folder / split / part).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / split / part / name), array)
        block = config[f"{split}_dataloader"]
        block["num_workers"] = 0
        block["dataset"] = {"type": "FolderDataset", "data_root": str(folder / split),
                            "metainfo": {"classes": CLASSES}, "pipeline": block["dataset"]["pipeline"]}
    found["config"] = folder / "data.yaml"
    found["config"].write_text(dump_config(config))
    return found


def quantized(files, out: pathlib.Path, *words: str, output: str = "labels") -> int:
    """Run the command."""
    return main(["quantize", str(files[output]), "--data", str(files["config"]), "--out", str(out), *words])


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_an_int8_file_is_a_file_like_any_other(files, tmp_path, output, capsys):
    out = tmp_path / "small.onnx"
    assert quantized(files, out, "--calibrate", "4", "--max-drop", "60", "--keep", "decode_head.conv_seg",
                     output=output) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line[:1].isalpha()}
    assert set(CLASSES) <= set(rows) and rows["mean"][0] == "100.00" and "calibrated on 4 of the pictures" in said
    told = json.loads(metadata_of(out.read_bytes(), out)["jseg"])["quantized"]
    assert told["source"]["sha256"] == hashlib.sha256(files[output].read_bytes()).hexdigest()
    assert told["pictures"] == 4 and told["images"] == 3 and told["float"] == ["decode_head.conv_seg"]
    assert f"{100 * told['mIoU']['after']:.2f}" == rows["mean"][1]
    nodes = layers_of(onnx.load(str(out)))  # those with constant weights: one is left
    assert list(nodes) == ["decode_head.conv_seg"] and out.stat().st_size < files[output].stat().st_size
    assert main(["val", str(files["config"]), "--checkpoint", str(out), "--out", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["metrics"]["mIoU"] == told["mIoU"]["after"]
    picture = cv2.imread(str(files["config"].with_name("val") / "images" / "0.png"))
    assert InferenceSegmentor(out).infer(picture).shape == (64, 96)


def test_a_loss_is_refused_and_its_layers_named(files, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    out.write_bytes(b"what was there")
    assert quantized(files, out, "--max-drop", "0", "--images", "2") == 2
    said = capsys.readouterr()
    assert "more than --max-drop 0" in said.err and "--keep backbone." in said.err
    assert "on the first 2 pictures" in said.out and "sky" in said.out
    assert out.read_bytes() == b"what was there" and [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    loss = float(said.err.split("int8 costs ")[1].split()[0])
    assert quantized(files, out, "--max-drop", str(loss / 2), "--images", "2", "--auto") == 0
    said = capsys.readouterr().out
    kept = json.loads(metadata_of(out.read_bytes(), out)["jseg"])["quantized"]["float"]
    assert kept and f"in float: {', '.join(kept)}" in said and set(layers_of(onnx.load(str(out)))) == set(kept)


@pytest.mark.parametrize("output", ["labels", "logits"])
def test_costs_are_those_of_each_layer_alone(files, rng, output):
    """The switched model gives what files with these layers alone in int8 give."""
    file = open_exported(files[output])
    proto = int8.prepared(file.content)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)[None]
    image = image if output == "labels" else (image.transpose(0, 3, 1, 2) / np.float32(64) - 2).astype(np.float32)
    ranges, names = int8.calibrated(proto, [image]), list(layers_of(proto))
    whole = int8.in_int8(proto, ranges, names)
    session, order = int8.switched_session(proto, whole)
    assert order == names and "backbone.block1.0.attn.spatial_gating_unit.conv0" in names

    def switched(*layers: str) -> np.ndarray:
        return session.run(None, {"image": image, "int8": np.isin(order, layers)})[0]

    def given_by(content: bytes) -> np.ndarray:
        return open_session(content).run(None, {"image": image})[0]
    def distance(found: np.ndarray, other: np.ndarray) -> float:
        return float(np.abs(found.astype(float) - other).mean())
    plain, costs = given_by(file.content), int8.layer_costs(proto, whole, [image], output, 3)
    assert set(costs) == set(names) and list(costs.values()) == sorted(costs.values(), reverse=True)
    worst = next(iter(costs))
    alone = {name: given_by(int8.in_int8(proto, ranges, [name]).SerializeToString())
             for name in (worst, names[0], names[-1])}
    assert costs[worst] > 0 and distance(alone[worst], plain) > 0
    small = 0.1 * distance(alone[worst], plain)  # rounding, which the factorisation of random weights makes larger
    assert distance(switched(), plain) <= small
    for name, found in alone.items():
        assert distance(switched(name), found) <= small, name


@pytest.mark.parametrize("words, said", [
    (["--calibrate", "6"], "--calibrate is 6; the train split has 5 pictures"),
    (["--calibrate", "0"], "--calibrate is 0; accepted: 1 or more"),
    (["--images", "4"], "--images is 4; the validation set has 3 pictures"),
    (["--max-drop", "-1"], "accepted: 0 to 100"), (["--out", "small.bin"], "end its name with .onnx"),
    (["--keep", "decode_head.conv_segg"], "did you mean 'decode_head.conv_seg'?"),
    (["--keep", "*"], "nothing is to be quantised"),
    (["--set", "val_dataloader.dataset.metainfo.classes=[a, b, c]"], "the data have the 3 classes a, b, c")])
def test_what_does_not_fit_is_said(files, tmp_path, words, said, capsys, monkeypatch):
    monkeypatch.setattr(quantize, "calibrated", None)  # said before anything is computed
    assert quantized(files, tmp_path / "small.onnx", *words) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_files_that_cannot_be_quantised(files, tmp_path, capsys, monkeypatch):
    path, words = tmp_path / "model.onnx", ["--data", str(files["config"]), "--max-drop", "100"]
    path.write_bytes(b"no model")
    assert main(["quantize", str(path), *words]) == 2 and "is no whole ONNX file" in capsys.readouterr().err
    assert main(["quantize", str(files["labels"]), *words, "--out", str(files["labels"])]) == 2
    assert "is the float32 file itself" in capsys.readouterr().err
    path.write_bytes(files["labels"].read_bytes())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["quantize", str(path), *words]) == 2 and "jseg-jittor[onnx]" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["quantize", str(path), *words]) == 0 and (tmp_path / "model_int8.onnx").is_file()
    assert main(["quantize", str(tmp_path / "model_int8.onnx"), *words]) == 2
    assert "is quantised already" in capsys.readouterr().err
