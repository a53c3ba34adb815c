"""Write PyTorch's checkpoint format as data: a zip archive of a pickle and the bytes of each tensor, without PyTorch.

Format: what `torch.save` of torch 1.6 and later writes (torch/serialization.py, BSD-3-Clause), as `convert.torch_file`
reads it: `archive/data.pkl` (protocol 2), `archive/data/<n>`, `archive/byteorder`, `archive/version`, all stored
uncompressed. The pickle holds dicts, lists, tuples, texts, numbers and tensors only, so that `torch.load` with
`weights_only=True` takes it.

Deviation: entries begin where they begin, torch aligns them to 64 bytes; dates are 1980-01-01, so that the same content
gives the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

__all__ = ["torch_archive"]

_STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage",
             "int32": "IntStorage", "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage",
             "bool": "BoolStorage"}
_DATE = 0x21  # 1980-01-01
_MOST_BYTES = (1 << 32) - (1 << 20)  # of an archive without zip64


def torch_archive(content: Mapping[str, Any]) -> Iterator[bytes]:
    """The pieces of a file that `torch.load` reads as `content`.

    Args:
        content: nested dicts (an OrderedDict stays one), lists, tuples, texts, numbers, None and NumPy arrays, which
            become tensors.
    Raises:
        ValueError: a value of another kind, or more than 4 GiB.
    """
    arrays: list[np.ndarray] = []
    pickled = b"\x80\x02" + _pickled(content, arrays) + b"."
    if sum(array.nbytes for array in arrays) > _MOST_BYTES:
        raise ValueError("more than 4 GiB of tensors")
    entries = [("data.pkl", pickled), ("byteorder", b"little")]
    entries += [(f"data/{i}", array) for i, array in enumerate(arrays)]
    return _zipped([(f"archive/{name}", value) for name, value in [*entries, ("version", b"3\n")]])


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """Opcodes that leave `value` on the stack."""
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(number)]) + number
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        text = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, np.ndarray):
        return _tensor(value, arrays)
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickled(item, arrays) for item in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(_pickled(item, arrays) for item in value) + b"e"
    if isinstance(value, Mapping):
        empty = b"ccollections\nOrderedDict\n)R" if isinstance(value, OrderedDict) else b"}"
        items = (_pickled(key, arrays) + _pickled(item, arrays) for key, item in value.items())
        return empty + b"(" + b"".join(items) + b"u"
    raise ValueError(f"{type(value).__name__} has no place in a checkpoint")


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    """torch._utils._rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)."""
    if str(array.dtype) not in _STORAGES:
        raise ValueError(f"a tensor of type {array.dtype} has no place in a checkpoint")
    strides = tuple(int(s) // array.dtype.itemsize for s in np.empty(array.shape, array.dtype).strides)
    storage = (b"(" + _pickled("storage", arrays) + b"ctorch\n" + _STORAGES[str(array.dtype)].encode() + b"\n"
               + b"".join(_pickled(part, arrays) for part in (str(len(arrays)), "cpu", int(array.size))) + b"tQ")
    arrays.append(array)
    rest = b"".join(_pickled(part, arrays) for part in (0, tuple(map(int, array.shape)), strides, False, OrderedDict()))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def _zipped(entries: list[tuple[str, Any]]) -> Iterator[bytes]:
    """A zip archive of stored entries."""
    directory, at = [], 0
    for name, value in entries:
        data = value if isinstance(value, bytes) else _little(value)
        size, path = len(data), name.encode()
        facts = struct.pack("<HHHHHIIIHH", 20, 1 << 11, 0, 0, _DATE, zlib.crc32(data), size, size, len(path), 0)
        yield b"PK\x03\x04" + facts + path
        yield data
        directory.append(b"PK\x01\x02" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, at) + path)
        at += 30 + len(path) + size
    listing = b"".join(directory)
    yield listing + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(directory), len(directory), len(listing), at, 0)


def _little(array: np.ndarray) -> bytes:
    array = np.asarray(array, order="C")
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
