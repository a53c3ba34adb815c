"""Compare jseg with MMSegmentation for every model of configs.yaml and write docs/parity.md. A step of `make parity`.

    python tests/parity/compare.py --python PYTHON                 every line of configs.yaml, then the photographs
    python tests/parity/compare.py --python PYTHON --only tiny     some of them; the page keeps the others' last results

PYTHON has torch and mmsegmentation 1.2.2. Both sides run in processes of their own (compare_mmseg.py, compare_jseg.py).
Results stay in runs/parity/<name>/result.json; checkpoints and arrays are removed when a comparison is done. Exit
status 1 when any disagrees.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from jseg.config import load_config  # noqa: E402
from jseg.runtime import cpu_name  # noqa: E402
from jseg.text import fill_prose  # noqa: E402

RUNS, PAGE = ROOT / "runs" / "parity", ROOT / "docs" / "parity.md"
DATA = pathlib.Path(os.environ.get("JSEG_TEST_DATA", ROOT.parent / "shared" / "data"))
JOB = {"size": 128, "steps": 20, "lr": 0.01, "momentum": 0.9}
PHOTOGRAPHS = "photographs"
CROP, STRIDE = 384, 256  # of slide mode on photographs, which come out at 512 x about 680
LIMITS = {"logits": 1e-4, "gradients": 1e-3, "loss": 1e-5, "running statistics": 1e-4, "trajectory losses": 1e-3}
# least share of equal pixels; trajectory weights: times as far from float64's as PyTorch's float32
LABELS, STRAY = 0.999, 10.0
# the first steps: rounding seldom decides there on which side of a ReLU's threshold a value falls; PyTorch's own shows
# when
EARLY, EARLY_LIMIT = 5, 1e-5
# share of the way that a run may stray once one has: PyTorch's own float32 strays 0.0001 where none has, 0.008 to 0.014
# where one has
CHAOS = 0.02
PHOTO_GLOBS = ("raw/ade20k/sampleData/images/*.jpg", "raw/voc_samples/*.jpg", "raw/context_samples/*.jpg",
               "camvid/val/*.png")
PHOTO_COUNTS = (3, 3, 2, 2)


def failures(result: dict) -> list[str]:
    """What of a model's result is beyond its limit."""
    found = [] if result["keys equal"] else ["keys or parameter counts differ"]
    found += [f"{key} {result[key]:.3g} > {limit:g}" for key, limit in LIMITS.items() if not result[key] <= limit]
    found += [f"{mode} {result[mode]:.4%} < {LABELS:.1%}" for mode in ("whole", "slide", "TTA")
              if not result[mode] >= LABELS]
    early, theirs = (max(map(abs, result[key][:EARLY])) / result["first and last loss"][0]
                     for key in ("loss differences", "torch loss differences"))
    limit = max(STRAY * theirs, EARLY_LIMIT)
    if not early <= limit:
        found.append(f"losses of the first {EARLY} steps {early:.3g} > {limit:.3g}")
    limit = max(STRAY * result["torch weights"], CHAOS)
    if not result["trajectory weights"] <= limit:
        found.append(f"trajectory weights {result['trajectory weights']:.3g} > {limit:.3g}")
    return found


def folder_of(name: str) -> pathlib.Path:
    """Where a comparison keeps its files."""
    return RUNS / name.replace(" ", "_").replace("'", "")


