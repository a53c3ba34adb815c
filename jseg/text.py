"""Read text files: UTF-8 with or without a byte-order mark, from regular files only; anything else is one clear error."""

from __future__ import annotations

import os
import stat

from jseg.errors import DataError, JsegError

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
        handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer does not wait
    except (OSError, ValueError) as fault:
        raise error(f"{name}: cannot read the {what} ({getattr(fault, 'strerror', None) or fault})") from fault
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{name}: the {what} is no regular file; give the path of a text file")
        if most_bytes is not None and about.st_size > most_bytes:
            raise error(f"{name}: the {what} has {about.st_size} bytes, more than the {most_bytes} that are read; "
                        "is this the right file?")
        try:
            content = file.read()
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
