"""Compare every model of MMSegmentation 1.2.2's configs with jseg: `make parity-zoo`.

    python tests/parity/zoo.py --python PYTHON                what has no result yet, cheapest families first
    python tests/parity/zoo.py --python PYTHON --family fcn pspnet --train
    python tests/parity/zoo.py --python PYTHON --only fcn_r50-d8_4xb2-40k_cityscapes-512x1024
    python tests/parity/zoo.py --page                         write docs/parity_zoo.md from the results alone
    python tests/parity/zoo.py --python PYTHON --draw 50 --seed 19

PYTHON has torch and mmsegmentation 1.2.2 (`make parity` makes one in .venv-parity). Both sides run in processes of
their own, a few models at a time. Configs whose models are alike (but for training settings) are run once. Results are
kept in tests/parity/zoo.json, so an interrupted run goes on where it stopped; `--again` forgets those that are asked
for. The last line says how many of all agree.

With `--draw` PYTHON has another edition of MMSegmentation, onedl-mmsegmentation 1.4.2: so many of its configs are drawn
by the seed and each is run, without a training step. These results are kept in zoo_drawn.json and shown in
docs/parity_zoo_drawn.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from jseg.text import fill_prose  # noqa: E402

RESULTS, PAGE = HERE / "zoo.json", ROOT / "docs" / "parity_zoo.md"
DRAWN, DRAWN_PAGE = HERE / "zoo_drawn.json", ROOT / "docs" / "parity_zoo_drawn.md"
VERSIONS = """
from importlib import metadata
names = sorted(name for found in metadata.distributions() if (name := found.metadata["Name"]) and name.lower() in (
    "numpy", "torch", "mmcv", "mmcv-lite", "onedl-mmcv", "mmengine", "onedl-mmengine", "mmsegmentation",
    "onedl-mmsegmentation"))
print(", ".join(f"{name} {metadata.version(name)}" for name in names))
"""
LIMITS = {"logits": 1e-4, "losses": 1e-4, "running statistics": 1e-4}
# By norm. With smooth activations nothing but a fault makes gradients differ, or a norm over a few values (pooled maps
# of two pictures), whose gradient cancels; with ReLU, rounding moves values across its edge too. Where PyTorch's own
# float32 strays far, the limit is STRAY times that.
STRAY = 3.0
GRADIENTS = {"smooth gradients": 1e-3, "gradients": 0.1}
LABELS = 0.999
SIZE = [128, 160]  # of the pictures, in pixels
SMALL, SMALL_SLIDE = [64, 96], {"mode": "slide", "crop_size": [64, 64], "stride": [48, 32]}  # of drawn configs
# LRASPP pools over windows of 392 pixels. 3x3 convolutions of FPN and of pixel decoders have no norm behind them: run
# one operation at a time, Jittor keeps their products in memory, gigabytes at the usual size.
SIZES = {"mobilenet_v3": [520, 560], **dict.fromkeys(("sem_fpn", "dpt", "point_rend", "poolformer", "maskformer",
                                                      "mask2former"), [64, 96])}
SLIDES = {"mobilenet_v3": {"mode": "slide", "crop_size": [448, 448], "stride": [72, 112]}}
# they take pictures of `img_size` alone: it becomes the pictures' size, and there is no slide
ONE_SIZE = ("beit", "mae")
# ReLU stays ReLU in their smooth step: what it gives is factorised into parts of zero and above
WITH_RELU = ("segnext",)
# families that are no segmentation, and why they stay out
OUT_OF_SCOPE = {"vpd": "out of scope: VPD estimates depth in metres (one channel, scored by RMSE) with Stable "
                       "Diffusion's UNet, for which MMSegmentation needs the package ldm; there are no classes and no "
                       "label maps"}
LIST = """
import json, pathlib, sys
from mmengine.config import Config
sys.path.insert(0, %r)
from make_segnext import import_mmseg
from zoo_mmseg import without_start
from zoo_operators import allow_mmcv_operators, allow_mmpretrain
allow_mmcv_operators(), allow_mmpretrain()
configs = pathlib.Path(import_mmseg().__file__).parent / ".mim" / "configs"
found = {}
for path in sorted(configs.rglob("*.py")):
    if "_base_" in path.parts:
        continue
    name = str(path.relative_to(configs))
    try:
        model = without_start(Config.fromfile(path).model.to_dict())
        for key in ("train_cfg", "test_cfg", "data_preprocessor", "pretrained"):
            model.pop(key, None)
        found[name] = json.dumps(model, sort_keys=True, default=str)
    except Exception as error:
        found[name] = f"{name} is unreadable: {error}"
