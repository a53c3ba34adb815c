"""README's lines and snippets do what it says: taken out of the page and run in order, on a machine without data sets.

What a test cannot wait for is cut short (`SHORTER`); what needs a network or a data set has to say so (`REFUSED`).
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request

import cv2
import numpy as np
import pytest

from jseg.data.render import render_scene

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh-CN.md")
STEPS = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2",
         "train_dataloader.num_workers=0", "val_dataloader.num_workers=0"]
SHORTER = {"jseg data demo": ["--count", "10", "--size", "72", "96"],
           "jseg train street.yaml": [word for text in STEPS for word in ("--set", text)],
           "jseg export runs/street model.onnx": ["--no-verify"],  # tests/export does that
           "jseg quantize": ["--calibrate", "2", "--max-drop", "100"],
           "jseg benchmark": ["--repeat", "1", "--size", "64", "96", "--images", "1"], "jseg serve": ["--port", "0"]}
# start of a line -> a word of its refusal
REFUSED = {"jseg weights get": "by hand", "python tools/convert_datasets": "ADEChallengeData2016.zip",
           "jseg browse": "data/ade", "jseg train segnext/": "data/ade", "jseg launch": "data/ade",
           "jseg val --checkpoint runs/segnext_tiny_ade20k": "runs/segnext_tiny_ade20k"}
HAS_MPI = all(map(shutil.which, ("mpirun", "mpicc")))
ELSEWHERE = ("git clone", ". .venv/bin/activate", "make ")  # .ci/run, and what runs these tests


def pieces(page: str) -> list[str]:
    """The command lines and Python snippets (these with line ends) in the order of the page, without comments."""
    found, snippet = [], None
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            if snippet:
                found.append("\n".join([*snippet, ""]))
            snippet = [] if line == "```python" else None
        elif snippet is not None:
            snippet.append(re.sub(r"\s+# .*", "", line))
        elif line.startswith("    "):
            found.append(re.sub(r"\s+# .*", "", line.strip()))
    return found


def test_both_pages_have_the_same_lines():
    first, second = map(pieces, PAGES)
    assert first == second and len(first) > 20
    assert {line.split()[0] for line in first if "\n" not in line} <= {"git", "make", ".", "jseg", "python"}


@pytest.fixture
def project(tmp_path):
    """The checkout as a user has it, without data sets, and a photograph."""
    for name in ("weights", "tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    cv2.imwrite(str(tmp_path / "street.jpg"), render_scene((120, 160), np.random.default_rng(0))[0])
    return tmp_path


def run(project: pathlib.Path, line: str) -> subprocess.CompletedProcess:
    """Run one line of the page; addresses elsewhere are out of reach, servers are asked how they are and ended."""
    if "\n" in line:
        short = line.replace('load_config("street.yaml")', f'load_config("street.yaml", {STEPS})')
        words = [sys.executable, "-c", short]
    else:
        first, *rest = shlex.split(line)
        more = [word for start, words in SHORTER.items() if line.startswith(start) for word in words]
        words = [sys.executable, *(["-m", "jseg"] if first == "jseg" else []), *rest, *more]
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    process = subprocess.Popen(words, cwd=project, env={**os.environ, **nowhere}, text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    said = ""
    if line.startswith("jseg serve"):
        for said in process.stdout:
            if "http://" in said:
                break
        with urllib.request.urlopen(re.search(r"http://\S+/", said).group() + "health", timeout=60) as reply:
            said += reply.read().decode()
        process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=600)[0]
    return subprocess.CompletedProcess(words, process.returncode, said)


def test_every_line_in_order(project):
    said = {}
    for line in pieces("README.md"):
        if line.startswith(ELSEWHERE) or (line.startswith("jseg launch") and not HAS_MPI):
            continue
        if line.startswith("jseg convert checkpoint.pth"):
            assert run(project, "jseg export weights/segnext_tiny_camvid.safetensors checkpoint.pth").returncode == 0
        done = run(project, line)
        text = done.stdout
        refusal = next((word for start, word in REFUSED.items() if line.startswith(start)), None)
        if refusal is None:
            assert done.returncode == (130 if line.startswith("jseg serve") else 0), f"{line}\n{text[-3000:]}"
        else:
            assert done.returncode == 2 and refusal in text and "Traceback" not in text, f"{line}\n{text[-3000:]}"
        said[" ".join(line.split()[:3])] = text
    assert "on FolderDataset (6 classes)" in said["jseg check street.yaml"]
    assert "weights of 11 classes for 6" in said["jseg train street.yaml"] and "done: mIoU" in said[
        "jseg train street.yaml"]
    for made in ("runs/street/best.safetensors", "runs/street/report.html", "street_overlay.png", "model.onnx",
                 "model_int8.onnx", "model.pth", "converted.safetensors"):
        assert (project / made).stat().st_size > 0, made
    assert len(list((project / "street_masks").glob("*.png"))) == 4  # labels and overlays of two pictures
    assert re.search(r"\d\.\d+", said[next(key for key in said if key.startswith("import jseg"))])
