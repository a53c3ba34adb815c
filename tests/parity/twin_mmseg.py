"""The reference side of twin.py. Runs under a Python with PyTorch and mmsegmentation 1.2.2, without jseg.

    python tests/parity/twin_mmseg.py FOLDER < batches

mmsegmentation's own network and losses, MMEngine's optimizer and per-parameter settings. SegNeXt's loss is PyTorch's
weighted mean over pixels that count, which is what mmsegmentation's `class_weight` with `avg_non_ignore` means; its own
code raises IndexError there as soon as a label is ignored. FOLDER/twin.json holds the options and the rate of every
iteration, FOLDER/initial.npz the weights to begin with; images (N, 3, H, W) float32 and labels (N, H, W) int64 of each
iteration come as bytes through standard input. Writes FOLDER/log.jsonl and FOLDER/state_<iter>.npz.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import numpy as np
from make_segnext import import_mmseg
from zoo_mmseg import without_start


def build(job: dict, folder: pathlib.Path, configs: pathlib.Path):
    """(network in training mode with the initial weights, its optimizer)."""
    import torch
    from mmengine.config import Config
    from mmengine.optim import build_optim_wrapper
    from mmseg.registry import MODELS
    if "model" in job:
        model = without_start(job["model"])
        model["train_cfg"] = {}
    else:
        config = Config.fromfile(configs / job["config"])
        config.merge_from_dict(job["options"])
        model = config.model
        model.data_preprocessor, model.backbone.init_cfg = None, None
    network = MODELS.build(model)
    with np.load(folder / "initial.npz") as file:
        network.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files}, strict=False)
    missing = set(network.state_dict()) - set(file.files)
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    wrapper = build_optim_wrapper(network, {"type": "OptimWrapper", "optimizer": job["optimizer"],
                                            "paramwise_cfg": job["paramwise_cfg"]})
    return network.train().to(memory_format=torch.channels_last), wrapper.optimizer


def next_batch(shape: list[int]):
    """(images, labels) as tensors."""
    import torch
    n, height, width = shape
    parts = []
    for dtype, dims in ((np.float32, (n, 3, height, width)), (np.int64, (n, height, width))):
        wanted = int(np.prod(dims)) * np.dtype(dtype).itemsize
        data = sys.stdin.buffer.read(wanted)
        assert len(data) == wanted, "the batches ended early"
        parts.append(torch.frombuffer(bytearray(data), dtype=getattr(torch, np.dtype(dtype).name)).reshape(dims))
    return parts


def loss_of(network, job: dict, images, labels):
    """The loss of one batch."""
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from torch.nn import functional as F
    images = images.contiguous(memory_format=torch.channels_last)
    if "model" in job:
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo={"img_shape": images.shape[2:]})
                   for label in labels]
        return sum(value for name, value in network.loss(images, samples).items() if "loss" in name)
    weight = torch.tensor(job["class_weight"]) if job["class_weight"] else None
    logits = network.decode_head(network.extract_feat(images))
    return F.cross_entropy(F.interpolate(logits, labels.shape[1:], mode="bilinear"), labels, weight=weight,
                           ignore_index=255)


def main(folder: pathlib.Path) -> None:
    """Train as long as batches are announced."""
    import mmseg
    import torch
    job = json.loads((folder / "twin.json").read_text())
    network, optimizer = build(job, folder, pathlib.Path(mmseg.__file__).parent / ".mim/configs")
    torch.manual_seed(job["seed"])
    began = time.perf_counter()
    with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
        for done, rate in enumerate(job["rates"], start=1):
            loss = loss_of(network, job, *next_batch(job["shape"]))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            loss.backward()
            if job["max_norm"]:
                torch.nn.utils.clip_grad_norm_(network.parameters(), job["max_norm"])
            optimizer.step()
            print(json.dumps({"iter": done, "loss": loss.item(), "seconds": round(time.perf_counter() - began, 2)}),
                  file=log, flush=True)
            if done % job["every"] == 0 or done == len(job["rates"]):
                np.savez(folder / f"state_{done}.npz",
                         **{key: value.numpy() for key, value in network.state_dict().items()})


if __name__ == "__main__":
    import_mmseg()
    main(pathlib.Path(sys.argv[1]))
