"""An ONNX graph under construction, and the tensors a model's code computes with while it is noted down.

A `Tensor` has the methods of Jittor's Var that models use, a type, and a shape of numbers and `Size`s. What is made of
constants alone (weights, tables of one size) is computed at once by onnx's reference evaluator and stays a constant,
so that folded norms, transposed weights and position tables cost nothing in the file.
"""

from __future__ import annotations

import math
from typing import Any, Iterable, Sequence

import numpy as np

from jseg.errors import ExportError
from jseg.export.arithmetic import Arithmetic
from jseg.export.sizes import Number, Size, largest, made, smallest

__all__ = ["Graph", "Tensor", "graph_in_use"]

_in_use: list["Graph"] = []
_NAMES = {"float": "float32", "int": "int32", "bool_": "bool"}


def graph_in_use() -> "Graph":
    """The graph that is being traced."""
    return _in_use[-1]


class Graph:
    """Nodes and constants in order; use it as a context manager while a model is traced.

    Args:
        opset: version of the ONNX operators, 17 or later.
        input_name, axes: name of the graph's input, and its axes of batch, height and width: where sizes are read.
    """

    def __init__(self, opset: int, input_name: str = "input", axes: tuple[int, int, int] = (0, 2, 3)):
        import onnx
        self.onnx, self.opset, self.input_name, self.axes = onnx, opset, input_name, axes
        self.nodes: list = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, str] = {}  # constants and sizes by what they are
        self._count = 0

    def __enter__(self) -> "Graph":
        _in_use.append(self)
        return self

    def __exit__(self, *_) -> None:
        _in_use.pop()

    def name(self, stem: str) -> str:
        """A name that no value has."""
        self._count += 1
        return f"{stem}_{self._count}"

    def constant(self, value, dtype: str | None = None) -> "Tensor":
        """A tensor of numbers; its shape is the array's."""
        array = np.ascontiguousarray(value, dtype)
        array = array.reshape(np.shape(value))  # ascontiguousarray makes a scalar an array of one
        if dtype is None and array.dtype in (np.float64, np.int64):
            array = array.astype(np.float32 if array.dtype == np.float64 else np.int32)
        return Tensor(self, None, tuple(array.shape), str(array.dtype), array)

    def add(self, op: str, inputs: Sequence["Tensor | None"], shape: Sequence[Number] | None = None,
            dtype: str | None = None, **attributes) -> "Tensor":
        """Append a node with one result; a constant where all inputs are.

        Args:
            op: name of the ONNX operator.
            inputs: None for an optional one that is left out.
            shape, dtype: of the result; default: those of the first input.
            attributes: of the node.
        """
        shape = tuple(inputs[0].shape if shape is None else shape)
        if all(tensor is None or tensor.value is not None for tensor in inputs):
            return self.constant(self._computed(op, inputs, attributes), dtype or inputs[0].dtype)
        return Tensor(self, self.append(op, [None if t is None else t.named() for t in inputs], **attributes), shape,
                      dtype or inputs[0].dtype)

    def append(self, op: str, inputs: Iterable[str | None], **attributes) -> str:
        """Append a node to the graph and give the name of its result."""
        name = self.name(op)
        self.nodes.append(self.onnx.helper.make_node(op, ["" if i is None else i for i in inputs], [name], name,
                                                     **attributes))
        return name

    def initializer(self, array: np.ndarray) -> str:
        """The name of a constant; equal ones are kept once."""
        key = (str(array.dtype), array.shape, array.tobytes())
        key = key if array.size <= 1024 else (key[0], key[1], hash(key[2]), id(array))
        if key not in self._known:
            name = self._known[key] = self.name("constant")
            self.constants[name] = array
        return self._known[key]

    def size(self, number: Number) -> str:
        """The name of a number as an int64 tensor of one value; a float64 tensor where it is not whole."""
        if not isinstance(number, Size):
            return self.initializer(np.array([number], np.int64 if isinstance(number, int) else np.float64))
        key = ("size", number.values, number.is_whole)
        if key not in self._known:
            self._known[key] = self._computed_size(number)
        return self._known[key]

    def sizes(self, numbers: Sequence[Number]) -> str:
        """The name of an int64 tensor of several numbers."""
        if not any(isinstance(n, Size) for n in numbers):
            return self.initializer(np.array(numbers, np.int64))
        return self.size(numbers[0]) if len(numbers) == 1 else self.append("Concat", map(self.size, numbers), axis=0)

    def size_tensor(self, number: Number, dtype: str = "int64") -> "Tensor":
        """A number as a tensor of shape ()."""
        if not isinstance(number, Size):
            return self.constant(np.array(number, dtype), dtype)
        found = Tensor(self, self.size(number), (1,), "int64" if number.is_whole else "float64")
        return found.reshape(()).cast(dtype)

    def _computed_size(self, number: Size) -> str:
        if number.op == "Input":
            shape = self._once("shape", lambda: self.append("Shape", [self.input_name]))
            return self.append("Gather", [shape, self.initializer(np.array([self.axes[number.args[0]]], np.int64))])
        names = [self.size(a) for a in number.args]
        if number.op in ("Floor", "Ceil"):
            return self._to(self.append(number.op, [self._real(number.args[0], names[0])]), "INT64")
        if not number.is_whole:
            return self.append(number.op, [self._real(a, n) for a, n in zip(number.args, names)])
        if number.op != "FloorDiv":
            return self.append(number.op, names)
        above, below = names
        if isinstance(number.args[0], Size) and min(number.args[0].values) < 0:  # ONNX divides towards zero
            above = self.append("Sub", [above, self.append("Mod", names)])
        return self.append("Div", [above, below])

    def _once(self, key: str, make) -> str:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _real(self, number: Number, name: str) -> str:
        whole = number.is_whole if isinstance(number, Size) else isinstance(number, int)
        return self._to(name, "DOUBLE") if whole else name

    def _to(self, name: str, kind: str) -> str:
        return self.append("Cast", [name], to=getattr(self.onnx.TensorProto, kind))

    def _computed(self, op: str, inputs: Sequence["Tensor | None"], attributes: dict) -> np.ndarray:
        """The result of a node on constants."""
        from onnx.reference import ReferenceEvaluator
        helper, names = self.onnx.helper, [f"i{k}" for k in range(len(inputs))]
        node = helper.make_node(op, ["" if t is None else name for t, name in zip(inputs, names)], ["y"], **attributes)
        kinds = [(name, t.value) for t, name in zip(inputs, names) if t is not None]
        infos = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
                 for name, value in kinds]
        result = helper.make_empty_tensor_value_info("y")
        model = helper.make_model(helper.make_graph([node], "one", infos, [result]),
                                  opset_imports=[helper.make_opsetid("", self.opset)])
        return ReferenceEvaluator(model).run(None, dict(kinds))[0]


