"""Train the same recipe under mmsegmentation, and draw both runs in one picture.

    python tests/parity/twin.py train CONFIG FOLDER --python PYTHON [--set train_cfg.max_iters=1000]
    python tests/parity/twin.py draw RUN FOLDER PICTURE.svg

PYTHON has mmsegmentation 1.2.2; RUN is the folder of `jseg train` with the same settings. The twin gets
jseg's initial weights, jseg's batches (the same pictures and augmentations in the same order) and jseg's rates;
network, losses, gradients and optimizer are mmsegmentation's and PyTorch's. What stays different: rounding, and the
factorisation's random bases. Its weights are scored by `jseg.engine.evaluate` (equal to mmsegmentation's:
docs/parity.md). For configs without drop path and dropout, whose optimizer and loss blocks MMEngine and mmsegmentation
know; a class-weighted loss for SegNeXt only (see twin_mmseg.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import subprocess

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
def job_of(config: dict) -> dict:
    """What the reference side must know: options over mmsegmentation's config, optimizer, rates."""
    from jseg.engine.schedules import LearningRate, build_schedules
    model, head = config["model"], config["model"]["decode_head"]
    heads = [head, *([model["auxiliary_head"]] if model.get("auxiliary_head") else [])]
    if model["backbone"].get("drop_path_rate") or any(one.get("dropout_ratio") for one in heads):
        raise SystemExit("the config has drop path or dropout, whose random masks the two sides cannot share; set both "
                         "to 0")
    cfg, loss = config["train_cfg"], head["loss_decode"]
    rates = LearningRate(build_schedules(config.get("param_scheduler")), [config["optimizer"]["lr"]],
                         cfg["max_iters"], 1)
    job = {"optimizer": config["optimizer"], "paramwise_cfg": config.get("paramwise_cfg"), "seed": config.get("seed")
           or 0, "every": cfg["val_interval"], "max_norm": (cfg.get("clip_grad") or {}).get("max_norm"),
           "shape": [config["train_dataloader"]["batch_size"], *config["data_preprocessor"]["size"]],
           "rates": [rates.at(i)[0] for i in range(cfg["max_iters"])]}
    if model["backbone"]["type"] != "MSCAN":
        return {**job, "model": model}  # mmsegmentation's block is jseg's block
    if loss["type"] != "CrossEntropyLoss" or not loss.get("avg_non_ignore"):
        raise SystemExit("the twin of SegNeXt knows CrossEntropyLoss with avg_non_ignore: true only")
    options = {"model.backbone.drop_path_rate": 0.0, "model.decode_head.dropout_ratio": 0.0,
               "model.decode_head.num_classes": head["num_classes"],
               "model.decode_head.ham_kwargs.MD_R": head["ham_kwargs"]["MD_R"]}
    letter = model["backbone"]["variant"][0]
    return {**job, "config": f"segnext/segnext_mscan-{letter}_1xb16-adamw-160k_ade20k-512x512.py", "options": options,
            "class_weight": loss.get("class_weight")}


def train(config: dict, folder: pathlib.Path, python: str) -> None:
    """Run the twin and score its weights."""
    from jseg.data.build import build_loader
    from jseg.engine.train import _seed_step  # the run's own way to its initial weights
    from jseg.models import build_model
    folder.mkdir(parents=True, exist_ok=True)
    job = job_of(config)
    (folder / "twin.json").write_text(json.dumps(job))
    _seed_step(job["seed"], -1)
    model = build_model(config)
    np.savez(folder / "initial.npz", **{key: value.numpy() for key, value in model.state_dict().items()})
    with subprocess.Popen([python, str(HERE / "twin_mmseg.py"), str(folder)], stdin=subprocess.PIPE) as twin:
        for batch in itertools.islice(build_loader(config, "train"), len(job["rates"])):
            twin.stdin.write(batch.images.tobytes() + batch.labels.astype(np.int64).tobytes())
            twin.stdin.flush()
            del batch
    if twin.returncode:
        raise SystemExit(f"the reference side ended with status {twin.returncode}")
    score(config, model, folder)


def score(config: dict, model, folder: pathlib.Path) -> None:
    """Add an evaluation of every saved state to the twin's log."""
    from jseg.data.build import build_loader
    from jseg.engine.checkpoint import load_into
    from jseg.engine.evaluate import evaluate
    states = sorted(folder.glob("state_*.npz"), key=lambda path: int(path.stem.partition("_")[2]))
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        for path in states:
            with np.load(path) as file:
                load_into(model, {key: file[key] for key in file.files if not key.endswith("num_batches_tracked")},
                          source=str(path))
            scores = evaluate(model, build_loader(config, "val"), config.get("evaluator"))["metrics"]
            print(json.dumps({"iter": int(path.stem.partition("_")[2]), "val": scores}), file=log, flush=True)
            print(f"{path.stem}: mIoU {scores['mIoU']:.4f}")


def draw(run: pathlib.Path, folder: pathlib.Path, picture: pathlib.Path) -> None:
    """Losses and validation mIoU of both, one above the other."""
    from jseg.report.curves import Series, line_chart, stacked
    from jseg.report.run import read_run
    sides, losses, scores = {"jseg": read_run(run), "MMSegmentation": read_run(folder)}, [], []
    steps = sides["jseg"].steps
    every = max(b["iter"] - a["iter"] for a, b in zip(steps, steps[1:]))
    for name, side in sides.items():
        steps = [(step["iter"], step["loss"]) for step in side.steps]
        if len(steps) > len(sides["jseg"].steps):  # logged at each step: average as jseg's log does
            steps = [(i, float(np.mean([loss for at, loss in steps if i - every < at <= i])))
                     for i in range(every, steps[-1][0] + 1, every)]
        losses.append(Series(name, *zip(*steps)))
        scores.append(Series(name, [e["iter"] for e in side.evaluations], [e["val"]["mIoU"] for e in side.evaluations],
                             dots=True))
        print(f"{name}: last mIoU {scores[-1].y[-1]:.4f}, best {max(scores[-1].y):.4f}")
    charts = [line_chart(losses, y_label="training loss"),
              line_chart(scores, y_label="val mIoU", percent=True, from_zero=True)]
    picture.write_text(stacked(charts), encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="run the twin")
    one.add_argument("config")
    one.add_argument("folder", type=pathlib.Path)
    one.add_argument("--python", required=True, help="a Python with PyTorch and mmsegmentation")
    one.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
                     help="override one value of the config")
    two = commands.add_parser("draw", help="one picture of both runs")
    for name in ("run", "folder", "picture"):
        two.add_argument(name, type=pathlib.Path)
    args = parser.parse_args()
    if args.command == "train":
        from jseg.config import load_config
        train(load_config(args.config, overrides=args.overrides), args.folder, args.python)
    else:
        draw(args.run, args.folder, args.picture)


if __name__ == "__main__":
    main()
