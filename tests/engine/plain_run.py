"""Measure that training with the kernels follows the plain path: the same run under both,
and once more with other rounding as the yardstick.

    python tests/engine/plain_run.py configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml FOLDER PICTURE.svg --steps 200

Three runs of the config from the same seed: the plain path, the kernels, and the kernels built for another vector
width, whose sums round differently and nothing else. Their losses and the distances between them go into the picture.
Exits with status 1 when the kernels stray more than three times as far from the plain path, averaged over the run, as
they stray from themselves. On x86-64 with AVX2.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys

import numpy as np

from jseg.report.curves import Series, line_chart, stacked
from jseg.report.run import read_run

RUNS = {"plain path": {"JSEG_IMPL": "jittor"}, "kernels": {}, "kernels, AVX2": {"JSEG_CPU_FLAGS": "-march=haswell"}}
WINDOW = 10  # steps a loss is averaged over before it is compared


def losses(config: str, folder: pathlib.Path, steps: int, batch: int, env: dict) -> np.ndarray:
    """Loss of each step; runs the training unless its log is there."""
    if not (folder / "log.jsonl").exists():
        settings = [f"train_dataloader.batch_size={batch}", "train_cfg.log_interval=1",
                    *(f"train_cfg.{key}={steps}" for key in ("max_iters", "val_interval", "ckpt_interval"))]
        command = [sys.executable, "-m", "jseg", "train", config, "--work-dir", str(folder)]
        subprocess.run([*command, *(word for setting in settings for word in ("--set", setting))], check=True,
                       env={**os.environ, **env})
    return np.array([step["loss"] for step in read_run(folder).steps])


def main() -> int:
    """Run, draw, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=2,
                        help="pictures per step; the plain path takes seconds for each (default 2)")
    args = parser.parse_args()
    folders = {name: args.folder / name.replace(",", "").replace(" ", "_") for name in RUNS}
    found = {name: losses(args.config, folders[name], args.steps, args.batch, env) for name, env in RUNS.items()}
    at = np.arange(1, args.steps + 1)
    mean = {name: np.convolve(loss, np.ones(WINDOW) / WINDOW, "valid") for name, loss in found.items()}
    strays = {f"{a} - {b}": np.abs(mean[a] / mean[b] - 1)
              for a, b in (("kernels", "plain path"), ("kernels, AVX2", "kernels"))}
    charts = [line_chart([Series(name, at, loss) for name, loss in found.items()], y_label="training loss",
                         from_zero=True),
              line_chart([Series(name, at[WINDOW - 1:], stray) for name, stray in strays.items()],
                         y_label=f"distance, mean of {WINDOW} steps", percent=True, from_zero=True)]
    args.picture.write_text(stacked(charts), encoding="utf-8")
    for name, stray in strays.items():
        print(f"{name}: mean {100 * stray.mean():.3f} %, largest {100 * stray.max():.3f} %, first step "
              f"{100 * stray[0]:.5f} %")
    ours, yardstick = (stray.mean() for stray in strays.values())
    return int(not ours <= 3 * yardstick)


if __name__ == "__main__":
    sys.exit(main())
