"""Text that came from a file, made fit to print: a terminal obeys escape sequences, also those in a class name."""

from __future__ import annotations

from typing import Any

__all__ = ["printable", "cleaned_text"]


def printable(text: Any, *, keep: str = "") -> str:
    """Return `str(text)` with every character that moves the cursor, colours, rings, reverses or breaks the line written out.

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


def cleaned_text(value: Any, *, keep: str = "") -> Any:
    """A copy of plain JSON data whose texts, keys included, are `printable`."""
    if isinstance(value, str):
        return printable(value, keep=keep)
    if isinstance(value, dict):
        return {cleaned_text(key, keep=keep): cleaned_text(item, keep=keep) for key, item in value.items()}
    return [cleaned_text(item, keep=keep) for item in value] if isinstance(value, list) else value
