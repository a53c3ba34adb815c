"""Train MSCAN-T as a classifier with `jseg pretrain` and with timm's pieces, and a segmentor from the result.

    python tests/parity/pretrain.py jseg FOLDER --data PICTURES [--no-flip]   a run for each seed of --seeds
    PYTHON tests/parity/pretrain_timm.py FOLDER/timm_0                        the same recipe by timm, for each seed
    python tests/parity/pretrain.py fine-tune FOLDER --data CAMVID            from FOLDER/run_0, and from random weights
    python tests/parity/pretrain.py draw PICTURE.svg FOLDER...                curves of all of them

PICTURES is a folder as `pretrain_data.py` makes it. Both sides begin with the same weights and see the same pictures in
the same order; what is random besides (augmentation, stochastic depth) is each side's own.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from jseg.config import dump_config, load_config  # noqa: E402
from jseg.report.curves import Series, line_chart, stacked  # noqa: E402
from jseg.report.run import read_run  # noqa: E402

SIZE, BATCH, ITERS, VAL, WARMUP, LR, LR_START, LR_MIN, MIX = 32, 32, 240, 40, 20, 1e-3, 1e-6, 1e-5, 0.25


def recipe(data: str, classes: int, seed: int, flip: float, iters: int) -> dict:
    """The config of a run: the shipped one's recipe for small pictures and a short run."""
    config = load_config("pretrain/mscan-tiny_imagenet-224x224_300e")
    config["model"]["head"]["num_classes"] = classes
    config["model"]["train_cfg"] = {"augments": [{"type": "Mixup", "alpha": 0.8, "prob": MIX},
                                                 {"type": "CutMix", "alpha": 1.0, "prob": MIX}]}
    train, val = (config[f"{part}_dataloader"]["dataset"] for part in ("train", "val"))
    train.update(data_root=data)
    val.update(data_root=data)
    train["pipeline"][1].update(scale=SIZE, crop_ratio_range=[0.35, 1.0])
    train["pipeline"][2]["prob"] = flip
    val["pipeline"][1:] = [{"type": "PillowResize", "size": [SIZE, SIZE], "interpolation": "bicubic"}]
    config["train_dataloader"].update(batch_size=BATCH, num_workers=1)
    config["val_dataloader"].update(batch_size=100, num_workers=1)
    config["optimizer"]["lr"] = LR
    config["param_scheduler"] = [
        {"type": "LinearLR", "start_factor": LR_START / LR, "by_epoch": False, "begin": 0, "end": WARMUP + 1},
        {"type": "CosineAnnealingLR", "T_max": iters - WARMUP, "eta_min": LR_MIN, "by_epoch": False, "begin": WARMUP,
         "end": iters}]
    config["train_cfg"].update(max_epochs=None, max_iters=iters, val_interval=VAL, ckpt_interval=VAL, log_interval=1,
                               keep=1, ema={"decay": 0.97, "update_buffers": True})
    return {**config, "seed": seed}


