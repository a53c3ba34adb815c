"""The writer of `jseg.weights_file` for converters: what cannot be written is a ConvertError."""

from __future__ import annotations

import pathlib
from typing import Any, Callable, Iterable, Mapping

import numpy as np

from jseg import weights_file
from jseg.errors import ConvertError, WriteError
from jseg.files import write_atomically

__all__ = ["write_weights_file", "write_whole"]


def write_weights_file(path: pathlib.Path, names: Iterable[str], read: Callable[[str], np.ndarray],
                       meta: Mapping[str, Any]) -> str:
    """See `jseg.weights_file.write_weights_file`.

    Raises:
        ConvertError: it cannot be written.
    """
    try:
        return weights_file.write_weights_file(path, names, read, meta)
    except WriteError as error:
        raise ConvertError(str(error)) from error


def write_whole(path: pathlib.Path, pieces: Iterable) -> None:
    """Write a file from pieces of bytes, so that its name leads to all of it or to what was there before.

    Raises:
        ConvertError: it cannot be written.
    """
    try:
        write_atomically(path, pieces)
    except WriteError as error:
        raise ConvertError(str(error)) from error
