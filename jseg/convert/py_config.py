"""Python config files of MMSegmentation 0.x and 1.x and of original JSeg, read as data: no line of them is run.

A file is parsed into Python's syntax tree and a small interpreter walks it (`py_interpreter`): assignments, literals,
the calls and methods that real configs use, loops and comprehensions over them. Anything else is a ConvertError that
names file and line.

Inheritance: `_base_` (a path or a list, relative to the file) with `_delete_` as in MMEngine 0.10
(mmengine/config/config.py, Apache-2.0) and `_cover_` as in original JSeg (python/jseg/config/config.py);
`{{_base_.x}}`, `_base_.x`, `{{fileDirname}}` and its three sisters; the lazy style,
`with read_base(): from .x import *`, in which names of classes become plain text ("mmseg.models.X"). Deviations from
MMEngine: `{{$NAME:default}}` always takes its default, the environment is not looked at; two bases may share a key (the
later wins, as in JSeg); where a child's block meets a plain value of its base, the block replaces it (MMEngine refuses
both).
"""

from __future__ import annotations

import ast
import os
import re
import stat
import warnings
from typing import Any

from jseg.convert.pickle_data import brief
from jseg.convert.py_interpreter import Budget, Interpreter, Reference, fault, text_cost
from jseg.errors import ConvertError

__all__ = ["read_py_config", "parse_py_config", "MAX_BYTES", "MAX_FILES", "MAX_DEPTH"]

MAX_BYTES = 1 << 18   # of one file or text
MAX_FILES = 64        # read for one config
MAX_DEPTH = 12        # of inheritance

_NOT_SETTINGS = ("_base_", "_deprecation_")
# looked at once from left to right; what stands inside is split without patterns
_WORD = re.compile(r"\{\{([^{}\n]{1,300})\}\}")
_FILE_WORDS = ("fileDirname", "fileBasename", "fileBasenameNoExtension", "fileExtname")


def read_py_config(path: str | os.PathLike) -> dict:
    """Read a `.py` config with everything it inherits.

    Returns:
        The settings by name: nested dicts, lists, tuples, text, numbers, True, False and None; keys in the order of the
        files.
    Raises:
        ConvertError: `file:line: ...`: not readable, not Python, something outside what configs use, or more work,
        nesting or text
            than any real config needs.
    """
    reader = _Reader()
    return reader.plain(reader.load(os.fspath(path), ()), os.fspath(path))


def parse_py_config(text: str, source: str) -> dict:
    """Read config text as it is stored inside checkpoints (`meta["cfg"]`, `meta["config"]`):
    flattened, without `_base_`.

    Args:
        text: the whole text.
        source: what to call it in messages, for example "weights.pth: meta.cfg".
    Raises:
        ConvertError: see `read_py_config`; or the text inherits from files.
    """
    reader = _Reader()
    return reader.plain(reader.interpret(text, source, None, ()), source)


