"""docs/python.md, docs/python.ipynb and docs/api.md: every snippet and cell runs, the reference is current."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests" / "engine"), str(ROOT / "tools")]

import small_run  # noqa: E402

import jseg  # noqa: E402
from jseg.config import dump_config  # noqa: E402
from jseg.data.render import render_scene  # noqa: E402
from jseg.registry import DATASETS  # noqa: E402


def run_blocks(blocks: list[str], name: str) -> dict:
    """Run code blocks in one namespace, as a reader who pastes them in order; returns it."""
    space: dict = {"__name__": "page"}
    for number, block in enumerate(blocks, 1):
        try:
            exec(compile(block, f"{name}, block {number}", "exec"), space)
        except Exception as error:
            raise AssertionError(f"{name}, block {number}: {type(error).__name__}: {error}\n{block}") from error
    return space


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder: street.jpg, weights/, data/ of 12 pictures, mine.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))  # the page registers a class
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    cv2.imwrite("street.jpg", render_scene((120, 160), np.random.default_rng(5))[0])
    small_run.make_datasets(tmp_path / "data")
    config = small_run.small_config(pathlib.Path("data"))
    config["train_cfg"].update(max_iters=4, val_interval=2, ckpt_interval=1, log_interval=1)
    (tmp_path / "mine.yaml").write_text(dump_config(config))
    return tmp_path


def test_every_snippet_of_the_page_runs(folder):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    space = run_blocks(blocks, "docs/python.md")
    loop = next(block for block in blocks if "optimizer.accumulate" in block)
    assert len([line for line in loop.splitlines() if line.strip()]) <= 25
    assert space["scores"].shape == space["logits"].shape == (11, 120, 160) and space["maps"][0].ndim == 3
    assert (space["only_sure"] == 255).any() and (space["first"] != space["second"]).any()
    assert (folder / "overlay.png").exists() and (folder / "extremes").is_dir()
    # a run that its caller left and that was resumed is the one that went through, to the bit
    assert small_run.differences(folder / "runs/mine", folder / "runs/steps") == []
    assert space["labels"].shape == (120, 160) and space["labels"].max() < 3


def test_steps_hand_over_what_the_log_says_and_a_path_names_the_run(folder):
    seen = list(jseg.steps("mine.yaml"))
    assert [step.iter for step in seen] == [1, 2, 3, 4] and all(step.max_iters == 4 for step in seen)
    entries = small_run.lines(folder / "runs/mine")
    logged = [entry for entry in entries if "loss" in entry]
    np.testing.assert_allclose([step.losses["loss"] for step in seen], [entry["loss"] for entry in logged], rtol=1e-6)
    np.testing.assert_allclose([step.lr for step in seen], [entry["lr"] for entry in logged])
    assert [step.metrics is not None for step in seen] == [False, True, False, True]
    assert seen[1].metrics["mIoU"] == next(e["val"]["mIoU"] for e in entries if "val" in e and e["iter"] == 2)
    for _ in jseg.steps("mine.yaml", work_dir="runs/left"):
        break  # before any evaluation: the last weights are what there is
    assert jseg.InferenceSegmentor("runs/left").infer("street.jpg").shape == (120, 160)
    with pytest.raises(jseg.errors.JsegError, match="holds a run already"):
        jseg.train("mine.yaml")
    score = jseg.evaluate(jseg.InferenceSegmentor("runs/mine"), progress=False)["metrics"]["mIoU"]
    assert score == json.loads((folder / "runs/mine/metrics.json").read_text())["metrics"]["mIoU"] == max(
        step.metrics["mIoU"] for step in seen if step.metrics)
    with pytest.raises(jseg.errors.ConfigError, match="give a loader or a config"):
        jseg.evaluate(seen[0].model)


def test_every_cell_of_the_notebook_runs(folder):
    book = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["metadata"]["kernelspec"]["language"]) == (4, "python")
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in book["cells"] if cell["cell_type"] == "code")
    short = [re.sub(r"^iterations = \d+$", "iterations = 2", cell, flags=re.MULTILINE) for cell in cells]
    assert short != cells
    space = run_blocks(short, "docs/python.ipynb")
    assert len(space["losses"]) == 2 and space["labels"].shape == space["picture"].shape[:2]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older Pythons print some annotations otherwise")
def test_the_reference_is_current():
    import api_reference
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == api_reference.page(), (
        "docs/api.md is old: run `python tools/api_reference.py`")


def test_dir_shows_the_api_and_nothing_else():
    """In a fresh process: names that other imports leave behind would hide what is missing."""
    program = "import jseg, sys; print(*dir(jseg)); assert 'jittor' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    names = {name for name in done.stdout.split() if not name.startswith("__")}
    assert names == set(jseg.__all__) - {"__version__"}
    assert all(callable(getattr(jseg, name)) for name in names)
    with pytest.raises(AttributeError, match="did you mean 'evaluate'?"):
        jseg.evalute


@pytest.mark.parametrize("fails", [False, True])
def test_jittor_before_jseg_is_a_clear_word(tmp_path, fails):
    """As a notebook does it: a cell whose import fails, and the next cell."""
    (tmp_path / "jittor_utils.py").write_text("")
    failure = "raise OSError('libcudart.so: cannot open shared object file')" if fails else ""
    (tmp_path / "jittor.py").write_text(f"import jittor_utils\n{failure}\n")
    cells = "try:\n    import jittor\nexcept OSError as error:\n    print(error)\nimport jseg"
    done = subprocess.run([sys.executable, "-c", cells], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert done.returncode == 1 and ("libcudart.so" in done.stdout) == fails
    last = done.stderr.splitlines()[-1]
    assert "put `import jseg` above `import jittor`" in last and ("(its import failed)" in last) == fails
