"""Weights files: `.safetensors` whose bytes depend on their content alone, with a check over every bit.

The safetensors package stores metadata in an order that changes from run to run. Here names are sorted, so the same
tensors and metadata always give the same file, and a conversion can be compared by checksum. Any tool of that ecosystem
opens it.

Format: 8 bytes length (little-endian), a JSON header padded with spaces to a multiple of 8, then the values in the
header's order:
wide types first, so that every tensor lies at a multiple of its item size, then by name. Metadata hold JSON texts, and

    format         "jseg 2"; "jseg" in files of older versions, which lack metadata_sha256
    sha256         over names, types, shapes and values of the tensors
    metadata_sha256  over all other metadata

Files of other tools are read too, bfloat16 as float32. Values that are not finite are refused wherever weights are
read, unless somebody asks for them. NumPy only: `convert/` and `engine/checkpoint.py` share it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jseg.errors import CheckpointError
from jseg.files import write_atomically
from jseg.text import printable
from jseg.weights_header import Entry, read_header

__all__ = ["FORMAT", "content_hash", "write_weights_file", "read_tensor", "read_weights_file", "nonfinite_text"]

FORMAT = "jseg 2"
_TYPES = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u8": "U64",
          "u4": "U32", "u2": "U16", "u1": "U8", "b1": "BOOL"}
_KINDS = {name: kind for kind, name in _TYPES.items()}


def content_hash(state: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and values of arrays, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        _count(digest, name, state[name])
    return digest.hexdigest()


def _count(digest, name: str, array: np.ndarray) -> None:
    array = np.asarray(array, order="C")
    digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
    digest.update(array.data if array.size else b"")


def write_weights_file(path: str | os.PathLike, names: Iterable[str], read: Callable[[str], np.ndarray],
                       meta: Mapping[str, Any]) -> str:
    """Write tensors and metadata; the name `path` leads to the whole new file or to what was there before.

    Args:
        path: the file; its folder is made.
        names: of the tensors.
        read: gives a tensor by name, the same at every call: it is called twice for each, so that one is in memory at a
            time.
        meta: JSON-able values by name, stored as JSON text.
    Returns:
        the content's sha256, which is stored too.
    Raises:
        ValueError: a tensor's type has no place in the format. WriteError: the file cannot be written.
    """
    header, places, content = {}, [], hashlib.sha256()
    for name in sorted(names):
        array = np.asarray(read(name))
        if array.dtype.str[1:] not in _TYPES:
            raise ValueError(
                f"{path}: tensor {name} is {array.dtype}; a weights file holds {', '.join(sorted(_TYPES))}")
        places.append((-array.dtype.itemsize, name, _TYPES[array.dtype.str[1:]], list(array.shape), array.nbytes))
        _count(content, name, array)
    at, digest = 0, content.hexdigest()
    for _, name, kind, shape, length in sorted(places):
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + length]}
        at += length
    texts = {**{key: json.dumps(value) for key, value in meta.items()}, "format": FORMAT, "sha256": digest}
    texts["metadata_sha256"] = _metadata_hash(texts)
    head = json.dumps({"__metadata__": dict(sorted(texts.items())), **header}, separators=(",", ":"),
                      ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    write_atomically(path, itertools.chain([struct.pack("<Q", len(head)) + head],
                                           (_little(read(name)) for name in header)))
    return digest


def _metadata_hash(texts: Mapping[str, str]) -> str:
    rest = {key: text for key, text in texts.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _little(array: np.ndarray) -> memoryview | bytes:
    array = np.asarray(array, order="C")
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return array.data if array.size else b""


def read_weights_file(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a .safetensors file: (name -> array as stored, metadata as texts). Files of other tools load unchecked.

    Raises:
        CheckpointError: truncated, damaged (one bit is enough, in files of jseg), or not a .safetensors file.
    """
    path = Path(path)
    header = read_header(path)
    try:
        with safe_open(path, framework="numpy") as file:
            state = {name: _widened(path, entry) if entry.dtype == "BF16" else file.get_tensor(name)
                     for name, entry in header.entries.items()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a .safetensors file ({printable(error)}); its size "
                              f"is {path.stat().st_size} bytes: copy or download it again, or use an older "
                              "checkpoint") from error
    metadata = header.metadata
    what = _damage(state, metadata)
    if what:
        raise CheckpointError(f"{path}: {what}, so bits have changed since it was written; copy or download it again, "
                              "or use an older checkpoint")
    return state, metadata


def read_tensor(path: str | os.PathLike, entry: Entry) -> np.ndarray:
    """One tensor of a file whose header `read_header` has checked, bfloat16 as float32.

    Raises:
        CheckpointError: the file has become shorter, or cannot be read.
    """
    try:
        if entry.dtype == "BF16":
            return _widened(Path(path), entry)
        kind = np.dtype("<" + _KINDS[entry.dtype])
        count = (entry.end - entry.first) // kind.itemsize
        return np.fromfile(path, kind, count, offset=entry.first).reshape(entry.shape)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read to its end ({printable(error)}); copy or download it "
                              "again") from error


def _widened(path: Path, entry: Entry) -> np.ndarray:
    """A bfloat16 tensor as float32: NumPy has no type for it, and its bits are the upper half of a float32's."""
    with open(path, "rb") as file:
        file.seek(entry.first)
        halves = np.frombuffer(file.read(entry.end - entry.first), "<u2")
    return (halves.astype("<u4") << np.uint32(16)).view("<f4").reshape(entry.shape)


def nonfinite_text(state: Mapping[str, np.ndarray]) -> str:
    """Name the tensors that hold NaN or inf, with counts; empty when every value is finite.

    Whole numbers are passed over. SegNeXt-L's 49 million values take some 25 ms.
    """
    bad = [name for name, array in state.items() if _holds_nonfinite(array)]
    shown = []
    for name in bad[:3]:
        array = state[name]
        nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        shown.append(f"{printable(name)} ({nan} NaN and {inf} inf of {array.size} values)")
    return f"{len(bad)} of {len(state)} tensors: {', '.join(shown)}{', ...' if len(bad) > 3 else ''}" if bad else ""


def _holds_nonfinite(array: np.ndarray) -> bool:
    if array.dtype.kind not in "fc":
        return False
    if array.dtype == np.float16:  # NumPy looks at each half by software; inf and NaN have all bits of the exponent
        bits = np.ascontiguousarray(array).reshape(-1).view(np.uint16) & np.uint16(0x7FFF)
        return bool(bits.size) and int(bits.max()) >= 0x7C00
    return not np.isfinite(array).all()


def _damage(state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """What contradicts the hashes that a file holds; empty when nothing does."""
    if "metadata_sha256" in metadata and metadata["metadata_sha256"] != _metadata_hash(metadata):
        return "its metadata differ from the sha256 stored with them"
    if metadata.get("format") == FORMAT and not {"sha256", "metadata_sha256"} <= set(metadata):
        return "it lacks one of the sha256 that it was written with"
    if "sha256" in metadata and metadata["sha256"] != content_hash(state):
        return "the weights differ from the sha256 stored with them"
    return ""
