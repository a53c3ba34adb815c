"""What the translators of foreign configs share: a clean copy of the source,
and the list of what has no counterpart.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Iterable, Mapping

from jseg.errors import ConvertError

__all__ = ["Notes", "cleaned", "brief", "as_list", "as_pair"]

MAX_VALUES = 500_000
MAX_NESTING = 60


@dataclasses.dataclass
class Notes:
    """Lines `place: what was left out, changed or must be known`, in the order they were found.

    Args:
        source: the config's file or description.
        style: "mmseg 1.x", "mmseg 0.x" or "original JSeg".
        edges: the words of the source's GenerateEdge, which is no transform here but a head's affair; None where it has
            none.
    """

    source: str
    style: str
    lines: list[str] = dataclasses.field(default_factory=list)
    edges: dict | None = None

    def add(self, where: str, text: str) -> None:
        """Enter a line once."""
        line = "".join(letter if letter.isprintable() else "?" for letter in f"{where}: {text}"[:500])
        if line not in self.lines:
            self.lines.append(line)

    def block(self, value: Any, where: str) -> dict:
        """A block of the source; None counts as an empty one.

        Raises:
            ConvertError: something else stands there.
        """
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConvertError(f"{self.source}: {where}: expected a block of settings, got {brief(value)}")
        return value

    def take(self, block: Mapping, known: Iterable[str], where: str,
             neutral: Mapping[str, tuple] | None = None) -> dict:
        """The known keys of a block in the order of `known`, its type first; every other key becomes a line.

        Args:
            neutral: key -> values that mean nothing special, dropped without a line; an empty tuple stands for every
                value.
        """
        known = tuple(known)
        kept = {"type": block["type"]} if "type" in block else {}
        kept.update({key: block[key] for key in known if key in block and key != "type"})
        for key in sorted(set(block) - set(kept), key=str):
            values = (neutral or {}).get(key)
            if values is None or (values != () and not any(_same(block[key], value) for value in values)):
                self.add(f"{where}.{key}", f"{brief(block[key])} has no counterpart and was left out")
        return kept


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def brief(value: Any, length: int = 70) -> str:
    """A value in at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[:length - 3] + "..."


def as_list(value: Any) -> list:
    """None -> [], a list as it is, anything else -> [it]."""
    return [] if value is None else value if isinstance(value, list) else [value]


def as_pair(value: Any) -> Any:
    """A whole number -> [it, it]; anything else as it is."""
    return [value, value] if isinstance(value, int) and not isinstance(value, bool) else value


def cleaned(cfg: Any, source: str) -> dict:
    """A copy of a config in plain dicts and lists: no tuples, no `_scope_`,
    `type` without its package ("mmseg.MSCAN" -> "MSCAN").

    Raises:
        ConvertError: not a dict, something that is no setting, or a structure larger or deeper than any config.
    """
    if not isinstance(cfg, Mapping):
        raise ConvertError(f"{source}: expected a config's settings, got {type(cfg).__name__}")
    left = [MAX_VALUES]

    def copy(value: Any, where: str, depth: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or depth > MAX_NESTING:
            raise ConvertError(f"{source}: {where[:80]}: more than {MAX_VALUES} values or {MAX_NESTING} levels; this "
                               "is no config")
        if isinstance(value, Mapping):
            result = {}
            for key, item in value.items():
                key = key if isinstance(key, (int, str)) else str(key)
                if key not in ("_scope_", "_delete_", "_cover_"):
                    result[key] = copy(item, f"{where}.{key}" if where else str(key), depth + 1)
            if isinstance(result.get("type"), str):
                result["type"] = result["type"].rpartition(".")[2]
            return result
        if isinstance(value, (list, tuple)):
            return [copy(item, f"{where}.{i}", depth + 1) for i, item in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return [copy(item, where, depth + 1) for item in sorted(value, key=repr)]
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        raise ConvertError(f"{source}: {where}: {type(value).__name__} is no setting; expected text, numbers, lists "
                           "and blocks")

    return copy(cfg, "", 0)
