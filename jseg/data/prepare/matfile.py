"""Read matrices from MATLAB files of version 5 to 7, without SciPy: what COCO-Stuff 10k, SBD and Pascal Context need of them.

Format: MathWorks, "MAT-File Format" (level 5). Numbers, structs and cells are read; characters, sparse and other kinds are passed over.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Iterator

import numpy as np

from jseg.errors import DataError

__all__ = ["matrix", "read_mat"]

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}    # stored as
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}  # meant as
_MATRIX, _COMPRESSED, _CELL, _STRUCT = 14, 15, 1, 2


def matrix(data: bytes, *path: str) -> np.ndarray:
    """Return an (H, W) integer matrix of a MATLAB file.

    Args:
        data: the file's bytes.
        path: variable name, then names of struct fields.
    Raises:
        DataError: damaged file, another version, no such variable, or not a matrix of whole numbers.
    """
    name = f"<{len(data)} bytes>"
    try:
        value: Any = read_mat(data)
    except (struct.error, zlib.error, ValueError, KeyError, IndexError, RecursionError) as error:
        raise DataError(f"{name}: truncated or damaged MATLAB file ({error}); download it again") from error
    for step, key in enumerate(path):
        if not isinstance(value, dict) or key not in value:
            there = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{name}: the MATLAB file has no {'.'.join(path[:step + 1])!r} (there: {there}); does it belong to this dataset?")
        value = value[key]
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.size == 0:
        raise DataError(f"{name}: {'.'.join(path)} is not a matrix")
    if value.dtype.kind == "f":
        whole = value.astype(np.int64)
        if not np.array_equal(whole, value):
            raise DataError(f"{name}: {'.'.join(path)} holds numbers that are not whole")
        return whole
    return value


def read_mat(data: bytes) -> dict[str, Any]:
    """Map variable names to arrays, dicts (structs; lists of dicts where there are several) and lists (cells).

    Raises:
        ValueError, struct.error, zlib.error: the bytes are not a complete MATLAB file of version 5 to 7.
    """
    if len(data) < 128 or data[126:128] not in (b"IM", b"MI"):
        if data[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in data[:128]:
            raise ValueError("version 7.3 is an HDF5 file; save it as version 7")
        raise ValueError("no MATLAB header")
    order = "<" if data[126:128] == b"IM" else ">"
    variables = {}
    for kind, body in _elements(data[128:], order):
        if kind == _COMPRESSED:
            kind, body = next(_elements(zlib.decompress(body), order))
        if kind == _MATRIX:
            name, value = _matrix(body, order)
            variables[name] = value
    return variables


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yield (type, content) of the elements in a row."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # small element: size and type share a word, the content is the next four bytes
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        else:
            start = at + 8
            step = 8 + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes ends after {len(data) - start}")
        yield kind, data[start:start + size]
        at += step


def _matrix(body: bytes, order: str) -> tuple[str, Any]:
    if not body:  # an empty field
        return "", np.zeros((0, 0))
    parts = _elements(body, order)
    flags = struct.unpack_from(order + "I", next(parts)[1])[0]
    shape = np.frombuffer(next(parts)[1], order + "i4")
    name, count = next(parts)[1].decode("latin-1"), int(np.prod(shape))
    kind = flags & 0xFF
    if kind in _CLASSES:
        stored, content = next(parts)
        return name, np.frombuffer(content, order + _TYPES[stored]).astype(_CLASSES[kind]).reshape(shape, order="F")
    if kind == _CELL:
        return name, [_matrix(content, order)[1] for _, content in parts]
    if kind == _STRUCT:
        length = struct.unpack_from(order + "i", next(parts)[1])[0]
        names = next(parts)[1]
        fields = [names[i:i + length].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length)]
        values = [_matrix(content, order)[1] for _, content in parts]
        rows = [dict(zip(fields, values[i * len(fields):])) for i in range(count)]
        return name, rows[0] if count == 1 else rows
    return name, None
