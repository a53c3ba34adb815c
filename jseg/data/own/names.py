"""The names of classes: from a list beside the masks, from the colours of a known dataset, or made up.

Lists that are read: one name per line (`classes.txt`, `labels.txt`), names with a colour in any order (`road 128 64
128`, `128 64 128 road`, `road,128,64,128`, CVAT's `labelmap.txt` with `road:128,64,128::`), and the `names:` of YOLO's
`data.yaml`. Lines that begin with # and a heading without numbers over lines with numbers are passed over.
"""

from __future__ import annotations

import os
import re
from typing import Iterable, NamedTuple, Sequence

from jseg.data.datasets.base import SegDataset
from jseg.errors import ConfigError, DataError
from jseg.registry import DATASETS
from jseg.text import printable, read_text
from jseg.yaml_reader import parse_yaml

__all__ = ["Names", "find_names", "known_palette", "read_names"]

FILES = ("classes.txt", "labels.txt", "names.txt", "class_names.txt", "label_colors.txt", "labelmap.txt",
         "class_dict.csv", "classes.csv", "data.yaml", "dataset.yaml")
_COLOUR = re.compile(r"(?<![\w.])(\d{1,3})[\s,;:]+(\d{1,3})[\s,;:]+(\d{1,3})(?![\w.])")
_LEAST = 3  # colours that must agree before a palette is believed to be a known dataset's


class Names(NamedTuple):
    """Names in the order of the classes, RGB colours where the list has them (else None), and where they come from."""

    names: list[str]
    colours: list[tuple[int, int, int]] | None
    source: str


def find_names(folders: Iterable[str]) -> Names | None:
    """The first list of names in these folders; None where there is none."""
    for folder in dict.fromkeys(folders):
        for file in FILES:
            path = os.path.join(folder or os.curdir, file)
            if os.path.isfile(path):
                found = read_names(path)
                if found.names:
                    return found
    return None


def read_names(given: str) -> Names:
    """Read a list of names.

    Args:
        given: a file, or the names themselves with commas between them.
    Raises:
        DataError: it cannot be read. ConfigError: a name stands twice, or there are none.
    """
    if not os.path.isfile(given):
        if "," not in given and (os.sep in given or given.endswith((".txt", ".csv", ".yaml"))):
            raise DataError(f"{given}: no such list of class names; give a file with a name per line, or the names "
                            "themselves: --classes road,car,tree")
        names, colours, source = [name.strip() for name in given.split(",")], None, "--classes"
    elif given.endswith((".yaml", ".yml")):
        names, colours, source = _of_yaml(given), None, given
    else:
        names, colours = _of_lines(read_text(given, what="list of class names").splitlines(), given)
        source = given
    names = [printable(name) for name in names]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not all(names):
        raise ConfigError(f"{given}: {f'names {twice!r} twice' if twice else 'has an empty name'}; every class needs "
                          "a name of its own")
    return Names(names, colours, source)


def known_palette(colours: Iterable[tuple[int, int, int]]) -> tuple[str, Names] | None:
    """The dataset whose published palette has these RGB colours: (its type, its names and colours); None where none
    fits.

    Black and white may be missing from it, as they often mark what has no class. At least three colours must agree.
    """
    wanted = set(colours) - {(0, 0, 0), (255, 255, 255)}
    best = None
    for kind in DATASETS.names() if len(wanted) >= _LEAST else ():
        entry = DATASETS.get(kind)
        facts = entry.METAINFO if isinstance(entry, type) and issubclass(entry, SegDataset) else {}
        palette = [tuple(colour) for colour in facts.get("palette", ())]
        if wanted <= set(palette) and len(set(palette)) == len(palette) and (best is None or len(palette) < best[0]):
            best = (len(palette), kind, Names(list(facts["classes"]), palette, f"the colours of {kind}"))
    return best[1:] if best else None


def _of_yaml(path: str) -> list[str]:
    content = parse_yaml(read_text(path, what="list of class names"), path)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list):
        return []
    return [str(name) for name in names]


def _of_lines(lines: Sequence[str], path: str) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    rows = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    coloured = [(_COLOUR.search(row), row) for row in rows]
    if sum(match is not None for match, _ in coloured) < max(1, len(rows) - 1):
        return rows, None
    names, colours = [], []
    for match, row in coloured:
        if match is None:
            continue  # a heading
        name = (row[:match.start()] + " " + row[match.end():]).strip(" \t,;:")
        colour = tuple(int(channel) for channel in match.groups())
        if max(colour) > 255:
            raise DataError(f"{path}: {row!r}: a colour beyond 255; expected `name red green blue` with 0 to 255")
        names.append(re.sub(r"\s+", " ", name) or f"class_{len(names) + 1}")
        colours.append(colour)
    return names, colours
