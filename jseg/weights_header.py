"""The header of a `.safetensors` file, read with care: what another tool or a damaged disk may have put there.

Format: 8 bytes length (little-endian), a JSON object of that length, then the values. The object maps a tensor's name
to `{dtype, shape, data_offsets: [first, end]}`, counted from the end of the header, and may hold texts under
`__metadata__`. The safetensors package checks most of this too; here every fault is told in words, and none costs
memory beyond the header.
"""

from __future__ import annotations

import json
import math
import os
import struct
from typing import Any, BinaryIO, NamedTuple

from jseg.errors import CheckpointError
from jseg.files import regular_file
from jseg.text import printable

__all__ = ["Entry", "Header", "read_header", "foreign_kind", "MAX_HEADER_BYTES", "ITEM_BYTES"]

MAX_HEADER_BYTES = 16 << 20  # names, shapes and the config; SegNeXt-L's has 0.1 MB
MAX_DIMENSIONS = 32          # NumPy's own bound
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4,
              "U16": 2, "U8": 1, "BOOL": 1}
_CONVERT = "translate it once with 'jseg convert'"
_FOREIGN = ((b"PK\x03\x04", f"a zip archive, as PyTorch's .pth files are; {_CONVERT}"),
            (b"\x80\x02", f"a pickle; {_CONVERT}"), (b"\x80\x04", f"a pickle; {_CONVERT}"),
            (b"version https://git-lfs", "a Git LFS pointer, not the file; fetch that with 'git lfs pull'"),
            (b"\x89HDF", "an HDF5 file"), (b"\x1f\x8b", "a gzip archive; unpack it first"))


class Entry(NamedTuple):
    """Where a tensor stands: its type in the format's spelling, its shape, its bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    end: int


class Header(NamedTuple):
    """Entries by name in the file's order, and the metadata's texts."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def foreign_kind(start: bytes) -> str:
    """What a file is that begins with `start`, in words; empty where nothing is recognised."""
    words = (b"<html", b"<!doctype", b"<head", b"<?xml")
    if start.lstrip()[:1] == b"<" and any(word in start.lower() for word in words):
        return "an HTML page; its download failed"
    return next((words for mark, words in _FOREIGN if start.startswith(mark)), "")


def read_header(path: str | os.PathLike) -> Header:
    """Read and check the header of a `.safetensors` file.

    Raises:
        CheckpointError: missing, no regular file, another format, or a header that contradicts itself or the file.
    """
    try:
        size = regular_file(path, what=".safetensors checkpoint", error=CheckpointError).st_size
        with open(path, "rb") as file:
            return _checked(file, size)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"{printable(os.fspath(path))}: not a whole .safetensors file: {printable(what)[:300]}; "
                              f"copy or download it again, or use an older checkpoint") from error


def _checked(file: BinaryIO, size: int) -> Header:
    """Raises: ValueError with what is wrong."""
    start = file.read(512)
    if size == 0:
        raise ValueError("it is empty")
    length = struct.unpack("<Q", start[:8])[0] if size >= 8 else 0
    if length < 2 or 8 + length > size:
        kind = foreign_kind(start)
        raise ValueError(f"it is {kind}" if kind else f"truncated, damaged or of another format: its header should "
                                                      f"have {length} bytes, the "
                         f"file has {size}")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length} bytes, at most {MAX_HEADER_BYTES} are read")
    file.seek(8)
    try:
        content = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise ValueError("its header is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"its header is a {type(content).__name__}, not names with tensors")
    metadata = content.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its __metadata__ are not texts by name")
    entries = {name: _entry(name, value, 8 + length) for name, value in content.items()}
    _without_overlaps(entries, 8 + length, size)
    return Header(entries, metadata)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:100]!r} stands twice in its header")
        found[name] = value
    return found


def _entry(name: str, value: Any, start: int) -> Entry:
    shown = repr(name[:100])
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise ValueError(f"tensor {shown} has no dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {shown} has the type {str(dtype)[:40]!r}; read are {', '.join(ITEM_BYTES)}: save it "
                         f"as one of them")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(n) for n in shape):
        raise ValueError(f"tensor {shown} has the shape {str(shape)[:80]}; accepted are at most {MAX_DIMENSIONS} "
                         f"whole numbers, 0 or more")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise ValueError(f"tensor {shown} has the data_offsets {str(offsets)[:80]}; accepted are two whole numbers, 0 "
                         f"or more")
    wanted = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != wanted:
        raise ValueError(f"tensor {shown} of type {dtype} and shape {str(shape)[:80]} needs {str(wanted)[:40]} bytes, "
                         f"its data_offsets {offsets} hold {offsets[1] - offsets[0]}")
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _without_overlaps(entries: dict[str, Entry], start: int, size: int) -> None:
    at, before = start, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].first, item[1].end)):
        if entry.first != at:
            kind = (f"overlaps {before[:100]!r}" if entry.first < at
                    else f"leaves {entry.first - at} bytes before it unused")
            raise ValueError(f"tensor {name[:100]!r} {kind}")
        at, before = entry.end, name
    if at != size:
        raise ValueError(f"truncated or longer than written: its tensors end at byte {at}, the file has {size}")
