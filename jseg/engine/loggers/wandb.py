"""Weights & Biases: a run in a project of its server, or with `mode: offline` in the run's folder."""

from __future__ import annotations

from typing import Any, Mapping

from jseg.engine.loggers.base import LoggedRun, import_package, keep_id, kept_id
from jseg.registry import LOGGERS

__all__ = ["WandbLogger"]

_EXIT = {"finished": 0, "failed": 1, "stopped": 130}
_SECONDS_TO_UPLOAD = 50.0


@LOGGERS.register("wandb")
class WandbLogger:
    """A run of Weights & Biases; its axis is `iter`, and a resumed run goes on in the same one.

    Args:
        project, entity, group: as W&B has them; None for the user's own entity, and for no group.
        name: of the run; None for the name of the run's folder.
        mode: online, offline (upload later with `wandb sync`) or disabled; None for WANDB_MODE, else online.
    """

    cure = "run `wandb login` once, or set mode: offline, which needs no network"
    unsent = "they are in the run's folder: `wandb sync` sends them"

    def __init__(self, run: LoggedRun, *, project: str = "jseg", entity: str | None = None, name: str | None = None,
                 group: str | None = None, mode: str | None = None):
        wandb = import_package("wandb", "wandb", "wandb")
        settings: dict[str, Any] = {"quiet": True, "console": "off", "disable_git": True, "save_code": False}
        if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # W&B waits without end where it has none
            settings["finish_timeout"] = _SECONDS_TO_UPLOAD
        self._run = wandb.init(project=project, entity=entity, name=name or run.work_dir.resolve().name, group=group,
                               mode=mode, dir=str(run.work_dir), id=kept_id(run.work_dir, "wandb"), resume="allow",
                               reinit="create_new", settings=wandb.Settings(**settings))
        keep_id(run.work_dir, "wandb", self._run.id)
        self._run.define_metric("iter")
        self._run.define_metric("*", step_metric="iter")
        self.place = self._run.dir if mode == "offline" else self._run.url or self._run.dir

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The config as the run's config; a resumed run's replaces it."""
        self._run.config.update(dict(config), allow_val_change=True)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """One row of the history."""
        self._run.log({**scalars, "iter": step})

    def finish(self, scalars: Mapping[str, float], status: str) -> None:
        """Put the final scores into the run's summary and wait until all is sent."""
        self._run.summary.update(dict(scalars))
        self._run.finish(exit_code=_EXIT[status])
