"""Read matrices from MATLAB files of version 5 to 7, without SciPy:
what COCO-Stuff 10k, SBD and Pascal Context need of them.

Format: MathWorks, "MAT-File Format" (level 5). Numbers, structs and cells are read; characters, sparse and other kinds
are passed over.
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import Any, Iterator

import numpy as np

from jseg.errors import DataError

__all__ = ["matrix", "read_mat"]

MOST_BYTES = 128 << 20  # decompressed, and again as arrays; a label matrix of 4096 x 4096 doubles
MOST_DEPTH = 16         # structs and cells in each other
MOST_PARTS = 100_000    # matrices, fields and cells of a file

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}    # stored as
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # meant as
_MATRIX, _COMPRESSED, _CELL, _STRUCT = 14, 15, 1, 2


def matrix(data: bytes, *path: str) -> np.ndarray:
    """Return an (H, W) integer matrix of a MATLAB file.

    Args:
        data: the file's bytes.
        path: variable name, then names of struct fields.
    Raises:
        DataError: damaged file, another version, larger than the limits, no such variable, or not a matrix of whole
        numbers.
    """
    name = f"<{len(data)} bytes>"
    try:
        value: Any = read_mat(data)
    except (struct.error, zlib.error, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{name}: truncated or damaged MATLAB file ({error}); download it again") from error
    for step, key in enumerate(path):
        if not isinstance(value, dict) or key not in value:
            there = type(value).__name__
            if isinstance(value, dict):
                there = ", ".join(known if known.isprintable() else repr(known) for known in list(value)[:8])
            raise DataError(f"{name}: the MATLAB file has no {'.'.join(path[:step + 1])!r} (there: {there}); does it "
                            "belong to this dataset?")
        value = value[key]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.size == 0:
        raise DataError(f"{name}: {'.'.join(path)} is not a matrix")
    if value.dtype.kind == "f":
        if not np.isfinite(value).all() or np.abs(value).max() >= 2 ** 31 or (value != np.rint(value)).any():
            raise DataError(f"{name}: {'.'.join(path)} holds numbers that are not whole")
        return value.astype(np.int64)
    return value


def read_mat(data: bytes) -> dict[str, Any]:
    """Map variable names to arrays, dicts (structs; lists of dicts where there are several) and lists (cells).

    Raises:
        ValueError, struct.error, zlib.error, KeyError: the bytes are not a complete MATLAB file of version 5 to 7, or
        one beyond the limits.
    """
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:128]:
            raise ValueError("version 7.3 is an HDF5 file; save it as version 7")
        raise ValueError("no MATLAB header")
    return _File("<" if data[126:128] == b"IM" else ">").variables(memoryview(data)[128:])


class _File:
    """A file being read: its byte order, and what it may still cost."""

    def __init__(self, order: str):
        self.order, self._bytes_left, self._parts_left = order, 2 * MOST_BYTES, MOST_PARTS

    def variables(self, data: memoryview) -> dict[str, Any]:
        variables = {}
        for kind, body in self._elements(data):
            if kind == _COMPRESSED:
                stream = zlib.decompressobj()
                plain = stream.decompress(body, MOST_BYTES + 1)
                if len(plain) > MOST_BYTES:
                    raise ValueError(f"a variable of more than {MOST_BYTES >> 20} MB")
                if not stream.eof:
                    raise ValueError("a compressed variable is cut off")
                self._charge(len(plain))
                kind, body = self._next(self._elements(memoryview(plain)))
            if kind == _MATRIX:
                name, value = self._matrix(body, 0)
                variables[name] = value
        return variables

    def _charge(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"more than {MOST_BYTES >> 20} MB of values")

    def _elements(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Yield (type, content) of the elements in a row."""
        at = 0
        while at + 8 <= len(data):
            kind, size = struct.unpack_from(self.order + "II", data, at)
            if kind >> 16:  # small element: size and type share a word, the content is the next four bytes
                kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
                if size > 4:
                    raise ValueError(f"a small element of {size} bytes")
            else:
                start = at + 8
                step = 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
            if start + size > len(data):
                raise ValueError(f"an element of {size} bytes ends after {len(data) - start}")
            yield kind, data[start:start + size]
            at += step

    def _next(self, parts: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
        part = next(parts, None)
        if part is None:
            raise ValueError("a matrix lacks its parts")
        return part

    def _matrix(self, body: memoryview, depth: int) -> tuple[str, Any]:
        self._parts_left -= 1
        if depth > MOST_DEPTH or self._parts_left < 0:
            raise ValueError(f"more than {MOST_PARTS} parts, or {MOST_DEPTH} structs in each other")
        if not body:  # an empty field
            return "", np.zeros((0, 0))
        parts = self._elements(body)
        kind = struct.unpack_from(self.order + "I", self._next(parts)[1])[0] & 0xFF
        shape = np.frombuffer(self._next(parts)[1], self.order + "i4").tolist()
        name = bytes(self._next(parts)[1]).decode("latin-1")
        if not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise ValueError(f"a matrix with the dimensions {shape[:8]}")
        if kind in _CLASSES:
            stored, content = self._next(parts)
            return name, self._numbers(content, _TYPES[stored], _CLASSES[kind], shape)
        if kind == _CELL:
            return name, [self._matrix(content, depth + 1)[1] for _, content in parts]
        if kind == _STRUCT:
            return name, self._struct(parts, math.prod(shape), depth)
        return name, None

    def _numbers(self, content: memoryview, stored: str, meant: str, shape: list[int]) -> np.ndarray:
        values = np.frombuffer(content, self.order + stored)
        if values.size != math.prod(shape):
            raise ValueError(f"{values.size} numbers for the dimensions {shape[:8]}")
        self._charge(values.size * np.dtype(meant).itemsize)
        return values.astype(meant).reshape(shape, order="F")

    def _struct(self, parts: Iterator[tuple[int, memoryview]], count: int, depth: int) -> dict | list[dict]:
        length = struct.unpack_from(self.order + "i", self._next(parts)[1])[0]
        names = bytes(self._next(parts)[1])
        if not 1 <= length <= 1024:
            raise ValueError(f"field names of {length} characters")
        fields = [names[i:i + length].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length)]
        values = [self._matrix(content, depth + 1)[1] for _, content in parts]
        if len(values) != count * len(fields):
            raise ValueError(f"{len(values)} values for {count} structs of {len(fields)} fields")
        if not fields:
            return {}
        rows = [dict(zip(fields, values[i:i + len(fields)])) for i in range(0, len(values), len(fields))]
        return rows[0] if count == 1 else rows
