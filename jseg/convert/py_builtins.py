"""The functions and methods that the config reader knows, each with a bound on what it may build.

Every entry is called as `function(limits, weigh, *args, **kwargs)`; `weigh(value)` pays for all elements of a value
before work that iterates over it. Real configs use dict, range, len, sum, int, enumerate and dict.update; the others
are what users write in theirs.
"""

from __future__ import annotations

import posixpath
import re
import string
from typing import Any, Callable

__all__ = ["BUILTINS", "METHODS", "MODULE_FUNCTIONS", "Limits", "check_value", "MAX_TEXT", "MAX_ITEMS", "MAX_BITS"]

MAX_TEXT = 100_000    # characters of one text
MAX_ITEMS = 100_000   # elements of one list, tuple or dict
MAX_BITS = 256        # of one whole number
MAX_KEY = 1 << 60     # a whole number as a key: above 2 ** 61 many share a hash

_PLAIN = (str, int, float, bool, type(None))


def plain_key(key: Any) -> bool:
    """Whether a value may be a key: text or a number whose hash a config cannot make collide."""
    return isinstance(key, _PLAIN) and not (isinstance(key, int) and abs(key) >= MAX_KEY) and key == key


def check_value(value: Any) -> None:
    """ValueError for a value larger than any setting."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(f"a text of {len(value)} characters; at most {MAX_TEXT} are read")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number of {value.bit_length()} bits; at most {MAX_BITS} are read")
    if isinstance(value, (list, tuple, dict, set)) and len(value) > MAX_ITEMS:
        raise ValueError(f"{len(value)} elements in one value; at most {MAX_ITEMS} are read")


class Limits:
    """Bounds that must be checked before a result exists."""

    def check_operands(self, op: str, left: Any, right: Any) -> None:
        """ValueError before a product, power or format that would be huge."""
        if op == "Mult":
            for sequence, count in ((left, right), (right, left)):
                if (isinstance(sequence, (str, list, tuple)) and isinstance(count, int)
                    and len(sequence) * count > MAX_ITEMS):
                    raise ValueError(f"repeats {len(sequence)} elements {str(count)[:20]} times; at most {MAX_ITEMS} "
                                     "are read")
        if op == "Pow" and isinstance(left, int) and isinstance(right, int) and right > 0 \
                and left.bit_length() * right > MAX_BITS:
            raise ValueError(f"a power of more than {MAX_BITS} bits")
        if op == "Mod" and isinstance(left, str):
            if re.search(r"\d{4}|\*", left):
                raise ValueError("a format with a width that is far too large or given as an argument")
            if isinstance(right, dict):  # one entry may be named by every field
                _sized(left.count("%") * sum(len(value) for value in right.values() if isinstance(value, str)))


def _sized(count: int) -> None:
    if count > MAX_ITEMS:
        raise ValueError(f"would make {count} elements; at most {MAX_ITEMS} are read")


def _plain_text(limits: Limits, weigh: Callable, value: Any = "") -> str:
    weigh(value)
    return str(value)


def _number(kind: Callable) -> Callable:
    def convert(limits: Limits, weigh: Callable, value: Any = 0) -> Any:
        if not isinstance(value, (str, int, float, bool)) or isinstance(value, str) and len(value) > 80:
            raise TypeError(f"{kind.__name__}() takes a number or a short text")
        return kind(value)
    return convert


def _range(limits: Limits, weigh: Callable, *bounds: int) -> list:
    numbers = range(*bounds)
    if max(map(abs, bounds)) > 10 ** 12:
        raise ValueError("range() with a bound above 10**12")
    _sized(len(numbers))
    return list(numbers)


def _dict(limits: Limits, weigh: Callable, *args: Any, **kwargs: Any) -> dict:
    for pairs in args:
        for pair in () if isinstance(pairs, dict) else pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not plain_key(pair[0]):
                raise TypeError("dict() takes a block or pairs whose first part is text or a number")
    return dict(*args, **kwargs)


def _over(function: Callable, weighs: bool = False) -> Callable:
    """A builtin that goes through its arguments; iterators become lists."""
    def call(limits: Limits, weigh: Callable, *args: Any, **kwargs: Any) -> Any:
        if set(kwargs) - {"reverse", "start", "default"}:
            raise TypeError(f"{function.__name__}() takes no {', '.join(sorted(kwargs))} here")
        for value in args if weighs else ():
            weigh(value)
        result = function(*args, **kwargs)
        return list(result) if isinstance(result, (zip, enumerate, reversed, map)) else result
    return call


def _sum(limits: Limits, weigh: Callable, values: Any, start: Any = 0) -> Any:
    values = list(values)
    if isinstance(start, (list, tuple)):  # sum of lists joins them: count before joining
        _sized(len(start) + sum(len(value) for value in values))
        joined = list(start)
        for value in values:
            joined.extend(value)
        return type(start)(joined)
    if not all(isinstance(value, (int, float)) for value in values):
        raise TypeError("sum() takes numbers, or lists with a list to start from")
    return sum(values, start)


def _round(limits: Limits, weigh: Callable, value: Any, digits: int | None = None) -> Any:
    if digits is not None and not -400 <= digits <= 400:
        raise ValueError("round() to more than 400 digits")
    return round(value, digits)


def _set(limits: Limits, weigh: Callable, values: Any = ()) -> set:
    if not all(plain_key(value) for value in values):
        raise TypeError("set() takes texts and numbers")
    return set(values)


BUILTINS: dict[str, Callable] = {
    "dict": _dict, "list": _over(list), "tuple": _over(tuple), "set": _set, "str": _plain_text, "int": _number(int),
    "float": _number(float), "bool": lambda limits, weigh, value=False: bool(value), "range": _range,
    "len": _over(len), "sum": _sum, "min": _over(min, True), "max": _over(max, True), "sorted": _over(sorted, True),
    "abs": _over(abs), "round": _round, "any": _over(any), "all": _over(all), "zip": _over(zip),
    "enumerate": _over(enumerate),
    "reversed": _over(reversed),
}


def copied(limits: Limits, weigh: Callable, value: Any) -> Any:
    """A deep copy of a plain value."""
    weigh(value)
    if isinstance(value, dict):
        return {key: copied(limits, weigh, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(limits, weigh, item) for item in value)
    return value


def _join_path(limits: Limits, weigh: Callable, *parts: str) -> str:
    if len(parts) > 64:
        raise ValueError(f"os.path.join of {len(parts)} parts; at most 64 are read")
    return posixpath.join(*parts)


MODULE_FUNCTIONS: dict[str, Callable] = {
    "copy.deepcopy": copied, "copy.copy": copied, "os.path.join": _join_path,
    "os.path.basename": lambda limits, weigh, path: posixpath.basename(path),
    "os.path.dirname": lambda limits, weigh, path: posixpath.dirname(path),
}


# ---- methods ---------------------------------------------------------------------------------------------------------


def _method(function: Callable) -> Callable:
    return lambda limits, weigh, owner, *args, **kwargs: function(owner, *args, **kwargs)


def _text_method(function: Callable) -> Callable:
    """A method of text that looks for other text in it, which in the worst case is met at every character."""
    def call(limits: Limits, weigh: Callable, owner: str, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            weigh(value)
            for word in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(word, str) and len(word) * len(owner) > 100 * MAX_TEXT:
                    raise ValueError(f"{len(word)} characters looked for in a text of {len(owner)}")
        return function(owner, *args, **kwargs)
    return call


def _format(limits: Limits, weigh: Callable, text: str, *args: Any, **kwargs: Any) -> str:
    """`text.format(...)` field by field, so that no result is larger than a setting may be."""
    pieces, size, number = [], 0, 0
    for literal, field, spec, conversion in string.Formatter().parse(text):
        pieces.append(literal)
        if field is not None:
            plain = field.isidentifier() or field.isdigit() or not field
            if conversion or not plain or re.search(r"\d{4}|[{}]", spec):
                raise ValueError("format() is read with plain fields only, such as {} or {name:03d}")
            value = kwargs[field] if field.isidentifier() else args[int(field[:9]) if field else number]
            number += not field
            weigh(value)
            pieces.append(format(value, spec))
        size += len(literal) + (len(pieces[-1]) if field is not None else 0)
        _sized(size)
    return "".join(pieces)


def _replace(limits: Limits, weigh: Callable, text: str, old: str, new: str, *count: int) -> str:
    if len(old) * len(text) > 100 * MAX_TEXT:
        raise ValueError(f"{len(old)} characters looked for in a text of {len(text)}")
    _sized(len(text) + (text.count(old) + 1) * len(new))
    return text.replace(old, new, *count)


def _join(limits: Limits, weigh: Callable, text: str, parts: Any) -> str:
    parts = list(parts)
    _sized(sum(len(part) + len(text) for part in parts))
    return text.join(parts)


def _update(limits: Limits, weigh: Callable, owner: dict, *args: Any, **kwargs: Any) -> None:
    owner.update(_dict(limits, weigh, *args, **kwargs))


def _merge(limits: Limits, weigh: Callable, owner: dict, other: dict) -> None:
    """ConfigDict.merge: blocks merge, `_delete_` replaces."""
    weigh(owner)
    weigh(other)
    merged = _merged(owner, other)
    owner.clear()
    owner.update(merged)


def _merged(base: dict, child: dict) -> dict:
    result = {} if child.get("_delete_", False) else dict(base)
    for key, value in child.items():
        if key != "_delete_":
            inherited = result.get(key)
            result[key] = (_merged(inherited if isinstance(inherited, dict) else {}, value)
                           if isinstance(value, dict) else value)
    return result


def _entry(function: Callable) -> Callable:
    """A dict method whose first argument is a key."""
    def call(limits: Limits, weigh: Callable, owner: dict, key: Any, *rest: Any) -> Any:
        if not plain_key(key):
            raise TypeError("a key must be text or a number of at most 60 bits")
        return function(owner, key, *rest)
    return call


def _extend(limits: Limits, weigh: Callable, owner: list, values: Any) -> None:
    _sized(len(owner) + len(values))
    owner.extend(list(values))


def _searched(function: Callable) -> Callable:
    """A list method that compares: pay for both sides."""
    def call(limits: Limits, weigh: Callable, owner: list, value: Any) -> Any:
        weigh(owner)
        weigh(value)
        return function(owner, value)
    return call


METHODS: dict[type, dict[str, Callable]] = {
    str: {name: _text_method(getattr(str, name)) for name in (
        "split", "rsplit", "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize",
        "startswith", "endswith", "partition", "rpartition", "removeprefix", "removesuffix", "find", "count", "isdigit",
        "splitlines")}
    | {"format": _format, "replace": _replace, "join": _join},
    list: {"append": _method(list.append), "insert": _method(list.insert), "pop": _method(list.pop), "extend": _extend,
           "copy": _method(list.copy), "clear": _method(list.clear), "reverse": _method(list.reverse),
           "index": _searched(list.index), "remove": _searched(list.remove), "count": _searched(list.count)},
    tuple: {"index": _searched(tuple.index), "count": _searched(tuple.count)},
    dict: {"update": _update, "merge": _merge, "get": _entry(dict.get), "pop": _entry(dict.pop),
           "setdefault": _entry(dict.setdefault), "copy": _method(dict.copy), "clear": _method(dict.clear),
           "keys": _method(lambda owner: list(owner)), "values": _method(lambda owner: list(owner.values())),
           "items": _method(lambda owner: list(owner.items()))},
}
