"""EMAHead: the map is made again from a few bases, which expectation maximisation finds anew for each picture.

Paper: Li et al., "Expectation-Maximization Attention Networks for Semantic Segmentation", ICCV 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/ema_head.py (Apache-2.0), whose keys and arithmetic these are.
As there, no gradient flows through the bases, and `ema_mid_conv` is never trained.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, relu
from jseg.layers.freeze import freeze
from jseg.layers.init import normal
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.ops import ranks
from jseg.registry import MODELS

__all__ = ["EMAHead", "ExpectationMaximization"]

_EPS = 1e-12


class ExpectationMaximization(nn.Module):
    """Positions shared out among bases, bases renewed from positions, several times; then the map those bases give.

    Args:
        channels: C.
        num_bases: bases, >= 1.
        num_stages: rounds, >= 1.
        momentum: weight of the newest batch in the bases to start from, in [0, 1].
    Shape:
        x: (N, C, H, W) -> same, without gradient
    State:
        `bases` (1, C, num_bases), moved in training only.
    """

    BUFFERS = ("bases",)

    def __init__(self, channels: int, num_bases: int, num_stages: int, momentum: float):
        super().__init__()
        if min(num_bases, num_stages) < 1 or not 0 <= momentum <= 1:
            raise ConfigError(f"num_bases is {num_bases}, num_stages {num_stages} (both at least 1), momentum "
                              f"{momentum} (0 to 1)")
        self.num_stages, self.momentum, self.is_train = num_stages, momentum, True
        self.bases = _unit(normal((1, channels, num_bases), math.sqrt(2.0 / num_bases))).stop_grad()

    def execute(self, x: jt.Var) -> jt.Var:
        n, c, h, w = x.shape
        with jt.no_grad():
            pixels = x.reshape(n, c, h * w)
            bases = self.bases.broadcast((n, *self.bases.shape[1:]))  # (N, C, bases)
            for _ in range(self.num_stages):
                shares = nn.softmax(jt.matmul(pixels.transpose(0, 2, 1), bases), dim=2)  # (N, L, bases)
                bases = _unit(jt.matmul(pixels, shares / jt.maximum(shares.sum(1, keepdims=True), _EPS)))
            if self.is_train:
                self._track(bases)
            found = jt.matmul(bases, shares.transpose(0, 2, 1)).reshape(n, c, h, w)
        return found.stop_grad()

    def _track(self, bases: jt.Var) -> None:
        """Move the bases to start from towards the mean of a batch's, over all ranks."""
        mean = _unit(ranks.total(bases.sum(0, keepdims=True)) / ranks.pictures(bases.shape[0]))
        self.bases.update(self.bases * (1 - self.momentum) + mean * self.momentum)


def _unit(bases: jt.Var) -> jt.Var:
    """Bases (N, C, K) of length 1."""
    return bases / jt.maximum(jt.sqrt((bases * bases).sum(1, keepdims=True)), _EPS)


@MODELS.register()
class EMAHead(SegmentationHead):
    """A 3x3 block, what few bases make of it as a residual, another 3x3 block, joined with the input.

    Args:
        options: see `HeadOptions`.
        ema_channels: width of the map that is made again.
        num_bases, num_stages, momentum: see `ExpectationMaximization`.
        concat_input: join input and result by one more 3x3 block.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "EMAHead", "channels": 8, "ema_channels": 8, "num_bases": 4, "num_stages": 2,
                             "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, ema_channels: int, num_bases: int, num_stages: int,
                 concat_input: bool = True, momentum: float = 0.1):
        super().__init__(options)
        width, channels, blocks = options.input_width, options.channels, options.blocks
        self.ema_module = ExpectationMaximization(ema_channels, num_bases, num_stages, momentum)
        self.ema_in_conv = ConvNormAct(width, ema_channels, 3, padding=1, **blocks)
        self.ema_mid_conv = ConvNormAct(ema_channels, ema_channels, 1)
        freeze(self.ema_mid_conv)
        self.ema_out_conv = ConvNormAct(ema_channels, ema_channels, 1, norm_cfg=options.norm_cfg)
        self.bottleneck = ConvNormAct(ema_channels, channels, 3, padding=1, **blocks)
        self.conv_cat = ConvNormAct(width + channels, channels, 3, padding=1, **blocks) if concat_input else None

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        x = self.ema_in_conv(features)
        found = self.ema_out_conv(relu(self.ema_module(self.ema_mid_conv(x))))
        y = self.bottleneck(relu(x + found))
        return y if self.conv_cat is None else self.conv_cat(jt.concat([features, y], 1))
