"""NumPy arrays, scalars and dtypes as they stand in pickles, built without calling what the pickle names.

Written from the `__reduce__` of NumPy 1.26's and 2.x's arrays (numpy/_core/src/multiarray/methods.c, BSD-3-Clause):
`_reconstruct` and a state tuple up to pickle protocol 4, `_frombuffer` from protocol 5 on. Only plain numbers and text
are taken; object and record arrays are refused, for what they hold is arbitrary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jseg.convert.pickle_data import Global, brief

__all__ = ["ArrayBeingRead", "DtypeBeingRead", "NUMPY_HANDLERS"]


class DtypeBeingRead:
    """`numpy.dtype(text, align, copy)`, whose byte order arrives later; `dtype` holds it."""

    __slots__ = ("dtype",)

    def __init__(self, args: tuple):
        code = args[0].name if args and isinstance(args[0], Global) else args[0] if args else None
        if code == "bool_":
            code = "bool"
        dtype = (np.dtype(code) if isinstance(code, str) and len(code) < 16 and "," not in code
                 and "(" not in code else None)
        if dtype is None or dtype.kind not in "biufSU" or not 1 <= dtype.itemsize <= 4096:
            raise ValueError(f"a NumPy array of type {brief(code)}; only plain numbers and text are read")
        self.dtype = dtype

    def set_pickle_state(self, state: Any) -> None:
        """(version, byte order, ...): only the order matters."""
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class ArrayBeingRead:
    """An array before and after its state arrives; `array` holds it, read-only."""

    __slots__ = ("array",)

    def __init__(self, args: tuple = ()):
        self.array = np.zeros(0)

    def set_pickle_state(self, state: Any) -> None:
        """(version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran is True else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """A view of `data`. Raises: ValueError when the sizes do not agree."""
    if isinstance(data, str):
        data = data.encode("latin-1")
    shape = (shape,) if isinstance(shape, int) else shape
    if not isinstance(dtype, DtypeBeingRead) or not isinstance(data, bytes):
        raise ValueError("a NumPy array of objects or with unreadable state; only plain numbers and text are read")
    if not isinstance(shape, tuple) or len(shape) > 32 or any(not isinstance(n, int) or not 0 <= n < 1 << 62
                                                              for n in shape):
        raise ValueError(f"a NumPy array of shape {brief(shape)}")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise ValueError(f"a NumPy array of shape {brief(shape)} and type {dtype.dtype} has {len(data)} bytes")
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order) if data else np.zeros(shape, dtype.dtype)


def _frombuffer(args: tuple) -> ArrayBeingRead:
    """Protocol 5: (bytes, dtype, shape, order)."""
    result = ArrayBeingRead()
    result.array = _array(args[0], args[1], args[2], "F" if args[3] == "F" else "C")
    return result


def _scalar(args: tuple) -> Any:
    """(dtype, bytes) as a Python number or text."""
    data = args[1] if len(args) > 1 else b""
    return _array(data, args[0], (), "C").item()


def _encode(args: tuple) -> bytes:
    """Protocol 2 writes bytes as text in latin-1."""
    if len(args) > 1 and args[1] in ("latin1", "latin-1") and isinstance(args[0], str):
        return args[0].encode("latin-1")
    raise ValueError("bytes in an unknown encoding")


def _bytearray(args: tuple) -> bytes:
    if not args:
        return b""
    return _encode(args) if isinstance(args[0], str) else _only_bytes(args[0])


def _only_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"bytes made from {brief(value)}")
    return value


NUMPY_HANDLERS = {
    "numpy.dtype": DtypeBeingRead, "_codecs.encode": _encode,
    **{f"{module}.{name}": function for module in ("builtins", "__builtin__")
       for name, function in (("bytearray", _bytearray), ("bytes", _bytearray))},
    **{f"numpy.{core}.multiarray.{name}": function for core in ("core", "_core")
       for name, function in (("_reconstruct", ArrayBeingRead), ("scalar", _scalar))},
    **{f"numpy.{core}.numeric._frombuffer": _frombuffer for core in ("core", "_core")},
}
