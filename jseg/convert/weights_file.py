"""Write a `.safetensors` file whose bytes depend on its content alone.

The safetensors package stores metadata in an order that changes from run to run. Here names are sorted, so the same weights
and metadata always give the same file, and a conversion can be checked with a checksum. Tensors go to the disk one by one.

Format: 8 bytes length (little-endian), a JSON header padded with spaces to a multiple of 8, then the values in the header's order.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import pathlib
import struct
from typing import Any, Callable, Iterable, Mapping

import numpy as np

from jseg.errors import ConvertError

__all__ = ["write_weights_file", "write_whole"]


def write_weights_file(path: pathlib.Path, shapes: Mapping[str, tuple], read: Callable[[str], np.ndarray], meta: Mapping[str, Any]) -> str:
    """Write float32 tensors and metadata; the name `path` leads to the whole new file or to what was there before.

    Args:
        path: the file; its folder is made.
        shapes: shape of each tensor by name.
        read: gives a tensor, float32 and contiguous, by name; called twice for each.
        meta: JSON-able values by name, stored as JSON text.
    Returns:
        sha256 over names, types, shapes and values, which is stored too and checked by `engine.checkpoint.load_weights`.
    Raises:
        ConvertError: it cannot be written.
    """
    digest, header, at = hashlib.sha256(), {}, 0
    for name in sorted(shapes):
        array = read(name)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    texts = {**{key: json.dumps(value, sort_keys=False) for key, value in meta.items()}, "format": "jseg", "sha256": digest.hexdigest()}
    head = json.dumps({"__metadata__": dict(sorted(texts.items())), **header}, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    chunks = (read(name).data if header[name]["data_offsets"][0] < header[name]["data_offsets"][1] else b"" for name in header)
    write_whole(path, itertools.chain([struct.pack("<Q", len(head)) + head], chunks))
    return digest.hexdigest()


def write_whole(path: pathlib.Path, chunks: Iterable) -> None:
    """Write a file from pieces of bytes, so that its name leads to all of it or to what was there before.

    Raises:
        ConvertError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(path)
        draft = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with open(draft, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be written ({error.strerror}); free disk space or choose another place. "
                           "What was there before is untouched") from error


def _drop_leftovers(path: pathlib.Path) -> None:
    """Remove drafts of this file whose writers were killed."""
    for draft in path.parent.glob(f".{path.name}.tmp-*"):
        number = draft.name.rpartition("-")[2]
        try:
            os.kill(int(number), 0)
        except (ValueError, PermissionError):
            continue
        except ProcessLookupError:
            draft.unlink(missing_ok=True)
