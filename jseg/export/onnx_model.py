"""A checkpoint as an ONNX file: one input, one output, and what is needed to use it in the metadata.

The model's own code is traced (`scope`), in evaluation mode: batch norms are products and sums with constants,
Hamburger starts from its fixed bases. Around it stand, as asked for, the normalisation of uint8 pictures and the way
from scores to labels. Nodes with weights are called as in the checkpoint (`layers`).

    input    image, float32 (N, 3, H, W), normalised; or uint8 (N, H, W, 3), a picture as it lies in memory
    output   logits (N, K, h, w) float32, as the head gives them, to be resized bilinearly to (H, W) by `align_corners`;
             probabilities (N, K, H, W) float32, their softmax at the input's size; or labels (N, H, W) uint8, the class
             of the largest (uint16 above 256 classes)
    metadata `jseg` (JSON): format, version, input, output, classes, palette, preprocessing, align_corners, config,
             checkpoint (name, sha256 of its weights); `classes` and `palette` again for other tools
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from jseg import __version__
from jseg.engine.model_file import ModelFile
from jseg.errors import ExportError
from jseg.export.arithmetic import unary
from jseg.export.graph import Graph, Tensor
from jseg.export.layers import name_layers
from jseg.export.operators import resized
from jseg.export.scope import traced
from jseg.export.sizes import PROBES, Size
from jseg.weights_file import content_hash

__all__ = ["FORMAT", "ONNX_EXTRA", "OPSETS", "OUTPUTS", "OnnxOptions", "import_onnx", "metadata", "model_order",
           "traced_file", "with_half_weights", "with_logits"]

FORMAT = "jseg onnx 1"
OPSETS = range(17, 22)
OUTPUTS = ("labels", "logits", "probabilities")
ONNX_EXTRA = "pip install 'jseg-jittor[onnx]'"
MOST_BYTES = (1 << 31) - (1 << 20)  # of a protobuf message
_HALF_FROM = 256  # values of a constant that is stored in half precision


@dataclass(frozen=True)
class OnnxOptions:
    """What the file takes and gives.

    Args:
        size: (height, width) of its pictures in pixels, one at a time; None for any batch, height and width.
        output: "labels", "logits" or "probabilities".
        order: None for normalised float32 input; "bgr" or "rgb": uint8 pictures of that order, normalised inside.
        opset: version of the ONNX operators, of `OPSETS`.
        half: keep weights in half precision; the arithmetic is float32.
    """

    size: tuple[int, int] | None = None
    output: str = "labels"
    order: str | None = None
    opset: int = 17
    half: bool = False


def import_onnx():
    """The `onnx` package.

    Raises:
        ExportError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ExportError(f"writing an ONNX file needs the onnx package ({error}): {ONNX_EXTRA}") from error
    return onnx


def traced_file(file: ModelFile, model, preprocessor, options: OnnxOptions) -> tuple[Any, str]:
    """The ONNX model (float32) of a checkpoint, and the name of its scores inside.

    Args:
        file, model, preprocessor: the checkpoint and what `file.build()` gives.
    Raises:
        ExportError: a function without exporter, code that reads sizes or values as plain numbers, or a file of more
            than 2 GiB.
    """
    onnx, uint8 = import_onnx(), options.order is not None
    graph = Graph(options.opset, "image", (0, 1, 2) if uint8 else (0, 2, 3))
    sides = [Size(tuple(probe[i] for probe in PROBES), "Input", (i,)) for i in range(3)]
    n, h, w = sides if options.size is None else (1, *options.size)
    image = Tensor(graph, "image", (n, h, w, 3) if uint8 else (n, 3, h, w), "uint8" if uint8 else "float32")
    with traced(model, graph):
        images = _normalised(image, preprocessor, options.order) if uint8 else image
        scores = model.class_scores(images)
        result = _result(scores, (h, w), model, options.output)
    name_layers(graph.nodes, graph.constants, file.state)
    names = {"batch": n, "height": h, "width": w}
    proto = _assembled(onnx, graph, image, _named(result, options.output), names, options.opset)
    for key, value in metadata(file, model, preprocessor, options).items():
        proto.metadata_props.add(key=key, value=value)
    if proto.ByteSize() > MOST_BYTES:
        raise ExportError(f"{file.path}: the file would have {proto.ByteSize():,} bytes; ONNX files of one piece have "
                          f"at most {MOST_BYTES:,}")
    return proto, scores.named()


