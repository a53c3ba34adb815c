"""Write optim_golden.json: what PyTorch's optimizers and MMEngine's schedules and groups do on small inputs.

Run it with a Python that has torch and mmengine: `python tests/engine/make_optim_golden.py`.
"""

import json
import pathlib

import mmengine
import torch
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.optim.scheduler import (ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, PolyLR, StepLR)

START = [[0.5, -1.0, 2.0], [0.25, -0.125, 4.0, 1.5]]


def gradients(step):
    """The same simple gradients as in test_optim.py: exact in float32."""
    return [[(step + 1) * 0.125, -0.5, 0.25 * (step % 3)], [1.0, 0.0, -2.0 / (step + 1), 0.0625]]


def run_optimizer(kind, options, *, max_norm=None):
    first, second = (torch.nn.Parameter(torch.tensor(v)) for v in START)
    groups = [{"params": [first], "lr": options["lr"]},
              {"params": [second], "lr": options["lr"] * 10, "weight_decay": 0.0}]
    optimizer = getattr(torch.optim, kind)(groups, **options)
    trace, norms = [], []
    for step in range(6):
        for param, grad in zip((first, second), gradients(step)):
            param.grad = torch.tensor(grad)
        if max_norm:
            norms.append(float(torch.nn.utils.clip_grad_norm_([first, second], max_norm)))
        optimizer.step()
        trace.append(first.tolist() + second.tolist())
    return {"kind": kind, "options": options, "max_norm": max_norm, "weights": trace, "norms": norms}


SCHEDULES = [
    ("warm-up then poly", 40, 5, [("LinearLR", dict(start_factor=1e-6, by_epoch=False, begin=0, end=10)),
                                  ("PolyLR", dict(power=0.9, eta_min=1e-4, begin=10, end=40, by_epoch=False))]),
    ("overlapping", 30, 5, [("LinearLR", dict(start_factor=0.1, by_epoch=False, begin=0, end=8)),
                            ("CosineAnnealingLR", dict(eta_min=1e-3, begin=0, end=30, by_epoch=False))]),
    ("cosine beyond its half", 30, 5,
     [("CosineAnnealingLR", dict(T_max=8, eta_min_ratio=0.1, by_epoch=False, begin=3, end=30))]),
    ("steps by epoch", 60, 6, [("StepLR", dict(step_size=3, gamma=0.5, by_epoch=True, end=10))]),
    ("warm-up by iteration, milestones by epoch", 60, 6,
     [("LinearLR", dict(start_factor=0.2, by_epoch=False, begin=0, end=9)),
      ("MultiStepLR", dict(milestones=[4, 7, 7], gamma=0.3, end=10))]),
    ("constant then milestones", 30, 5, [("ConstantLR", dict(factor=0.25, by_epoch=False, begin=0, end=7)),
                                         ("MultiStepLR", dict(milestones=[5, 9], by_epoch=False, begin=7, end=30))]),
    ("epochs converted", 60, 6,
     [("PolyLR", dict(power=2.0, by_epoch=True, begin=1, end=8, convert_to_iter_based=True))]),
]


def run_schedule(name, iters, epoch_length, blocks):
    params = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [params[0]], "lr": 0.01}, {"params": [params[1]], "lr": 0.1}], lr=0.01)
    classes = {c.__name__: c for c in (ConstantLR, CosineAnnealingLR, LinearLR, MultiStepLR, PolyLR, StepLR)}
    made = []
    for kind, options in blocks:
        options = dict(options)
        if options.pop("convert_to_iter_based", False):
            made.append(classes[kind].build_iter_from_epoch(optimizer, epoch_length=epoch_length, **options))
        else:
            made.append(classes[kind](optimizer, **options))
    rates = []
    for i in range(iters):
        rates.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        for schedule in made:
            if not schedule.by_epoch:
                schedule.step()
        if (i + 1) % epoch_length == 0:
            for schedule in made:
                if schedule.by_epoch:
                    schedule.step()
    return {"name": name, "iters": iters, "epoch_length": epoch_length, "rates": rates,
            "blocks": [{"type": kind, **options} for kind, options in blocks]}


class Net(torch.nn.Module):
    """The toy of test_optim.py under the same parameter names."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4),
                                            torch.nn.Conv2d(4, 4, 3, groups=4))
        self.decode_head = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.GroupNorm(2, 4))
        self.norm1 = torch.nn.LayerNorm(4)
        self.scale = torch.nn.Parameter(torch.ones(4))


PARAMWISE = [
    {"custom_keys": {"head": {"lr_mult": 10.0}, "norm": {"decay_mult": 0.0}, "decode_head.1": {"decay_mult": 0.5}}},
    {"norm_decay_mult": 0.0, "bias_lr_mult": 2.0, "bias_decay_mult": 0.25},
    {"dwconv_decay_mult": 0.125, "flat_decay_mult": 0.0, "custom_keys": {".scale": {"lr_mult": 3.0}}},
]


def run_groups(paramwise):
    net = Net()
    wrapper = DefaultOptimWrapperConstructor({"type": "OptimWrapper", "optimizer": {
        "type": "AdamW", "lr": 0.01, "weight_decay": 0.1}}, paramwise)(net)
    names = {id(p): n for n, p in net.named_parameters()}
    return {"paramwise": paramwise, "groups": {names[id(p)]: [g["lr"], g["weight_decay"]]
                                              for g in wrapper.optimizer.param_groups for p in g["params"]}}


if __name__ == "__main__":
    golden = {
        "versions": {"torch": torch.__version__, "mmengine": mmengine.__version__},
        "optimizers": [
            run_optimizer("AdamW", {"lr": 0.01, "betas": [0.9, 0.999], "weight_decay": 0.05, "eps": 1e-8}),
            run_optimizer("AdamW", {"lr": 0.02, "betas": [0.8, 0.95], "weight_decay": 0.0}, max_norm=0.7),
            run_optimizer("Adam", {"lr": 0.01, "betas": [0.9, 0.999], "weight_decay": 0.05, "eps": 1e-8}),
            run_optimizer("Adam", {"lr": 0.02, "betas": [0.8, 0.95]}, max_norm=0.7),
            run_optimizer("SGD", {"lr": 0.01}),
            run_optimizer("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}, max_norm=1.5),
            run_optimizer("SGD", {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
            run_optimizer("SGD", {"lr": 0.01, "momentum": 0.5, "dampening": 0.25}),
        ],
        "schedules": [run_schedule(*case) for case in SCHEDULES],
        "groups": [run_groups(p) for p in PARAMWISE],
    }
    path = pathlib.Path(__file__).with_name("optim_golden.json")
    path.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")
    print(path.name, path.stat().st_size, "bytes")
