"""jseg's side of `backbones.py`: convert each checkpoint, load it strictly, run the same picture, compare.

    python tests/parity/backbones_jseg.py FOLDER       after backbones_torch.py; writes FOLDER/<name>/result.json
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
from gradients import gradient_errors
from zoo_jseg import smooth_relu, still

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import jseg  # noqa: E402,F401  (prepares the process before Jittor is imported)


def error_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference as a share of the range of `theirs`; infinite where shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max() / max(np.ptp(theirs), 1e-12))


def compare(folder: pathlib.Path, job: dict) -> dict:
    """The row of one release."""
    import jittor as jt

    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.checkpoint import load_weights
    reference = np.load(folder / "reference.npz")
    source = next(folder.glob("checkpoint.*"))
    done = convert_checkpoint(source, folder / "converted.safetensors")
    state, meta = load_weights(done.out)
    block = meta["config"]["model"]
    model = built(block, state, job)
    model.eval()
    with jt.no_grad(), jt.flag_scope(lazy_execution=0):  # one kernel per operation: few to compile
        maps = model(jt.array(reference["picture"]))
    maps = [value.numpy() for value in (maps if isinstance(maps, (list, tuple)) else [maps])]
    theirs = [reference[f"map{i}"] for i in range(sum(name.startswith("map") for name in reference.files))]
    keys = int(reference["keys"])
    seen = len(done.loaded) + len(done.renamed) + len(done.dropped)
    row = {"keys": keys, "unaccounted": abs(keys - seen), "dropped": len(done.dropped), "filled": len(done.filled),
           "logits": max(map(error_of, maps, theirs)) if len(maps) == len(theirs) else float("inf"), "labels": None}
    if job.get("whole"):
        row["labels"] = float((maps[0].argmax(1) == theirs[0].argmax(1)).mean())
    return {**row, **compare_step(folder, block, state, job)} if job.get("step") else row


def built(block: dict, state: dict, job: dict):
    """The model, or its backbone alone, with the converted weights."""
    from jseg.engine.checkpoint import load_into
    from jseg.layers.init import without_values
    from jseg.models import build_model
    from jseg.registry import MODELS
    with without_values():
        model = build_model(block) if job.get("whole") else MODELS.build(block["backbone"])
    load_into(model, state if job.get("whole") else {key.removeprefix("backbone."): value
                                                     for key, value in state.items()})
    return model


def compare_step(folder: pathlib.Path, block: dict, state: dict, job: dict) -> dict:
    """Gradients and running statistics of one training step; the referee's come through `jseg convert` too, so that
    they lie under our keys and in our order.
    """
    import jittor as jt

    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.checkpoint import load_weights
    from jseg.layers import named_parameters
    step = np.load(folder / "step.npz")
    done = convert_checkpoint(next(folder.glob("gradients.*")), folder / "gradients.safetensors")
    prefix = "" if job.get("whole") else "backbone."
    expected = {key.removeprefix(prefix): np.asarray(value) for key, value in load_weights(done.out)[0].items()}
    with smooth_relu(), jt.flag_scope(lazy_execution=0):
        model = built(block, state, job)  # here, for activations are looked up when a model is built
        still(model)
        model.train()
        parameters = {key: value for key, value in named_parameters(model).items() if not value.is_stop_grad()}
        outputs = model(jt.array(step["pictures"]))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        loss = sum((value * jt.array(step[f"weight{i}"])).sum() for i, value in enumerate(outputs))
        found = jt.grad(loss, list(parameters.values()))
    errors = gradient_errors({key: value.numpy() for key, value in zip(parameters, found)},
                             {key: expected[key] for key in parameters})
    running = {key: error_of(value.numpy(), expected[key]) for key, value in model.state_dict().items()
               if "running_" in key and f"{key.rpartition('.')[0]}.weight" in parameters}
    worst = max(errors, key=errors.get)
    return {"gradients": errors[worst], "worst gradient": worst, "gradients compared": len(errors),
            "gradients of torch": float(step["stray"]), "running": max(running.values(), default=0.0)}


def main() -> None:
    """Compare every job of a folder; what fails is told in its row."""
    folder = pathlib.Path(sys.argv[1])
    import jseg.data.datasets  # noqa: F401  (registers the data sets, whose class names a file may need)
    for job in json.loads((folder / "jobs.json").read_text())["jobs"]:
        out = folder / job["name"]
        try:
            failed = out / "failed.txt"
            row = {"failed": failed.read_text()} if failed.exists() else compare(out, job)
        except Exception as error:  # a release that fails is told in its row
            row = {"failed": f"jseg: {type(error).__name__}: {error}"[:600]}
        (out / "result.json").write_text(json.dumps(row))


if __name__ == "__main__":
    main()
