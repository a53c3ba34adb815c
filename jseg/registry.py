"""Names in a config become objects: eleven registries, one rule for unknown names and misspelt arguments."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any, Callable, Mapping

from jseg.errors import ConfigError

__all__ = ["Registry", "MODELS", "LOSSES", "SAMPLERS", "DATASETS", "TRANSFORMS", "OPTIMIZERS", "SCHEDULES",
           "PIXEL_DECODERS", "MATCH_COSTS", "SET_LOSSES", "LOGGERS", "accepted", "construct", "nearest"]


def nearest(word: str, known) -> str:
    """Return `; did you mean 'x'?` for the closest known word, one that begins so first, or an empty string."""
    if len(str(word)) > 100:  # no known word is; comparing takes time
        return ""
    known = [str(k) for k in known]
    found = difflib.get_close_matches(str(word), known, n=3, cutoff=0.6)
    best = next((k for k in found if k.startswith(str(word))), found[0] if found else None)
    return f"; did you mean {best!r}?" if found else ""


def accepted(entry: Callable) -> dict[str, inspect.Parameter]:
    """The arguments that a config block may give, by name.

    They are the constructor's own; for a class with `OPTIONS`, a dataclass that its first argument `options` takes, the
    fields of that come first, with the defaults that the class's `DEFAULTS` change.
    """
    own = {key: p for key, p in inspect.signature(entry).parameters.items() if key != "self"}
    shared = getattr(entry, "OPTIONS", None)
    if shared is None:
        return own
    found = {}
    for field in dataclasses.fields(shared):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = entry.DEFAULTS.get(field.name, inspect.Parameter.empty if made is dataclasses.MISSING else made)
        found[field.name] = inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default,
                                              annotation=field.type)
    return {**found, **{key: p for key, p in own.items() if key != "options"}}


class Registry:
    """A table from `type:` names to classes of one kind.

    Args:
        kind: what the entries are, as error messages say it ("model", "loss", ...).
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Callable] = {}

    def register(self, name: str | None = None) -> Callable[[Callable], Callable]:
        """Decorate a class or function to enter it under `name` (default: its own name); a second entry is an error."""

        def enter(entry: Callable) -> Callable:
            key = name or entry.__name__
            if key in self._entries:
                raise ValueError(f"{self.kind} {key!r} is registered twice: {self._entries[key]!r} and {entry!r}")
            self._entries[key] = entry
            return entry

        return enter

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return isinstance(name, str) and name in self._entries

    def get(self, name: str, where: str = "") -> Callable:
        """Look a name up; ConfigError with the nearest name when it is unknown."""
        if not isinstance(name, str) or name not in self._entries:
            raise ConfigError(f"{_at(where)}unknown {self.kind} {name!r:.200}{nearest(name, self._entries)} "
                              f"(known: {', '.join(self.names()) or 'none'})")
        return self._entries[name]

    def faults(self, cfg: Any, where: str = "", given: tuple[str, ...] = ()) -> list[str]:
        """List what is wrong with a block: no type, unknown type, unknown or missing arguments.

        `given` names the arguments that the caller of `build` supplies itself.
        """
        if not isinstance(cfg, Mapping) or "type" not in cfg:
            return [f"{_at(where)}expected a block with a 'type:' naming a {self.kind}, got {cfg!r:.200}"]
        try:
            entry = self.get(cfg["type"], where)
        except ConfigError as error:
            return [str(error)]
        parameters = accepted(entry)
        faults = [f"{_at(where)}unknown key {key!r:.200} for "
                  f"{cfg['type']}{_ELSEWHERE.get(key) or nearest(key, parameters)}"
                  for key in cfg if key != "type" and key not in parameters]
        faults += [f"{_at(where)}{cfg['type']} needs {key!r}" for key, p in parameters.items()
                   if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                   and key not in cfg and key not in given]
        return faults

    def build(self, cfg: Mapping, where: str = "", **extra: Any) -> Any:
        """Construct the entry that `cfg["type"]` names with the other keys as arguments.

        Args:
            cfg: a config block.
            where: its place in the config, for messages ("model.backbone").
            extra: arguments the caller supplies; they win over `cfg`.
        Raises:
            ConfigError: unknown type, unknown or missing arguments, or a ValueError/TypeError from the constructor.
        """
        faults = self.faults(cfg, where, tuple(extra))
        if faults:
            raise ConfigError("\n".join(faults))
        arguments = {**{k: v for k, v in cfg.items() if k != "type"}, **extra}
        entry = self._entries[cfg["type"]]
        try:
            if getattr(entry, "OPTIONS", None) is not None:
                names = {field.name for field in dataclasses.fields(entry.OPTIONS)}
                shared = {**entry.DEFAULTS, **{k: v for k, v in arguments.items() if k in names}}
                arguments = {"options": entry.OPTIONS(**shared),
                             **{k: v for k, v in arguments.items() if k not in names}}
            return entry(**arguments)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{_at(where)}{cfg['type']}: {error}") from error


def construct(entry: Callable, cfg: Mapping | None, where: str = "", **extra: Any) -> Any:
    """Construct a class from a block that needs no `type`, because one class alone can stand there.

    Args, raises: as `Registry.build`; None is an empty block.
    """
    only = Registry(where.rpartition(".")[2] or "part")
    only.register()(entry)
    return only.build({"type": entry.__name__, **(cfg or {})}, where, **extra)


_START = ("; weights to start from are named once, at the top of the config: load_from: FILE.safetensors, or the "
          ".pth or .pkl itself ('jseg convert --help' lists the releases)")
# words that belong in another place
_ELSEWHERE = {"init_cfg": _START, "pretrained": _START, "checkpoint": _START, "load_from": _START,
              "norm_eval": "; ResNet, VGG, GoogLeNet and EfficientNet take it; frozen_stages fixes the norms of "
              "the frozen stages"}


def _at(where: str) -> str:
    return f"{where}: " if where else ""


MODELS = Registry("model")
LOSSES = Registry("loss")
SAMPLERS = Registry("sampler")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")
PIXEL_DECODERS = Registry("pixel decoder")  # these three: of heads that classify masks
MATCH_COSTS = Registry("match cost")
SET_LOSSES = Registry("set loss")
LOGGERS = Registry("logger")
