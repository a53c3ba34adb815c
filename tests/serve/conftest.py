"""One server for all tests of this folder: the real command, on a free port, where it can write nothing but two empty
folders.
"""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "segnext_tiny_camvid.safetensors"
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


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The running server."""
    for package in ("flask", "waitress"):
        pytest.importorskip(package, reason=f"no {package}: pip install 'jseg-jittor[serve]'")
    folders = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("current")
    words = [sys.executable, "-m", "jseg", "serve", str(WEIGHTS), "--port", "0", "--max-pixels", str(MAX_PIXELS),
             "--max-mb", str(MAX_MB), "--timeout", "100"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folders[1],
                          env={**os.environ, "TMPDIR": str(folders[0]), "PYTHONPATH": path}) as process:
        line = process.stdout.readline()
        assert " at http://127.0.0.1:" in line, f"{line!r}, status {process.poll()}"
        yield RunningServer(process, line.partition(" at ")[2].split()[0], folders)
        process.kill()


@pytest.fixture(scope="session")
def pictures():
    """Four small pictures as PNG files in memory."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5, 6, 3), dtype=np.uint8) for _ in range(4)]
    blobs = [cv2.resize(part, (120 + 8 * k, 90), interpolation=cv2.INTER_CUBIC) for k, part in enumerate(coarse)]
    return [cv2.imencode(".png", blob)[1].tobytes() for blob in blobs]


@pytest.fixture(scope="session")
def segmentor():
    """The same model in this process."""
    from jseg import InferenceSegmentor
    return InferenceSegmentor(WEIGHTS)
