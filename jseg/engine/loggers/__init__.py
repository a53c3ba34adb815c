"""Where a run's numbers go beside `log.jsonl`: TensorBoard, Weights & Biases, MLflow; a file each, which registers it.

    train_cfg:
      loggers: [tensorboard, {type: wandb, project: roads}, {type: mlflow, tracking_uri: "http://host:5000"}]

A new logger is a new file here: a class as `base.Logger` describes it, registered in `LOGGERS` under its name.
"""

from __future__ import annotations

from typing import Any, Mapping

from jseg.engine.loggers import mlflow, tensorboard, wandb  # noqa: F401  (importing a file enters its class)
from jseg.engine.loggers.base import LoggedRun, Logger
from jseg.engine.loggers.group import LoggerGroup
from jseg.registry import LOGGERS
from jseg.rules import wrong_types

__all__ = ["LoggedRun", "Logger", "LoggerGroup", "logger_blocks", "logger_faults"]


def logger_blocks(value: Any) -> tuple[dict[str, Any], ...]:
    """The blocks that `train_cfg.loggers` stands for: names and blocks may be mixed, one needs no list."""
    items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    return tuple(dict(item) if isinstance(item, Mapping) else {"type": item} for item in items)


def logger_faults(value: Any, where: str) -> list[str]:
    """List what is wrong with `train_cfg.loggers`; no package is imported."""
    faults, seen = [], set()
    for block in logger_blocks(value):
        found = LOGGERS.faults(block, where, ("run",))
        if not found:
            kind = block["type"]
            found = wrong_types(LOGGERS.get(kind), block, where)
            found += [f"{where}: {kind!r} is there twice; one of each kind is accepted"] if kind in seen else []
            seen.add(kind)
        faults += found
    return faults
