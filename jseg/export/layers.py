"""The layers of an ONNX model: its nodes with weights, named as the checkpoint names them."""

from __future__ import annotations

import hashlib
from typing import Any, Mapping

import numpy as np

__all__ = ["KINDS", "layers_of", "name_layers"]

KINDS = ("Conv", "Gemm", "MatMul")


def name_layers(nodes, constants: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray]) -> None:
    """Call each node with weights what the checkpoint calls them: `backbone.block1.0.attn.proj_1`.

    Weights are found by their values in any order, as the exporter turns some of them; a node without such weights, and
    the second one of shared weights, keeps its name.

    Args:
        nodes: ONNX nodes, changed in place.
        constants: the graph's, by name.
        state: the checkpoint's weights, by name.
    """
    sizes = {array.size for array in constants.values()}
    keys: dict[str, str] = {}
    for key, array in state.items():
        if key.endswith(".weight") and np.ndim(array) > 1 and np.size(array) in sizes:
            keys.setdefault(_digest(array), key[:-len(".weight")])
    for node in nodes:
        if node.op_type in KINDS:
            weights = (constants[name] for name in node.input if name in constants and constants[name].ndim > 1)
            node.name = next((keys.pop(found) for found in map(_digest, weights) if found in keys), node.name)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.sort(np.asarray(array, np.float32), axis=None).tobytes()).hexdigest()


def layers_of(proto) -> dict[str, Any]:
    """The nodes whose weights are constants, by name, in their order. Products of two maps are none, nor are those with
    a constant of more dimensions than a matrix (a factorization's first bases): onnxruntime 1.23 fails on such in int8.
    """
    dimensions = {constant.name: len(constant.dims) for constant in proto.graph.initializer}
    return {node.name: node for node in proto.graph.node
            if node.op_type in KINDS and (dimensions.get(node.input[1]) == 2 if node.op_type == "MatMul" else
                                          node.input[1] in dimensions)}