def call(command: list, timeout: int, log: pathlib.Path) -> None:
    """Run one side; its output goes to a file."""
    with open(log, "a") as file:
        done = subprocess.run([str(word) for word in command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                              timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed; see {log}:\n" + "\n".join(log.read_text().splitlines()[-8:]))


def compare(name: str, block: dict, python: str, timeout: int) -> dict:
    """Run one line of configs.yaml; its result."""
    folder = folder_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("result.json", "log.txt"):
        (folder / old).unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps({**JOB, **block}))
    start = time.time()
    try:
        call([python, HERE / "compare_mmseg.py", folder], timeout, folder / "log.txt")
        call([sys.executable, HERE / "compare_jseg.py", folder], timeout, folder / "log.txt")
        result = json.loads((folder / "result.json").read_text())
    finally:
        for big in ("checkpoint.pth", "reference.npz", "converted.safetensors"):
            (folder / big).unlink(missing_ok=True)
    result.update(name=name, date=datetime.date.today().isoformat(), total_seconds=round(time.time() - start),
                  job={**JOB, **block})
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    return result


def photographs() -> list[pathlib.Path]:
    """Ten photographs, JPEG and PNG of several sizes; fewer or none where the data is absent."""
    return [path for pattern, count in zip(PHOTO_GLOBS, PHOTO_COUNTS) for path in sorted(DATA.glob(pattern))[:count]]


def compare_photographs(block: dict, python: str, timeout: int) -> dict | None:
    """From picture file to label map, by `jseg verify` on checkpoints with random weights; None without photographs.

    All photographs and modes with mmsegmentation's own checkpoint; two photographs, whole, with one in the authors'
    form, which has no config inside.
    """
    pictures = photographs()
    if not pictures:
        print(f"parity: no photographs below {DATA}: skipped (JSEG_TEST_DATA names another folder)")
        return None
    found = [verify({**block, "form": "mmseg"}, pictures, ["--slide", str(CROP), str(STRIDE)], python, timeout),
             verify({**block, "form": "authors"}, pictures[:2], ["--modes", "whole"], python, timeout)]
    result = {"agree": all(agree for agree, _ in found), "lines": [*found[0][1], "", *found[1][1]],
              "date": datetime.date.today().isoformat()}
    (folder_of(PHOTOGRAPHS) / "result.json").write_text(json.dumps(result, indent=1))
    return result


def verify(block: dict, pictures: list[pathlib.Path], words: list[str], python: str,
           timeout: int) -> tuple[bool, list[str]]:
    """Have mmsegmentation write a checkpoint, and run `jseg verify` on it: (whether they agree, its lines)."""
    folder = folder_of(PHOTOGRAPHS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps({**JOB, **block}))
    call([python, HERE / "compare_mmseg.py", folder, "--checkpoint-only"], timeout, folder / "log.txt")
    checkpoint = (folder / "checkpoint.pth").rename(folder / f"{block['form']}.pth")
    done = subprocess.run([sys.executable, "-m", "jseg", "verify", str(checkpoint), "--pictures", *map(str, pictures),
                           "--against-torch", python, "--timeout", str(timeout), *words], cwd=ROOT, capture_output=True,
                          text=True, timeout=2 * timeout)
    checkpoint.unlink()
    if done.returncode not in (0, 1):
        raise RuntimeError(f"jseg verify: {done.stderr[-2000:]}")
    return done.returncode == 0, done.stdout.replace(f"{folder}/", "").splitlines()


def page(configs: dict) -> str:
    """The text of docs/parity.md, from the results on disk."""
    results = {name: json.loads(path.read_text())
               for name in configs if (path := folder_of(name) / "result.json").exists()}
    versions = sorted({result["versions"] for result in results.values()})
    lines = ["# Agreement with MMSegmentation", "",
             "Written by `make parity` (tests/parity/compare.py); do not edit. Each line of tests/parity/configs.yaml "
             "is one row: MMSegmentation builds the model from its own config, every parameter and buffer gets random "
             "values, the checkpoint goes through `jseg convert`, is loaded strictly, "
             f"and both sides run the same. {', '.join(versions)} on the CPU; jseg on {cpu_name()}.", "",
             "| model | keys, parameters | logits | loss | gradients (all) | running statistics | whole | slide | TTA "
             "| SGD losses | SGD weights (PyTorch's float32) | day |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    for name in configs:
        if name not in results:
            lines.append(f"| {name} | not run |" + " |" * 10)
            continue
        r = results[name]
        lines.append(f"| {name} | {'equal' if r['keys equal'] else 'DIFFER'}, {r['parameters'] / 1e6:.2f} M | "
                     f"{r['logits']:.1e} | {r['loss']:.1e} | {r['gradients']:.1e} ({r['gradients compared']}) | "
                     f"{r['running statistics']:.1e} | {r['whole']:.3%} | {r['slide']:.3%} | {r['TTA']:.3%} | "
                     f"{r['trajectory losses']:.1e} | {r['trajectory weights']:.1e} ({r['torch weights']:.1e}) | "
                     f"{r['date']} |")
    bad = [f"- **{name}**: {'; '.join(found)}" for name, r in results.items() if (found := failures(r))]
    lines += (["", "Beyond a limit:" if bad else "Every row that ran is within its limits.", *bad, "",
               "- Logits, running statistics: largest absolute error over the reference's range; limits "
               f"{LIMITS['logits']:g}. Pictures of {JOB['size']} x {JOB['size']}.",
               "- Gradients: the worst parameter's |difference| / |reference| after one step in training mode, dropout "
               f"and drop path off; limit {LIMITS['gradients']:g}. A bias is measured by at least a hundredth of its "
               "own layer's weight gradient, because before a norm its gradient is rounding alone.",
               "- Whole, slide, TTA: share of equal pixels, with padding, flips and resizing to other sizes; at least "
               f"{LABELS:.1%}.",
               f"- SGD: {JOB['steps']} steps, rate {JOB['lr']:g}, momentum {JOB['momentum']:g}; largest relative "
               f"difference of a loss (limit {LIMITS['trajectory losses']:g}), and |difference of the weights at the "
               "end| / |way they went|, both against MMSegmentation in float64. In brackets the same for "
               f"MMSegmentation in float32. Limit: {STRAY:g} times that, or {CHAOS:g} where it is less: once rounding "
               "puts one value on the other side of a threshold, two runs part, PyTorch's own from its float64 too. "
               f"The losses of the first {EARLY} steps must agree within {EARLY_LIMIT:g}, or {STRAY:g} times what "
               "MMSegmentation's own float32 strays there.",
               "- Batches hold two pictures. With one, PyTorch 2.13 on the CPU adds up wrong gradients with default "
               "settings: `BatchNorm2d` misreads a single picture whose input and gradient lie differently in memory "
               "(channels first and last). jseg gives one picture the gradients of the same picture twice, as PyTorch "
               "does with channels-last tensors.",
               "- The factorisation starts from the same bases on both sides; MMSegmentation's own are random in every "
               "pass.", ""])
    photo = folder_of(PHOTOGRAPHS) / "result.json"
    lines += ["## From picture file to label map", ""]
    if photo.exists():
        found = json.loads(photo.read_text())
        lines += [f"`jseg verify` on ten photographs ({found['date']}): MMSegmentation's `init_model` and "
                  "`inference_model` against `InferenceSegmentor`, SegNeXt-T with random weights, 150 classes; slide "
                  f"with windows of {CROP} and steps of {STRIDE}; TTA with 6 scales and flips. Then a checkpoint in "
                  "the authors' form, without a config inside, on two of them.", "", "```text", *found["lines"], "```"]
    else:
        lines.append("Not run: no photographs.")
    return fill_prose("\n".join(lines) + "\n")


def main() -> int:
    """Run what is asked for and write the page; 0 when all that ran agrees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python that has torch and mmsegmentation 1.2.2")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"lines of configs.yaml, or '{PHOTOGRAPHS}'")
    parser.add_argument("--timeout", type=int, default=14400,
                        help="seconds for each side of each comparison (default: %(default)s)")
    args = parser.parse_args()
    configs = load_config(HERE / "configs.yaml")
    unknown = set(args.only or ()) - {*configs, PHOTOGRAPHS}
    if unknown:
        parser.error(f"unknown names {sorted(unknown)}; known: {', '.join([*configs, PHOTOGRAPHS])}")
    good = True
    for name in args.only or [*configs, PHOTOGRAPHS]:
        try:
            if name == PHOTOGRAPHS:
                result = compare_photographs(next(iter(configs.values())), args.python, args.timeout)
                found = [] if result is None or result["agree"] else ["see docs/parity.md"]
            else:
                found = failures(compare(name, configs[name], args.python, args.timeout))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found = [str(error)]
        good = good and not found
        print(f"parity: {name}: {'; '.join(found) or 'agrees'}", flush=True)
        PAGE.write_text(page(configs), encoding="utf-8")
    print(f"parity: results in {PAGE.relative_to(ROOT)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
