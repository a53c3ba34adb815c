"""The referee's side of `pretrain.py`. Runs under a Python with torch, timm and mmsegmentation 1.2.2, without jseg.

    python tests/parity/pretrain_timm.py FOLDER      FOLDER/job.json -> FOLDER/timm.json

MMSegmentation's MSCAN under a linear layer, trained with timm's pieces: create_transform (crops, RandAugment, random
erasing), Mixup, SoftTargetCrossEntropy, param_groups_weight_decay, CosineLRScheduler, ModelEmaV3. Pictures come in the
order of job.json and the weights to begin with from FOLDER/initial.npz, which are jseg's.
"""

from __future__ import annotations

import json
import pathlib
import random
import sys
import time

import numpy as np
import torch
from make_segnext import import_mmseg
from PIL import Image

_OPERATORS = torch.library.Library("torchvision", "DEF")  # timm imports torchvision, whose import needs two names
for _name in ("nms", "qnms"):
    try:
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass


def allow_black() -> None:
    """Let Pillow keep 0 bits, as it did before it refused that: timm asks for it at its highest level."""
    from PIL import ImageOps
    posterize = ImageOps.posterize
    ImageOps.posterize = lambda img, bits: img.point(lambda value: 0) if bits == 0 else posterize(img, bits)


def build(job: dict, folder: pathlib.Path) -> torch.nn.Module:
    """The classifier with the initial weights."""
    import_mmseg()
    from mmseg.registry import MODELS

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = MODELS.build({**job["backbone"], "init_cfg": None, "norm_cfg": {"type": "BN"}})
            self.head = torch.nn.ModuleDict({"fc": torch.nn.Linear(job["channels"], job["classes"])})

        def forward(self, x):
            return self.head["fc"](self.backbone(x)[-1].mean((2, 3)))

    model = Classifier()
    with np.load(folder / "initial.npz") as file:
        lost = model.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files}, strict=False)
    assert not lost.unexpected_keys and all(key.endswith("num_batches_tracked") for key in lost.missing_keys), lost
    return model


def scores(model, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """top1 and top5 of a model."""
    model.eval()
    with torch.no_grad():
        order = torch.cat([model(part).topk(5)[1] for part in images.split(100)])
    hits = order == labels[:, None]
    return {"top1": hits[:, 0].float().mean().item(), "top5": hits.any(1).float().mean().item()}


def main() -> int:
    """Train and write the curve."""
    folder = pathlib.Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    from timm.data import Mixup, create_transform
    from timm.loss import SoftTargetCrossEntropy
    from timm.optim import param_groups_weight_decay
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3
    allow_black()
    torch.set_num_threads(1)
    random.seed(job["seed"])
    np.random.seed(job["seed"])
    torch.manual_seed(job["seed"])
    mean, std = ([value / 255 for value in job[key]] for key in ("mean", "std"))
    train = create_transform(job["size"], is_training=True, scale=tuple(job["crop"]), hflip=job["flip"],
                             color_jitter=0.0, auto_augment="rand-m9-mstd0.5-inc1", interpolation="random",
                             re_prob=0.25, re_mode="pixel", mean=mean, std=std)
    test = create_transform(job["size"], mean=mean, std=std, crop_pct=1.0, interpolation="bicubic")
    pictures = [Image.open(path).convert("RGB") for path, _ in job["train"]]
    targets = torch.tensor([label for _, label in job["train"]])
    val = torch.stack([test(Image.open(path).convert("RGB")) for path, _ in job["val"]])
    truth = torch.tensor([label for _, label in job["val"]])
    model, loss_of = build(job, folder), SoftTargetCrossEntropy()
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, job["decay"]), lr=job["lr"])
    schedule = CosineLRScheduler(optimizer, t_initial=job["iters"] - job["warmup"], lr_min=job["lr_min"],
                                 warmup_t=job["warmup"], warmup_lr_init=job["lr_start"], warmup_prefix=True,
                                 t_in_epochs=False)
    schedule.step_update(0)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=job["mix_prob"], switch_prob=0.5, mode="batch",
                label_smoothing=0.1, num_classes=job["classes"])
    average, losses, curve, rates, began = None, [], [], [], time.perf_counter()
    for number, batch in enumerate(job["order"]):
        model.train()
        images, labels = mix(torch.stack([train(pictures[i]) for i in batch]), targets[batch])
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step_update(number + 1)
        average = ModelEmaV3(model, decay=job["ema"]) if average is None else average
        average.update(model)
        losses.append(loss.item())
        if (number + 1) % job["val_interval"] == 0:
            curve.append({"iter": number + 1, **scores(average.module, val, truth)})
            print(curve[-1], f"loss {np.mean(losses[-job['val_interval']:]):.4f}", flush=True)
    (folder / "timm.json").write_text(json.dumps({"losses": losses, "curve": curve, "rates": rates,
                                                  "seconds": time.perf_counter() - began}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
