"""A learned factor for a whole tensor."""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.init import constant

__all__ = ["Scale"]


class Scale(nn.Module):
    """x times one learned number: MMCV's Scale with its key `scale`. Shape: any -> same.

    Args:
        value: the number at the start.
    """

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.scale = constant(1, value)

    def execute(self, x: jt.Var) -> jt.Var:
        return x * self.scale
