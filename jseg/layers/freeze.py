"""Parts of a model that training leaves alone."""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.norms import BatchNorm2d

__all__ = ["freeze", "hold", "hold_norms", "run_frozen"]


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


def hold_norms(module: nn.Module) -> None:
    """Let batch norms take their running statistics, which stand still; their weights learn on. The next `train()`
    undoes it.
    """
    for part in module.modules():
        if isinstance(part, BatchNorm2d):
            part.is_train = False


def hold(module: nn.Module) -> None:
    """Freeze a part of a model for good: no gradient, and it runs as in evaluation whatever is done around it."""
    freeze(module)
    execute = module.execute

    def run_held(*inputs, **options):
        for part in module.modules():
            part.is_train = False
        with jt.no_grad():
            return execute(*inputs, **options)

    module.execute = run_held
