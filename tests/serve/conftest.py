"""One server for all tests of this folder: the real command, on a free port, where it can write nothing but two empty
folders.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from running import MAX_MB, MAX_PIXELS, RunningServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "segnext_tiny_camvid.safetensors"


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
