"""The loggers of a run, each behind a thread of its own: a slow or lost network neither holds up nor ends training."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, Callable, Mapping, Sequence

from jseg.engine.loggers.base import LoggedRun, Logger
from jseg.errors import ConfigError, JsegError
from jseg.registry import LOGGERS

__all__ = ["LoggerGroup"]

MOST_WAITING = 10_000  # calls; more is not kept for a logger that does not get on
PATIENCE_S = {"finished": 60.0, "stopped": 10.0, "failed": 10.0}  # for what is not yet sent at the end


class _Worker:
    """One logger and its thread; the first error is told, further ones are not."""

    def __init__(self, name: str, logger: Logger, say: Callable[[str], None]):
        self.name, self.logger, self._say, self._warned = name, logger, say, False
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self.thread.start()

    def call(self, method: str, *args: Any) -> None:
        """Have a method called later, in order."""
        if self._calls.qsize() < MOST_WAITING or method == "finish":
            self._calls.put((method, args))
        else:
            self._warn(f"{MOST_WAITING:,} calls wait")

    def _work(self) -> None:
        method = ""
        while method != "finish":
            method, args = self._calls.get()
            try:
                getattr(self.logger, method)(*args)
            except Exception as error:  # another package's, of any kind
                self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            self._say(f"warning: logger {self.name}: {reason:.500}; training goes on, log.jsonl is whole, and further "
                      "failures of this logger are not told")


class LoggerGroup:
    """All loggers of a run.

    Args:
        blocks: of the config, as `logger_blocks` gives them.
        run: what they write about.
        say: prints a line.
    Raises:
        ConfigError: a logger cannot begin: its package is not installed, or its server refuses or cannot be reached.
    """

    def __init__(self, blocks: Sequence[Mapping[str, Any]], run: LoggedRun, say: Callable[[str], None]):
        self._workers: list[_Worker] = []
        self._say = say
        for block in blocks:
            try:
                logger = _opened(block, run)
            except BaseException:
                self.close({}, "failed")
                raise
            say(f"logger {block['type']}: {logger.place}")
            self._workers.append(_Worker(block["type"], logger, say))
            self._workers[-1].call("log_config", run.config)

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Hand numbers to every logger; returns at once."""
        for worker in self._workers:
            worker.call("log_scalars", scalars, step)

    def close(self, scalars: Mapping[str, float], status: str) -> None:
        """End all loggers; waits a while for those that still send.

        Args:
            scalars: the final ones; empty where the run is not complete.
            status: "finished", "stopped" or "failed".
        """
        until = time.monotonic() + PATIENCE_S[status]
        for worker in self._workers:
            worker.call("finish", scalars, status)
        for worker in self._workers:
            worker.thread.join(max(0.0, until - time.monotonic()))
            if worker.thread.is_alive():
                self._say(f"warning: logger {worker.name}: not all numbers are sent after {PATIENCE_S[status]:.0f} s; "
                          f"{worker.logger.unsent}")
        self._workers = []


def _opened(block: Mapping[str, Any], run: LoggedRun) -> Logger:
    """Connect one logger, or raise ConfigError."""
    where = "train_cfg.loggers"
    try:
        return LOGGERS.build(block, where, run=run)
    except JsegError:
        raise
    except Exception as error:  # another package's, of any kind
        raise ConfigError(f"{where}: {block['type']} cannot begin ({type(error).__name__}: {error}); "
                          f"{LOGGERS.get(block['type']).cure}") from error
