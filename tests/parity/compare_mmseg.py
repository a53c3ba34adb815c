"""The reference side of one comparison of compare.py.
Runs under a Python with PyTorch and mmsegmentation 1.2.2, without jseg.

    python tests/parity/compare_mmseg.py FOLDER [--checkpoint-only]        FOLDER/job.json says what; see configs.yaml

mmsegmentation builds the model from its own config, every parameter and buffer gets random values, and the checkpoint
is saved as its runner saves it (FOLDER/checkpoint.pth). Dropout and drop path are off in what follows; the
factorisation starts from the bases of segnext_cases.py. FOLDER/reference.npz then holds the inputs and: training loss,
every gradient and running statistic of one step, losses and weights of a run of SGD, evaluation logits, label maps of
whole and slide inference and of test-time augmentation.
"""

from __future__ import annotations

import collections
import copy
import json
import pathlib
import sys

import numpy as np
import segnext_cases as shared
from make_segnext import import_mmseg, label_maps, samples

CLASS_SPREAD = 3.0  # conv_seg is scaled up, so that random weights give maps of many classes


def value_of(key: str, shape) -> np.ndarray:
    """The random value of one state-dict entry, float32."""
    values = shared.weight(f"compare.{key}", shape)
    if key.endswith("conv_seg.weight"):
        values *= CLASS_SPREAD
    return values


def load(network) -> None:
    """Give every parameter and buffer its random value, step counters too."""
    import torch
    state = {key: torch.tensor(len(key)) if key.endswith("num_batches_tracked")
             else torch.from_numpy(value_of(key, value.shape))
             for key, value in network.state_dict().items()}
    network.load_state_dict(state)


def build(job: dict, configs: pathlib.Path):
    """(network with dropout and drop path off, its config as the file says with the job's options)."""
    import torch
    from mmengine.config import Config
    from mmseg.models.decode_heads.ham_head import NMF2D
    from mmseg.registry import MODELS
    config = Config.fromfile(configs / job["config"])
    config.merge_from_dict(job.get("options", {}))
    model = copy.deepcopy(config.model)  # the saved config stays as it is
    model.data_preprocessor, model.backbone.init_cfg, model.backbone.drop_path_rate = None, None, 0.0
    model.decode_head.dropout_ratio = 0.0
    NMF2D._build_bases = lambda self, b, s, d, r, device=None: torch.from_numpy(shared.bases((b * s, d, r)).copy()).to(
        torch.get_default_dtype())
    network = MODELS.build(model)
    load(network)
    return network, config


