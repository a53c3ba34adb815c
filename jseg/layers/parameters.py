"""Which entries of a state dict are parameters and which are buffers.

Jittor keeps both as plain Vars, and `Module.eval()` marks every one of them as needing no gradient, so a class names
its buffers itself: `BUFFERS = ("running_mean", "running_var")`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.init import normal

__all__ = ["Table", "buffer_names", "named_parameters", "count_parameters"]


class Table(nn.Module):
    """Rows that are learned, from N(0, 1): PyTorch's Embedding with its key. `weight`: (rows, channels)."""

    def __init__(self, rows: int, channels: int):
        super().__init__()
        self.weight = normal((rows, channels), 1.0)


def buffer_names(model: nn.Module) -> set[str]:
    """State keys of the values that no optimizer moves: running statistics, fixed bases, index tables."""
    return {f"{name}.{leaf}" if name else leaf for name, module in model.named_modules()
            for leaf in getattr(module, "BUFFERS", ())}


def named_parameters(model: nn.Module) -> dict[str, jt.Var]:
    """The trainable entries of `model.state_dict()`, in order."""
    buffers = buffer_names(model)
    return {key: value for key, value in model.state_dict().items() if key not in buffers}


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values, as PyTorch's `sum(p.numel() for p in model.parameters())`."""
    return sum(value.numel() for value in named_parameters(model).values())