json.dump(found, open(sys.argv[1], "w"))
"""


def all_configs(python: str) -> dict[str, str]:
    """Every leaf config of the wheel -> its model as text, alike for models that are alike."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "list.json"
        subprocess.run([python, "-c", LIST % str(HERE), str(out)], check=True)
        return json.loads(out.read_text())


def failures(result: dict) -> list[str]:
    """What of a result is beyond its limit; empty where all agrees."""
    if "failed" in result:
        return [result["failed"]]
    found = [] if result["keys equal"] else ["keys, shapes or parameter counts differ"]
    found += [f"{key} {result[key]:.2g} > {limit:g}" for key, limit in LIMITS.items() if key in result
              and not result[key] <= limit]
    found += [f"{mode} {result[mode]:.3%} equal < {LABELS:.1%}" for mode in ("whole", "slide") if mode in result
              and not result[mode] >= LABELS]
    for key, limit in GRADIENTS.items():
        limit = max(limit, STRAY * result.get(f"{key} of torch", 0.0))
        if key in result and not result[key] <= limit:
            found.append(f"{key} {result[key]:.2g} > {limit:g} ({result[f'worst of {key}']})")
        if alone := result.get(f"{key} without partner"):
            found.append(f"{key} where the referee has none: {alone[:3]}")
    found += ["names of the loss terms differ"] if not result.get("loss terms", True) else []
    return found


def run_batch(batch: list[dict], python: str, minutes: float) -> dict[str, dict]:
    """Results of a few jobs by config name; none where a process takes longer than `minutes` per job."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jseg-zoo-"))
    try:
        (folder / "jobs.json").write_text(json.dumps(batch))
        log = open(folder / "log.txt", "w")
        codes = [subprocess.run([*map(str, command), str(folder)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                timeout=60 * minutes * len(batch)).returncode
                 for command in ([python, HERE / "zoo_mmseg.py"], [sys.executable, HERE / "zoo_jseg.py"])]
        log.close()
        found = {}
        for job in batch:
            path = folder / job["name"] / "result.json"
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            found[job["config"]] = json.loads(path.read_text()) if path.exists() else {
                "failed": f"the processes ended with {codes}: {' '.join(lines[-1:])[:200]}"}
        return found
    except subprocess.TimeoutExpired:
        names = ", ".join(job["name"] for job in batch)
        print(f"parity-zoo: {names}: not done within {minutes:g} minutes per model (--minutes)", flush=True)
        return {}
    finally:
        shutil.rmtree(folder)


def load_results() -> dict[str, dict]:
    """Kept results by config."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"configs": {}, "results": {}}


def save_results(kept: dict) -> None:
    """Write the results, a line for each, so that changes read well."""
    lines = [f" {json.dumps(name)}: {json.dumps(result, sort_keys=True)}"
             for name, result in sorted(kept["results"].items())]
    alike = [f" {json.dumps(name)}: {json.dumps(same)}" for name, same in sorted(kept["configs"].items())]
    RESULTS.write_text('{"configs": {\n' + ",\n".join(alike) + '\n}, "results": {\n' + ",\n".join(lines) + "\n}}\n")
    PAGE.write_text(page(kept), encoding="utf-8")


