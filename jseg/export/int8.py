"""An ONNX model in int8, by onnxruntime's static quantisation, and what each layer of it costs.

Layers (`layers.layers_of`) get int8 weights, with one scale for each output channel, and read and write maps of 8 bits
whose ranges come from calibration pictures (QuantizeLinear and DequantizeLinear around them, "QDQ"); all else stays
float32: activations, norms that no convolution took up, products of two maps (attention, Hamburger), resizing, argmax.

What a layer costs is measured: in `switchable` every layer can be set to int8 or float by an input of the graph, so
that one session runs the model with any of them in int8.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from jseg.errors import ExportError
from jseg.export.layers import KINDS, layers_of
from jseg.export.onnx_model import ONNX_EXTRA, import_onnx
from jseg.export.verify import open_session
from jseg.metrics import ConfusionMatrix

__all__ = ["calibrated", "in_int8", "layer_costs", "prepared", "switchable", "switched_session"]


def prepared(content: bytes) -> Any:
    """The model with constants computed and norms inside the convolutions before them, by onnxruntime.

    Raises:
        ExportError: onnxruntime is not installed or refuses the model, or it is quantised already.
    """
    onnx = import_onnx()
    try:
        import onnxruntime
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise ExportError(f"quantisation needs onnxruntime ({error}): {ONNX_EXTRA}") from error
    before = onnx.load_from_string(content)
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in before.graph.node):
        raise ExportError("the model is quantised already; give the float32 file of 'jseg export'")
    with tempfile.TemporaryDirectory() as folder:
        options, out = onnxruntime.SessionOptions(), pathlib.Path(folder) / "prepared.onnx"
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(out)
        open_session(content, options)
        proto = onnx.load(str(out))
    used = {node.domain for node in proto.graph.node}
    operators = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(operators)
    proto.ir_version = before.ir_version
    for i, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_node{i}"
    return onnx.shape_inference.infer_shapes(proto)


def calibrated(proto, inputs: Iterable[np.ndarray]) -> Any:
    """The smallest and largest value of every map that a layer reads or writes, as onnxruntime's `TensorsData`.

    Args:
        proto: of `prepared`.
        inputs: what the model gets, one after the other.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        """Gives the inputs."""

        def __init__(self):
            self.left: Iterator[np.ndarray] = iter(inputs)

        def get_next(self):
            """The next, or None."""
            return next(({"image": image} for image in self.left), None)

    copy = type(proto)()
    copy.CopyFrom(proto)
    copy.graph.value_info.extend(proto.graph.output)
    del copy.graph.output[:]  # the calibrator would keep those of every picture
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.onnx"
        path.write_bytes(copy.SerializeToString())
        found = create_calibrator(path, list(KINDS), augmented_model_path=str(path.with_name("ranges.onnx")),
                                  calibrate_method=CalibrationMethod.MinMax)
        found.collect_data(Reader())
        return found.compute_data()


