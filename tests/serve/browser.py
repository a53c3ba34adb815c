"""A headless Chromium driven over a pipe by the DevTools protocol, which needs no package: each message is JSON and a
zero byte (https://chromedevtools.github.io/devtools-protocol).
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# the browser reads commands from file 3 and writes to file 4, which may be the pipes' own numbers, swapped
_START = """import fcntl, os, sys
pipes = [fcntl.fcntl(int(word), fcntl.F_DUPFD, 10) for word in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])"""


def find_browser() -> str | None:
    """The program, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a browser of its own.

    Args:
        program: from `find_browser`.
        folder: for its profile and downloads.
    """

    def __init__(self, program: str, folder: pathlib.Path):
        self.folder, self._count, self._rest, self.events = folder, 0, b"", []
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        words = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe",
                 f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen([sys.executable, "-c", _START, str(commands), str(answers), *words],
                                         pass_fds=(commands, answers), stdin=subprocess.DEVNULL,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder)
        os.close(commands)
        os.close(answers)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self._send("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}, None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._send("Browser.close", {}, None)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params) -> dict[str, Any]:
        """Send one command and return its result."""
        number = self._send(method, params, self._session)
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            for message in self._messages(limit):
                if message.get("id") == number:
                    assert "error" not in message, f"{method}: {message['error']}"
                    return message["result"]
                self.events.append(message)
        raise TimeoutError(method)

    def _send(self, method: str, params: dict, session: str | None) -> int:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **({"sessionId": session} if session else {})}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._count

    def _messages(self, limit: float) -> list[dict]:
        if select.select([self._read], [], [], max(0.0, limit - time.monotonic()))[0]:
            data = os.read(self._read, 1 << 20)
            assert data, "the browser ended"
            *whole, self._rest = (self._rest + data).split(b"\0")
            return [json.loads(part) for part in whole]
        return []

    def open(self, address: str, width: int, height: int, *, dark: bool = False) -> None:
        """Load a page at a size in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def value(self, script: str) -> Any:
        """What an expression gives; promises are waited for."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression holds; each look is a promise that the page keeps after 50 ms."""
        limit = time.monotonic() + seconds
        while not self.value(f"new Promise((done) => setTimeout(() => done(Boolean({script})), 50))"):
            assert time.monotonic() < limit, f"{script}: not so; the page says {self.value('document.body.innerText')}"

    def choose_file(self, selector: str, path: pathlib.Path) -> None:
        """What a click on a file field and a choice in its window do."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: pathlib.Path) -> None:
        """Write the whole page as a PNG file."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def faults(self) -> list[str]:
        """Errors of scripts, refused resources and the like."""
        found = [message["params"] for message in self.events if message.get("method") == "Runtime.exceptionThrown"]
        logged = [message["params"]["entry"] for message in self.events if message.get("method") == "Log.entryAdded"]
        return [str(entry) for entry in found + [entry for entry in logged if entry["level"] == "error"]]

    def addresses(self) -> list[str]:
        """What the page has asked for."""
        return [message["params"]["request"]["url"] for message in self.events
                if message.get("method") == "Network.requestWillBeSent"]
