"""TensorBoard: event files in the run's folder, written with tensorboardX."""

from __future__ import annotations

from typing import Any, Mapping

from jseg.config import dump_config
from jseg.engine.loggers.base import LoggedRun, import_package
from jseg.registry import LOGGERS

__all__ = ["TensorBoardLogger"]


@LOGGERS.register("tensorboard")
class TensorBoardLogger:
    """Event files in `<work_dir>/tensorboard`, for `tensorboard --logdir`.

    Events of steps that a resumed run does again are marked as replaced.
    """

    cure, unsent = "see that the run's folder can be written", "log.jsonl has them"

    def __init__(self, run: LoggedRun):
        package = import_package("tensorboardX", "tensorboard", "tensorboard")
        self.place = str(run.work_dir / "tensorboard")
        self._last = run.step
        self._writer = package.SummaryWriter(self.place, purge_step=run.step + 1)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The config as a text."""
        text = "\n".join(f"    {line}" for line in dump_config(config).splitlines())  # Markdown: four spaces for code
        self._writer.add_text("config", text, self._last)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """One scalar event each."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._last = step

    def finish(self, scalars: Mapping[str, float], status: str) -> None:
        """Write what waits and close the file."""
        self.log_scalars(scalars, self._last)
        self._writer.close()
