"""A command on a pseudo-terminal of its own, to press Ctrl-C on:
the terminal signals the whole foreground process group, as a real one.
"""

from __future__ import annotations

import os
import pathlib
import pty
import re
import select
import signal
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


class Terminal:
    """Runs one command as the leader of a session whose terminal this is.

    Args:
        words: the command; "jseg" stands for this checkout's.
        env: variables added to this process's.
    """

    def __init__(self, *words, env=None, cwd=ROOT):
        words = list(map(str, words))
        words[:1] = [sys.executable, "-m", "jseg"] if words[0] == "jseg" else words[:1]
        self.text, self.status, self.pressed = "", None, None
        self.process, self._screen = pty.fork()
        if self.process == 0:
            for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            os.chdir(cwd)
            os.execvpe(words[0], words, {**os.environ, **(env or {})})
        self.began = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in [self.process, *self.session()]:
            if self.status is None or process != self.process:
                os.kill(process, signal.SIGKILL)
        if self.status is None:
            os.waitpid(self.process, 0)
        self.close()

    def close(self):
        """Close the terminal's window: the kernel hangs up."""
        if self._screen is not None:
            os.close(self._screen)
            self._screen = None

    def watch(self, seconds, until=lambda: False):
        """Read what is printed until the command ends, `until` holds, or the time is over; whether it runs still."""
        limit = time.monotonic() + seconds
        while self.status is None and time.monotonic() < limit and not until():
            self._read(min(0.02, max(0.0, limit - time.monotonic())))
            found, status = os.waitpid(self.process, os.WNOHANG)
            if found:
                self.status = os.waitstatus_to_exitcode(status)
                self._read(0.02)
        return self.status is None

    def wait_for(self, pattern, seconds=120):
        """Wait until the output holds a regular expression, or a function holds."""
        met = pattern if callable(pattern) else lambda: re.search(pattern, self.text)
        self.watch(seconds, met)
        assert met(), f"status {self.status}, no {pattern!r} in: {self.text[-2000:]}"

    def wait_for_handlers(self):
        """Wait until the command's first lines have run:
        what comes before, Python's own start, is not jseg's to answer for.
        """
        self.watch(60, lambda: self._catches(signal.SIGTERM))

    def send(self, text):
        """Type a text."""
        os.write(self._screen, text.encode())

    def press(self, limit_s=30.0):
        """Press Ctrl-C and wait; seconds from the first such key to the command's end."""
        self.pressed = self.pressed or time.monotonic()
        os.write(self._screen, b"\x03")
        self.watch(limit_s)
        return time.monotonic() - self.pressed

    def session(self):
        """Live processes that the command has left, or has, in its session."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = pathlib.Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[3]) == self.process and words[0] not in "ZX" and int(name) != self.process:
                found.append(int(name))
        return found

    def _read(self, seconds):
        if self._screen is None:
            time.sleep(seconds)
            return
        while select.select([self._screen], [], [], seconds)[0]:
            try:
                data = os.read(self._screen, 65536)
            except OSError:  # nobody holds the other side any more
                time.sleep(seconds)
                return
            if not data:
                return
            self.text += data.decode(errors="replace").replace("\r\n", "\n")
            seconds = 0

    def _catches(self, number):
        try:
            status = pathlib.Path(f"/proc/{self.process}/status").read_text()
        except OSError:
            return False
        return bool(int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1)


def faults(terminal, seconds, *folders, status=130, limit_s=3.0):
    """What is wrong with how a command ended: list of words, empty when all is well."""
    time.sleep(0.05)
    found = [] if terminal.status == status else [f"status {terminal.status}, not {status}"]
    found += [f"{seconds:.1f} s from Ctrl-C to the end"] if seconds > limit_s else []
    found += ["a traceback"] if "Traceback" in terminal.text or "Exception ignored" in terminal.text else []
    found += ["processes left: " + ", ".join(map(str, left))] if (left := terminal.session()) else []
    found += [f"left {path}" for folder in folders for path in folder.rglob("*") if ".tmp-" in path.name
              or ".part" in path.name]
    return [f"{words}: {terminal.text[-1500:]}" for words in found]