class _Reader:
    """One reading: the files read so far and the work left."""

    def __init__(self):
        self.budget = Budget()
        self.files = 0

    def load(self, path: str, ancestors: tuple[str, ...]) -> dict:
        """Settings of a file, its bases merged in; values may still be shared and hold `Reference`s."""
        asked = f"{ancestors[-1]}: " if ancestors else ""
        if os.path.realpath(path) in map(os.path.realpath, ancestors):
            raise ConvertError(f"{asked}_base_ goes in a circle: {' -> '.join((*ancestors, path))}; remove one of the "
                               "links")
        self.files += 1
        if len(ancestors) >= MAX_DEPTH or self.files > MAX_FILES:
            raise ConvertError(f"{asked}inherits through more than {MAX_DEPTH} levels or {MAX_FILES} files; flatten "
                               "the config")
        return self.interpret(_text(path, asked), path, path, (*ancestors, path))

    def interpret(self, text: str, source: str, path: str | None, trail: tuple[str, ...]) -> dict:
        """Settings of one text; `path` is None where there is no file that others could be relative to."""
        if len(text) > MAX_BYTES:
            raise ConvertError(f"{source}: {len(text)} characters of config; at most {MAX_BYTES} are read")
        self.budget.spend(len(text) // 8, source)
        tree = _parse(_fill_in(text, source, path), source)
        interpreter = Interpreter(source, self.budget)

        def load_base(name: str, node: ast.AST) -> dict:
            if path is None:
                raise fault(source, node,
                            f"inherits from {name!r}, but this text has no folder; give the config file itself")
            return self.load(os.path.normpath(os.path.join(os.path.dirname(path), name)), trail)

        bases: dict[str, Any] = {}
        for node in tree.body:
            if _assigns(node, "_base_"):
                for name in _base_names(interpreter.value(node.value), source, node):
                    bases = self.merge(bases, load_base(name, node), source)
                break
        interpreter.names["_base_"] = bases
        interpreter.load_module = lambda module, node: load_base(_module_file(module, source, node), node)
        interpreter.run([node for node in tree.body if not _assigns(node, "_base_")])
        own = {name: value for name, value in interpreter.names.items()
               if name not in _NOT_SETTINGS and not name.startswith("__") and not isinstance(value, Reference)}
        return self.merge(bases, own, source)

    def merge(self, base: dict, child: dict, source: str) -> dict:
        """Lay `child` over `base`: blocks merge, all else replaces;
        `_delete_: True` or `_cover_: True` replaces a block too.
        """
        self.budget.spend(len(base), source)
        merged = dict(base)
        for key, value in child.items():
            self.budget.spend(1, source)
            if not isinstance(value, dict):
                merged[key] = value
                continue
            replaces = bool(value.get("_delete_", False)) or bool(value.get("_cover_", False))
            block = {k: v for k, v in value.items() if k not in ("_delete_", "_cover_")}
            inherited = merged.get(key)
            with self.budget.deeper(source):
                merged[key] = self.merge(inherited if isinstance(inherited, dict) and not replaces else {},
                                         block, source)
        return merged

    def plain(self, value: Any, source: str) -> Any:
        """A copy of its own for every place, class references as text."""
        self.budget.spend(text_cost(value), source)
        if isinstance(value, str):
            return _checked_text(value, source)
        if isinstance(value, Reference):
            return value.name
        if isinstance(value, (set, frozenset)):
            value = sorted(value, key=repr)
        if isinstance(value, (dict, list, tuple)):
            with self.budget.deeper(source):
                if isinstance(value, dict):
                    return {_key(key): self.plain(item, source) for key, item in value.items()}
                return type(value)([self.plain(item, source) for item in value])
        return value


def _checked_text(value: str, source: str) -> str:
    """Text that can be written to a file; half of a surrogate pair cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConvertError(f"{source}: the text {value[:40]!a} is no valid Unicode") from error
    return value


def _key(key: Any) -> Any:
    return key.name if isinstance(key, Reference) else key


def _text(path: str, asked: str) -> str:
    if not path.endswith(".py"):
        raise ConvertError(f"{asked}{path}: expected a config in Python, a file that ends in .py")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConvertError(f"{asked}{path}: not an ordinary file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConvertError(f"{asked}{path}: larger than {MAX_BYTES} bytes; no config is")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConvertError(
            f"{asked}{path}: cannot read the config ({getattr(error, 'strerror', None) or error})") from error


def _fill_in(text: str, source: str, path: str | None) -> str:
    """Replace `{{...}}` words in the text, before it is parsed, as MMEngine does."""
    name = os.path.basename(path) if path else ""
    stem, extension = os.path.splitext(name)
    words = dict(zip(_FILE_WORDS, (os.path.dirname(os.path.abspath(path)).replace("\\", "/") if path else "", name,
                                   stem, extension)))

    def filled(match: re.Match) -> str:
        word = match[1].strip()
        if word in words and path is not None:
            return words[word]
        if word.startswith("_base_.") and all(part.isidentifier() for part in word.split(".")):
            return f"({word})"
        variable, colon, default = word.strip("'\"").strip().partition(":")
        if not colon or not variable.startswith("$") or not variable[1:].strip().isidentifier():
            return match[0]
        default = default.strip()
        if not default:
            line = text.count("\n", 0, match.start()) + 1
            raise ConvertError(f"{source}:{line}: {match[0]} takes its value from the environment; write the value "
                               "into the config")
        return match[0] if " " in default else default

    text = _WORD.sub(filled, text)
    if len(text) > 2 * MAX_BYTES:
        raise ConvertError(f"{source}: {len(text)} characters of config after its {{{{...}}}} words are filled in; at "
                           f"most {2 * MAX_BYTES} are read")
    return text


def _parse(text: str, source: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as '\d' in a string: MMEngine reads these files too
            return ast.parse(text)
    except SyntaxError as error:
        raise ConvertError(f"{source}:{error.lineno or 1}: not Python: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConvertError(f"{source}: not a Python config: {str(error) or 'nested too deeply'}") from error


def _assigns(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name
                                                for target in node.targets)


def _base_names(value: Any, source: str, node: ast.AST) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise fault(source, node, f"_base_: expected a file name or a list of file names, got {brief(value, 80)}")
    for name in names:
        if "::" in name:
            raise fault(source, node,
                        f"_base_: {name!r} names a config inside another package; copy that file beside this one")
    return list(names)


def _module_file(module: str, source: str, node: ast.AST) -> str:
    """`.x`, `..a.b` -> path relative to the config's folder."""
    dots = len(module) - len(module.lstrip("."))
    if dots == 0:
        raise fault(source, node,
                    f"read_base() imports {module!r} from an installed package; copy that config beside this one "
                                  f"and import it with a leading dot")
    return os.path.join(*[".."] * (dots - 1), module[dots:].replace(".", "/") + ".py")