def save(network, config, form: str, path: pathlib.Path) -> None:
    """Write the checkpoint as mmengine's runner does, or as the authors' release looks."""
    import mmengine
    import torch
    from mmseg.datasets import ADE20KDataset
    info, state = ADE20KDataset.METAINFO, network.state_dict()
    if form == "authors":
        state = collections.OrderedDict((key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."), value)
                                        for key, value in state.items())
        torch.save({"meta": {"CLASSES": info["classes"], "PALETTE": info["palette"]}, "state_dict": state}, path)
        return
    hub = mmengine.MessageHub.get_instance("parity")
    hub.update_scalar("train/loss", 1.0)
    meta = {"mmengine_version": mmengine.__version__, "cfg": config.pretty_text, "dataset_meta": dict(info),
            "iter": 7, "epoch": 0, "seed": 0, "experiment_name": "parity", "time": "20230101_000000"}
    torch.save({"meta": meta, "state_dict": state, "message_hub": hub.state_dict()}, path)


def inputs(side: int, classes: int, step: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(two normalised pictures, their labels with a tenth ignored); a new batch for every step."""
    shape = (2, side, side)
    rows, columns = np.meshgrid(np.linspace(0, 5, side), np.linspace(0, 7, side), indexing="ij")
    phase = shared.numbers(f"phase{step}", (2, 3))[..., None, None]
    pictures = np.sin(2 * rows * (1 + phase)) + np.cos(columns * (1 - phase)) + 0.3 * shared.numbers(
        f"noise{step}", (2, 3, side, side))
    blocks = np.abs(shared.numbers(f"labels{step}", (2, side // 8, side // 8)) * 1000).astype(np.int64) % classes
    labels = np.kron(blocks, np.ones((8, 8), np.int64))
    return pictures.astype(np.float32), np.where(shared.numbers(f"ignored{step}", shape) > 1.3, 255,
                                                 labels).astype(np.int32)


def training_step(network, side: int, out: dict) -> None:
    """Loss, gradients and running statistics of one training-mode step."""
    import torch
    network.train()
    pictures, labels = inputs(side, network.num_classes)
    losses = network.loss(torch.from_numpy(pictures), samples([{}] * 2, labels))
    losses["decode.loss_ce"].backward()
    out["loss"], out["accuracy"] = losses["decode.loss_ce"].detach().numpy(), losses["decode.acc_seg"].numpy()
    out.update({f"gradient/{key}": p.grad.numpy() for key, p in network.named_parameters()})
    out.update({f"running/{key}": v.numpy().copy() for key, v in network.state_dict().items() if ".running_" in key})


def trajectory(network, job: dict, out: dict, *, exact: bool = False) -> None:
    """Losses of a run of SGD and the weights at its end;
    `exact` runs it in float64, to see how much float32 itself strays.
    """
    import torch
    load(network)
    if exact:
        torch.set_default_dtype(torch.float64)
        network.double()
    optimizer = torch.optim.SGD(network.parameters(), lr=job["lr"], momentum=job["momentum"])
    losses = []
    for step in range(job["steps"]):
        pictures, labels = inputs(job["size"], network.num_classes, step)
        optimizer.zero_grad()
        loss = network.loss(torch.from_numpy(pictures).to(torch.get_default_dtype()),
                            samples([{}] * 2, labels))["decode.loss_ce"]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        out[f"step_pictures/{step}"], out[f"step_labels/{step}"] = pictures, labels
    ends = "exact" if exact else "trained"
    out[f"{ends}_losses"] = np.array(losses)
    out.update({f"{ends}/{key}": p.detach().numpy().copy() for key, p in network.named_parameters()})
    torch.set_default_dtype(torch.float32)
    network.float()


def views_of(pictures: np.ndarray) -> list[tuple[np.ndarray, list[dict]]]:
    """Whole pictures, mirrored, and cut: three views for test-time augmentation."""
    side = pictures.shape[-1]
    cut = np.ascontiguousarray(pictures[:, :, side // 8:, :side - side // 4])
    plain = {"ori_shape": (side - 9, side + 5), "img_shape": (side, side), "pad_shape": (side, side),
             "padding_size": [0, 0, 0, 0]}
    smaller = {**plain, "img_shape": cut.shape[2:], "pad_shape": cut.shape[2:]}
    mirrored = {**plain, "flip": True, "flip_direction": "horizontal"}
    return [(pictures, [plain] * 2), (np.ascontiguousarray(pictures[..., ::-1]), [mirrored] * 2), (cut, [smaller] * 2)]


def inference(network, job: dict, out: dict) -> dict:
    """Logits and label maps in evaluation mode; returns what the other side must know of the pictures."""
    import types

    import torch
    from mmseg.models.segmentors.seg_tta import SegTTAModel
    load(network)
    network.eval()
    side = job["size"]
    pictures, _ = inputs(side, network.num_classes)
    views = views_of(pictures)
    padded = {"img_shape": (side - 5, side - 3), "pad_shape": (side, side), "padding_size": [0, 3, 0, 5]}
    metas = [{**padded, "ori_shape": (side + 30, side - 7)}, {**padded, "ori_shape": (side // 2, side), "flip": True,
                                                              "flip_direction": "horizontal"}]
    slide = {"mode": "slide", "crop_size": [side * 3 // 4] * 2, "stride": [side // 2] * 2}
    with torch.no_grad():
        out["logits"] = network(torch.from_numpy(pictures), mode="tensor").numpy()
        found = [network.predict(torch.from_numpy(p), samples([{**m, "img_path": ""} for m in ms])) for p, ms in views]
    merged = SegTTAModel.merge_preds(types.SimpleNamespace(module=network), [list(view) for view in zip(*found)])
    maps = {"TTA": [sample.pred_sem_seg.data.numpy().astype(np.uint8) for sample in merged],
            "whole": label_maps(network, pictures, metas)}
    network.test_cfg.update(slide)
    maps["slide"] = label_maps(network, pictures, metas)
    out.update({f"{mode}/{i}": labels for mode, pair in maps.items() for i, labels in enumerate(pair)})
    out.update({f"view/{i}": p for i, (p, _) in enumerate(views)})
    return {"metas": metas, "slide": slide, "view_metas": [metas for _, metas in views]}


def main(folder: pathlib.Path) -> None:
    """Write checkpoint.pth and reference.npz for FOLDER/job.json."""
    job = json.loads((folder / "job.json").read_text())
    import torch
    torch.use_deterministic_algorithms(True)
    mmseg = import_mmseg()
    network, config = build(job, pathlib.Path(mmseg.__file__).parent / ".mim" / "configs")
    save(network, config, job.get("form", "mmseg"), folder / "checkpoint.pth")
    if "--checkpoint-only" in sys.argv:
        return
    out: dict[str, np.ndarray] = {}
    training_step(network, job["size"], out)
    trajectory(network, job, out)
    trajectory(network, job, out, exact=True)
    facts = inference(network, job, out)
    facts.update(versions=f"mmseg {mmseg.__version__}, torch {torch.__version__.partition('+')[0]}",
                 parameters=sum(p.numel() for p in network.parameters()),
                 keys=[key for key in network.state_dict() if not key.endswith("num_batches_tracked")])
    np.savez(folder / "reference.npz", facts=np.array(json.dumps(facts)), **out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
