"""What both referees of `backbones.py` use: random weights, maps inside a network, modules of a checkout."""

from __future__ import annotations

import contextlib
import importlib
import pathlib
import re
import sys
import types

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

PLACE = {"sources": pathlib.Path("/nowhere")}  # the folder with checkouts of the authors' repositories


def randomise(model: nn.Module, seed: int = 0, calm: str | None = None) -> None:
    """Values that keep maps near one and make every weight count; keys that `calm` matches, the last norms of residual
    branches, a fifth of them: in very deep networks float32 strays otherwise, whoever computes it.
    """
    rng = np.random.default_rng(seed)
    state = model.state_dict()
    for key, value in state.items():
        if not value.is_floating_point():
            continue
        leaf, shape = key.rpartition(".")[2], tuple(value.shape)
        if leaf in ("attn_mask_probs", "pixel_mean", "pixel_std"):
            continue
        if leaf == "running_var" or (value.ndim == 1 and leaf in ("weight", "gamma", "gamma_1", "gamma_2")) or (
            leaf == "layer_scale"):
            new = rng.uniform(0.5, 1.5, shape)
        elif value.ndim >= 2 and leaf == "weight":
            new = rng.normal(0, (1.5 / max(np.prod(shape[1:]), 1))**0.5, shape)
        elif leaf == "relative_position_index" or leaf == "attn_mask":
            continue
        else:
            new = rng.normal(0, 0.3, shape)
        new = new * 0.2 if calm and re.search(calm, key) else new
        state[key] = torch.from_numpy(np.asarray(new, np.float32))
    model.load_state_dict(state)
    model.eval()


def source(folder: str, name: str):
    """A module of an author's checkout."""
    path = PLACE["sources"] / folder
    if not path.is_dir():
        raise FileNotFoundError(f"no checkout {path}")
    sys.path.insert(0, str(path))
    for loaded in [key for key in sys.modules if key.split(".")[0] == name.split(".")[0]]:
        del sys.modules[loaded]  # several repositories have a package `models`
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(path))


def tapped(model: nn.Module, modules: list[nn.Module], run) -> list[torch.Tensor]:
    """What `modules` give while `run(model)` goes."""
    found: dict[int, torch.Tensor] = {}
    hooks = [module.register_forward_hook(lambda _, __, out, i=i: found.__setitem__(i, out))
             for i, module in enumerate(modules)]
    with torch.no_grad():
        run(model)
    for hook in hooks:
        hook.remove()
    return [found[i] for i in range(len(modules))]


def as_map(tokens: torch.Tensor, skip: int = 0) -> torch.Tensor:
    """(N, skip + S * S, C) -> (N, C, S, S)."""
    tokens = tokens[:, skip:]
    side = int(tokens.shape[1]**0.5)
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, side, side)


def plain_norms(maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Channel-last maps behind a norm with weight 1 and bias 0, channels first."""
    return [F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2) for x in maps]


def next_norms(maps: list[torch.Tensor], last: nn.Module) -> list[torch.Tensor]:
    """Norms of the maps: new ones, and the classifier's for the last."""
    maps = [x.permute(0, 2, 3, 1) for x in maps]
    found = [F.layer_norm(x, x.shape[-1:], eps=1e-6) for x in maps]
    found[-1] = F.layer_norm(maps[-1], maps[-1].shape[-1:], last.weight, last.bias, 1e-6)
    return [x.permute(0, 3, 1, 2) for x in found]


def resize_bilinearly(model: nn.Module) -> None:
    """HRNet's maps are resized bilinearly in segmentation."""
    for module in model.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False


@contextlib.contextmanager
def stand_ins(modules: dict[str, dict]):
    """Modules that hold the given names, for the time of an import."""
    before = {name: sys.modules.get(name) for name in modules}
    for name, values in modules.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update({"__path__": [], **values})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def smooth_relu():
    """ReLU becomes GELU. Rounding moves values across a ReLU's edge and flips their whole gradient; without edges,
    what differs is a fault.
    """
    before = F.relu, torch.relu, F.relu_

    def smooth(x, inplace: bool = False):
        return F.gelu(x)

    F.relu, torch.relu, F.relu_ = smooth, smooth, smooth
    try:
        yield
    finally:
        F.relu, torch.relu, F.relu_ = before


def still(model: nn.Module) -> None:
    """Switch off everything random in training."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        elif type(module).__name__ == "StochasticDepth":
            module.p = 0.0


def step_gradients(model: nn.Module, maps, pictures: torch.Tensor, weights: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of sum(map * weight) in training, by parameter; zeros where a parameter takes no part."""
    model.train()
    model.zero_grad()
    found = maps(pictures)
    total = sum((value * torch.from_numpy(weight).to(value)).sum() for value, weight in zip(found, weights))
    total.backward()
    return {key: (torch.zeros_like(value) if value.grad is None else value.grad).double().numpy().copy()
            for key, value in model.named_parameters()}
