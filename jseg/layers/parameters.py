"""Which entries of a state dict are parameters and which are buffers.

Jittor keeps both as plain Vars, and `Module.eval()` marks every one of them as needing no gradient, so only the name tells.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

__all__ = ["is_buffer", "named_parameters", "count_parameters"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "bases", "relative_position_index")


def is_buffer(key: str) -> bool:
    """Whether a state key names a buffer (running statistics, fixed bases), which no optimizer moves."""
    return key.rpartition(".")[2] in _BUFFERS


def named_parameters(model: nn.Module) -> dict[str, jt.Var]:
    """The trainable entries of `model.state_dict()`, in order."""
    return {key: value for key, value in model.state_dict().items() if not is_buffer(key)}


def count_parameters(model: nn.Module) -> int:
    """Number of trainable values, as PyTorch's `sum(p.numel() for p in model.parameters())`."""
    return sum(value.numel() for value in named_parameters(model).values())
