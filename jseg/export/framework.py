"""Jittor's own functions, as far as models use them, on tensors of the tracer.

`TABLE` says for each name what stands in for it while a model is traced: `jt.concat` is `TABLE["jt.concat"]`. A name
that is not here is an error that tells it (`scope.Stand`).
"""

from __future__ import annotations

import math
from typing import Callable, Sequence

import numpy as np

from jseg.errors import ExportError
from jseg.export.arithmetic import binary, product, reduced, unary, where
from jseg.export.graph import Tensor, graph_in_use
from jseg.export.sizes import Number, Size

__all__ = ["TABLE", "concat", "conv2d", "gelu", "pad", "positions", "softmax"]

TABLE: dict[str, Callable] = {}


def stands_for(*names: str):
    """Enter a function into `TABLE`."""
    def entered(function: Callable) -> Callable:
        TABLE.update({name: function for name in names})
        return function
    return entered


for _name, _op in (("sigmoid", "Sigmoid"), ("tanh", "Tanh"), ("exp", "Exp"), ("sqrt", "Sqrt"), ("erf", "Erf"),
                   ("floor", "Floor"), ("log", "Log"), ("abs", "Abs"), ("logical_not", "Not")):
    TABLE[f"jt.{_name}"] = lambda x, op=_op: unary(op, x)
for _name, _op in (("maximum", "Max"), ("minimum", "Min"), ("logical_and", "And"), ("logical_or", "Or")):
    TABLE[f"jt.{_name}"] = lambda x, y, op=_op: binary(op, x, y)
TABLE["jt.ternary"] = where


@stands_for("jt.array")
def array(value, dtype=None) -> Tensor:
    """A constant; what is a tensor already stays one."""
    found = value if isinstance(value, Tensor) else graph_in_use().constant(np.asarray(value))
    return found if dtype is None else found.cast(dtype)


def _filled(shape, value: float, dtype="float32") -> Tensor:
    shape = (shape,) if isinstance(shape, (int, Size)) else tuple(shape)
    return graph_in_use().constant(np.array(value, str(dtype)), str(dtype)).reshape([1] * len(shape)).broadcast(shape)


@stands_for("jt.zeros")
def zeros(shape, dtype="float32") -> Tensor:
    """Zeros of a shape."""
    return _filled(shape, 0, dtype)


@stands_for("jt.full")
def full(shape, value, dtype="float32") -> Tensor:
    """One number everywhere."""
    return _filled(shape, value, dtype)


@stands_for("jt.zeros_like")
def zeros_like(x: Tensor, dtype=None) -> Tensor:
    """Zeros like another."""
    return _filled(x.shape, 0, dtype or x.dtype)


@stands_for("jt.ones_like")
def ones_like(x: Tensor) -> Tensor:
    """Ones like another."""
    return _filled(x.shape, 1, x.dtype)


@stands_for("jt.full_like")
def full_like(x: Tensor, value: float) -> Tensor:
    """One number like another tensor."""
    return _filled(x.shape, value, x.dtype)


@stands_for("jt.arange")
def positions(count: Number, dtype: str = "int32") -> Tensor:
    """0, 1, ... count - 1."""
    graph = graph_in_use()
    if not isinstance(count, Size):
        return graph.constant(np.arange(count), dtype)
    first, step = (graph.initializer(np.array(v, np.int64)) for v in (0, 1))
    last = graph.size_tensor(count).named()
    return Tensor(graph, graph.append("Range", [first, last, step]), (count,), "int64").cast(dtype)


@stands_for("jt.concat")
def concat(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Joined along an axis."""
    axis = axis % parts[0].ndim
    shape = list(parts[0].shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    return parts[0].graph.add("Concat", [part.cast(parts[0].dtype) for part in parts], shape, axis=axis)


@stands_for("jt.stack")
def stack(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Joined along a new axis."""
    return concat([part.unsqueeze(axis) for part in parts], axis)


@stands_for("jt.argmax")
def argmax(x: Tensor, dim: int, keepdims: bool = False) -> tuple[Tensor, Tensor]:
    """Place, of several the first, and value of the largest along an axis."""
    best = reduced("ReduceMax", x, dim, keepdims)
    return x.graph.add("ArgMax", [x], best.shape, "int64", axis=dim % x.ndim, keepdims=int(keepdims)), best


@stands_for("jt.matmul", "nn.matmul", "jt.bmm", "nn.bmm")
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Product of matrices."""
    return product(x, y)


@stands_for("jt.bmm_transpose", "nn.bmm_transpose", "nn.matmul_transpose", "jt.matmul_transpose")
def matmul_transpose(x: Tensor, y: Tensor) -> Tensor:
    """Product with the second matrix turned."""
    return product(x, y.transpose(*range(y.ndim - 2), y.ndim - 1, y.ndim - 2))


@stands_for("jt.gather")
def gather(x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Values by place along an axis."""
    return x.gather(axis, index)


@stands_for("nn.softmax")
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Softmax along an axis."""
    return unary("Softmax", x, axis=dim % x.ndim)


@stands_for("nn.gelu")
def gelu(x: Tensor) -> Tensor:
    """By the error function, as jseg computes it."""
    return x * 0.5 * (unary("Erf", x * math.sqrt(0.5)) + 1.0)


@stands_for("nn.relu", "nn.ReLU")
def relu(x: Tensor) -> Tensor:
    """Not below 0."""
    return unary("Relu", x)


@stands_for("nn.relu6")
def relu6(x: Tensor) -> Tensor:
    """Between 0 and 6."""
    graph = x.graph
    return graph.add("Clip", [x, *(graph.constant(np.array(v, np.float32)) for v in (0, 6))])


@stands_for("nn.pad")
def pad(x: Tensor, edges: Sequence[Number], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Zeros around the last axes: (left, right, top, bottom, ...), the last axis first; below 0 cuts."""
    if mode != "constant" or value != 0.0:
        raise ExportError(f"nn.pad: mode {mode!r} with {value}; the exporter pads with zeros")
    first, last, shape = [0] * x.ndim, [0] * x.ndim, list(x.shape)
    for i in range(len(edges) // 2):
        axis = x.ndim - 1 - i
        first[axis], last[axis] = edges[2 * i], edges[2 * i + 1]
        shape[axis] = shape[axis] + edges[2 * i] + edges[2 * i + 1]
    graph = x.graph
    return Tensor(graph, graph.append("Pad", [x.named(), graph.sizes(first + last)]), shape, x.dtype)


def _pair(value) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)


@stands_for("nn.conv2d")
def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1,
           groups: int = 1) -> Tensor:
    """Convolution. Shape: (N, C, H, W), (D, C / groups, kh, kw), (D,) -> (N, D, H', W')."""
    stride, padding, dilation, kernel = _pair(stride), _pair(padding), _pair(dilation), weight.shape[2:]
    sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1
             for side, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride)]
    words = {} if any(isinstance(k, Size) for k in kernel) else {"kernel_shape": list(kernel)}
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return x.graph.add("Conv", inputs, (x.shape[0], weight.shape[0], *sides), strides=list(stride),
                       pads=[*padding, *padding], dilations=list(dilation), group=groups, **words)