def _normalised(image: Tensor, preprocessor, order: str) -> Tensor:
    """uint8 (N, H, W, 3) of an order -> float32 (N, 3, H, W) as the model takes it."""
    x, graph = image.cast("float32").transpose(0, 3, 1, 2), image.graph
    if order != model_order(preprocessor):
        x = graph.add("Gather", [x, graph.constant(np.array([2, 1, 0]), "int64")], axis=1)
    if preprocessor.mean is not None:
        x = (x - graph.constant(preprocessor.mean.reshape(1, 3, 1, 1))) / graph.constant(
            preprocessor.std.reshape(1, 3, 1, 1))
    return x


def model_order(preprocessor) -> str:
    """Channel order that the model sees: jseg reads pictures as BGR."""
    return "rgb" if preprocessor.reverse else "bgr"


def _result(scores: Tensor, size: tuple, model, output: str) -> Tensor:
    if output == "logits":
        return scores
    if tuple(scores.shape[2:]) != size:
        scores = resized(scores, size, mode="linear", coordinate_transformation_mode="align_corners"
                         if model.align_corners else "half_pixel")
    if output == "probabilities":
        return unary("Softmax", scores, axis=1)
    shape = (scores.shape[0], *scores.shape[2:])
    labels = scores.graph.add("ArgMax", [scores], shape, "int64", axis=1, keepdims=0)
    return labels.cast("uint8" if model.num_classes <= 256 else "uint16")


def _named(result: Tensor, name: str) -> Tensor:
    """The result under its public name."""
    graph = result.graph
    graph.nodes.append(graph.onnx.helper.make_node("Identity", [result.named()], [name], "output"))
    return Tensor(graph, name, result.shape, result.dtype)


def _assembled(onnx, graph: Graph, image: Tensor, result: Tensor, sides: dict, opset: int):
    """The model of the nodes that the result needs."""
    helper, needed, nodes = onnx.helper, {result.named()}, []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    known = {size: name for name, size in sides.items() if isinstance(size, Size)}

    def info(tensor: Tensor):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        shape = [known.get(side, f"{tensor.named()}_{i}") if isinstance(side, Size) else int(side)
                 for i, side in enumerate(tensor.shape)]
        return helper.make_tensor_value_info(tensor.named(), kind, shape)
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
                 for name, array in graph.constants.items() if name in needed]
    made = helper.make_graph(nodes[::-1], "jseg", [info(image)], [info(result)], constants)
    operators = [helper.make_opsetid("", opset)]
    return helper.make_model(made, opset_imports=operators, ir_version=helper.find_min_ir_version_for(operators),
                             producer_name="jseg", producer_version=__version__)


def metadata(file: ModelFile, model, preprocessor, options: OnnxOptions) -> dict[str, str]:
    """Texts by name, see the file's head."""
    palette, uint8 = np.asarray(file.palette).tolist(), options.order is not None
    numbers = {key: None if value is None else [float(v) for v in value]
               for key, value in (("mean", preprocessor.mean), ("std", preprocessor.std))}
    facts = {
        "format": FORMAT, "jseg_version": __version__, "classes": list(file.classes), "palette": palette,
        "input": {"name": "image", "dtype": "uint8" if uint8 else "float32", "layout": "NHWC" if uint8 else "NCHW",
                  "size": None if options.size is None else list(options.size)},
        "output": {"name": options.output, "align_corners": bool(model.align_corners)},
        "preprocessing": {"order": options.order or model_order(preprocessor), "model_order": model_order(preprocessor),
                          "inside": uint8, **numbers, "pad_val": preprocessor.pad_val,
                          "test_cfg": _plain(preprocessor.test_cfg)},
        "half": options.half, "config": file.config,
        "checkpoint": {"name": file.path.name, "sha256": content_hash(file.state)},
        "origin": file.meta.get("origin")}
    return {"jseg": json.dumps(facts, default=_plain), "classes": json.dumps(list(file.classes)),
            "palette": json.dumps(palette)}


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def with_half_weights(proto):
    """A copy whose large float32 constants are stored in half precision and widened when the file is loaded."""
    onnx = import_onnx()
    copy, casts = type(proto)(), []
    copy.CopyFrom(proto)
    for constant in copy.graph.initializer:
        values = onnx.numpy_helper.to_array(constant)
        if values.dtype != np.float32 or values.size < _HALF_FROM or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name = constant.name
        constant.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_widened",
                                           to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def with_logits(proto, scores: str):
    """A copy that also gives the scores inside, as a second output: what a check compares."""
    onnx, copy = import_onnx(), type(proto)()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(scores, onnx.TensorProto.FLOAT, None))
    return copy
