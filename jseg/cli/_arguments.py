"""Words of the command line as values, for `add_argument(type=...)`: what does not fit is told by argparse."""

from __future__ import annotations

import argparse
import re
from typing import Callable

__all__ = ["at_least_zero", "batch_size", "checked_word", "height_width", "positive_count", "time_seconds"]


def at_least_zero(text: str) -> float:
    """A number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def positive_count(text: str) -> int:
    """A whole number above 0."""
    if not _is_positive(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def height_width(text: str) -> tuple[int, int]:
    """`512x1024`, or one number for both."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(map(_is_positive, parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r}; expected height x width in pixels, such as 512x1024, or one number for both"
        )
    return int(parts[0]), int(parts[-1])


def batch_size(text: str) -> int | str:
    """A whole number above 0, or the word auto."""
    return "auto" if text == "auto" else positive_count(text)


def time_seconds(text: str) -> float:
    """`90s`, `30m` or `2h`; a number alone counts seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)?", text)
    seconds = float(found[1]) * {None: 1, "s": 1, "m": 60, "min": 60, "h": 3600}[found[2]] if found else 0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time above 0; write 90s, 30m or 2h")
    return seconds


def checked_word(parse: Callable) -> Callable:
    """`parse`, whose ValueError argparse prints."""
    def checked(text: str):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
    return checked


def _is_positive(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0
