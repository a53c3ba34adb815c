"""MobileNetV2: stages of inverted residual blocks.

Paper: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/mobilenet_v2.py (Apache-2.0), whose words, keys and arithmetic
these are.

Deviations: a frozen stem also keeps its running statistics; `norm_eval` is not here; one map comes as a list of one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, InvertedResidual, make_divisible
from jseg.layers.freeze import freeze, run_frozen
from jseg.registry import MODELS

__all__ = ["MobileNetV2"]

_STAGES = (
    (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))  # expand_ratio, width, blocks


@MODELS.register()
class MobileNetV2(nn.Module):
    """A strided 3x3 convolution and seven stages of inverted residual blocks.

    Args:
        widen_factor: factor on every width, which is then rounded to a multiple of 8.
        strides, dilations: of each stage's first block, seven each; other blocks have 1.
        out_indices: stages, 0 to 6, whose maps are given.
        frozen_stages: -1: none; 0: the stem; n: the stem and the first n stages. A frozen part computes as in
            evaluation and its parameters get no gradient.
        norm_cfg, act_cfg: of every convolution block.
        in_channels: channels of the picture.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
        index
    Raises:
        ConfigError: lists of another length, or an index out of range.
    """

    TINY = MappingProxyType({
        "type": "MobileNetV2", "widen_factor": 0.1, "strides": [1, 2, 2, 1, 1, 2, 1],
        "dilations": [1, 1, 1, 2, 1, 1, 2]
    })

    def __init__(self,
                 widen_factor: float = 1.0,
                 strides: Sequence[int] = (1, 2, 2, 2, 1, 2, 1),
                 dilations: Sequence[int] = (1, 1, 1, 1, 1, 1, 1),
                 out_indices: Sequence[int] = (1, 2, 4, 6),
                 frozen_stages: int = -1,
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU6"}),
                 *,
                 in_channels: int = 3):
        super().__init__()
        count = len(_STAGES)
        if len(strides) != count or len(dilations) != count:
            raise ConfigError(f"strides {list(strides)} and dilations {list(dilations)} need {count} values each")
        if not out_indices or not set(out_indices) <= set(range(count)) or frozen_stages not in range(-1, count):
            raise ConfigError(
                f"out_indices {list(out_indices)} lie in 0 to {count - 1}, frozen_stages {frozen_stages} in -1 to "
                f"{count - 1}")
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        width, total = make_divisible(32 * widen_factor, 8), 2
        self.conv1 = ConvNormAct(in_channels, width, 3, stride=2, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        widths, reductions = [], []
        for i, (ratio, channels, blocks) in enumerate(_STAGES):
            channels, made = make_divisible(channels * widen_factor, 8), []
            for j in range(blocks):
                first = j == 0
                made.append(InvertedResidual(width, channels, stride=strides[i] if first else 1, expand_ratio=ratio,
                                             dilation=dilations[i] if first else 1, norm_cfg=norm_cfg, act_cfg=act_cfg))
                width = channels
            setattr(self, f"layer{i + 1}", nn.Sequential(*made))
            total *= strides[i]
            widths.append(width)
            reductions.append(total)
        self.out_channels = [widths[i] for i in self.out_indices]
        self.strides = [reductions[i] for i in self.out_indices]
        for name in self._frozen():
            freeze(getattr(self, name))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        frozen, features = self._frozen(), []
        for i, name in enumerate(["conv1", *(f"layer{i + 1}" for i in range(max(self.out_indices) + 1))]):
            part = getattr(self, name)
            x = run_frozen(part, x) if name in frozen else part(x)
            if i - 1 in self.out_indices:
                features.append(x)
        return features

    def _frozen(self) -> list[str]:
        """Names of the frozen parts."""
        return ["conv1", *(f"layer{i + 1}" for i in range(len(_STAGES)))][:self.frozen_stages + 1]
