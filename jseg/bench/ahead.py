"""Compile the operations of whole models for a GPU in several processes at once, while the benchmark goes on.

Jittor compiles the operations of a graph one after the other, each in 2 to 5 s of nvcc, and holds a lock of its cache
meanwhile. A side whose `hello` carries `GPU` gives that lock up once Jittor is imported. Two processes may then want
the same operation: jseg's script before nvcc (`runtime_cuda.NVCC`) makes the second wait and take the first one's
result. A process that fails all the same is started once more; what it had compiled is kept.
"""

from __future__ import annotations

import threading
from typing import Callable

from jseg.bench.side import Side, SideError, jseg_command

__all__ = ["GPU", "Ahead", "persistent"]

GPU = {"device": "cuda", "unlocked": True}  # words of the request "hello"


def persistent(name: str, work: Callable[[Side], dict], *, env: dict | None = None, timeout_s: float = 1800) -> dict:
    """What `work` returns for a side of jseg on the GPU; tried a second time where the first process failed.

    Raises:
        SideError: it failed both times.
    """
    for last in (False, True):
        try:
            with Side(name, jseg_command(), env=env, timeout_s=timeout_s) as side:
                side.ask("hello", **GPU)
                return work(side)
        except SideError:
            if last:
                raise
    raise AssertionError("unreachable")


class Ahead:
    """Jobs that run in the background, each in a process of its own, until they are done or `close` ends them.

    Args:
        jobs: name -> (environment variables, words of the request "open").
    """

    def __init__(self, jobs: dict[tuple, tuple[dict, dict]]):
        self.jobs = jobs
        self._sides: dict[tuple, Side] = {}
        self._ended: dict[tuple, threading.Event] = {name: threading.Event() for name in jobs}
        self._errors: dict[tuple, str] = {}
        self._closed = False

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Start every job."""
        for name in self.jobs:
            threading.Thread(target=self._run, args=(name,), daemon=True).start()

    def wait(self, name: tuple, timeout_s: float) -> str:
        """"" when this job is done, or in words why its operations are not all compiled."""
        if not self._ended[name].wait(timeout_s):
            return "its operations are still being compiled; what is done is kept for the next run"
        return self._errors.get(name, "")

    def close(self) -> None:
        """End the processes of all jobs that still run, and wait until they are gone."""
        self._closed = True
        for side in list(self._sides.values()):
            side.kill()
        for name in self._sides:
            self._ended[name].wait(20)

    def _run(self, name: tuple) -> None:
        env, words = self.jobs[name]

        def work(side: Side) -> dict:
            self._sides[name] = side
            if self._closed:
                side.kill()
            return side.ask("open", warm=1, **words)

        try:
            persistent(" ".join(map(str, name)), work, env=env)
        except SideError as error:
            self._errors[name] = str(error)
        self._ended[name].set()
