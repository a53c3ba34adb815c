"""The referee's side of `classifiers.py`: classifiers with random weights, their checkpoints, and their logits.

    python tests/parity/classifiers_torch.py FOLDER     -> FOLDER/<name>.pth, FOLDER/<name>.npz and FOLDER/pieces.npz

Runs under a Python with torch, torchvision, timm, mmpretrain 1.2 and mmsegmentation 1.2.2, without jseg. `pieces.npz`
holds what timm's pieces of training make of fixed inputs: mixed batches and targets, the loss, rates, a moving average,
every operation of RandAugment.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys

import numpy as np
import torch
from backbones_tools import randomise
from classifier_jobs import CLASSES, JOBS, LEVELS, OPERATIONS, SIZE, pieces_inputs
from make_segnext import import_mmseg

_OPERATORS = torch.library.Library("torchvision", "DEF")  # its models need none of them, its import two of their names
with contextlib.suppress(RuntimeError):
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Vectors(torch.nn.Module):
    """MMSegmentation's MSCAN under a linear layer, with the keys of its authors' ImageNet files."""

    def __init__(self, block: dict):
        super().__init__()
        import_mmseg()
        from mmseg.registry import MODELS
        self.backbone = MODELS.build({**block, "init_cfg": None})
        self.head = torch.nn.Linear(block["embed_dims"][-1], CLASSES)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].flatten(2).mean(2))


def build(job: dict):
    """(network, its state as the release has it)."""
    if job["library"] == "torchvision":
        from torchvision import models
        model = getattr(models, job["name"])(num_classes=CLASSES)
    elif job["library"] == "timm":
        import timm
        model = timm.create_model(job["name"], num_classes=CLASSES, **job.get("words", {}))
    elif job["library"] == "mmpretrain":
        import_mmseg()
        import mmpretrain.models  # noqa: F401
        from mmengine.registry import DefaultScope
        from mmpretrain.registry import MODELS
        with DefaultScope.overwrite_default_scope("mmpretrain"):
            model = MODELS.build(job["model"])
    else:
        model = Vectors(job["model"])
    randomise(model, 0)
    state = model.state_dict()
    if job["library"] == "mscan":
        state = {key.removeprefix("backbone."): value for key, value in state.items()}
        if job.get("authors"):
            state = {key.replace(".mlp.dwconv.", ".mlp.dwconv.dwconv."): value for key, value in state.items()}
    return model.eval(), state


def write_pieces(folder: pathlib.Path) -> None:
    """What timm makes of `pieces_inputs`."""
    from PIL import Image, ImageOps
    from timm.data import mixup
    from timm.data.auto_augment import AugmentOp
    from timm.loss import SoftTargetCrossEntropy
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3
    given, found = pieces_inputs(), {}
    images, labels = torch.from_numpy(given["images"]), torch.from_numpy(given["labels"].astype(np.int64))
    for kind, share in (("mixup", given["share"]), ("cutmix", given["share"])):
        mixer, x = mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES), \
            images.clone()
        mixer._params_per_batch = lambda kind=kind, share=share: (float(share), kind == "cutmix")
        centre = iter(given["centre"].tolist())
        drawn, np.random.randint = np.random.randint, lambda *a, **k: next(centre)
        try:
            x, y = mixer(x, labels)
        finally:
            np.random.randint = drawn
        found.update({f"{kind}_images": x.numpy(), f"{kind}_targets": y.numpy()})
    found["loss"] = SoftTargetCrossEntropy()(torch.from_numpy(given["logits"]),
                                             torch.from_numpy(found["cutmix_targets"])).numpy()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = CosineLRScheduler(optimizer, t_initial=80, lr_min=1e-6, warmup_t=20, warmup_lr_init=1e-6,
                                 warmup_prefix=True, t_in_epochs=False)
    rates = []
    for step in range(100):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    found["rates"] = np.array(rates)
    layer = torch.nn.Linear(4, 3)
    average = None
    for weight in given["weights"]:
        layer.weight.data = torch.from_numpy(weight)
        average = ModelEmaV3(layer, decay=0.9) if average is None else average
        average.update(layer)
    found["average"] = average.module.weight.detach().numpy()
    posterize = ImageOps.posterize
    ImageOps.posterize = lambda img, bits: img.point(lambda value: 0) if bits == 0 else posterize(img, bits)
    picture = Image.fromarray(np.ascontiguousarray(given["picture"][..., ::-1]))
    import timm.data.auto_augment as auto_augment
    for name in OPERATIONS:
        for level in LEVELS:
            for sign in (-1, 1):
                auto_augment._randomly_negate = lambda value, sign=sign: sign * value
                op = AugmentOp(OPERATIONS[name], prob=1.0, magnitude=level,
                               hparams={"img_mean": (124, 116, 104), "interpolation": Image.BICUBIC})
                found[f"{name} {level} {sign}"] = np.asarray(op(picture))[..., ::-1]
    np.savez_compressed(folder / "pieces.npz", **found)


def main() -> int:
    """Write everything."""
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    write_pieces(folder)
    picture = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32))
    for name, job in JOBS.items():
        model, state = build(job)
        torch.save({job.get("container", "state_dict"): state} if job.get("container", True) else state,
                   folder / f"{name}.pth")
        with torch.no_grad():
            logits = model(picture, mode="tensor") if job["library"] == "mmpretrain" else model(picture)
        np.savez(folder / f"{name}.npz", picture=picture.numpy(), logits=logits.numpy(), keys=len(state))
        print(name, tuple(logits.shape), f"{logits.std():.3g}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