def page(kept: dict) -> str:
    """The text of docs/parity_zoo.md."""
    rows, good, families = [], 0, {}
    for name, same in sorted(kept["configs"].items()):
        family = name.partition("/")[0]
        counts = families.setdefault(family, [0, 0, 0])
        counts[0] += 1
        if family in OUT_OF_SCOPE:
            rows.append(f"| {name} | {OUT_OF_SCOPE[family]} |")
            continue
        result = kept["results"].get(same)
        if result is None:
            continue
        faults = failures(result)
        counts[1 if not faults else 2] += 1
        good += not faults
        if faults:
            rows.append(f"| {name} | {'; '.join(faults)} |")
    train = [f"| {name.rpartition('/')[2].removesuffix('.py')} | {r['logits']:.1e} | {r['whole']:.3%} / "
             f"{r.get('slide', float('nan')):.3%} | {r['losses']:.1e} | {r['smooth gradients']:.1e} / "
             f"{r['gradients']:.1e} ({r['gradients compared']}) | {r['running statistics']:.1e} | {r['date']} |"
             for name, r in sorted(kept["results"].items()) if "smooth gradients" in r and not failures(r)]
    total = len(kept["configs"])
    return fill_prose("\n".join([
        "# Agreement with every config of MMSegmentation 1.2.2", "",
        "Written by `make parity-zoo` (tests/parity/zoo.py); do not edit. MMSegmentation builds each model from its "
        "own config with random weights; the checkpoint goes through `jseg convert`, is loaded strictly, and both "
        "sides see the same pictures. Equal: keys, shapes and parameter counts; logits "
        f"within {LIMITS['logits']:g} of their range; label maps on {LABELS:.1%} of the pixels, whole and slide. "
        "Alike models are run once.", "",
        f"**{good} of {total}** agree.", "", "| family | configs | agree | fail | not run |", "|---|---|---|---|---|",
        *[f"| {family} | {n} | {ok} | {bad} | {'out of scope' if family in OUT_OF_SCOPE else n - ok - bad} |"
          for family, (n, ok, bad) in families.items()], "",
        "## One training step", "",
        "Losses term by term, gradients of every parameter and running statistics against MMSegmentation in float64. "
        "Gradients: the worst by norm, with GELU for ReLU (SegNeXt keeps it: its factorisation takes nothing below "
        f"zero; limit {GRADIENTS['smooth gradients']:g}) and as the config is (limit {GRADIENTS['gradients']:g}: "
        "rounding moves values across a ReLU's edge, which flips their whole gradient), and how many were compared. "
        f"Where PyTorch's own float32 strays far, as a norm over few values makes gradients cancel, the limit is "
        f"{STRAY:g} times that.", "",
        "| model | logits | labels whole / slide | losses | gradients smooth / as they are | running statistics "
        "| day |",
        "|---|---|---|---|---|---|---|", *train, "",
        "## What fails, and at which step; what is out of scope", "", "| config | cause |", "|---|---|", *rows, ""]))


def compare_drawn(python: str, count: int, seed: int, batch: int, minutes: float, again: bool) -> int:
    """Run configs drawn by the seed from all in scope of the edition that `python` has; 0 when all of them agree."""
    kept = json.loads(DRAWN.read_text()) if DRAWN.exists() else {}
    if again or (kept.get("seed"), kept.get("count")) != (seed, count):
        known = sorted(name for name in all_configs(python) if name.partition("/")[0] not in OUT_OF_SCOPE)
        drawn = sorted(random.Random(seed).sample(known, count))
        versions = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True).stdout.strip()
        kept = {"seed": seed, "count": count, "of": len(known), "versions": versions, "drawn": drawn, "results": {}}
    todo = [name for name in kept["drawn"] if name not in kept["results"]]
    print(f"parity-zoo: {count} drawn, {len(todo)} to run", flush=True)
    for start in range(0, len(todo), batch):
        jobs = [job_of(name, False) for name in todo[start:start + batch]]
        for job in jobs:
            if job["size"] == SIZE:
                job.update(size=SMALL, slide=SMALL_SLIDE)
        for name, result in run_batch(jobs, python, minutes).items():
            kept["results"][name] = {**result, "date": datetime.date.today().isoformat()}
            print(f"parity-zoo: {name}: {'; '.join(failures(result)) or 'agrees'}", flush=True)
        DRAWN.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        DRAWN_PAGE.write_text(drawn_page(kept), encoding="utf-8")
    good = sum(not failures(result) for result in kept["results"].values())
    print(f"{good} of {count}")
    return 0 if good == count else 1


