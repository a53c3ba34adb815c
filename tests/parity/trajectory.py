"""Train models of MMSegmentation's configs for 20 steps on both sides, and compare: `make parity-trajectories`.

    python tests/parity/trajectory.py --python PYTHON               what has no result yet
    python tests/parity/trajectory.py --python PYTHON --only segformer --again
    python tests/parity/trajectory.py                               write docs/parity_trajectories.md alone

PYTHON has torch and mmsegmentation 1.2.2 (`make parity` makes one in .venv-parity). Pictures are CamVid's photographs
where $JSEG_TEST_DATA (or shared/data beside this checkout) holds camvid/, rendered scenes elsewhere. Results are kept
in tests/parity/trajectory.json; the last line says how many agree. A run is named by its folder of configs, with /10
behind it where the rate is a tenth.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from jseg.data.io import read_image, read_mask  # noqa: E402
from jseg.data.render import render_scene  # noqa: E402
from jseg.files import write_atomically  # noqa: E402
from jseg.text import fill_prose  # noqa: E402

RESULTS, PAGE = HERE / "trajectory.json", ROOT / "docs" / "parity_trajectories.md"
PHOTOS = pathlib.Path(os.environ.get("JSEG_TEST_DATA", ROOT / "shared" / "data")) / "camvid"
STEPS, EARLY, SEED = 20, 5, 0
BATCH = [4, 96, 128]  # pictures, height, width
# 3x3 convolutions without a norm need much memory one operation at a time (zoo.SIZES)
BATCHES = {"mask2former": [2, 64, 96], "maskformer": [2, 64, 96], "knet": [2, 96, 128], "ocrnet": [2, 96, 128]}
FAMILIES = {
    "segnext": "segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py",
    "segformer": "segformer_mit-b0_8xb2-160k_ade20k-512x512.py",
    "fcn": "fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "bisenetv1": "bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py",
    "stdc": "stdc1_4xb12-80k_cityscapes-512x1024.py",
    "pidnet": "pidnet-s_2xb6-120k_1024x1024-cityscapes.py",
    "deeplabv3plus": "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py",
    "swin": "swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "unet": "unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py",
    "mask2former": "mask2former_swin-t_8xb2-160k_ade20k-512x512.py",
    "ocrnet": "ocrnet_hr18s_4xb2-160k_cityscapes-512x1024.py",
    "knet": "knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py"}
# at their base rates, these multiply rounding so fast that PyTorch's own runs soon differ
NUDGES = {"bisenetv1": 5, "stdc": 5, "pidnet": 5}
RUNS = [*FAMILIES, "bisenetv1/10", "stdc/10", "pidnet/10", "deeplabv3plus/10"]
WEIGHTED = ("pidnet",)  # its class weights: MMSegmentation's cross entropy then fails on ignored pixels
LIMIT, STRAY = 1e-3, 3.0
MEAN, STD = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])


def batches(count: int, height: int, width: int, *, ignored: int) -> dict[str, np.ndarray]:
    """Normalised RGB pictures (S, N, 3, H, W) and labels (S, N, H, W) of all steps."""
    rng, pictures, labels = np.random.default_rng(SEED), [], []
    paths = sorted((PHOTOS / "train").glob("*.png")) if PHOTOS.is_dir() else []
    for _ in range(STEPS * count):
        if paths:
            path = paths[rng.integers(len(paths))]
            picture, label = read_image(path)[::2, ::2], read_mask(PHOTOS / "trainannot" / path.name)[::2, ::2]
            label = np.where(label == 11, 255, label)  # CamVid's void
            top, left = (rng.integers(have - want + 1) for have, want in zip(label.shape, (height, width)))
            window = slice(top, top + height), slice(left, left + width)
            picture, label = picture[window], label[window]
        else:
            picture, label = render_scene((height, width), rng)
        pictures.append(((picture[..., ::-1] - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))
        labels.append(np.where(label == 255, ignored, label).astype(np.int32))
    return {"pictures": np.stack(pictures).reshape(STEPS, count, 3, height, width),
            "labels": np.stack(labels).reshape(STEPS, count, height, width)}


def run_one(run: str, python: str) -> dict:
    """The result of one run; `failed` says what the processes wrote last."""
    family, _, slower = run.partition("/")
    began, shape = time.time(), BATCHES.get(family, BATCH)
    job = {"config": f"{family}/{FAMILIES[family]}", "seed": SEED, "slower": int(slower or 1),
           "nudges": NUDGES.get(family, 1)}
    with tempfile.TemporaryDirectory(prefix="jseg-trajectory-") as name:
        folder = pathlib.Path(name)
        np.savez(folder / "batches.npz", **batches(*shape, ignored=0 if family in WEIGHTED else 255))
        (folder / "job.json").write_text(json.dumps(job))
        for command in ([python, HERE / "trajectory_mmseg.py"], [sys.executable, HERE / "trajectory_jseg.py"]):
            with open(folder / "log.txt", "w") as log:
                code = subprocess.run([*map(str, command), name], cwd=ROOT, stdout=log,
                                      stderr=subprocess.STDOUT).returncode
            if code:
                lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
                return {"failed": f"{command[1].name} ended with {code}: {' '.join(lines[-1:])[:300]}"}
        result = json.loads((folder / "result.json").read_text())
    return {**result, "batch": shape, "pictures": "CamVid" if PHOTOS.is_dir() else "rendered",
            "seconds": round(time.time() - began), "date": datetime.date.today().isoformat()}


def errors_of(result: dict) -> tuple[np.ndarray, np.ndarray, float, float]:
    """|loss - exact| / exact of each step for jseg, and the worst of PyTorch's runs in float32; the same of the weights
    at the end.
    """
    exact, weights = np.array(result["losses"]["exact"]), dict(result["weights"])
    errors = {name: np.abs(np.array(losses) - exact) / np.abs(exact) for name, losses in result["losses"].items()}
    ours, _ = errors.pop("jseg"), errors.pop("exact")
    return ours, np.max(list(errors.values()), axis=0), weights.pop("jseg"), max(weights.values())


def failures(result: dict) -> list[str]:
    """What is beyond its limit."""
    if "failed" in result:
        return [result["failed"]]
    errors, stray, weights, weights_stray = errors_of(result)
    return [f"{what} {ours:.1e}, PyTorch's float32 {theirs:.1e}" for what, ours, theirs in (
        (f"losses of steps 1 to {EARLY}", errors[:EARLY].max(), stray[:EARLY].max()),
        ("losses", errors.max(), stray.max()), ("weights", weights, weights_stray))
            if not ours <= max(LIMIT, STRAY * theirs)]


def page(kept: dict[str, dict]) -> str:
    """The text of docs/parity_trajectories.md."""
    rows, faults = [], []
    picks = (lambda e: e[0], lambda e: e[:EARLY].max(), np.max, lambda e: e[-1])
    for run in RUNS:
        if not (result := kept.get(run)):
            continue
        family, _, slower = run.partition("/")
        name = FAMILIES[family].removesuffix(".py") + (f", rate / {slower}" if slower else "")
        faults += [f"- {name}: {fault}" for fault in failures(result)]
        if "failed" in result:
            continue
        errors, stray, weights, weights_stray = errors_of(result)
        exact = result["losses"]["exact"]
        rows.append(" | ".join([
            f"| {name}", result["optimizer"], "x".join(map(str, result["batch"])), f"{exact[0]:.3f} → {exact[-1]:.3f}",
            *(f"{pick(errors):.1e} / {pick(stray):.1e}" for pick in picks), f"{weights:.1e} / {weights_stray:.1e}",
            str(len(result["losses"]) - 2), f"{result['date']} |"]))
    good = sum(1 for result in kept.values() if not failures(result))
    pictures = sorted({result["pictures"] for result in kept.values() if "pictures" in result})
    return fill_prose("\n".join([
        f"# {STEPS} steps of training beside MMSegmentation", "",
        "Written by `make parity-trajectories` (tests/parity/trajectory.py); do not edit. MMSegmentation 1.2.2 builds "
        "each model from its own config and gives it a random start of its own; `jseg convert` carries start, "
        "optimizer, per-parameter rules and clipping over. Both sides then train on the same batches at the config's "
        f"base rate, without a schedule (pictures: {', '.join(pictures)}). Off on both: dropout and drop path. Alike "
        "on both: the numbers that training draws (points of Mask2Former, bases of Hamburger).", "",
        "An error is |loss - exact| / exact, where exact is MMSegmentation in float64. Before the stroke stands jseg, "
        "behind it PyTorch in float32: the worst of a plain run and of one or more (the column says how many runs "
        "there are in all) from weights that were each moved to a neighbouring number. Rounding grows step by step; "
        "jseg's float32 can stay no nearer than PyTorch's: its largest error may be "
        f"{STRAY:g} times PyTorch's, or {LIMIT:g}, over all steps and over the first {EARLY}. "
        "Some models, without the pretrained weights that their rate is meant for, multiply rounding so fast that "
        "PyTorch's own float32 is soon far from exact; to them a run at a tenth of the rate is added. Weights: the "
        "distance between the trained ones and the exact ones, over the way these went, within the same limits.", "",
        f"**{good} of {len(kept)}** agree.", "",
        f"| model | optimizer | batch | exact loss | step 1 | largest of steps 1 to {EARLY} | largest of all | "
        "last step | weights | float32 runs | day |", "|---|---|---|---|---|---|---|---|---|---|---|", *rows, "",
        *(["## What strays further", "", *faults, ""] if faults else [])]))


def save_results(kept: dict[str, dict]) -> None:
    """Write results, a line for each, and the page."""
    lines = [f" {json.dumps(family)}: {json.dumps(kept[family], sort_keys=True)}" for family in sorted(kept)]
    write_atomically(RESULTS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    write_atomically(PAGE, page(kept).encode())


def main() -> int:
    """Run what is asked for; 0 when all of it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="a Python that has torch and mmsegmentation 1.2.2")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS, metavar="RUN")
    parser.add_argument("--again", action="store_true", help="run what has a result already")
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    todo = [run for run in args.only if args.python and (args.again or "losses" not in kept.get(run, {}))]
    for run in todo:
        kept[run] = run_one(run, args.python)
        print(f"trajectory: {run}: {'; '.join(failures(kept[run])) or 'agrees'} ({kept[run].get('seconds')} s)",
              flush=True)
        save_results(kept)
    save_results(kept)
    good = sum(1 for run in args.only if run in kept and not failures(kept[run]))
    print(f"{good} of {len(args.only)}")
    return 0 if good == len(args.only) else 1


if __name__ == "__main__":
    sys.exit(main())
