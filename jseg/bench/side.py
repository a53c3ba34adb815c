"""A side of a comparison, seen from the benchmark: a child process that answers requests (see `protocol`)."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading

from jseg.errors import JsegError

__all__ = ["Side", "SideError", "jseg_command", "thread_count", "torch_command", "TUNED"]

HERE = pathlib.Path(__file__).resolve().parent
TORCH_SIDE = HERE.parents[1] / "tests" / "parity" / "torch_side.py"
# glibc returns large blocks to the system at once and pays for fresh pages on every use; this makes it keep them.
TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


class SideError(JsegError):
    """A side could not start, failed at a request, ran out of time or memory."""


def jseg_command() -> list[str]:
    """How jseg's own side starts."""
    return [sys.executable, "-m", "jseg.bench.jseg_side"]


def torch_command(python: str) -> list[str]:
    """How PyTorch's side starts under another Python.

    Raises:
        SideError: this jseg was installed without the repository, which holds that side.
    """
    if not TORCH_SIDE.is_file():
        raise SideError(f"--against-torch {python}: PyTorch's side is a script of jseg's repository, "
                        f"{TORCH_SIDE.relative_to(HERE.parents[1])}, which an installed wheel does not have; clone the "
                        "repository, `pip install -e .` there and run jseg bench again")
    return [python, str(TORCH_SIDE)]


def thread_count(threads: int | None) -> int:
    """The processor threads of a side for which `threads` are asked, or what the environment says of them."""
    return threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _environment(command: list[str], extra: dict) -> dict:
    """Variables of a side. jseg's own inherits what jseg has prepared; another Python gets what this process was
    started with, so that nothing jseg chose (how long idle threads spin, say) makes it faster or slower than it
    comes."""
    variables = dict(os.environ)
    if command[1:2] == ["-m"]:
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parents[1]), variables.get("PYTHONPATH"))))
    else:
        try:
            entries = pathlib.Path("/proc/self/environ").read_bytes().decode(errors="surrogateescape").split("\0")
            variables = dict(entry.split("=", 1) for entry in entries if "=" in entry)
        except OSError:
            pass
    return {**variables, **extra}


class Side:
    """Start a side and talk to it.

    Args:
        name: as tables call it.
        command: from `jseg_command` or `torch_command`.
        threads: processor threads it may use; None leaves it to the environment.
        env: variables for this side alone.
        clock: what `run` measures, "wall" or "processor" time (see `protocol.run_task`).
        timeout_s: the longest wait for an answer; it can be given for each request, too.
    Raises:
        SideError: it does not start, or does not answer in time.
    """

    def __init__(self, name: str, command: list[str], *, threads: int | None = None, env: dict | None = None,
                 clock: str = "wall", timeout_s: float = 1800):
        self.name, self.timeout_s, self.clock = name, timeout_s, clock
        variables = _environment(command, env or {})
        if threads:
            variables.update({word: str(threads)
                              for word in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
        self._log = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=self._log, text=True, env=variables)
        except OSError as error:
            raise SideError(
                f"{name}: {command[0]} cannot be started ({error.strerror}); give the path of a Python") from error
        self._expendable()
        self._answers: queue.Queue = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self.ready = self._answer(timeout_s)["ready"]
        except SideError:
            self.close()
            raise

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.kill()  # it may be in the middle of something long
        self.close()

    def ask(self, do: str, *, timeout_s: float | None = None, **words) -> dict:
        """Send a request and wait for its answer.

        Raises:
            SideError: the side reports an error, has died (its last words are in the text) or is too slow; then it is
            ended.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            raise SideError(f"{self.name}: {self._last_words()}") from None
        return self._answer(timeout_s or self.timeout_s)

    def run(self, count: int, task: str = "main", *, timeout_s: float | None = None) -> list[float]:
        """Seconds of `count` runs of a task."""
        return self.ask("run", count=count, task=task, clock=self.clock, timeout_s=timeout_s)["seconds"]

    def kill(self) -> None:
        """End the process at once, also from another thread; a request that waits for its answer raises SideError."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """End the process; harmless when it has ended."""
        if self._process.poll() is None:
            try:
                self._process.stdin.close()
                self._process.wait(10)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
        self._process.wait()
        self._listener.join(10)
        with contextlib.suppress(OSError):  # a pipe to a process that is gone
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _answer(self, timeout_s: float) -> dict:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise SideError(f"{self.name}: no answer within {timeout_s:.0f} s; it was ended") from None
        if line is None:
            raise SideError(f"{self.name}: {self._last_words()}")
        answer = json.loads(line)
        if not answer.get("ok"):
            raise SideError(f"{self.name}: {answer.get('error', 'an error without words')}")
        return answer

    def _listen(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _last_words(self) -> str:
        """Why a side is gone: its signal or status and the end of its error output."""
        status = self._process.wait()
        if status == -9:
            return "was killed; most likely the machine's memory does not suffice"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"ended with {how}: {' | '.join(lines[-3:])[-600:] or 'without a word'}"

    def _expendable(self) -> None:
        """Where memory runs out, let the system end this process and not another."""
        try:
            pathlib.Path(f"/proc/{self._process.pid}/oom_score_adj").write_text("1000")
        except OSError:
            pass
