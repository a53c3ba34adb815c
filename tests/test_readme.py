"""The example for own pictures does what README says: it is taken out of the page, checked as printed and trained."""

import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "train_dataloader.batch_size=2",
         "train_dataloader.num_workers=0",
         "val_dataloader.num_workers=0", "data_preprocessor.size=[64, 64]",
         "train_dataloader.dataset.pipeline.3.crop_size=[64, 64]"]


def example(page: str) -> str:
    """The YAML block that names its own file."""
    blocks = re.findall(r"```yaml\n(# configs/segnext/mine.yaml\n.*?)```", (ROOT / page).read_text(encoding="utf-8"),
                        re.DOTALL)
    assert len(blocks) == 1, f"{page}: {len(blocks)} examples"
    return blocks[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of a user: configs as shipped, and ten pictures with masks of three classes."""
    root = tmp_path_factory.mktemp("user")
    shutil.copytree(ROOT / "configs", root / "configs")
    rng = np.random.default_rng(0)
    for i in range(10):
        mask = np.zeros((72, 96), np.uint8)
        mask[10:40, 10:50], mask[30:60, 40:90] = 1, 2
        for kind, array in (("images", (mask[..., None] * 80 + rng.integers(0, 40, (72, 96, 3))).astype(np.uint8)),
                            ("masks", mask)):
            path = root / "data" / "mine" / kind / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), array)
    return root


def run(project, *words):
    return subprocess.run([sys.executable, "-m", "jseg", *words], cwd=project, capture_output=True, text=True,
                          timeout=600)


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_own_pictures(project, page):
    path = project / "configs" / "segnext" / "mine.yaml"
    path.write_text(example(page), encoding="utf-8")
    checked = run(project, "check", "configs/segnext/mine.yaml")
    assert checked.returncode == 0 and "on FolderDataset (3 classes)" in checked.stdout, checked.stderr
    if page == "README.md":
        sets = [word for text in SMALL for word in ("--set", text)]
        trained = run(project, "train", "configs/segnext/mine.yaml", "--work-dir", "runs/mine", *sets)
        assert trained.returncode == 0, trained.stderr[-2000:]
        assert (project / "runs/mine/best.safetensors").is_file() and "done: mIoU" in trained.stdout + trained.stderr
