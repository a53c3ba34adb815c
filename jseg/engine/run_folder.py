"""A run's folder: one writer at a time, never overwritten by accident, left in order when a signal ends the run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jseg.errors import JsegError

__all__ = ["RunFolderError", "locked", "refuse_to_overwrite", "StopRequest"]


class RunFolderError(JsegError):
    """A work_dir is in use by another run, or holds a run that was not meant to be continued."""


@contextlib.contextmanager
def locked(work_dir: str | os.PathLike) -> Iterator[None]:
    """Hold `<work_dir>/run.lock` while the body runs.

    The kernel frees the lock when its process ends in whatever way, so a killed run leaves a stale file but no lock.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written.
    """
    path = Path(work_dir) / "run.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")
    except OSError as error:
        raise RunFolderError(f"{work_dir}: cannot be used as work_dir ({error.strerror}); give another one with "
                             f"--work-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunFolderError(f"{work_dir}: in use by another run ({_owner(file.read())}); wait for it or stop it, or give "
                                 f"another --work-dir") from None
        except OSError as error:  # a network disk without locks
            print(f"{work_dir}: this disk has no file locks ({error.strerror}); nothing prevents a second run in the folder",
                  file=sys.stderr)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}))
        file.flush()
        yield
        file.truncate(0)


def _owner(text: str) -> str:
    try:
        about = json.loads(text)
        return f"pid {about['pid']} on {about['host']} since {about['since']}"
    except (ValueError, KeyError, TypeError):
        return "its owner has not written its name yet"


def refuse_to_overwrite(work_dir: str | os.PathLike) -> None:
    """Raise RunFolderError when the folder holds a run and nobody asked to resume it."""
    work_dir = Path(work_dir)
    found = [name for name in ("last", "best", "best.safetensors", "log.jsonl") if (work_dir / name).exists()]
    if found or any(work_dir.glob("iter_*")):
        raise RunFolderError(f"{work_dir}: holds a run already ({', '.join(found) or 'iter_*'}); continue it with --resume, give "
                             f"another --work-dir, or remove the folder")


class StopRequest:
    """Turn SIGINT and SIGTERM into a wish that the loop grants between two steps.

    Within `with StopRequest() as stop`, `stop.signal` is None or the signal's number. A second SIGINT ends the process at
    once with status 130. Outside the main thread signals stay as they are.

    Importing Jittor leaves two handlers of its own: SIGINT ends the process on the spot, and so does, without a word, a
    child that dies by a signal. Here the first is replaced and the second switched off: the loader names a dead worker.
    """

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *exc_info) -> None:
        for number, handler in self._before.items():
            plain = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, plain if handler is None else handler)  # None: C code, such as Jittor's, had set it

    def _note(self, number: int, frame) -> None:
        if self.signal is not None and number == signal.SIGINT:
            os.write(2, b"\nleaving at once; the last saved state stays\n")
            os._exit(128 + number)
        self.signal = number
        word = {signal.SIGINT: b"Ctrl-C", signal.SIGTERM: b"SIGTERM"}[number]
        os.write(2, b"\n" + word + b": finishing this step, then saving (Ctrl-C again leaves at once)\n")