def drawn_page(kept: dict) -> str:
    """The text of docs/parity_zoo_drawn.md."""
    rows = []
    for name in kept["drawn"]:
        result = kept["results"].get(name)
        if result is None or "failed" in result:
            rows.append(f"| {name} | | | | {'not run' if result is None else result['failed']} | |")
            continue
        slide = f"{result['slide']:.3%}" if "slide" in result else ""
        rows.append(f"| {name} | {result['parameters']:,} | {result['logits']:.1e} | {result['whole']:.3%} / {slide} | "
                    f"{'; '.join(failures(result)) or 'agrees'} | {result['date']} |")
    good, run = sum(not failures(result) for result in kept["results"].values()), len(kept["results"])
    return fill_prose("\n".join([
        "# Agreement with another edition of MMSegmentation", "",
        "Written by `python tests/parity/zoo.py --python PYTHON --draw "
        f"{kept['count']} --seed {kept['seed']}`; do not edit. PYTHON has {kept['versions']}. That many of its "
        f"{kept['of']} configs in scope were drawn by `random.Random({kept['seed']}).sample`; each builds its model "
        "there and saves a checkpoint, which `jseg convert` reads and both sides run, as in "
        "[parity_zoo.md](parity_zoo.md), with the same limits and without a training step.", "",
        f"**{good} of {run}** run agree; {kept['count'] - run} were not run.", "",
        "| config | parameters | logits | labels whole / slide | result | day |", "|---|---|---|---|---|---|", *rows,
        ""]))


def job_of(name: str, train: bool) -> dict:
    """What both sides are told of a config."""
    family = name.partition("/")[0]
    job = {"name": name.rpartition("/")[2].removesuffix(".py"), "config": name, "train": train,
           "size": SIZES.get(family, SIZE)}
    if family in WITH_RELU:
        job["smooth"] = False
    if family in SLIDES:
        job["slide"] = SLIDES[family]
    return {**job, "img_size": True, "slide": False} if family in ONE_SIZE else job


def main() -> int:
    """Run what is asked for; 0 when all of it agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="a Python that has torch and mmsegmentation 1.2.2")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="config names, with or without folder and .py")
    parser.add_argument("--family", nargs="+", help="folders of configs")
    parser.add_argument("--train", action="store_true", help="also compare a training step")
    parser.add_argument("--again", action="store_true", help="run what has a result already")
    parser.add_argument("--list", action="store_true", help="read the list of configs again")
    parser.add_argument("--batch", type=int, default=6, help="models per process (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="most time per model and side (default: %(default)s)")
    parser.add_argument("--page", action="store_true", help="write the page from the kept results")
    parser.add_argument("--draw", type=int, metavar="COUNT", help="run so many drawn configs of another edition")
    parser.add_argument("--seed", type=int, default=19, help="of the draw (default: %(default)s)")
    args = parser.parse_args()
    if args.draw and args.python:
        return compare_drawn(args.python, args.draw, args.seed, args.batch, args.minutes, args.again)
    kept = load_results()
    if args.page:
        save_results(kept)
        return 0
    if not args.python:
        parser.error("--python is needed")
    if args.list or not kept["configs"]:
        first, configs = {}, all_configs(args.python)
        for name, model in configs.items():
            first.setdefault(model, name)
        kept["configs"] = {name: first[model] for name, model in configs.items()}
    wanted = [name for name in kept["configs"] if (not args.family or name.partition("/")[0] in args.family)
              and (not args.only or any(name.removesuffix(".py").endswith(only.removesuffix(".py"))
                                        for only in args.only))]
    wanted = [name for name in wanted if name.partition("/")[0] not in OUT_OF_SCOPE]
    todo = list(dict.fromkeys(kept["configs"][name] for name in wanted))
    done = [name for name in todo if name in kept["results"]
            and ("smooth gradients" in kept["results"][name] or not args.train)]
    todo = [name for name in todo if args.again or name not in done]
    print(f"parity-zoo: {len(wanted)} configs, {len(todo)} models to run", flush=True)
    for start in range(0, len(todo), args.batch):
        batch = [job_of(name, args.train) for name in todo[start:start + args.batch]]
        for name, result in run_batch(batch, args.python, args.minutes).items():
            kept["results"][name] = {**result, "date": datetime.date.today().isoformat()}
            print(f"parity-zoo: {name}: {'; '.join(failures(result)) or 'agrees'}", flush=True)
        save_results(kept)
    bad = [name for name in wanted if (result := kept["results"].get(kept["configs"][name])) is None
           or failures(result)]
    good = sum(1 for same in kept["configs"].values() if same in kept["results"]
               and not failures(kept["results"][same]))
    print(f"{good} of {len(kept['configs'])}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
