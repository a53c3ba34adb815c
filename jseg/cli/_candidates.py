"""What may stand at the end of a command line of jseg: for `jseg completion`. Nothing here imports Jittor.

The parsers of the commands are the source: an argument's choices, else what its metavar or name stands for.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import shlex
from typing import Any, Callable, Iterable, Sequence

from jseg.cli import build_parser, commands

__all__ = ["after_break", "find_candidates", "registered_names", "split_line"]

Candidates = list  # of (what is inserted, a short description or "")
CONFIG_FILES = (".yaml", ".yml", ".py")
CHECKPOINT_FILES = (".safetensors", ".pth", ".pt", ".pkl", ".onnx", ".xml")
_BASH_BREAKS = "=:"  # bash begins a new word behind these


def find_candidates(words: Sequence[str]) -> Candidates:
    """List what the last word may become.

    Args:
        words: those after `jseg`; the last one is being typed and may be empty.
    Returns:
        (value, description) of every candidate that begins with the last word; one that ends in `/`, `.` or `=` goes
        on.
    """
    known = commands()
    if len(words) == 1:
        return _beginning(words[0], [*known.items(), ("--help", ""), ("--version", "")])
    return _of_command(words[0], words) if words[0] in known else []


def split_line(line: str) -> list[str]:
    """Split the line up to the cursor as a shell does; the last word is what is being typed, perhaps empty."""
    for closing in ("", "'", '"'):  # an open quote is closed
        try:
            words = shlex.split(f"{line}|{closing}")
        except ValueError:
            continue
        return [*words[:-1], words[-1][:-1]]
    return line.split(" ")


def after_break(found: Candidates, word: str) -> Candidates:
    """For bash, which replaces only what follows the last `=` or `:` of a word, and takes replies as they are typed."""
    start = max(word.rfind(char) for char in _BASH_BREAKS) + 1
    return [(re.sub(r"([\s'\"\\$&|;<>()*?`!#{}\[\]])", r"\\\1", value[start:]), text) for value, text in found]


def registered_names() -> list[str]:
    """What `jseg names NAME` takes, sorted: read from the files of the package, which are not imported."""
    from jseg.cli.names import KINDS
    kinds, found = {kind for _, kind in KINDS}, set()
    entry = re.compile(r"^@(\w+)\.register\((?:\"([^\"]+)\")?\)\n(?:@.*\n)*(?:class|def) (\w+)", re.MULTILINE)
    for path in pathlib.Path(__file__).resolve().parents[1].rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= {name or own for kind, name, own in entry.findall(text) if kind in kinds}
    return sorted(found)


def _of_command(command: str, words: Sequence[str]) -> Candidates:
    parser, before, word = build_parser(command), list(words[1:-1]), words[-1]
    tasks = next((a for a in parser._actions if isinstance(a, argparse._SubParsersAction)), None)
    if tasks is not None:
        if not before:
            return _beginning(word, [*((name, "") for name in tasks.choices), ("--help", "")])
        if before[0] not in tasks.choices:
            return []
        parser, before = tasks.choices[before.pop(0)], before
    action, first = _expected(parser, before)
    inner = action is not None and action.nargs == argparse.REMAINDER
    if inner and (first < len(before) or not word.startswith("-")):  # as in `jseg launch -n 2 train`
        return find_candidates([*before[first:], word])
    if word.startswith("-"):
        return _beginning(word, [(name, _first_words(a.help)) for a in parser._actions for name in a.option_strings
                                 if a.help != argparse.SUPPRESS and (name[:2] == "--" or len(a.option_strings) == 1)])
    return _beginning(word, _values(action, command, before, word)) if action is not None else []


def _expected(parser, before: Sequence[str]) -> tuple:
    """The argument whose value comes after `before`, or None, and the index of the first word that it has taken."""
    places = [a for a in parser._actions if not a.option_strings]
    option, taken, first = None, 0, len(before)
    for index, word in enumerate(before):
        if places and places[0].nargs == argparse.REMAINDER and first < index:
            break
        if word in parser._option_string_actions:
            option, taken = parser._option_string_actions[word], 0
        elif option is not None and taken < _most(option):
            taken += 1
        elif places:
            option, first = None, index
            if _most(places[0]) == 1:
                places.pop(0)
    if option is not None and taken < _most(option):
        return option, len(before)
    return (places[0] if places else None), first


def _most(action) -> float:
    """How many words an argument takes at most."""
    if isinstance(action.nargs, int):
        return action.nargs
    return {None: 1, "?": 1}.get(action.nargs, float("inf"))


def _values(action, command: str, before: Sequence[str], word: str) -> Iterable:
    """Candidates for one argument's value."""
    if action.choices is not None:
        return [(str(choice), "") for choice in action.choices]
    special = _SPECIAL.get((command, action.dest)) or _BY_METAVAR.get(action.metavar) or _BY_NAME.get(action.dest)
    if special is not None:
        return special(before, word)
    return [] if action.type is not None or action.metavar not in (None, "FILE", "OUT", "JSON") else _files(word)


