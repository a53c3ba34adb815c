"""A running `jseg serve` as the tests see it."""

from __future__ import annotations

import http.client
import json
import pathlib
import subprocess
from typing import Any, NamedTuple
from urllib.parse import urlsplit

MAX_PIXELS, MAX_MB = 1 << 20, 4
PNG = {"Content-Type": "image/png"}


class Answer(NamedTuple):
    """Of one request."""

    status: int
    type: str
    content: bytes

    def json(self) -> Any:
        """The content, which is JSON."""
        assert "json" in self.type, self
        return json.loads(self.content)


class RunningServer(NamedTuple):
    """A process of `jseg serve`, its address, and the folders that are to stay empty."""

    process: subprocess.Popen
    address: str
    folders: tuple[pathlib.Path, ...]

    def ask(self, path: str, data: bytes | None = None, headers: dict | None = None, method: str = "") -> Answer:
        """Send one request, on a connection of its own."""
        where = urlsplit(self.address)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, body=data, headers=headers or {})
            found = connection.getresponse()
            return Answer(found.status, found.headers["Content-Type"], found.read())
        finally:
            connection.close()
