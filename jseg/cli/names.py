"""List what a config may name (models, losses, datasets, transforms, ...), or describe one entry."""

from __future__ import annotations

import inspect
import pathlib
import re
import sys
from typing import Callable, Mapping

import yaml

from jseg.errors import ConfigError, DataError
from jseg.files import write_atomically
from jseg.registry import Registry, accepted, nearest
from jseg.text import fill_prose

EXAMPLE = "jseg names RandomCrop"
KINDS = (("models", "MODELS"), ("losses", "LOSSES"), ("samplers", "SAMPLERS"), ("datasets", "DATASETS"),
         ("transforms", "TRANSFORMS"), ("optimizers", "OPTIMIZERS"), ("schedules", "SCHEDULES"))


_SUPPLIED = ("groups",)  # arguments that no config gives
MARKS = ("<!-- jseg names -->\n", "<!-- end -->")  # around the list in a document


def add_arguments(parser) -> None:
    """Options of `jseg names`."""
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="print the arguments and the description of these instead of the list")
    parser.add_argument("--write", nargs="+", default=[], metavar="FILE",
                        help="put the list into these Markdown files, between the lines <!-- jseg names --> and <!-- "
                             "end -->")


def run(args) -> int:
    """Print the list that docs/configs.md shows, or write it there; or describe the names given."""
    if args.names:
        print("\n\n".join(map(described, args.names)))
        return 0
    names = supported()
    if not args.write:
        print(names)
    for path in map(pathlib.Path, args.write):
        text = path.read_text(encoding="utf-8")
        before, start, rest = text.partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not (start and end):
            raise DataError(f"{path}: has no list to replace; put the lines {MARKS[0].strip()} and {MARKS[1]} where it "
                            "belongs")
        write_atomically(path, f"{before}{start}{names}\n{end}{after}".encode())
    return 0


def described(name: str) -> str:
    """One entry: what a config writes, `type` and the arguments with their defaults and types, then its whole
    description, with those of the classes that an argument comes from.

    Raises:
        ConfigError: no kind has an entry of this name.
    """
    found = [(title, kind.get(name)) for title, kind in _registries() if name in kind]
    if not found:
        known = [entry for _, kind in _registries() for entry in kind.names()]
        raise ConfigError(f"no model, loss, dataset, transform, optimizer or schedule is called {name!r}"
                          f"{nearest(name, known)} ('jseg names' lists all)")
    parts = []
    for title, entry in found:
        arguments = {key: p for key, p in accepted(entry).items() if key not in _SUPPLIED}
        texts = {f"  {key}: {_default(p)}": _type(p) for key, p in arguments.items()}
        width = max((len(text) for text in texts if len(text) <= 40), default=0)
        lines = [f"{text:<{width}}  # {kind}" if kind else text for text, kind in texts.items()]
        parts += [f"{name}  ({title}, {entry.__module__})", "\n".join(["In a config:", f"  type: {name}", *lines])]
        parts += _descriptions(entry, arguments)
    return "\n\n".join(parts)


def _descriptions(entry: Callable, arguments: Mapping[str, inspect.Parameter]) -> list[str]:
    """The docstring of an entry, then those that it refers to (see `Name`) and those of its bases, as far as these
    describe arguments that have not come yet."""
    texts = [inspect.getdoc(entry) or ""]
    shared = getattr(entry, "OPTIONS", None)
    bases = [base for base in inspect.getmro(entry)[1:] if base.__module__.startswith("jseg.")]
    referred = [getattr(sys.modules[entry.__module__], word, None) for word in re.findall(r"see `(\w+)`", texts[0])]
    for other in dict.fromkeys([*filter(callable, referred), *filter(None, [shared]), *bases]):
        text = other.__doc__ and inspect.getdoc(other)
        new = [key for key in arguments if not any(re.search(rf"\b{key}\b", known) for known in texts)]
        if text and text not in texts and (other in referred or any(re.search(rf"\b{key}\b", text) for key in new)):
            texts.append(f"{other.__name__}: {text}")
    return list(filter(None, texts))


def _type(parameter: inspect.Parameter) -> str:
    """The type that the code states, or an empty string."""
    return "" if parameter.annotation is parameter.empty else inspect.formatannotation(parameter.annotation).strip("'")


def _default(parameter: inspect.Parameter) -> str:
    """The default as YAML writes it."""
    if parameter.default is parameter.empty:
        return "(needed)"
    return yaml.safe_dump(_plain(parameter.default), default_flow_style=True, width=10_000).splitlines()[0]


def _plain(value):
    """A default without tuples and the like, which YAML does not have."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _registries() -> list[tuple[str, Registry]]:
    """All kinds with their registries, filled."""
    import jseg.data  # noqa: F401  (importing a room enters its classes)
    import jseg.engine.optim  # noqa: F401
    import jseg.engine.schedules  # noqa: F401
    import jseg.losses  # noqa: F401
    import jseg.models  # noqa: F401
    from jseg import registry
    return [(title, getattr(registry, name)) for title, name in KINDS]


def supported() -> str:
    """One Markdown list item for each kind, names in alphabetical order."""
    lists = ((title, ", ".join(kind.names())) for title, kind in _registries())
    return fill_prose("\n".join(f"- **{title}**: {names}" for title, names in lists))
