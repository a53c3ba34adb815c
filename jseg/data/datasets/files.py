"""Finding files: recursive listings, list files, and messages that say what is there instead."""

from __future__ import annotations

import os
import re
from typing import Container, Sequence

from jseg.errors import DataError
from jseg.registry import nearest
from jseg.text import read_text

__all__ = ["IMAGE_SUFFIXES", "chosen_pictures", "describe_missing", "list_files", "listed_hint", "read_list"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".JPG", ".JPEG", ".PNG", ".BMP",
                  ".TIF", ".TIFF")


def chosen_pictures(found: list, indices: int | Sequence[int] | None, name: str) -> list:
    """Those of the pictures found that the `indices` of a dataset choose: the first n, some positions, or None for all.

    Args:
        name: of the dataset, for messages.
    Raises:
        DataError: a position outside.
    """
    if indices is None:
        return found
    if isinstance(indices, int):
        return found[:indices]
    beyond = [i for i in indices if not -len(found) <= i < len(found)]
    if beyond:
        raise DataError(f"{name}: indices: {beyond[0]} is outside the {len(found)} pictures found")
    return [found[i] for i in indices]


def list_files(folder: str, suffix: str | tuple[str, ...]) -> list[str]:
    """List files under `folder` whose names end with `suffix`, as paths relative to it with "/", sorted;
    hidden ones left out.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(place, folder)
        prefix = "" if inside == os.curdir else inside.replace(os.sep, "/") + "/"
        found += [prefix + name for name in files if name.endswith(suffix) and not name.startswith(".")]
    return sorted(found)


def read_list(path: str) -> list:
    """Read a list file: all lines one name -> list of str, all lines two paths -> list of (picture, mask).

    Two paths are parted by a tab, a comma or spaces; a line with spaces counts as two paths when it has exactly two
    parts and both have a file suffix. Blank lines are skipped; a byte-order mark and Windows line ends do not matter.

    Raises:
        DataError: not UTF-8, no regular file, or lines of both forms.
    """
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", read_text(path, what="list")) if line.strip()]
    parsed = [_parts(line) for line in lines]
    kinds = {isinstance(entry, tuple) for entry in parsed}
    if len(kinds) > 1:
        odd = next(line for line, entry in zip(lines, parsed)
                   if isinstance(entry, tuple) != isinstance(parsed[0], tuple))
        raise DataError(f"{path}: some lines hold one name and some two paths, for example {lines[0]!r} and {odd!r}; "
                        f"use one form, and "
                        "part two paths with a tab where names hold spaces")
    return parsed


def _parts(line: str) -> str | tuple[str, str]:
    for mark in ("\t", ",", None):
        parts = [part.strip() for part in line.split(mark)]
        if len(parts) == 2 and all(os.path.splitext(part)[1] for part in parts):
            return tuple(parts)
    return line


def listed_hint(names: Sequence[str], there: Container[str] = ()) -> str:
    """What about the spelling of listed names may be why they are not found, as "; ..."; "" where nothing looks odd.

    Args:
        names: as listed.
        there: the names of the files that exist.
    """
    found = ["a backslash parts no folders here: write /"] if any("\\" in name for name in names) else []
    if any(name.startswith("/") for name in names):
        found.append("a leading / means the top of the disk: take it off")
    found += [f"a name is not printable: {name!r}" for name in names if not name.isprintable()][:1]
    if any(name.encode("utf-8", "replace").decode("gbk", "replace") in there for name in names if not name.isascii()):
        found.append("the list is in GBK: save it as UTF-8")
    return "".join(f"; {hint}" for hint in found)


def describe_missing(what: str, path: str, empty: bool = False) -> str:
    """Say that `path` is missing (or empty of what was wanted),
    what exists at its nearest existing parent, and the closest name.
    """
    if empty:
        return f"{what} in {path} ({_contents(path)}); check data_root, data_prefix and the suffix"
    parent, missing = os.path.split(os.path.normpath(path))
    while parent and not os.path.isdir(parent):
        parent, missing = os.path.split(parent)
    parent = parent or os.curdir
    names = os.listdir(parent)
    return (f"{what}: {path} does not exist: {missing!r} is not in {os.path.abspath(parent)} ({_contents(parent)})"
            f"{nearest(missing, names)}")


def _contents(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"holds {', '.join(names[:8])}{more}" if names else "which is empty"
