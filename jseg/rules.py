"""What the plain values of a config may be: a rule for each key of a block, and the types that constructors ask for.

A block's owner declares its table; the constructor or reader of the block and `jseg check` use the same one.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Callable, Mapping, NamedTuple

from jseg.registry import accepted, nearest

__all__ = ["Rule", "fields", "known_fields", "wrong_types", "is_integer", "is_number", "is_pair", "list_of", "MAPPING",
           "COUNT", "COUNT_OR_0", "NEEDED_COUNT", "FLAG", "TEXT", "FACTOR", "POSITIVE", "FRACTION", "SIZE"]


class Rule(NamedTuple):
    """One value's test and the words for what it accepts."""

    accepts: Callable[[Any], bool]
    text: str
    optional: bool = True  # null is allowed


def is_integer(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite number."""
    return is_integer(value) or isinstance(value, float) and math.isfinite(value)


def is_pair(value: Any) -> bool:
    """Two whole numbers above 0."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_integer(v) and v > 0 for v in value)


def list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """The test of a list, not empty, whose items all pass."""
    return lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(test(v) for v in value)


MAPPING = Rule(lambda v: isinstance(v, Mapping), "a block of keys")
COUNT = Rule(lambda v: is_integer(v) and v > 0, "a whole number above 0 (written without a point or exponent)")
COUNT_OR_0 = Rule(lambda v: is_integer(v) and v >= 0, "a whole number, 0 or more", optional=False)
NEEDED_COUNT = COUNT._replace(optional=False)
FLAG = Rule(lambda v: isinstance(v, bool), "true or false", optional=False)
TEXT = Rule(lambda v: isinstance(v, str), "text")
FACTOR = Rule(lambda v: is_number(v) and v >= 0, "a number, 0 or more", optional=False)
POSITIVE = Rule(lambda v: is_number(v) and v > 0, "a number above 0", optional=False)
FRACTION = Rule(lambda v: is_number(v) and 0 < v < 1, "a number between 0 and 1", optional=False)
SIZE = Rule(is_pair, "two whole numbers above 0: [height, width] in pixels")
_PLAIN = {  # annotations of constructors that are simple enough to compare a value with
    "bool": FLAG, "int": Rule(is_integer, "a whole number"), "float": Rule(is_number, "a number"), "str": TEXT,
    "dict": MAPPING, "None": Rule(lambda v: v is None, "null"),
}


def fields(block: Mapping, rules: Mapping[str, Rule], where: str, owner: str) -> list[str]:
    """Unknown keys with the nearest known one, and values that break their rule."""
    faults = []
    for key, value in block.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in rules:
            faults.append(f"{place}: unknown key {key!r:.200} in {owner}{nearest(key, rules)} (known: "
                          f"{', '.join(rules)})")
        elif value is None and rules[key].optional:
            continue
        elif not rules[key].accepts(value):
            faults.append(f"{place}: got {value!r:.200}, expected "
                          f"{rules[key].text}{' or null' if rules[key].optional else ''}")
    return faults


def wrong_types(entry: Callable, block: Mapping, where: str) -> list[str]:
    """Compare values with a constructor's annotations, where those are plain (`bool`, `int | None`, ...)."""
    faults = []
    for key, parameter in accepted(entry).items():
        kinds = [kind.strip() for kind in inspect.formatannotation(parameter.annotation).strip("'").split("|")]
        if key in block and set(kinds) <= set(_PLAIN) and not any(_PLAIN[kind].accepts(block[key]) for kind in kinds):
            faults.append(f"{where}.{key}: got {block[key]!r:.200}, expected "
                          f"{' or '.join(_PLAIN[kind].text for kind in kinds)}")
    return faults


def known_fields(block: Mapping, rules: Mapping[str, Rule], where: str) -> list[str]:
    """Values that break their rule; keys without a rule are somebody else's business."""
    return fields({key: value for key, value in block.items() if key in rules}, rules, where, "")
