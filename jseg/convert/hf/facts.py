"""A checked reader of JSON settings: every value has a type and a range, and every fault names file, key and value."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from jseg.convert.pickle_data import brief
from jseg.errors import ConvertError

__all__ = ["Facts", "LAYERS"]

_MISSING = object()
MOST = 16_384  # of a width or a side; published models stay below 4096
LAYERS = 200   # of a stack of layers, whose number costs time before any weight is looked at


class Facts:
    """The settings of one block.

    Args:
        values: key to value, as JSON gives them.
        where: the block's place for messages, for example "folder/config.json".
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fault(self, key: str, accepted: str) -> ConvertError:
        """What to raise for the value of a key."""
        return ConvertError(f"{self.where}: {key} is {brief(self.values.get(key))}; accepted: {accepted}")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None and default is _MISSING:
            raise ConvertError(f"{self.where}: lacks {key}, without which the model is unknown; fetch the whole "
                               "config.json again")
        return default if value is None else value

    def integer(self, key: str, default: Any = _MISSING, low: int = 1, high: int = MOST) -> int:
        """A whole number from `low` to `high`."""
        value = self._get(key, default)
        if not _is_count(value, low, high):
            raise self.fault(key, f"a whole number, {low} to {high}")
        return value

    def integers(self, key: str, default: Any = _MISSING, *, count: int | None = None, low: int = 1,
                 high: int = MOST) -> list[int]:
        """A list of whole numbers, `count` of them where that is given."""
        value = self._get(key, default)
        fits = isinstance(value, (list, tuple)) and 0 < len(value) <= 8 and all(_is_count(v, low, high) for v in value)
        if not fits or (count is not None and len(value) != count):
            raise self.fault(key, f"a list of {count or 'up to 8'} whole numbers, {low} to {high}")
        return list(value)

    def layers(self, key: str, default: int, low: int = 1) -> int:
        """A number of layers."""
        return self.integer(key, default, low, LAYERS)

    def number(self, key: str, default: Any = _MISSING, *, above: float = 0.0) -> float:
        """A finite number above `above`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < 1e9:
            raise self.fault(key, f"a number above {above:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "true or false")
        return value

    def choice(self, key: str, default: Any, accepted: Sequence[Any]) -> Any:
        """One of `accepted`, which is all that jseg's model can do."""
        value = self._get(key, default)
        if not any(value == known and type(value) is type(known) for known in accepted):
            raise self.fault(key, " or ".join(map(repr, accepted)))
        return value

    def side(self, key: str, default: Any) -> int | list[int]:
        """A side in pixels, or [height, width]."""
        if isinstance(self.values.get(key), (list, tuple)):
            return self.integers(key, count=2)
        return self.integer(key, default)

    def block(self, key: str, default: Any = _MISSING) -> "Facts":
        """The block below a key."""
        value = self._get(key, default)
        if not isinstance(value, Mapping):
            raise self.fault(key, "a block of settings")
        return Facts(value, f"{self.where}: {key}")

    def class_names(self) -> list[str]:
        """K names in the order of their labels, from `id2label`; transformers leaves out its default, two labels.

        Raises:
            ConvertError: labels that are not 0 to K - 1, or no names.
        """
        names = self._get("id2label", None)
        if names is None:
            return [f"LABEL_{i}" for i in range(self.integer("num_labels", 2, low=2))]
        if not isinstance(names, Mapping) or not 2 <= len(names) <= 65_535 or not all(
            isinstance(name, str) and 0 < len(name) <= 200 for name in names.values()):
            raise self.fault("id2label", "at least two labels with names of 1 to 200 characters")
        if set(names) != {str(i) for i in range(len(names))}:
            raise self.fault("id2label", f"labels \"0\" to \"{len(names) - 1}\"")
        return [names[str(i)].strip() or f"class {i}" for i in range(len(names))]


def _is_count(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
