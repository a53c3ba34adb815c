"""Every class of the zoo through the tracer: one file for any size, held to its model by onnxruntime.

`make test` exports the classes whose code depends most on sizes, `make test-zoo` all of them. The specimens are those
of the contract test.
"""

from __future__ import annotations

import copy
import importlib.util
import pathlib
import types

import jittor as jt
import numpy as np
import pytest

from jseg.data.preprocess import SegDataPreProcessor
from jseg.layers import named_parameters
from jseg.models import build_model

pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'jseg-jittor[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jseg-jittor[onnx]'")

from jseg.export.onnx_model import OnnxOptions, traced_file  # noqa: E402
from jseg.export.operators import STANDINS  # noqa: E402
from jseg.export.verify import TOLERANCE, check_structure, compare  # noqa: E402

_CONTRACT = importlib.util.spec_from_file_location(
    "contract", pathlib.Path(__file__).resolve().parents[1] / "models" / "test_contract.py")
_contract = importlib.util.module_from_spec(_CONTRACT)
_CONTRACT.loader.exec_module(_contract)

USUAL = {"LightHamHead", "SwinTransformer", "PSPHead", "PoolFormer"}
SIZES = ((2, 64, 64), (1, 97, 130), (1, 96, 161))
CHOSEN = [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.zoo]) for name in _contract.SPECIMENS]


def opened(name: str, **changes: dict):
    """(model in evaluation mode, what stands for its checkpoint); no branch is left at 0.

    Args:
        changes: block of the model -> values of it to change.
    """
    jt.set_global_seed(0)
    specimen = copy.deepcopy(_contract.SPECIMENS[name])
    for block, values in changes.items():
        specimen[block].update(values)
    model, rng = build_model(specimen), np.random.default_rng(5)
    for value in named_parameters(model).values():
        if not value.numpy().any():
            value.assign(jt.array(rng.uniform(0.1, 0.3, value.shape).astype(np.float32)))
    model.eval()
    names = [f"class {i}" for i in range(model.num_classes)]
    file = types.SimpleNamespace(path=pathlib.Path("specimen"), state={}, config={"model": specimen},
                                 classes=names, palette=np.zeros((len(names), 3), np.uint8), meta={})
    return model, file


@pytest.mark.parametrize("name", CHOSEN)
def test_a_file_for_any_size_agrees_with_its_model(name):
    model, file = opened(name)
    preprocessor = SegDataPreProcessor(mean=[100, 110, 120], std=[50, 60, 70], bgr_to_rgb=True)
    options = OnnxOptions(order="rgb" if name in USUAL else None)
    proto, scores = traced_file(file, model, preprocessor, options)
    check_structure(proto)
    sides = [dim.dim_param for dim in proto.graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    assert sides == ["batch", "height", "width"]
    for found in compare(proto, scores, model, preprocessor, options, SIZES):
        assert found.error <= TOLERANCE, found.text
        assert found.equal >= 0.999, found.text


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name == "SwinTransformer" else [pytest.mark.zoo])
                                  for name in ("SwinTransformer", "BEiT", "Mask2FormerHead", "SVT", "PSAHead")])
def test_a_file_of_one_size_agrees_with_its_model(name):
    model, file = opened(name)
    preprocessor, options = SegDataPreProcessor(), OnnxOptions(size=(70, 101), output="logits", opset=20)
    proto, scores = traced_file(file, model, preprocessor, options)
    check_structure(proto)
    assert all(dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim)
    found, = compare(proto, scores, model, preprocessor, options)
    assert found.error <= TOLERANCE and found.equal >= 0.999, found.text


def test_openvino_meets_one_key_first():
    """Attention whose first picture has one key, and the next ones many: see `operators._attention`."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'jseg-jittor[openvino]'")
    model, file = opened("ISAHead", decode_head={"down_factor": [2, 2]})
    proto, _ = traced_file(file, model, SegDataPreProcessor(), OnnxOptions(output="logits"))
    compiled = openvino.Core().compile_model(openvino.Core().read_model(proto.SerializeToString()), "CPU",
                                             {"INFERENCE_PRECISION_HINT": "f32"})
    for side in (64, 128, 512):
        images = np.random.default_rng(side).standard_normal((1, 3, side, side)).astype(np.float32)
        with jt.no_grad():
            expected = model(jt.array(images)).numpy()
        assert np.abs(np.array(compiled([images])[0]) - expected).max() <= TOLERANCE * np.ptp(expected), side


def test_no_exporter_stands_for_nothing():
    """Each entry of the table is a function that a module of jseg still leads to."""
    for function in STANDINS:
        module = importlib.import_module(function.__module__)
        assert getattr(module, function.__name__) is function
