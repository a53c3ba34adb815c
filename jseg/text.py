"""Text files read as UTF-8, with or without a byte-order mark, from regular files only; and foreign text made fit to
print, because a terminal obeys escape sequences, also those in a class name."""

from __future__ import annotations

import os
import re
import textwrap
from typing import Any

from jseg.errors import DataError, JsegError
from jseg.files import read_regular

__all__ = ["cleaned_text", "decode_text", "fill_prose", "printable", "read_text"]

# byte-order marks of other encodings
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\0\0\xfe\xff": "UTF-32"}


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
        raise error(f"{name}:{text.count(chr(10), 0, at) + 1}: a NUL byte: not a text file, or not UTF-8; save it as "
                    f"UTF-8")
    return text


def printable(text: Any, *, keep: str = "") -> str:
    """Return `str(text)` with every character that moves the cursor, colours, rings, reverses or breaks the line
    written out.

    Letters of all scripts stay; control characters, line breaks, marks of text direction and halves of surrogate pairs
    become `\\x1b`, `\\n`, `\\u202e`.

    Args:
        text: anything that has a text.
        keep: characters to leave alone, such as line breaks.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _written_out(char) for char in text)


def _written_out(char: str) -> str:
    return ascii(char)[1:-1]


def cleaned_text(value: Any, *, keep: str = "", levels: int = 100) -> Any:
    """A copy of plain JSON data whose texts, keys included, are `printable`.

    Raises:
        ValueError: blocks and lists nested deeper than `levels`.
    """
    if isinstance(value, str):
        return printable(value, keep=keep)
    if isinstance(value, (dict, list)) and levels == 0:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {cleaned_text(key, keep=keep): cleaned_text(item, keep=keep, levels=levels - 1) for key,
                item in value.items()}
    return [cleaned_text(item, keep=keep, levels=levels - 1) for item in value] if isinstance(value, list) else value


def fill_prose(page: str, width: int = 120) -> str:
    """Break the prose of a Markdown page into lines of at most `width` columns.

    Each line that is too long is a paragraph or list item of its own; tables, headings, fenced and indented lines
    (commands) stay as they are.
    """
    lines, fenced = [], False
    for line in page.split("\n"):
        fenced ^= line.startswith("```")
        if fenced or len(line) <= width or line.startswith(("|", "#", "    ", "```", "![")):
            lines.append(line)
            continue
        hang = " " * len(re.match(r"\s*([-*] |\d+\. )?", line).group())
        lines += textwrap.wrap(line, width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)
