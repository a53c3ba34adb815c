"""Which keys of some configs differ."""

from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

from jseg.errors import ConfigError
from jseg.yaml_reader import parse_yaml

__all__ = ["differing_keys"]

LONGEST = 80  # characters of a value
APART = ("seed", "work_dir")  # what runs of one recipe differ in


def differing_keys(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Compare configs key by key.

    Args:
        texts: of the YAML files; one that cannot be read counts as empty.
    Returns:
        (dotted key, its value in each, "–" where it is not there), in the order of the files.
    """
    flat = [dict(_leaves(_parsed(text), "")) for text in texts]
    keys = dict.fromkeys(key for one in flat for key in one)
    return [(key, [_short(one[key]) if key in one else "–" for one in flat]) for key in keys
            if key not in APART and any(one.get(key, _parsed) != flat[0].get(key, _parsed) for one in flat)]


def _parsed(text: str) -> Any:
    try:
        return parse_yaml(text, "config.yaml")
    except ConfigError:
        return {}


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is no block; lists of blocks are blocks by number."""
    if isinstance(value, Mapping) and value:
        parts = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        parts = enumerate(value)
    else:
        yield place, value
        return
    for key, inner in parts:
        yield from _leaves(inner, f"{place}.{key}" if place else str(key))


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
