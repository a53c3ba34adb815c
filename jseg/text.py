"""Read text files: UTF-8 with or without a byte-order mark, from regular files only; anything else is one clear error."""

from __future__ import annotations

import os

from jseg.errors import DataError, JsegError
from jseg.files import read_regular

__all__ = ["read_text", "decode_text"]

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\0\0\xfe\xff": "UTF-32"}  # byte-order marks of other encodings


def read_text(path: str | os.PathLike, *, what: str = "file", error: type[JsegError] = DataError,
              most_bytes: int | None = None) -> str:
    """Read a whole text file; line ends are as in the file (`str.splitlines` takes them all).

    Args:
        path: a regular file; a pipe or a device would wait for ever or never end.
        what: what the file is, for messages ("list", "config").
        error: the class to raise.
        most_bytes: refuse longer files; None reads any length.
    Raises:
        `error`: no such file, no regular file, too long, unreadable, or not UTF-8 (the text says which and what to do).
    """
    name = os.fspath(path)
    try:
        content = read_regular(name, what=what, error=error, most_bytes=most_bytes)
    except OSError as fault:
        raise error(f"{name}: cannot read the {what} ({fault.strerror or fault})") from fault
    return decode_text(content, name, error=error)


def decode_text(content: bytes, name: str, *, error: type[JsegError] = DataError) -> str:
    """Decode bytes of a text file as UTF-8; a byte-order mark at its start is dropped.

    Args:
        content: the whole file.
        name: the file, for messages.
        error: the class to raise.
    Raises:
        `error`: the bytes are not UTF-8, or hold NUL, which no text does.
    """
    other = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    if other:
        raise error(f"{name}: not UTF-8 but {other}; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise error(f"{name}:{line}: not UTF-8 (byte 0x{content[fault.start]:02x}); save it as UTF-8") from fault
    at = text.find("\0")
    if at >= 0:
        raise error(f"{name}:{text.count(chr(10), 0, at) + 1}: a NUL byte: not a text file, or not UTF-8; save it as UTF-8")
    return text
