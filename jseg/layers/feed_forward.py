"""Feed-forward blocks of transformers: on tokens, and with a depthwise convolution on maps.

Papers: Vaswani et al., NeurIPS 2017, sec. 3.3; Xie et al., "SegFormer", NeurIPS 2021, sec. 3.1 (Mix-FFN). State keys of
`FFN` follow MMCV 2.x (mmcv/cnn/bricks/transformer.py, Apache-2.0): `layers.<i>.0` and `layers.<n - 1>`.
"""

from __future__ import annotations

from typing import Callable

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.activation import build_activation
from jseg.layers.conv import Conv2d
from jseg.layers.drop import Dropout
from jseg.layers.tokens import Linear
from jseg.ops.common import per_channel

__all__ = ["FFN", "mix_ffn"]


class FFN(nn.Module):
    """Linear layers with an activation between them.

    Args:
        channels, hidden_channels: widths outside and inside.
        num_fcs: linear layers, >= 2.
        act_cfg: activation of all but the last.
        drop_prob: dropout after each layer, in [0, 1).
    Shape:
        x, shortcut: (N, ..., channels); scale: (channels,); factor: (N,) -> shortcut + factor * scale * layers(x)
    Raises:
        ValueError: fewer than two layers.
    """

    def __init__(self, channels: int, hidden_channels: int, *, num_fcs: int = 2, act_cfg: dict, drop_prob: float = 0.0):
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f"FFN: num_fcs is {num_fcs}; accepted: 2 and more")
        widths = [channels] + [hidden_channels] * (num_fcs - 1)
        self.layers = nn.Sequential(*[nn.Sequential(Linear(width, hidden_channels)) for width in widths[:-1]],
                                    Linear(widths[-1], channels))
        self.activate = build_activation(act_cfg)
        self.fused = "gelu" if act_cfg["type"] == "GELU" else None
        self.drop = Dropout(drop_prob)

    def execute(self, x: jt.Var, *, scale: jt.Var | None = None, factor: jt.Var | None = None,
                shortcut: jt.Var | None = None) -> jt.Var:
        *hidden, last = self.layers
        for layer in hidden:
            x = layer[0](x, activation=self.fused)
            x = self.drop(x if self.fused else self.activate(x))
        return last.close_branch(x, self.drop, scale=scale, factor=factor, shortcut=shortcut)


def mix_ffn(x: jt.Var, fc1: Conv2d, depthwise: Conv2d, fc2: Conv2d, activate: Callable, drop: Dropout, *, is_gelu: bool,
            shortcut: jt.Var, scale: jt.Var | None = None, factor: jt.Var | None = None,
            affine: tuple = (None, None), folded: tuple | None = None) -> jt.Var:
    """shortcut + factor * scale * drop(fc2(drop(activate(depthwise(fc1(affine(x))))))),
    one operation for GELU without dropout.

    Args:
        is_gelu: whether `activate` is GELU.
        affine: (scale, shift) of the input, (C,) each.
        folded: weight and bias in the place of fc1's, see `ops.fold_norms`.
    Shape:
        x: (N, C, H, W); shortcut: (N, D, H, W); scale: (D,); factor: (N,) -> (N, D, H, W)
    """
    weight, bias = folded or (fc1.weight, fc1.bias)
    if is_gelu and drop.drop_prob == 0.0:
        return ops.mix_ffn(x, weight, bias, depthwise.weight, depthwise.bias, fc2.weight, fc2.bias, scale=scale,
                           factor=factor, shortcut=shortcut, input_scale=affine[0], input_shift=affine[1])
    hidden = ops.pointwise(x, weight, bias, input_scale=affine[0], input_shift=affine[1])
    y = drop(fc2(drop(activate(depthwise(hidden)))))
    y = y if scale is None else y * per_channel(scale)
    return shortcut + (y if factor is None else y * factor.reshape(-1, 1, 1, 1))