def run_jseg(args) -> int:
    """A run for each seed, and the job of timm's side beside it."""
    from jseg.data.build import build_dataset
    from jseg.data.loader import permutation
    from jseg.engine.checkpoint import model_state, save_weights
    from jseg.engine.train import _seed_step
    from jseg.models import build_model
    classes = len([path for path in (args.data / "train").iterdir()])
    for seed in args.seeds:
        config = recipe(str(args.data), classes, seed, 0.0 if args.no_flip else 0.5, args.iters)
        twin = args.folder / f"timm_{seed}"
        twin.mkdir(parents=True, exist_ok=True)
        _seed_step(seed, -1)
        state = model_state(build_model(config))
        np.savez(twin / "initial.npz", **state)
        save_weights(twin / "initial.safetensors", state, {})
        train, val = (build_dataset(config, part).samples for part in ("train", "val"))
        order = np.concatenate([permutation(len(train), seed, epoch) for epoch in range(
            -(-args.iters * BATCH // len(train)))])[:args.iters * BATCH].reshape(args.iters, BATCH).tolist()
        backbone = {"type": "MSCAN", "embed_dims": [32, 64, 160, 256], "depths": [3, 3, 5, 2],
                    "mlp_ratios": [8, 8, 4, 4], "drop_rate": 0.0, "drop_path_rate": 0.1,
                    "attention_kernel_sizes": [5, [1, 7], [1, 11], [1, 21]],
                    "attention_kernel_paddings": [2, [0, 3], [0, 5], [0, 10]], "act_cfg": {"type": "GELU"}}
        job = {"seed": seed, "backbone": backbone, "channels": 256, "classes": classes, "train": train, "val": val,
               "order": order, "size": SIZE, "crop": [0.35, 1.0], "flip": 0.0 if args.no_flip else 0.5,
               "mean": config["data_preprocessor"]["mean"], "std": config["data_preprocessor"]["std"], "lr": LR,
               "lr_start": LR_START, "lr_min": LR_MIN, "warmup": WARMUP, "iters": args.iters, "decay": 0.05,
               "mix_prob": 2 * MIX, "ema": 0.97, "val_interval": VAL}
        (twin / "job.json").write_text(json.dumps(job))
        config["load_from"] = str(twin / "initial.safetensors")
        (args.folder / f"run_{seed}.yaml").write_text(dump_config(config))
    for seed in args.seeds:
        train_run(args.folder / f"run_{seed}.yaml", args.folder / f"run_{seed}", "pretrain")
    return 0


def train_run(config: pathlib.Path, folder: pathlib.Path, command: str, *options: str) -> None:
    """Train unless it was trained."""
    if not (folder / "metrics.json").exists():
        subprocess.run([sys.executable, "-m", "jseg", command, str(config), "--work-dir", str(folder), "--resume",
                        *options], check=True, cwd=ROOT)


def fine_tune(args) -> int:
    """SegNeXt-T on CamVid, from the pretrained backbone and from random weights."""
    config = load_config("segnext/segnext_tiny_camvid-240x320_cpu")
    for part in ("train", "val"):
        config[f"{part}_dataloader"]["dataset"]["data_root"] = str(args.data)
    config["train_cfg"].update(max_iters=args.iters, val_interval=args.iters // 4, ckpt_interval=100, log_interval=10)
    config["param_scheduler"][0]["end"] = config["param_scheduler"][1]["begin"] = 20
    config["param_scheduler"][1]["end"] = args.iters
    config["train_dataloader"].update(batch_size=4, num_workers=1)
    config["val_dataloader"]["num_workers"] = 1
    for name, start in (("camvid_pretrained", str(args.folder / "run_0" / "best.safetensors")),
                        ("camvid_random", None)):
        path = args.folder / f"{name}.yaml"
        path.write_text(dump_config({**config, "load_from": start, "load_only": "backbone" if start else None}))
        train_run(path, args.folder / name, "train")
    return 0


def draw(args) -> int:
    """One chart for each folder's top-1, and the mIoU and loss of the fine-tuned segmentors."""
    charts = []
    for folder in args.folders:
        lines = []
        for run in sorted(folder.glob("run_?")):
            found = read_run(run).evaluations
            lines.append(Series(f"jseg, seed {run.name[-1]}", [e["iter"] for e in found],
                                [e["val"]["top1"] for e in found], dots=True))
        for twin in sorted(folder.glob("timm_?/timm.json")):
            curve = json.loads(twin.read_text())["curve"]
            lines.append(Series(f"timm, seed {twin.parent.name[-1]}", [e["iter"] for e in curve],
                                [e["top1"] for e in curve], dots=True))
        charts.append(line_chart(lines, y_label=f"top-1, {folder.name}", percent=True, from_zero=True))
        tuned = {name: read_run(folder / name) for name in ("camvid_pretrained", "camvid_random")
                 if (folder / name / "log.jsonl").exists()}
        if tuned:
            words = {"camvid_pretrained": "pretrained backbone", "camvid_random": "random weights"}
            charts.append(line_chart([Series(words[name], [e["iter"] for e in run.evaluations],
                                             [e["val"]["mIoU"] for e in run.evaluations], dots=True)
                                      for name, run in tuned.items()], y_label="CamVid mIoU", percent=True,
                                     from_zero=True))
            charts.append(line_chart([Series(words[name], [s["iter"] for s in run.steps],
                                             [s["loss"] for s in run.steps], smoothed=True)
                                      for name, run in tuned.items()], y_label="CamVid training loss", from_zero=True))
    args.picture.write_text(stacked(charts), encoding="utf-8")
    return 0


def main() -> int:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("jseg")
    one.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    one.add_argument("--no-flip", action="store_true")
    one.set_defaults(run=run_jseg)
    two = parts.add_parser("fine-tune")
    two.set_defaults(run=fine_tune)
    for part, iters in ((one, ITERS), (two, 400)):
        part.add_argument("folder", type=pathlib.Path)
        part.add_argument("--data", type=pathlib.Path, required=True)
        part.add_argument("--iters", type=int, default=iters, help="(default: %(default)s)")
    three = parts.add_parser("draw")
    three.add_argument("picture", type=pathlib.Path)
    three.add_argument("folders", type=pathlib.Path, nargs="+")
    three.set_defaults(run=draw)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