class Tensor(Arithmetic):
    """A value of the graph, with the methods of a Jittor Var that models use.

    Args:
        graph: where it lives.
        name: of the graph's value; None for a constant that no node has read yet.
        shape: numbers and sizes. dtype: NumPy's name.
        value: the numbers of a constant.
    """

    __slots__ = ("graph", "_name", "shape", "dtype", "value")
    __array_priority__ = 1000  # NumPy's numbers leave the operation to this class

    def __init__(self, graph: Graph, name: str | None, shape: tuple, dtype: str, value: np.ndarray | None = None):
        self.graph, self._name, self.shape, self.dtype, self.value = graph, name, tuple(shape), dtype, value

    def named(self) -> str:
        """The name of the value, which enters the graph now if it is a constant."""
        if self._name is None:
            self._name = self.graph.initializer(self.value)
        return self._name

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    def numel(self) -> Number:
        """Values."""
        return math.prod(self.shape)

    def numpy(self) -> np.ndarray:
        """The numbers of a constant."""
        if self.value is None:
            raise ExportError("the model reads values of the picture into Python, which a file cannot do")
        return self.value

    def __repr__(self) -> str:
        return f"Tensor({self._name}, {self.shape}, {self.dtype})"

    def __iter__(self):
        return (self[i] for i in range(self.shape[0]))

    # shapes

    def reshape(self, *shape) -> "Tensor":
        """As Jittor's; one side may be -1."""
        shape = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], (list, tuple)) else list(shape)
        wanted, total = list(shape), self.numel()
        open_at = next((i for i, side in enumerate(shape) if not isinstance(side, Size) and side == -1), None)
        if open_at is not None:
            rest = math.prod(side for i, side in enumerate(shape) if i != open_at)
            shape[open_at] = next((side for side in self.shape if side * rest == total), None) or total // rest
        if tuple(shape) == self.shape:
            return self
        if self.value is not None:
            return Tensor(self.graph, None, shape, self.dtype, self.value.reshape(shape))
        for i, side in enumerate(wanted):  # 0 copies the side at the same place
            if isinstance(side, Size) and i < self.ndim and self.shape[i] == side:
                wanted[i] = 0
        unknown = [i for i, side in enumerate(wanted) if isinstance(side, Size)]
        if unknown and open_at is None:
            wanted[unknown[-1]] = -1
        name = self.graph.append("Reshape", [self.named(), self.graph.sizes(wanted)])
        return Tensor(self.graph, name, shape, self.dtype)

    view = reshape

    def transpose(self, *axes) -> "Tensor":
        """By a permutation of all axes, as Jittor's; two axes alone are swapped."""
        axes = list(axes[0]) if len(axes) == 1 and isinstance(axes[0], (list, tuple)) else list(axes)
        if len(axes) == 2 and self.ndim != 2:
            order = list(range(self.ndim))
            order[axes[0]], order[axes[1]] = order[axes[1]], order[axes[0]]
            axes = order
        axes = [a % self.ndim for a in axes] or list(range(self.ndim))[::-1]
        if axes == list(range(self.ndim)):
            return self
        return self.graph.add("Transpose", [self], [self.shape[a] for a in axes], perm=axes)

    permute = transpose

    def unsqueeze(self, axis: int) -> "Tensor":
        """A side of 1 before `axis`."""
        axis = axis % (self.ndim + 1)
        return self._changed("Unsqueeze", (*self.shape[:axis], 1, *self.shape[axis:]), axis)

    def squeeze(self, axis: int) -> "Tensor":
        """Without the side of 1 at `axis`."""
        axis = axis % self.ndim
        return self._changed("Squeeze", (*self.shape[:axis], *self.shape[axis + 1:]), axis)

    def _changed(self, op: str, shape: tuple, axis: int) -> "Tensor":
        return self.graph.add(op, [self, self.graph.constant(np.array([axis]), "int64")], shape)

    def broadcast(self, shape: Sequence[Number]) -> "Tensor":
        """Repeated along sides of 1 to `shape`."""
        shape = tuple(shape.shape if isinstance(shape, Tensor) else shape)
        if shape == self.shape:
            return self
        wanted = self.graph.sizes(shape)
        if self.value is not None and not any(isinstance(side, Size) for side in shape):
            return self.graph.constant(np.broadcast_to(self.value, shape), self.dtype)
        return Tensor(self.graph, self.graph.append("Expand", [self.named(), wanted]), shape, self.dtype)

    expand = broadcast_to = broadcast

    def __getitem__(self, key) -> "Tensor":
        """Slices, whole numbers and `None`, or an index tensor of the first axis."""
        if isinstance(key, Tensor):
            return self.graph.add("Gather", [self, key], (*key.shape, *self.shape[1:]), axis=0)
        keys, result, axis = (key if isinstance(key, tuple) else (key,)), self, 0
        if Ellipsis in keys:
            at = keys.index(Ellipsis)
            missing = self.ndim - (len(keys) - 1 - keys.count(None))
            keys = (*keys[:at], *[slice(None)] * missing, *keys[at + 1:])
        for part in keys:
            if part is None:
                result, axis = result.unsqueeze(axis), axis + 1
            elif isinstance(part, slice):
                result, axis = result._sliced(axis, part), axis + 1
            else:
                result = result._taken(axis, part)
        return result

    def _taken(self, axis: int, place: Number) -> "Tensor":
        if not isinstance(place, (int, np.integer)):
            raise ExportError(f"index {place!r}: the exporter takes slices, whole numbers, None and index tensors")
        index = self.graph.constant(np.array(int(place)), "int64")
        return self.graph.add("Gather", [self, index], (*self.shape[:axis], *self.shape[axis + 1:]), axis=axis)

    def _sliced(self, axis: int, part: slice) -> "Tensor":
        side, step = self.shape[axis], part.step or 1
        begin, end = (0 if part.start is None else part.start), (side if part.stop is None else part.stop)
        begin, end = (largest(side + b, 0) if b < 0 else b for b in (begin, end))
        begin, end = smallest(begin, side), smallest(end, side)
        length = made("FloorDiv", largest(end - begin, 0) + (step - 1), step)
        if begin == 0 and end == side and step == 1:
            return self
        graph = self.graph
        last = end if part.stop is not None else np.iinfo(np.int64).max
        names = [graph.sizes([begin]), graph.sizes([last]), graph.sizes([axis]), graph.sizes([step])]
        shape = (*self.shape[:axis], length, *self.shape[axis + 1:])
        if self.value is not None and not any(isinstance(v, Size) for v in (begin, end)):
            places = (slice(None),) * axis + (slice(begin, end, step),)
            return graph.constant(self.value[places], self.dtype)
        return Tensor(graph, graph.append("Slice", [self.named(), *names]), shape, self.dtype)

    def gather(self, axis: int, index: "Tensor") -> "Tensor":
        """Values at `index` along `axis`."""
        return self.graph.add("GatherElements", [self, index.cast("int64")], index.shape, axis=axis % self.ndim)

    def scatter(self, axis: int, index: "Tensor", values: "Tensor") -> "Tensor":
        """A copy with `values` put at `index` along `axis`."""
        return self.graph.add("ScatterElements", [self, index.cast("int64"), values], axis=axis % self.ndim)

    # types

    def cast(self, dtype) -> "Tensor":
        """Another type, by name."""
        dtype = _NAMES.get(str(dtype), str(dtype))
        if dtype == self.dtype:
            return self
        if self.value is not None:
            return self.graph.constant(self.value.astype(dtype), dtype)
        kind = self.graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.graph.add("Cast", [self], dtype=dtype, to=kind)

    astype = cast

    def float32(self) -> "Tensor":
        """As float32."""
        return self.cast("float32")

    def int32(self) -> "Tensor":
        """As int32."""
        return self.cast("int32")

    def _itself(self) -> "Tensor":
        """Gradients mean nothing here."""
        return self

    stop_grad = start_grad = detach = clone = copy = _itself