def in_int8(proto, ranges, layers: Sequence[str]) -> Any:
    """A copy in which the named layers compute in int8.

    Args:
        proto, ranges: of `prepared` and `calibrated`.
        layers: at least one name.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType
    copy = type(proto)()
    copy.CopyFrom(proto)
    made = QDQQuantizer(copy, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, list(layers), [], list(KINDS),
                        {"MatMulConstBOnly": True})
    made.quantize_model()
    return made.model.model


def switchable(proto, whole) -> tuple[Any, list[str]]:
    """A model whose layers are int8 or float by choice: one more input, `int8` (layers,) bool, in the order returned.

    A map is in 8 bits where a layer that reads or writes it is in int8, as in a file of these layers alone.

    Args:
        proto: of `prepared`.
        whole: of `in_int8`, for any of its layers.
    """
    onnx, copy = import_onnx(), type(whole)()
    copy.CopyFrom(whole)
    make, floats, nodes = onnx.helper.make_node, layers_of(proto), {node.name: node for node in copy.graph.node}
    makers = {value: node for node in copy.graph.node for value in node.output}
    fixed = {constant.name for constant in copy.graph.initializer}
    widened = {name: node for name, node in makers.items() if node.op_type == "DequantizeLinear"}
    names = [name for name in floats if nodes[name].input[1] in widened]
    before = [node for node in widened.values() if node.input[0] in fixed]
    switches: dict[str, list[str]] = {}  # a map's name -> the layers that read or write it
    wanted: dict[str, str] = {}  # names for constants of `proto`
    for i, name in enumerate(names):
        place, switch, node = f"place of {name}", f"switch of {name}", nodes[name]
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.array(i, np.int64), place))
        before.append(make("Gather", ["int8", place], [switch], switch, axis=0))
        for value in {makers[makers[node.input[0]].input[0]].input[0], node.output[0]}:
            switches.setdefault(value, []).append(switch)
        for k in range(1, len(node.input)):
            if node.input[k] in widened:
                given = floats[name].input[k]
                chosen, constant = f"{given} of {name}", f"{given} in float"
                before.append(make("Where", [switch, node.input[k], constant], [chosen], chosen))
                node.input[k], wanted[constant] = chosen, given
    copy.graph.initializer.extend(_renamed(proto, wanted))
    body = [node for node in copy.graph.node if not (node.op_type == "DequantizeLinear" and node.input[0] in fixed)]
    order = [type(node).FromString(node.SerializeToString())
             for node in (*before, *_with_choices(onnx.helper, body, makers, switches))]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(order)
    copy.graph.input.append(onnx.helper.make_tensor_value_info("int8", onnx.TensorProto.BOOL, [len(names)]))
    return copy, names


def _renamed(proto, wanted: dict[str, str]) -> Iterator[Any]:
    """Copies of constants under other names: new name -> name."""
    known = {constant.name: constant for constant in proto.graph.initializer}
    for name, before in wanted.items():
        copy = type(known[before])()
        copy.CopyFrom(known[before])
        copy.name = name
        yield copy


def _with_choices(helper, body: list, makers: dict, switches: dict[str, list[str]]) -> Iterator[Any]:
    """The nodes of a body; for each pair that takes a map to 8 bits and back, one that does it where a switch says so,
    and costs nothing where none does."""
    for node in body:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            yield node
            continue
        value, wide = makers[node.input[0]].input[0], node.output[0]
        switch, *more = switches[value]
        for k, other in enumerate(more):
            joined = f"switch {k} of {value}"
            yield helper.make_node("Or", [switch, other], [joined], joined)
            switch = joined
        node.output[0] = f"{wide} in 8 bits"
        plain = helper.make_node("Identity", [value], [f"{wide} in float"])
        ways = [helper.make_graph(nodes, wide, [], [helper.make_tensor_value_info(nodes[-1].output[0], 1, None)])
                for nodes in ([makers[node.input[0]], node], [plain])]
        yield helper.make_node("If", [switch], [wide], f"choice of {wide}", then_branch=ways[0], else_branch=ways[1])


def switched_session(proto, whole) -> tuple[Any, list[str]]:
    """A session of `switchable`, and its layers in order."""
    import onnxruntime
    model, names = switchable(proto, whole)
    options = onnxruntime.SessionOptions()
    # more of it ends the process in onnxruntime 1.18, and finds little to do where weights are chosen
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return open_session(model.SerializeToString(), options), names


def layer_costs(proto, whole, inputs: Sequence[np.ndarray], output: str, num_classes: int) -> dict[str, float]:
    """What each layer costs when it alone is in int8, the costliest first.

    The cost is 100 less the mean IoU, in percent, between the labels that the file gives and those of the float one, so
    that small classes count as large ones and no masks are needed.

    Args:
        proto, whole: as for `switchable`.
        inputs: what the model gets.
        output: name of the model's output.
        num_classes: of its labels.
    """
    session, names = switched_session(proto, whole)

    def labels(image: np.ndarray, on: np.ndarray) -> np.ndarray:
        found = session.run([output], {"image": image, "int8": on})[0]
        return found if found.ndim == 3 else found.argmax(1)
    counts = [ConfusionMatrix(num_classes, num_classes) for _ in names]
    expected = [labels(image, np.zeros(len(names), bool)) for image in inputs]
    for count, on in zip(tqdm(counts, desc="one by one", unit="layer", disable=None, leave=False), np.eye(len(names))):
        for image, truth in zip(inputs, expected):
            count.update(labels(image, on.astype(bool)), truth)
    costs = {name: 100 * (1 - count.compute(["mIoU"])["metrics"]["mIoU"]) for name, count in zip(names, counts)}
    return dict(sorted(costs.items(), key=lambda item: -item[1]))
