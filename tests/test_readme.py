"""The lines for own pictures do what README says: they are taken out of the page and run in order, as printed."""

import pathlib
import re
import shlex
import subprocess
import sys

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECTIONS = {"README.md": "## Your own pictures\n", "README.zh-CN.md": "## 使用自己的图片\n"}
SMALL = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2",
         "train_dataloader.num_workers=0", "val_dataloader.num_workers=0"]  # what a test cannot wait for


def commands(page: str) -> list[str]:
    """The command lines of the section, in order."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(SECTIONS[page])[2].partition("\n## ")[0]
    return re.findall(r"^    (jseg .*)$", text, re.MULTILINE)


@pytest.fixture
def project(tmp_path):
    """The folder of a user: ten pictures with masks of three classes."""
    rng = np.random.default_rng(0)
    for i in range(10):
        mask = np.zeros((72, 96), np.uint8)
        mask[10:40, 10:50], mask[30:60, 40:90] = 1, 2
        for kind, array in (("images", (mask[..., None] * 80 + rng.integers(0, 40, (72, 96, 3))).astype(np.uint8)),
                            ("masks", mask)):
            path = tmp_path / "data" / "mine" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
    return tmp_path


def run(project, words):
    return subprocess.run([sys.executable, "-m", *words], cwd=project, capture_output=True, text=True, timeout=600)


def test_both_pages_have_the_same_commands():
    assert commands("README.md") == commands("README.zh-CN.md") and len(commands("README.md")) == 4


def test_own_pictures(project):
    said = {}
    for line in commands("README.md"):
        words = shlex.split(line)
        sets = [word for text in SMALL for word in ("--set", text)] if words[1] == "train" else []
        done = run(project, [*words, *sets])
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
        said[words[1]] = done.stdout + done.stderr
    assert "on FolderDataset (3 classes)" in said["check"]
    assert "weights of 11 classes for 3; no name agrees; new: background, class_1, class_2" in said["train"]
    assert (project / "runs/mine/best.safetensors").is_file() and "done: mIoU" in said["train"]
    assert (project / "runs/mine/report.html").is_file()
