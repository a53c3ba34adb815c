"""jseg's side of trajectory.py: convert the reference's start, train with the converted config's optimizer, compare.

    python tests/parity/trajectory_jseg.py FOLDER       after trajectory_mmseg.py; writes FOLDER/result.json
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
from compare_jseg import distance
from zoo_jseg import build_still, reference_group, shared_draws


def train(config: dict, model, batches) -> np.ndarray:
    """Losses of one step per batch, at the config's base rate."""
    import jittor as jt

    from jseg.engine.optim import build_optimizer
    optimizer = build_optimizer(model, config["optimizer"], config.get("paramwise_cfg"))
    clip, found = config["train_cfg"].get("clip_grad") or {}, []
    for pictures, labels in zip(batches["pictures"], batches["labels"]):
        with shared_draws():
            loss = model.loss(jt.array(pictures), jt.array(labels))["loss"]
            optimizer.accumulate(loss)
            optimizer.step(optimizer.lrs, max_norm=clip.get("max_norm"))
        found.append(loss.item())
    return np.array(found)


def compare(folder: pathlib.Path) -> dict:
    """Series of losses, and how far the trained weights are from the exact ones, over the way they went."""
    from jseg.convert.checkpoint import convert_checkpoint
    from jseg.engine.checkpoint import load_weights
    from jseg.layers import named_parameters
    from jseg.models import remap_keys
    reference, batches = np.load(folder / "trajectory.npz"), np.load(folder / "batches.npz")
    state, meta = load_weights(convert_checkpoint(folder / "checkpoint.pth", folder / "converted.safetensors").out)
    model = build_still(meta["config"]["model"], state)
    losses = {"jseg": train(meta["config"], model, batches), **reference_group(reference, "losses/")}
    ends = {name: remap_keys(reference_group(reference, f"{name}/"), meta["config"])
            for name in losses if name != "jseg"}
    ends["jseg"] = {key: value.numpy() for key, value in named_parameters(model).items()}
    exact = ends.pop("exact")
    way = distance(state, exact)
    return {"losses": {name: [float(f"{loss:.9g}") for loss in series] for name, series in losses.items()},
            "weights": {name: distance(end, exact) / way for name, end in ends.items()},
            "optimizer": meta["config"]["optimizer"]["type"], "versions": str(reference["versions"])}


def main(folder: pathlib.Path) -> None:
    """Write result.json."""
    import jittor as jt

    import jseg.data.datasets  # noqa: F401
    with jt.flag_scope(lazy_execution=0):
        result = compare(folder)
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
