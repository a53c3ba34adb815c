"""A run's folder: one writer at a time, never overwritten by accident, left in order when a signal ends the run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jseg import runtime_signals
from jseg.errors import JsegError

__all__ = ["RunFolderError", "locked", "refuse_to_overwrite", "StopRequest"]


class RunFolderError(JsegError):
    """A work_dir is in use by another run, or holds a run that was not meant to be continued."""


@contextlib.contextmanager
def locked(work_dir: str | os.PathLike) -> Iterator[None]:
    """Hold `<work_dir>/run.lock` while the body runs.

    The kernel frees the lock when its process ends in whatever way, so a killed run leaves a stale file but no lock.
    Network disks with locks (NFS, CephFS, Lustre) share them between hosts. On a disk without any, the process named in
    the file decides: it is looked up on this host and believed on another.

    Raises:
        RunFolderError: another process holds it, or the folder cannot be written.
    """
    path = Path(work_dir) / "run.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunFolderError(f"{work_dir}: cannot be used as work_dir ({error.strerror}); give another one with "
                             f"--work-dir") from error
    try:
        _take(handle, Path(work_dir))
        _name_owner(handle,
                    json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}))
        yield
        _name_owner(handle, "")
    finally:
        os.close(handle)


def _take(handle: int, work_dir: Path) -> None:
    """Lock the open file, or raise RunFolderError with its owner's name."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = _owner(handle)
        if owner and owner["host"] != socket.gethostname():
            print(f"{work_dir}: run.lock was left by {_words(owner)}, which holds it no longer", file=sys.stderr)
        return
    except BlockingIOError:
        raise RunFolderError(f"{work_dir}: in use by another run ({_words(_owner(handle))}); wait for it or stop it, "
                             "or give another --work-dir") from None
    except OSError as error:
        reason = error.strerror
    owner = _owner(handle)
    if owner and (owner["host"] != socket.gethostname() or _lives(owner["pid"])):
        raise RunFolderError(f"{work_dir}: in use by another run ({_words(owner)}), says run.lock, and this disk has "
                             f"no file locks to prove it ({reason}); wait for that run or stop it, or remove "
                             f"{work_dir}/run.lock when it is gone")
    print(f"{work_dir}: this disk has no file locks ({reason}); a second run started at this very moment would not be "
          "noticed",
          file=sys.stderr)


def _owner(handle: int) -> dict | None:
    """{"pid", "host", "since"} of the process that wrote the file, or None."""
    try:
        about = json.loads(os.pread(handle, 4096, 0))
        return {"pid": int(about["pid"]), "host": str(about["host"]), "since": str(about["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _words(owner: dict | None) -> str:
    if owner is None:
        return "its owner has not written its name yet"
    return f"pid {owner['pid']} on {owner['host']} since {owner['since']}"


def _name_owner(handle: int, text: str) -> None:
    """Leave a name for those who come later; a full disk does not matter here."""
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    return True


def refuse_to_overwrite(work_dir: str | os.PathLike) -> None:
    """Raise RunFolderError when the folder holds a run and nobody asked to resume it."""
    work_dir = Path(work_dir)
    found = [name for name in ("last", "best", "best.safetensors", "log.jsonl") if (work_dir / name).exists()]
    if found or any(work_dir.glob("iter_*")):
        raise RunFolderError(f"{work_dir}: holds a run already ({', '.join(found) or 'iter_*'}); continue it with "
                             "--resume, give another --work-dir, or remove the folder")


class StopRequest:
    """Turn SIGINT, SIGTERM and SIGHUP into a wish that the loop grants between two steps.

    Within `with StopRequest() as stop`, `stop.signal` is None or the signal's number. A second SIGINT ends the process
    at once with status 130. Outside the main thread signals stay as they are.

    While `at_once` holds there is nothing to save, and a signal raises `runtime_signals.Stopped` instead.

    A child that dies by a signal is named by the loader; Jittor's handler, which would end this process, is switched
    off.
    """

    def __init__(self):
        self.signal: int | None = None
        self._at_once = False
        self._answers = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        self._answers.enter_context(runtime_signals.answering(self._take_signal))
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *exc_info) -> None:
        self._answers.close()

    @property
    def at_once(self) -> bool:
        """Whether a signal ends the run on the spot."""
        return self._at_once

    @at_once.setter
    def at_once(self, value: bool) -> None:
        """Change it; while it holds, a long C++ call is not waited for either."""
        if value != self._at_once:
            self._at_once = value
            runtime_signals.limit(value)

    def _take_signal(self, number: int) -> None:
        if self.at_once:
            runtime_signals.stop(number)
        if self.signal is not None and number == signal.SIGINT:
            _write(b"leaving at once; the last saved state stays")
            runtime_signals.leave(128 + number)
        runtime_signals.mute_broken_output()
        self.signal = self.signal or number
        _write(_WORDS[number] + b": finishing this step, then saving (Ctrl-C again leaves at once)")


_WORDS = {signal.SIGINT: b"Ctrl-C", signal.SIGTERM: b"SIGTERM", signal.SIGHUP: b"SIGHUP"}


def _write(words: bytes) -> None:
    """A line from within a signal handler."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" + words + b"\n")
