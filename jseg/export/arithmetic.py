"""What tensors of the tracer do value by value and along axes: operators, comparisons, sums, products of matrices."""

from __future__ import annotations

import numpy as np

from jseg.errors import ExportError
from jseg.export.sizes import Number, Size

__all__ = ["Arithmetic", "binary", "broadcast_shapes", "product", "reduced", "unary", "where"]


def broadcast_shapes(a, b) -> tuple:
    """The shape of an elementwise operation on two."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b))
    return tuple(y if x == 1 else x for x, y in pairs)


def as_tensor(value, like, dtype: str | None = None):
    """A number, a size or an array as a tensor beside another; plain numbers take its type where that holds them."""
    if hasattr(value, "named"):
        return value
    graph = like.graph
    if dtype is None:
        whole = isinstance(value, (bool, int, np.integer)) or isinstance(value, Size) and value.is_whole
        dtype = like.dtype if whole or like.dtype.startswith("float") else "float32"
    if isinstance(value, Size):
        return graph.size_tensor(value, dtype)
    return graph.constant(np.asarray(value, dtype), dtype)


_RANK = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")


def binary(op: str, x, y, *, dtype: str | None = None):
    """A node of two inputs, brought to one type; the result's is `dtype` or theirs."""
    like = x if hasattr(x, "named") else y
    x, y = as_tensor(x, like), as_tensor(y, like)
    common = max(x.dtype, y.dtype, key=_RANK.index)
    common = "int32" if common in ("bool", "uint8") and op not in ("And", "Or", "Xor") else common
    x, y = x.cast(common), y.cast(common)
    return x.graph.add(op, [x, y], broadcast_shapes(x.shape, y.shape), dtype or common)


def unary(op: str, x, *, dtype: str | None = None, **attributes):
    """A node of one input."""
    return x.graph.add(op, [x], dtype=dtype, **attributes)


def where(condition, x, y):
    """x where the condition holds, else y."""
    like = x if hasattr(x, "named") else y
    x, y = as_tensor(x, like), as_tensor(y, like)
    shape = broadcast_shapes(condition.shape, broadcast_shapes(x.shape, y.shape))
    return condition.graph.add("Where", [condition.cast("bool"), x, y.cast(x.dtype)], shape, x.dtype)


def product(x, y):
    """Product of matrices of the last two axes, the axes before broadcast."""
    shape = (*broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    if x.shape[-1] != y.shape[-2]:
        raise ExportError(f"matmul: {x.shape} and {y.shape} do not fit")
    return x.graph.add("MatMul", [x, y.cast(x.dtype)], shape)


def reduced(op: str, x, dims=None, keepdims: bool = False):
    """A reduction over axes; None for all."""
    given = range(x.ndim) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
    axes = sorted(axis % x.ndim for axis in given)
    kept = [(1 if i in axes else side) for i, side in enumerate(x.shape) if keepdims or i not in axes]
    graph = x.graph
    if op == "ReduceSum" or graph.opset >= 18:
        return graph.add(op, [x, graph.constant(np.array(axes), "int64")], kept, keepdims=int(keepdims))
    return graph.add(op, [x], kept, axes=axes, keepdims=int(keepdims))


def _plain_division(x, y):
    like = x if hasattr(x, "named") else y
    x, y = as_tensor(x, like), as_tensor(y, like)
    if not (x.dtype.startswith("float") or y.dtype.startswith("float")):
        x, y = x.cast("float32"), y.cast("float32")
    return binary("Div", x, y)


def _power(x, exponent: Number):
    if exponent == 2:
        return x * x
    return unary("Sqrt", x) if exponent == 0.5 else binary("Pow", x, exponent)


class Arithmetic:
    """Operators and methods of a Jittor Var that keep or reduce the shape."""

    __slots__ = ()

    def __add__(self, other):
        return binary("Add", self, other)

    def __radd__(self, other):
        return self if isinstance(other, int) and other == 0 else binary("Add", other, self)  # sum() begins with 0

    def __sub__(self, other):
        return binary("Sub", self, other)

    def __rsub__(self, other):
        return binary("Sub", other, self)

    def __mul__(self, other):
        return binary("Mul", self, other)

    def __rmul__(self, other):
        return binary("Mul", other, self)

    def __truediv__(self, other):
        return _plain_division(self, other)

    def __rtruediv__(self, other):
        return _plain_division(other, self)

    def __floordiv__(self, other):  # of values that are not negative
        return binary("Div", self, other) if self.dtype.startswith("int") else unary("Floor", self / other)

    def __mod__(self, other):
        return binary("Mod", self, other)

    def __pow__(self, exponent):
        return _power(self, exponent)

    def __neg__(self):
        return unary("Neg", self)

    def __lt__(self, other):
        return binary("Less", self, other, dtype="bool")

    def __le__(self, other):
        return binary("LessOrEqual", self, other, dtype="bool")

    def __gt__(self, other):
        return binary("Greater", self, other, dtype="bool")

    def __ge__(self, other):
        return binary("GreaterOrEqual", self, other, dtype="bool")

    def __eq__(self, other):
        return binary("Equal", self, other, dtype="bool")

    def __ne__(self, other):
        return unary("Not", self == other, dtype="bool")

    __hash__ = None

    def __and__(self, other):
        return binary("And", self, other, dtype="bool")

    def __or__(self, other):
        return binary("Or", self, other, dtype="bool")

    logical_and, logical_or = __and__, __or__

    def __bool__(self):
        if self.value is None:
            raise ExportError("the model branches on values of the picture, which a file cannot do")
        return bool(self.value)

    def sum(self, dim=None, keepdims: bool = False):
        """Over one axis, several or all."""
        return reduced("ReduceSum", self, dim, keepdims)

    def mean(self, dim=None, keepdims: bool = False):
        """Over one axis, several or all."""
        return reduced("ReduceMean", self, dim, keepdims)

    def max(self, dim=None, keepdims: bool = False):
        """Over one axis, several or all."""
        return reduced("ReduceMax", self, dim, keepdims)

    def min(self, dim=None, keepdims: bool = False):
        """Over one axis, several or all."""
        return reduced("ReduceMin", self, dim, keepdims)

    def maximum(self, other):
        """The larger of two."""
        return binary("Max", self, other)

    def minimum(self, other):
        """The smaller of two."""
        return binary("Min", self, other)

    def exp(self):
        """e to the power of each value."""
        return unary("Exp", self)

    def sqrt(self):
        """Square root."""
        return unary("Sqrt", self)

    def matmul(self, other):
        """Product of matrices."""
        return product(self, other)

    __matmul__ = matmul
