"""Read one YAML text as plain values, within limits that no config comes near and no hostile file gets past.

PyYAML's safe loader with these differences: `6e-5` is a number; a key given twice is refused; `1:30`, `010` and
`2026-11-28` are text, not 5400, 8 and a date; only plain values are made (no sets, bytes or dates), keys are words or
whole numbers; and aliases are charged for all that they stand for before anything is made of them, so that a kilobyte
cannot become a gigabyte. """

from __future__ import annotations

import re
from typing import Any

import yaml

from jseg.errors import ConfigError

__all__ = ["MOST_BYTES", "MOST_VALUES", "MOST_LEVELS", "MOST_CHARACTERS", "Allowance", "add_exponents", "parse_yaml"]

MOST_BYTES = 256 * 1024  # of one file
MOST_VALUES = 20_000     # keys and values of a config with all its _base_ files, aliases counted as what they stand for
MOST_LEVELS = 40         # blocks inside blocks
MOST_CHARACTERS = 4096   # of one value

_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_WHOLE = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
_DECIMAL = re.compile(r"(?:[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
                      r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")
_TAG = "tag:yaml.org,2002:"
_PLAIN = {_TAG + kind for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "value")}
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


class Allowance:
    """What the files of one config may still hold.

    Args:
        values: keys and values.
    """

    def __init__(self, values: int = MOST_VALUES):
        self.most = self.left = values

    def charge(self, count: int, where: str) -> None:
        """Take `count` values off; ConfigError, beginning with `where`, when there are not so many left."""
        self.left -= count
        if self.left < 0:
            raise ConfigError(f"{where}: more than {self.most} keys and values, aliases counted as what they stand "
                              f"for; "
                              "a config is far smaller")


class _Loader(yaml.SafeLoader):
    """The safe loader within a allowance; its errors say `where:line`."""

    def __init__(self, text: str, where: str, allowance: Allowance):
        self._where, self._allowance, self._level, self._deepest = where, allowance, 0, 0
        self._known: dict[int, tuple[int, int]] = {}  # id of a finished node -> what it stands for: values, levels
        super().__init__(text)

    def at(self, node_or_event) -> str:
        """The place of a node or event for messages."""
        return f"{self._where}:{node_or_event.start_mark.line + 1}"

    def compose_node(self, parent, index):
        """Compose one node; charge it, or what an alias stands for."""
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        if not alias:
            self._allowance.charge(1, self.at(event))
        before, outer = self._allowance.left, self._deepest
        self._level += 1
        self._deepest = self._level
        self._refuse_deep(event)
        node = super().compose_node(parent, index)
        if alias:
            if id(node) not in self._known:
                raise ConfigError(f"{self.at(event)}: this block contains itself through an alias; write it out")
            values, levels = self._known[id(node)]
            self._allowance.charge(values, self.at(event))
            self._deepest = self._level + levels
            self._refuse_deep(event)
        else:
            self._known[id(node)] = (1 + before - self._allowance.left, self._deepest - self._level)
        self._deepest = max(outer, self._deepest)
        self._level -= 1
        return node

    def _refuse_deep(self, event) -> None:
        if self._deepest > MOST_LEVELS:
            raise ConfigError(f"{self.at(event)}: blocks are nested more than {MOST_LEVELS} deep; a config is far "
                              f"flatter")

    def construct_object(self, node, deep=False):
        """Make a plain value of a node."""
        if node.tag not in _PLAIN and node.tag.startswith(_TAG) and not node.tag.startswith(_TAG + "python"):
            raise ConfigError(f"{self.at(node)}: not YAML: !!{node.tag[len(_TAG):][:40]} is no plain value; write "
                              f"text, a number, true, "
                              "false, null, a list or a block")
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError) as error:
            raise ConfigError(f"{self.at(node)}: not YAML: {_shortened(str(node.value))!r} is no "
                              f"{node.tag.rpartition(':')[2]}") from error
        if isinstance(value, str):
            self._check_text(value, node)
        elif isinstance(value, int) and abs(value) >= 1 << 63:
            raise ConfigError(f"{self.at(node)}: a whole number of {value.bit_length()} bits; numbers have at most 63")
        return value

    def _check_text(self, text: str, node) -> None:
        if len(text) > MOST_CHARACTERS:
            raise ConfigError(f"{self.at(node)}: a text of {len(text)} characters; at most {MOST_CHARACTERS} are read")
        control = _CONTROL.search(text)
        if control:
            raise ConfigError(f"{self.at(node)}: text with the control character U+{ord(control[0]):04X}; take it out")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in (_TAG + "int", _TAG + "float", _TAG + "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(_TAG + "int", _WHOLE, list("-+0123456789"))
_Loader.add_implicit_resolver(_TAG + "float", _DECIMAL, list("-+.0123456789"))


def add_exponents(kind: type) -> None:
    """Let a loader take `6e-5` for a number, or a dumper quote a text that looks like one."""
    kind.add_implicit_resolver(_TAG + "float", _EXPONENT, list("-+.0123456789"))


add_exponents(_Loader)


def parse_yaml(text: str, where: str, allowance: Allowance | None = None) -> Any:
    """Read one YAML document.

    Args:
        text: the document.
        where: its place, with which messages begin ("a.yaml" gives "a.yaml:3: ...").
        allowance: what it may hold; None for a whole one.
    Returns:
        dicts, lists, texts, numbers, True, False and None; None for an empty document.
    Raises:
        ConfigError: it is not YAML, repeats a key, or exceeds a limit.
    """
    try:
        loader = _Loader(text, where, allowance or Allowance())
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{where}:{line}: not YAML: the control character U+{error.character:04X}; "
                          "take it out") from error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(loader, node, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context)
        tab = "'\\t'" in problem
        problem = "a tab cannot indent YAML; use spaces" if tab else _shortened(" ".join(problem.split()))
        raise ConfigError(f"{where}{f':{mark.line + 1}' if mark else ''}: not YAML: {problem}") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the scanner computes the letter of "\U99999999"
        raise ConfigError(f"{where}: not YAML: {_shortened(' '.join(str(error).split()))}") from error
    finally:
        loader.dispose()


def _check_keys(loader: _Loader, node: yaml.Node, seen: set[int]) -> None:
    """Refuse equal keys, of which PyYAML keeps the last without a word, and keys that are neither words nor whole
    numbers."""
    if id(node) in seen:  # an alias to a block met before
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(loader, item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[Any, int] = {}
        for key_node, value in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != _TAG + "merge":
                key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
                if isinstance(key, bool) or not isinstance(key, (str, int)):
                    raise ConfigError(f"{loader.at(key_node)}: the key {_shortened(key_node.value)!r} reads as "
                                      f"{_spelled(key)}; "
                                      "keys are words or whole numbers: put it in quotes")
                if key in lines:
                    raise ConfigError(f"{loader.at(key_node)}: key {_shortened(key_node.value)!r} is given twice, "
                                      f"first on line "
                                      f"{lines[key]}; keep one of them")
                lines[key] = line
            _check_keys(loader, value, seen)


def _spelled(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, repr(value))


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
