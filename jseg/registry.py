"""Names in a config become objects: six registries, one rule for unknown names and misspelt arguments."""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Callable, Mapping

from jseg.errors import ConfigError

__all__ = ["Registry", "MODELS", "LOSSES", "DATASETS", "TRANSFORMS", "OPTIMIZERS", "SCHEDULES", "nearest"]


def nearest(word: str, known) -> str:
    """Return `; did you mean 'x'?` for the closest known word, or an empty string."""
    if len(str(word)) > 100:  # no known word is; comparing takes time
        return ""
    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


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
        return name in self._entries

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
        parameters = inspect.signature(entry).parameters
        known = [k for k in parameters if k != "self"]
        faults = [f"{_at(where)}unknown key {key!r:.200} for {cfg['type']}{nearest(key, known)}"
                  for key in cfg if key != "type" and key not in known]
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
        try:
            return self._entries[cfg["type"]](**arguments)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{_at(where)}{cfg['type']}: {error}") from error


def _at(where: str) -> str:
    return f"{where}: " if where else ""


MODELS = Registry("model")
LOSSES = Registry("loss")
DATASETS = Registry("dataset")
TRANSFORMS = Registry("transform")
OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")
