"""Parts of a model that training leaves alone."""

from __future__ import annotations

import functools
from typing import Callable, Sequence

import jittor as jt
from jittor import nn

from jseg.layers.norms import BatchNorm2d

__all__ = ["freeze", "freeze_except", "hold", "hold_norms", "run_frozen"]


def freeze(module: nn.Module) -> None:
    """Take the gradient from everything a module holds, so that no optimizer moves it."""
    for value in module.state_dict().values():
        value.stop_grad()


def freeze_except(module: nn.Module, parts: Sequence[str]) -> None:
    """Freeze the parameters whose names hold none of `parts`, MMSegmentation's `frozen_exclude`; "all" freezes none."""
    for name, value in module.named_parameters():
        if "all" not in parts and not any(part in name for part in parts):
            value.stop_grad()


def run_frozen(module: nn.Module, *inputs):
    """Run a frozen module as evaluation does, also inside a model in training, whose `train()` reaches every module.

    Norms take their running statistics, which stand still, and nothing is dropped; no gradient flows back.
    """
    return _run_still(module, module, *inputs)


def _run_still(module: nn.Module, run: Callable, *inputs, **options):
    """`run` of the inputs, with every part of `module` in evaluation and without gradients."""
    for part in module.modules():
        part.is_train = False
    with jt.no_grad():
        return run(*inputs, **options)


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
    module.execute = functools.partial(_run_still, module, module.execute)
