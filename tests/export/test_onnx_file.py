"""`jseg export` to ONNX as a user runs it, and what runs such files: predict, val, `InferenceSegmentor`."""

from __future__ import annotations

import json
import pathlib
import sys

import cv2
import jittor as jt
import numpy as np
import pytest
from small_model import CLASSES, PALETTE, make_checkpoint

from jseg import InferenceSegmentor
from jseg.cli import main
from jseg.data.io import read_mask
from jseg.engine.model_file import open_model_file
from jseg.errors import ExportError

onnx = pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'jseg-jittor[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jseg-jittor[onnx]'")

from jseg.export import verify  # noqa: E402
from jseg.export.exported import metadata_of, open_exported  # noqa: E402
from jseg.export.graph import Graph, Tensor  # noqa: E402
from jseg.export.scope import traced  # noqa: E402
from jseg.export.sizes import PROBES, Size, smallest  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> pathlib.Path:
    """A small SegNeXt, see `small_model`."""
    return make_checkpoint(tmp_path_factory.mktemp("weights") / "small.safetensors")


@pytest.fixture(scope="module")
def files(checkpoint) -> dict[str, pathlib.Path]:
    """One exported file for each output; labels take uint8 RGB pictures, probabilities have half-precision weights."""
    found = {}
    for name, words in (("labels", ["--normalize", "--order", "rgb"]), ("logits", []), ("probabilities", ["--fp16"])):
        found[name] = checkpoint.with_name(f"{name}.onnx")
        assert main(["export", str(checkpoint), str(found[name]), "--output", name, *words]) == 0
    return found


@pytest.fixture
def street(tmp_path, rng) -> pathlib.Path:
    pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (131, 77), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "street.png"), pixels)
    return tmp_path / "street.png"


def test_the_file_alone_gives_the_models_labels(files, checkpoint, rng):
    """No jseg on this side: pixels of a picture in, labels out, names from the metadata."""
    rgb = cv2.resize(rng.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8).reshape(2 * 6, 8, 3), (90, 2 * 70),
                     interpolation=cv2.INTER_CUBIC).reshape(2, 70, 90, 3)
    session = onnxruntime.InferenceSession(str(files["labels"]))
    labels, = session.run(["labels"], {"image": rgb})
    model, preprocessor, _ = open_model_file(checkpoint).build()
    images = verify.normalised(np.ascontiguousarray(rgb[..., ::-1]), preprocessor)
    expected = np.stack(model.predict(images, [{}, {}]))
    assert labels.dtype == np.uint8 and labels.shape == (2, 70, 90) and len(np.unique(expected)) > 1
    assert (labels == expected).mean() >= 0.999
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == CLASSES and json.loads(told["palette"]) == PALETTE
    facts = json.loads(told["jseg"])
    assert facts["preprocessing"]["order"] == "rgb" and facts["input"]["layout"] == "NHWC"
    assert len(facts["checkpoint"]["sha256"]) == 64 and facts["config"]["model"]["type"] == "EncoderDecoder"


def test_exported_files_are_segmentors(files, checkpoint, street, tmp_path):
    ours = InferenceSegmentor(checkpoint)
    labels, probability = ours.infer(street, with_prob=True)
    for name, most in (("logits", 1e-4), ("probabilities", 2e-2)):
        found, sure = InferenceSegmentor(files[name]).infer(street, with_prob=True)
        assert (found == labels).mean() > 0.995 and np.abs(sure - probability).max() < most, name
    small = {"mode": "slide", "crop_size": (48, 48), "stride": (32, 32)}
    assert (InferenceSegmentor(files["logits"], **small).infer(street)
            == InferenceSegmentor(checkpoint, **small).infer(street)).mean() > 0.995
    assert main(["predict", str(files["labels"]), str(street), "--out", str(tmp_path), "--what", "labels"]) == 0
    drawn = read_mask(next(tmp_path.glob("street*labels.png")))
    assert drawn.shape == labels.shape and (drawn == labels).mean() > 0.97  # at the picture's own size


def test_what_a_file_cannot_do_is_said(files, street, tmp_path, monkeypatch, capsys):
    with pytest.raises(ExportError, match="gives labels, and probabilities need scores"):
        InferenceSegmentor(files["labels"]).infer(street, with_prob=True)
    with pytest.raises(ExportError, match="--output logits"):
        InferenceSegmentor(files["labels"], mode="slide", crop_size=(48, 48))
    whole = files["logits"].read_bytes()
    for content, words in ((whole[:-9], "no whole ONNX file"), (b"\xff" * 64, "no whole ONNX file"),
                           (b"", "holds no metadata"), (None, "cannot be read")):
        path = tmp_path / "broken.onnx"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ExportError, match=words):
            open_exported(path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert main(["predict", str(files["logits"]), str(street), "--runtime", "openvino"]) == 2
    assert "jseg-jittor[openvino]" in capsys.readouterr().err


def test_a_file_that_disagrees_is_not_written(checkpoint, tmp_path, monkeypatch, capsys):
    out = tmp_path / "model.onnx"
    out.write_bytes(b"what was there")
    normal = verify.open_session

    def spoilt(content):
        proto = onnx.load_from_string(content)
        for constant in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(constant)
            if values.dtype == np.float32 and values.size > 100:
                constant.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), constant.name))
                break
        return normal(proto.SerializeToString())
    monkeypatch.setattr(verify, "open_session", spoilt)
    size = ["--size", "64", "64"]
    assert main(["export", str(checkpoint), str(out), *size]) == 2
    assert "disagrees with its model" in capsys.readouterr().err and out.read_bytes() == b"what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert main(["export", str(checkpoint), str(out), *size, "--no-verify"]) == 0
    assert "not compared" in capsys.readouterr().out and metadata_of(out.read_bytes(), out)["jseg"]


@pytest.mark.parametrize("words, said", [
    (["--order", "rgb"], "belongs to --normalize"), (["--opset", "9"], "accepted: 17 to 21"),
    (["--full"], "--full says nothing for a .onnx file")])
def test_options_that_do_not_fit(checkpoint, tmp_path, words, said, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "a.onnx"), *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_named_and_everything_is_put_back(checkpoint, monkeypatch):
    model, _, _ = open_model_file(checkpoint).build()
    image = np.zeros((1, 3, 64, 64), np.float32)
    before, head = model(jt.array(image)).numpy(), type(model.decode_head)
    sides = [Size(tuple(probe[i] for probe in PROBES), "Input", (i,)) for i in range(3)]
    graph = Graph(17)
    tensor = Tensor(graph, "image", (sides[0], 3, *sides[1:]), "float32")
    for action, words in ((lambda: sys.modules[head.__module__].jt.cumsum(tensor, 1), "jt.cumsum has no exporter"),
                          (lambda: list(range(tensor.shape[2])), "uses height as a plain number"),
                          (lambda: tensor.shape[2] > 100, "depends on the input's size"),
                          (lambda: bool(tensor.sum() > 0), "branches on values")):
        with pytest.raises(ExportError, match=words), traced(model, graph):
            action()
    np.testing.assert_array_equal(model(jt.array(image)).numpy(), before)
    assert sys.modules[head.__module__].jt is jt and "min" not in vars(sys.modules[head.__module__])


def test_sizes():
    height, width = (Size(tuple(probe[i] for probe in PROBES), "Input", (i,)) for i in (1, 2))
    assert height * width == width * height and height + 1 != height and (height - height) == 0
    assert -(-height // 32) == (height + 31) // 32 and height // 2 != (height + 1) // 2
    assert smallest(3, height) == 3 and isinstance(smallest(height, 100), Size)
