"""A small training run on real files, in a process of its own, and what it leaves:
shared by the tests of this folder.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import cv2
import numpy as np

from jseg.config import dump_config
from jseg.engine.checkpoint import load_weights

ROOT = pathlib.Path(__file__).parents[2]
TIMINGS = ("images_per_s", "data_wait", "data_wait_share", "memory_mb", "eta_s")


def make_pictures(folder, count, rng, *, largest=None):
    """Discs and boxes on a ground, with noise; masks hold the class index. 48 x 64, or sides drawn from [48, largest],
    the first picture's as long as allowed."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((48, 64), np.uint8)
        cv2.circle(mask, (int(rng.integers(10, 54)), int(rng.integers(10, 38))), int(rng.integers(6, 14)), 1, -1)
        cv2.rectangle(mask, (int(rng.integers(0, 30)), int(rng.integers(0, 20))),
                      (int(rng.integers(34, 60)), 40), 2, -1)
        if largest:
            size = rng.integers(48, largest, 2, endpoint=True).tolist() if i else (largest, largest)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        image = np.array([[40, 60, 80], [200, 60, 60], [60, 200, 90]], np.uint8)[mask]
        cv2.imwrite(str(folder / "images" / f"{i:02d}.png"), image + rng.integers(0, 40, image.shape).astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{i:02d}.png"), mask)


def make_datasets(folder):
    """Fill folder/train (10 pictures) and folder/val (2)."""
    rng = np.random.default_rng(0)
    make_pictures(folder / "train", 10, rng)
    make_pictures(folder / "val", 2, rng)
    return folder


def small_config(pictures):
    """A run with every part that has state: accumulation, clipping, averaging, dropout, drop path, random bases.

    `pictures` holds train/ and val/ from `make_pictures`.
    """
    def loader(part, batch, workers, random):
        steps = [{"type": "RandomCrop", "crop_size": [32, 64]}, {"type": "RandomFlip", "prob": 0.5},
                 {"type": "PhotoMetricDistortion"}] if random else []
        return {"batch_size": batch, "num_workers": workers, "dataset": {
            "type": "FolderDataset", "data_root": str(pictures / part),
            "metainfo": {"classes": ["ground", "disc", "box"]},
            "pipeline": [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, *steps]}}
    return {
        "model": {"type": "EncoderDecoder", "neck": None, "auxiliary_head": None, "test_cfg": {"mode": "whole"},
                  "backbone": {"type": "MSCAN", "embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1],
                               "mlp_ratios": [2, 2, 2, 2], "drop_path_rate": 0.1, "drop_rate": 0.1},
                  "decode_head": {"type": "LightHamHead", "in_channels": [16, 32, 32], "in_index": [1, 2, 3],
                                  "channels": 32, "ham_channels": 32, "num_classes": 3, "dropout_ratio": 0.1,
                                  "align_corners": False, "norm_cfg": {"type": "GN", "num_groups": 8},
                                  "ham_kwargs": {"MD_R": 8, "train_steps": 3, "eval_steps": 3}, "ignore_index": 255,
                                  "sampler": None, "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0}}},
        "data_preprocessor": {"type": "SegDataPreProcessor", "mean": [123.675, 116.28, 103.53],
                              "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True, "size": [32, 64], "pad_val": 0,
                              "seg_pad_val": 255, "test_cfg": {"size_divisor": 32}},
        "train_dataloader": loader("train", 4, 0, True), "val_dataloader": loader("val", 1, 0, False),
        "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.01},
        "paramwise_cfg": {"custom_keys": {"head": {"lr_mult": 10.0}, "norm": {"decay_mult": 0.0}}},
        "param_scheduler": [{"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 10},
                            {"type": "PolyLR", "power": 1.0, "begin": 10, "end": 60, "by_epoch": False}],
        "train_cfg": {"max_iters": 60, "val_interval": 25, "ckpt_interval": 7, "log_interval": 1, "keep": 2,
                      "save_best": "mIoU", "accumulative_counts": 2, "clip_grad": {"max_norm": 1.0},
                      "ema": {"decay": 0.9}},
        "seed": 3}


def start(config, folder, *words, through=(), **options):
    """Begin `jseg train` in a process of its own; its words go to <folder>.txt. `through` is a command that starts the
    one after it; `options` are Popen's."""
    path = folder.with_suffix(".yaml")
    path.write_text(dump_config(config))
    with open(folder.with_suffix(".txt"), "a") as out:
        return subprocess.Popen([*through, sys.executable, "-m", "jseg", "train", str(path), "--work-dir",
                                 str(folder), *words],
                                **{"cwd": ROOT, "stderr": out, "stdout": out, **options})


def lines(folder):
    """The whole lines of a run's log."""
    path = folder / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def wait_for(process, folder, count, limit_s=400):
    """Wait until the log holds `count` steps or the process ends."""
    began = time.monotonic()
    while process.poll() is None and len([e for e in lines(folder) if "loss" in e]) < count:
        assert time.monotonic() - began < limit_s, folder.with_suffix(".txt").read_text()[-2000:]
        time.sleep(0.01)


def finish(process, folder, status=0):
    """Wait for the end of a process and check its exit status."""
    assert process.wait(400) == status, folder.with_suffix(".txt").read_text()[-3000:]


def lasting(folder):
    """Everything of a log that does not depend on the clock."""
    return [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in lines(folder)]


def arrays(folder):
    """Every tensor a finished run leaves, by file and name."""
    out = {name: load_weights(folder / name)[0] for name in ("last/weights.safetensors", "last/state.safetensors",
                                                            "best/weights.safetensors", "best.safetensors")}
    return {f"{file}: {name}": array for file, state in out.items() for name, array in state.items()}


def differences(whole, other):
    """Names of what differs between two finished runs:
    weights and pictures byte by byte, log lines, scores; leftovers.
    """
    wrong = [] if lasting(whole) == lasting(other) else ["log.jsonl (speeds and memory left out)"]
    for folder in (whole, other):
        wrong += [f"{folder.name} holds {path.name}" for path in folder.rglob("*") if ".tmp-" in path.name
                  or ".old-" in path.name]
    for path in sorted(whole.rglob("*")):
        twin = other / path.relative_to(whole)
        if path.parent.name.startswith("iter_") and not twin.exists():
            continue  # which older state is kept depends on where a run was stopped last
        if path.suffix in (".safetensors", ".png") and (not twin.exists() or path.read_bytes() != twin.read_bytes()):
            wrong.append(str(path.relative_to(whole)))
    scores = [{**json.loads((folder / "metrics.json").read_text()), "seconds": None, "date": None}
              for folder in (whole, other)]
    return wrong + ["metrics.json"] * (scores[0] != scores[1])
