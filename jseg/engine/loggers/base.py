"""What every logger is given and answers, and the ids by which a resumed run goes on in the same place."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any, Mapping, NamedTuple, Protocol

from jseg.errors import ConfigError
from jseg.files import write_atomically
from jseg.text import read_text

__all__ = ["LoggedRun", "Logger", "import_package", "kept_id", "keep_id"]


class LoggedRun(NamedTuple):
    """The run that a logger writes about: its folder, its config, and the steps that were done before it started."""

    work_dir: Path
    config: Mapping[str, Any]
    step: int


class Logger(Protocol):
    """What a logger's class has; the constructor connects and may raise.

    The methods are called one after the other from one thread, which is not the training's. Whatever they raise costs
    one warning and what they were given, never the run.

    Attributes:
        cure: what a user can do when the logger cannot begin.
        unsent: where the numbers are that could not be sent before the end.
        place: where to look at the run, or an empty string.
    """

    cure: str
    unsent: str
    place: str

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Take the whole config, once at every start."""

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Take numbers named `train/...` or `val/...` after `step` steps."""

    def finish(self, scalars: Mapping[str, float], status: str) -> None:
        """End: the scores of the best weights as `final/...`, and "finished", "stopped" (resumable) or "failed"."""


def import_package(name: str, extra: str, kind: str) -> ModuleType:
    """Import an optional package.

    Raises:
        ConfigError: it is not installed; the text says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"train_cfg.loggers: {kind} needs the package {name.partition('.')[0]} ({error}): "
                          f"pip install 'jseg-jittor[{extra}]', or leave the logger out") from None


def kept_id(work_dir: Path, kind: str) -> str | None:
    """The id that `keep_id` left in a run's folder, or None."""
    path = work_dir / "loggers.json"
    if not path.exists():
        return None
    try:
        found = json.loads(read_text(path, what="file of logger ids", error=ConfigError, most_bytes=1 << 20))
        value = found.get(kind)
        if value is None or isinstance(value, str):
            return value
    except (ValueError, AttributeError):
        pass
    raise ConfigError(f"{path}: holds no ids of loggers; remove it to begin new runs there")


def keep_id(work_dir: Path, kind: str, value: str) -> None:
    """Leave the id of a logger's run in `loggers.json` of the run's folder."""
    path = work_dir / "loggers.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_atomically(path, json.dumps({**known, kind: value}, indent=1).encode())
