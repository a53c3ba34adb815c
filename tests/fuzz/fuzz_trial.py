"""Run a reader on one file in a child process with limits and judge how it ended.

The child is a fork of this process, which has imported the reader: a trial costs milliseconds. Allowed are two ends:
the file was read, or one of
jseg's own errors was raised with one readable message. Everything else is a finding: another exception, a signal, more
than `CPU_S` seconds of
work, `WALL_S` seconds of waiting, more than `SPARE` bytes beyond the process before, or a file left behind.
"""

from __future__ import annotations

import json
import os
import pathlib
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from typing import Callable, NamedTuple

__all__ = ["CPU_S", "SPARE", "WALL_S", "Outcome", "attempt"]

CPU_S = 10          # seconds of computing
WALL_S = 120        # seconds by the clock: waiting takes no computing; beside other work a reader gets part of a core
SPARE = 1 << 30     # bytes
ROOM = 4 << 30      # address space beyond the present one: more is a MemoryError, and the machine stays usable
MESSAGE = 4000      # characters of a readable message


class Outcome(NamedTuple):
    """How a trial ended: kind "read", "refused" or "finding"; the message, or what was found; seconds of computing; MB
    beyond the start.
    """

    kind: str
    text: str
    seconds: float
    peak_mb: float


def attempt(read: Callable[[pathlib.Path, pathlib.Path], object], path: pathlib.Path, *, cpu_s: int = CPU_S,
            wall_s: float = WALL_S,
            spare: int = SPARE) -> Outcome:
    """Call `read(path, out)` in a child, in an empty folder `out` beside the file, and judge it.

    Args:
        read: reads a file; may write below `out` and the temporary folder, but must leave nothing there.
        path: the file, alone in its folder but for what belongs to it.
        cpu_s, wall_s: seconds.
        spare: bytes.
    """
    out, temporary = path.parent / "out", path.parent / "temporary"
    for folder in (out, temporary):
        folder.mkdir()
    before = _names(path.parent)
    receive, send = os.pipe()
    start_kb = _resident_kb()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _work(read, path, out, temporary, send, cpu_s)
    os.close(send)
    answer, late = _answer(receive, wall_s)
    if late:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    os.close(receive)
    seconds, peak_mb = usage.ru_utime + usage.ru_stime, max(usage.ru_maxrss - start_kb, 0) / 1024
    left = sorted(_names(path.parent) ^ before)
    kind, text = _judged(answer, late, status)
    if kind != "finding" and left:
        kind, text = "finding", f"left behind: {', '.join(left[:4])}"
    if kind != "finding" and peak_mb * 2 ** 20 > spare:
        kind, text = "finding", f"{peak_mb:.0f} MB"
    for folder in (out, temporary):
        shutil.rmtree(folder)
    return Outcome(kind, text, seconds, peak_mb)


def _work(read: Callable, path: pathlib.Path, out: pathlib.Path, temporary: pathlib.Path, send: int,
          cpu_s: int) -> None:
    """What the child does; never returns."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)  # remarks of the decoders' C code
        for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE):
            signal.signal(number, signal.SIG_DFL)  # Jittor's handler starts a debugger
        os.environ["TMPDIR"] = str(temporary)
        os.chdir(out)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
        here = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + ROOM,) * 2)
        answer = _called(read, path, out)
    except BaseException as error:  # the harness's own mistakes
        answer = ["finding", f"{type(error).__name__} in the harness: {error}"]
    os.write(send, json.dumps(answer).encode()[:60000])
    os._exit(0)


def _called(read: Callable, path: pathlib.Path, out: pathlib.Path) -> list[str]:
    from jseg.errors import JsegError
    try:
        read(path, out)
        return ["read", ""]
    except JsegError as error:
        text = str(error)
        if not text.strip() or "Traceback" in text or len(text) > MESSAGE:
            return ["finding", f"unreadable message of {len(text)} characters: {text[:200]}"]
        if any(character < " " and character not in "\n\t" or character == "\x7f" for character in text):
            return ["finding", f"control characters in the message: {text[:200]!r}"]
        return ["refused", text[:1000]]
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if f"{os.sep}jseg{os.sep}" in frame.filename), frames[-1])
        return ["finding", f"{type(error).__name__}: {' '.join(str(error).split())[:200]} "
                           f"({os.path.basename(place.filename)}, line {place.lineno})"]


def _answer(receive: int, wall_s: float) -> tuple[list[str] | None, bool]:
    """What the child wrote (None: nothing), and whether it is late."""
    end, data = time.monotonic() + wall_s, b""
    while (rest := end - time.monotonic()) > 0:
        if select.select([receive], [], [], rest)[0]:
            piece = os.read(receive, 65536)
            if not piece:
                return (json.loads(data) if data else None), False
            data += piece
    return None, True


def _judged(answer: list[str] | None, late: bool, status: int) -> tuple[str, str]:
    if late:
        return "finding", f"hangs: not done within {WALL_S} s"
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) and answer is None:
        return "finding", f"more than {CPU_S} s of computing"
    if answer is None:
        ended = os.WIFSIGNALED(status)
        what = signal.Signals(os.WTERMSIG(status)).name if ended else f"status {os.WEXITSTATUS(status)}"
        return "finding", f"the process ended with {what}"
    return answer[0], answer[1]


def _names(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _resident_kb() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


if sys.platform != "linux":
    raise SystemExit("the limits of a trial need Linux (/proc, RLIMIT_AS)")
