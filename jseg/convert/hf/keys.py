"""Tables of keys: what each key of a file is called in jseg, and what it is made of there.

A pattern is a key with marks: `{i}` and `{j}` are numbers, `{p}` is weight or bias, `{s}` those and the running
statistics, `[query|key|value]` are pieces that are joined in this order.
"""

from __future__ import annotations

import re
from typing import Callable, Iterable, NamedTuple

import numpy as np

from jseg.convert.release import COUNTS
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["Rule", "drop", "translate", "with_prefixes"]

_MARKS = {"{i}": r"(?P<i>\d{1,4})", "{j}": r"(?P<j>\d{1,4})", "{p}": r"(?P<p>weight|bias)",
          "{s}": r"(?P<s>weight|bias|running_mean|running_var)"}


class Rule(NamedTuple):
    """One row of a table.

    Args:
        source, target: patterns of the file's key and of ours; no target: dropped.
        ones: axes of length 1 behind a weight (see `Made`), where a linear layer becomes a 1x1 convolution.
        arrange: puts the values of a key into our order, see `Made`.
        reason: why the key is dropped.
        before: axes of length 1 before the value, where a table becomes positions.
    """

    source: str
    target: str | None
    ones: int = 0
    arrange: Callable[[np.ndarray], np.ndarray] | None = None
    reason: str = ""
    before: int = 0


def drop(source: str, reason: str) -> Rule:
    """A row for keys that have no place."""
    return Rule(source, None, reason=reason)


def with_prefixes(rules: Iterable[Rule], source: str, target: str) -> list[Rule]:
    """The rows of a part, with what stands before it in the file and in our model."""
    return [rule._replace(source=source + rule.source, target=None if rule.target is None else target + rule.target)
            for rule in rules]


def translate(keys: Iterable[str], rules: Iterable[Rule], where: str) -> tuple[dict[str, Made], dict[str, str]]:
    """(our key -> keys of the file it is made of, key of the file -> why it is dropped).

    Raises:
        ConvertError: keys that no row knows, or pieces that are missing.
    """
    table = [(re.compile(_regex(rule.source)), _pieces(rule.source), rule) for rule in rules]
    found: dict[str, tuple[Rule, dict[str, str], list[str]]] = {}
    dropped: dict[str, str] = {}
    unknown = []
    for key in keys:
        if key.endswith(".num_batches_tracked"):
            dropped[key] = COUNTS
            continue
        match, pieces, rule = next(((m, pieces, rule) for pattern, pieces, rule in table
                                    if (m := pattern.fullmatch(key))), (None, [], None))
        if match is None:
            unknown.append(key)
        elif rule.target is None:
            dropped[key] = rule.reason
        else:
            ours = _filled(rule.target, match)
            found.setdefault(ours, (rule, {}, pieces))[1][match.groupdict().get("piece") or ""] = key
    if unknown:
        raise ConvertError(f"{where}: {len(unknown)} keys unknown to this family: {', '.join(unknown[:4])}"
                           f"{'...' if len(unknown) > 4 else ''}; the file is of another model than config.json says")
    return {ours: _made(ours, *row, where) for ours, row in found.items()}, dropped


def _made(ours: str, rule: Rule, parts: dict[str, str], pieces: list[str], where: str) -> Made:
    missing = [piece for piece in pieces or [""] if piece not in parts]
    if missing:
        raise ConvertError(f"{where}: {next(iter(parts.values()))} is there without its {' and '.join(missing)}; the "
                           "file is incomplete")
    return Made(tuple(parts[piece] for piece in pieces or [""]), rule.ones if ours.endswith("weight") else 0,
                rule.arrange, before=rule.before)


def _pieces(source: str) -> list[str]:
    found = re.search(r"\[(.*?)\]", source)
    return found[1].split("|") if found else []


def _regex(source: str) -> str:
    parts = re.split(r"(\{[ijps]\}|\[.*?\])", source)
    return "".join(_MARKS.get(part) or (f"(?P<piece>{part[1:-1]})" if part.startswith("[") else re.escape(part))
                   for part in parts)


def _filled(target: str, match: re.Match) -> str:
    for name, text in match.groupdict().items():
        target = target.replace(f"{{{name}}}", str(int(text)) if name in "ij" else text)
    return target