def _files(word: str, endings: tuple[str, ...] = ("",)) -> Candidates:
    """Files with these endings and folders, from where `word` points; hidden ones when its name begins with a dot."""
    folder, name = os.path.split(word)
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or os.curdir), key=lambda entry: entry.name)
    except OSError:
        return []
    found = []
    for entry in entries:
        if entry.name.startswith(".") == name.startswith(".") and (entry.is_dir() or entry.name.endswith(endings)):
            found.append((os.path.join(folder, entry.name) + "/" * entry.is_dir(), ""))
    return found


def _configs(_before: Sequence[str], word: str) -> Candidates:
    """Files and names with their folder; where none begins so, names alone, which mean the same."""
    from jseg.config import shipped_configs
    names = shipped_configs()
    found = _beginning(word, [*_files(word, CONFIG_FILES), *((name, "comes with jseg") for name in names)])
    return found or [(name.rpartition("/")[2], "comes with jseg") for name in names]


def _config_keys(before: Sequence[str], word: str) -> Candidates:
    """Keys of the config on the line, a level at a time: `optimizer.`, then `optimizer.lr=`."""
    from jseg.config import load_config
    block = next((load_config(other) for other in before if _is_config(other)), {})
    *above, _last = word.split(".")
    for key in above:
        block = _children(block).get(key)
    return [(".".join([*above, key]) + ("." if _children(value) else "="), "")
            for key, value in _children(block).items()]


def _children(block: Any) -> dict[str, Any]:
    """What is in a block or a list, by the key that --set takes; a plain value holds nothing."""
    items = block.items() if isinstance(block, dict) else enumerate(block) if isinstance(block, list) else ()
    return {str(key): value for key, value in items}


def _is_config(word: str) -> bool:
    from jseg.config import find_config
    return not word.startswith("-") and os.path.isfile(find_config(word))


def _checkpoints(_before: Sequence[str], word: str) -> Candidates:
    return _files(word, CHECKPOINT_FILES)


def _weights(before: Sequence[str], word: str) -> Candidates:
    import jseg
    beside = pathlib.Path(jseg.__file__).resolve().parents[1] / "weights"
    here = [(path.stem, "comes with jseg") for path in sorted(beside.glob("*.safetensors"))]
    return [*_checkpoints(before, word), *here, *_published(before, word)]


def _published(_before: Sequence[str], _word: str) -> Candidates:
    from jseg.convert.model_index import read_weights
    return [(name, "published") for name in read_weights()]


def _kernels(_before: Sequence[str], _word: str) -> Candidates:
    folders = (pathlib.Path(__file__).resolve().parents[1] / "ops").glob("*/op.py")
    return [(path.parent.name, "") for path in sorted(folders)]


def _folders(_before: Sequence[str], word: str) -> Candidates:
    return [found for found in _files(word) if found[0].endswith("/")]


_SPECIAL: dict[tuple[str, str], Callable[[Sequence[str], str], Iterable]] = {
    ("names", "names"): lambda _before, _word: [(name, "") for name in registered_names()],
    ("models", "name"): _published, ("weights", "name"): _published, ("bench", "kernels"): _kernels}
_BY_METAVAR = {"CONFIG": _configs, "KEY=VALUE": _config_keys, "NAME_OR_FILE": _weights, "DIR": _folders,
               "FOLDER": _folders, "RUN": _folders, "IMAGES": _folders,
               "MASKS": lambda _before, word: _files(word, (".json",))}
_BY_NAME = {"checkpoint": _checkpoints}


def _beginning(word: str, found: Iterable) -> Candidates:
    """Those that begin with the word, each once."""
    kept: dict[str, str] = {}
    for value, text in found:
        if value.startswith(word):
            kept.setdefault(value, text)
    return list(kept.items())


def _first_words(help_text: str | None) -> str:
    """The beginning of an option's help, on one line."""
    text = " ".join((help_text or "").split())
    return text if len(text) <= 60 else text[:57].rpartition(" ")[0] + " ..."
