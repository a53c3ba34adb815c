"""Sides of tensors that a dynamic file does not know: numbers that remember how they were computed.

A model's Python code calculates with the sides of its maps. While it is traced for any batch, height and width, these
are `Size`s: each holds its value for several inputs of unlike sizes (`PROBES`) and the expression it came from, which
becomes ONNX nodes where a node needs it. Two sizes are equal if they are at every probe, and a size with one value at
all of them is a plain number, so that no algebra is needed. A comparison that comes out differently at two probes has
no answer in a file for every size: it is an error that says so, never a guess.
"""

from __future__ import annotations

import math
import operator
from typing import Callable, Union

from jseg.errors import ExportError

__all__ = ["PROBES", "Number", "Size", "ceiling", "floor", "integer", "largest", "made", "smallest"]

# inputs (batch, height, width): multiples of 32, odd sides, and the smallest that is promised, 64 x 64
PROBES = ((2, 64, 64), (1, 513, 770), (3, 512, 512), (5, 97, 225), (1, 353, 130), (4, 161, 736), (7, 95, 1027))

Number = Union[int, float, "Size"]

_VALUES: dict[str, Callable] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "FloorDiv": operator.floordiv,
    "Mod": operator.mod, "Div": operator.truediv, "Min": min, "Max": max, "Floor": math.floor, "Ceil": math.ceil}


class Size:
    """A number that depends on the input's size.

    Args:
        values: one for each probe, not all equal.
        op: "Input" with the axis (0 batch, 1 height, 2 width) as its argument, or a key of `_VALUES`.
        args: numbers and sizes it was made from.
    """

    __slots__ = ("values", "op", "args")

    def __init__(self, values: tuple, op: str, args: tuple):
        self.values, self.op, self.args = values, op, args

    @property
    def is_whole(self) -> bool:
        """Whether it is an integer at every input."""
        if self.op == "Input" or self.op in ("Floor", "Ceil"):
            return True
        return self.op != "Div" and all(isinstance(a, int) or isinstance(a, Size) and a.is_whole for a in self.args)

    def __add__(self, other):
        return made("Add", self, other)

    def __radd__(self, other):
        return made("Add", other, self)

    def __sub__(self, other):
        return made("Sub", self, other)

    def __rsub__(self, other):
        return made("Sub", other, self)

    def __mul__(self, other):
        return made("Mul", self, other)

    def __rmul__(self, other):
        return made("Mul", other, self)

    def __floordiv__(self, other):
        return made("FloorDiv", self, other)

    def __rfloordiv__(self, other):
        return made("FloorDiv", other, self)

    def __mod__(self, other):
        return made("Mod", self, other)

    def __rmod__(self, other):
        return made("Mod", other, self)

    def __truediv__(self, other):
        return made("Div", self, other)

    def __rtruediv__(self, other):
        return made("Div", other, self)

    def __neg__(self):
        return made("Sub", 0, self)

    def __floor__(self):
        return floor(self)

    def __ceil__(self):
        return ceiling(self)

    def __eq__(self, other):
        return isinstance(other, Size) and self.values == other.values

    def __hash__(self):
        return hash(self.values)

    def __bool__(self):
        """False only where it is 0 for every input: code that then takes its general way is right for all."""
        return True

    def __lt__(self, other):
        return self._compared(operator.lt, other, "<")

    def __le__(self, other):
        return self._compared(operator.le, other, "<=")

    def __gt__(self, other):
        return self._compared(operator.gt, other, ">")

    def __ge__(self, other):
        return self._compared(operator.ge, other, ">=")

    def __index__(self):
        raise ExportError(f"the model uses {self} as a plain number, so its file cannot take every size; give one with "
                          "--size HEIGHT WIDTH")

    __int__ = __float__ = __index__

    def __repr__(self):
        if self.op == "Input":
            return ("batch", "height", "width")[self.args[0]]
        return f"a size that is {self.values[1]:g} for pictures of {PROBES[1][1]}x{PROBES[1][2]}"

    def _compared(self, compare: Callable, other: Number, sign: str) -> bool:
        found = {compare(a, b) for a, b in zip(self.values, _values(other))}
        if len(found) == 2:
            raise ExportError(f"the model asks whether {self} {sign} {other}, which depends on the input's size; give "
                              "one with --size HEIGHT WIDTH")
        return found.pop()


def made(op: str, *args: Number) -> Number:
    """The result of an operation of `_VALUES`: a plain number where it is the same at every probe."""
    if any(not isinstance(a, (int, float, Size)) for a in args):
        return NotImplemented
    columns = [_values(a) for a in args]
    values = tuple(_VALUES[op](*row) for row in zip(*columns))
    if len(set(values)) == 1:
        return values[0]
    return Size(values, op, args)


def floor(value: Number) -> Number:
    """The largest integer at most `value`."""
    return value if isinstance(value, Size) and value.is_whole else made("Floor", value)


def ceiling(value: Number) -> Number:
    """The smallest integer at least `value`."""
    return value if isinstance(value, Size) and value.is_whole else made("Ceil", value)


class _Whole(type):
    """Lets `integer` stand for `int`, also in `isinstance`."""

    def __call__(cls, *args, **words):
        return floor(args[0]) if args and isinstance(args[0], Size) else int(*args, **words)

    def __instancecheck__(cls, value):
        return isinstance(value, int)


class integer(metaclass=_Whole):
    """`int` that takes sizes too: towards zero, which is down, because sizes are not negative."""


def _extreme(op: str, plain: Callable) -> Callable:
    def chosen(*args, **words):
        values = list(args[0]) if len(args) == 1 else list(args)
        if not any(isinstance(v, Size) for v in values):
            return plain(values, **words)
        found = values[0]
        for value in values[1:]:
            found = made(op, found, value)
            found = next((known for known in values if known == found), found)
        return found
    return chosen


smallest, largest = _extreme("Min", min), _extreme("Max", max)


def _values(number: Number) -> tuple:
    return number.values if isinstance(number, Size) else (number,) * len(PROBES)
