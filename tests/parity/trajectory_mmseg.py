"""The reference side of trajectory.py, under a Python with PyTorch and mmsegmentation 1.2.2, without jseg.

    python tests/parity/trajectory_mmseg.py FOLDER

FOLDER/job.json: {"config", "seed", "slower", "nudges"}; FOLDER/batches.npz: pictures (S, N, 3, H, W) and labels
(S, N, H, W) of S steps. MMSegmentation builds the model of its own config and gives it its own random start;
checkpoint.pth is that start. The model is then trained from there, with the config's optimizer at its base rate over
`slower`: in float64 ("exact"), in float32 ("single"), and `nudges` times in float32 from weights of which each is moved
to a neighbouring number ("nudged", "nudged1", ...). trajectory.npz receives the loss of every step and the weights at
the end of each.
"""

from __future__ import annotations

import copy
import json
import pathlib
import sys

import numpy as np
from zoo_mmseg import edge_step, labelled_samples, numbers, prepare, shared_draws, still, total_of, without_start


def train(network, config, batches) -> np.ndarray:
    """Losses of one step per batch, at the config's base rate and in the network's own precision."""
    import torch
    from mmengine.optim import build_optim_wrapper
    single = next(network.parameters()).dtype == torch.float32
    wrapper, edges, found = build_optim_wrapper(network, copy.deepcopy(config.optim_wrapper)), edge_step(config), []
    still(network)
    network.train()
    for pictures, labels in zip(batches["pictures"], batches["labels"]):
        size = tuple(labels.shape[1:])
        metas = [{"ori_shape": size, "img_shape": size, "pad_shape": size}] * len(labels)
        with shared_draws(network, single=single):
            samples = labelled_samples(metas, labels, edges)
            losses = network.loss(torch.from_numpy(pictures).to(torch.get_default_dtype()), samples)
            loss = total_of(losses)
            wrapper.update_params(loss)
        found.append(loss.item())
    return np.array(found)


def nudged(key: str, value):
    """Every number's neighbour, above or below."""
    import torch
    if not value.is_floating_point() or ".running_" in key:
        return value
    away = torch.from_numpy(numbers(key, value.shape) * np.inf).reshape(value.shape).to(value.dtype)
    return torch.nextafter(value, away)


def main(folder: pathlib.Path) -> None:
    """Write checkpoint.pth and trajectory.npz."""
    configs = prepare()
    import mmengine
    import torch
    from mmengine.config import Config
    from mmseg.registry import MODELS
    job, batches = json.loads((folder / "job.json").read_text()), np.load(folder / "batches.npz")
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])
    config = Config.fromfile(configs / job["config"])
    config.optim_wrapper.optimizer.lr /= job["slower"]  # in the checkpoint too, so on both sides
    block = without_start(copy.deepcopy(config.model))
    block["data_preprocessor"] = None
    network = MODELS.build(block)
    network.init_weights()
    start = {key: value.clone() for key, value in network.state_dict().items()}
    torch.save({"meta": {"mmengine_version": mmengine.__version__, "cfg": config.pretty_text, "iter": 0, "epoch": 0},
                "state_dict": start}, folder / "checkpoint.pth")
    out = {}
    for name in ("single", *(f"nudged{i or ''}" for i in range(job["nudges"])), "exact"):
        network.to(torch.float32).load_state_dict(
            {key: nudged(name[len("nudged"):] + key, value) for key, value in start.items()} if "nudged" in name
            else start)
        network.to(torch.float64 if name == "exact" else torch.float32)
        for key, value in network.named_parameters():
            if key.endswith("fusion_kernel"):  # STDC compares sums of these with 0.1: float32's is above
                value.data = value.data.round(decimals=6)
        out[f"losses/{name}"] = train(network, config, batches)
        out.update({f"{name}/{key}": value.detach().numpy().astype(np.float32)
                    for key, value in network.named_parameters() if value.requires_grad})
        print(name, " ".join(f"{loss:.6g}" for loss in out[f"losses/{name}"]), flush=True)
    versions = f"mmseg {sys.modules['mmseg'].__version__}, torch {torch.__version__.partition('+')[0]}"
    np.savez(folder / "trajectory.npz", versions=np.array(versions), **out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
