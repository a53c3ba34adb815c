"""Train the same few steps on one process and on several ranks, and print how far the weights are apart.

    python tests/engine/compare_ranks.py --data DIR --batch 8            # 1 x 8 against 2 x 4
    python tests/engine/compare_ranks.py --data DIR --batch 7            # 1 x 7 against 4 + 3

SegNeXt-T on CamVid (DIR in SegNet's layout) as configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml, whose loss divides
by class weights of the pixels that count; dropout and drop path are off there, plain SGD instead of AdamW: Adam divides
by the gradient's own size, so that a bias before a norm, whose true gradient is zero, follows the last bit. Exit status
1 beyond 1e-5. Momentum (--set "optimizer={type: SGD, lr: 0.01, momentum: 0.9}") takes ten times as long steps, and
differences grow with them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from jseg.engine.checkpoint import load_weights

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "configs/segnext/segnext_tiny_camvid-240x320_cpu.yaml"
LIMIT = 1e-5


def train(folder: pathlib.Path, ranks: int, args) -> list[dict]:
    """Run the steps, return the lines of the log; the weights lie in folder/last."""
    settings = {"train_dataloader.dataset.data_root": args.data, "train_dataloader.batch_size": args.batch,
                "train_dataloader.num_workers": 1, "train_cfg.max_iters": args.steps, "train_cfg.val_interval": "null",
                "train_cfg.log_interval": 1, "val_dataloader": "null",
                "optimizer": "{type: SGD, lr: 0.01}", "param_scheduler": "[]"}
    job = ["launch", "--cpu", "-n", str(ranks), "train"] if ranks > 1 else ["train"]
    words = [sys.executable, "-m", "jseg", *job, CONFIG, "--work-dir", str(folder)]
    words += [word for key, value in {**settings, **dict(s.split("=", 1) for s in args.overrides)}.items()
              for word in ("--set", f"{key}={value}")]
    with open(folder.with_suffix(".txt"), "w") as out:
        status = subprocess.run(words, cwd=ROOT, stdout=out, stderr=out).returncode
    if status:
        sys.exit(f"{' '.join(words)}\nended with status {status}:\n{folder.with_suffix('.txt').read_text()[-3000:]}")
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main() -> int:
    """Print the tables; 1 when a weight is further apart than LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CamVid in SegNet's layout")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8, help="pictures per step over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                        help="as for jseg train")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = [pathlib.Path(scratch) / f"ranks_{n}" for n in (1, args.ranks)]
        logs = [train(folder, n, args) for folder, n in zip(folders, (1, args.ranks))]
        one, many = (load_weights(folder / "last" / "weights.safetensors")[0] for folder in folders)
    print(f"{args.steps} steps of {args.batch} pictures, 1 process against {args.ranks} ranks")
    print(f"{'step':>4}  {'loss, 1 process':>16}  {'loss, ' + str(args.ranks) + ' ranks':>16}  difference")
    for a, b in zip(*logs):
        print(f"{a['iter']:>4}  {a['loss']:>16.8f}  {b['loss']:>16.8f}  {abs(a['loss'] - b['loss']):.1e}")
    groups: dict[str, list[str]] = {}
    for key in one:
        groups.setdefault(".".join(key.split(".")[:2]) + (" (running)" if "running" in key else ""), []).append(key)
    print(f"\n{'weights':<36}  {'values':>9}  {'largest':>9}  largest difference")
    worst = 0.0
    for name, keys in groups.items():
        apart = max(float(np.abs(one[k] - many[k]).max()) for k in keys)
        size = max(float(np.abs(one[k]).max()) for k in keys)
        worst = max(worst, apart if "running" not in name else 0.0)
        print(f"{name:<36}  {sum(one[k].size for k in keys):>9}  {size:>9.3g}  {apart:.2e}")
    print(f"\nlargest difference of a weight: {worst:.2e} (limit {LIMIT:.0e})")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
