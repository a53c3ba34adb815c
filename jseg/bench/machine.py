"""What a measurement was made on: the date, the device, versions, the command."""

from __future__ import annotations

import datetime
import sys
from importlib.metadata import PackageNotFoundError, version

from jseg import __version__, runtime

__all__ = ["machine_facts"]


def machine_facts(command: str, **more: str) -> dict:
    """JSON-able: "date" (ISO 8601, local time), "device", "gpus", "command", "versions" by name.

    Args:
        command: the words that were given.
        more: name in "versions" = name of the package.
    """
    return {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "device": runtime.describe(),
            "gpus": runtime.gpus(), "command": command,
            "versions": {"jseg": __version__, "Python": sys.version.split()[0], "Jittor": _found("jittor"),
                         "NumPy": _found("numpy"), **{name: _found(package) for name, package in more.items()}}}


def _found(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
