"""Parts of a model that training leaves alone."""

from __future__ import annotations

import jittor as jt
from jittor import nn

__all__ = ["freeze", "run_frozen"]


def freeze(module: nn.Module) -> None:
    """Take the gradient from everything a module holds, so that no optimizer moves it."""
    for value in module.state_dict().values():
        value.stop_grad()


def run_frozen(module: nn.Module, *inputs):
    """Run a frozen module as evaluation does, also inside a model in training, whose `train()` reaches every module.

    Norms take their running statistics, which stand still, and nothing is dropped; no gradient flows back.
    """
    for part in module.modules():
        part.is_train = False
    with jt.no_grad():
        return module(*inputs)
