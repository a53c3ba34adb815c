"""VGG: 3x3 convolutions and pooling, the encoder of FCN, DeepLab and SegNet.

Paper: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
Upstream: mmpretrain 1.2 mmpretrain/models/backbones/vgg.py (Apache-2.0), whose words, keys and arithmetic these are.
torchvision's weights fit too: `jseg convert` takes them by their place.

Deviations: `num_classes` is not a word (there is no classifier); a side of one pixel is not pooled away.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, Numbered, halve_map
from jseg.layers.freeze import freeze, hold_norms, run_frozen
from jseg.registry import MODELS

__all__ = ["VGG"]

_DEPTHS = MappingProxyType({11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)})
_WIDTHS = (64, 128, 256, 512, 512)


@MODELS.register()
class VGG(nn.Module):
    """Stages of 3x3 convolutions, each closed by a pooling that halves the map.

    Args:
        depth: 11, 13, 16 or 19.
        num_stages: the first of five stages.
        dilations: of the convolutions of each stage.
        out_indices: stages whose maps are given, behind their pooling; None for the last.
        frozen_stages: the first n stages; -1 and 0: none. A frozen stage computes as in evaluation and its parameters
            get no gradient.
        norm_cfg: norm of every convolution, or None.
        act_cfg: activation.
        norm_eval: all batch norms take their running statistics in training too, which stand still.
        ceil_mode: pooled maps are rounded up.
        with_last_pool: whether the last stage has its pooling.
        in_channels: channels of the picture.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], H // strides[i], W // strides[i]), a map per index;
            rounded up in `ceil_mode`
    Raises:
        ConfigError: an unknown depth, lists of other lengths than `num_stages`, or an index that is no stage.
    """

    TINY = MappingProxyType({"type": "VGG", "depth": 11, "num_stages": 4, "dilations": [1, 1, 1, 1],
                             "out_indices": [1, 2, 3], "norm_cfg": {"type": "BN"}})
    DEPTHS = _DEPTHS  # depth -> convolutions of each stage

    def __init__(self, depth: int, num_stages: int = 5, dilations: Sequence[int] = (1, 1, 1, 1, 1),
                 out_indices: Sequence[int] | None = None, frozen_stages: int = -1, norm_cfg: dict | None = None,
                 act_cfg: dict = MappingProxyType({"type": "ReLU"}), norm_eval: bool = False, ceil_mode: bool = False,
                 with_last_pool: bool = True, *, in_channels: int = 3):
        super().__init__()
        if depth not in _DEPTHS or not 1 <= num_stages <= 5 or len(dilations) != num_stages:
            raise ConfigError(f"depth {depth} (accepted: {', '.join(map(str, _DEPTHS))}), num_stages {num_stages} (1 "
                              f"to 5), dilations {list(dilations)} (one per stage)")
        self.out_indices = (num_stages - 1,) if out_indices is None else tuple(out_indices)
        if (not self.out_indices or not set(self.out_indices) <= set(range(num_stages))
                or frozen_stages not in range(-1, num_stages + 1)):
            raise ConfigError(f"out_indices {list(self.out_indices)} lie in 0 to {num_stages - 1}, frozen_stages "
                              f"{frozen_stages} in -1 to {num_stages}")
        self.frozen_stages, self.norm_eval, self.ceil_mode = frozen_stages, norm_eval, ceil_mode
        parts, self.spans, width = [], [], in_channels
        for count, channels, dilation in zip(_DEPTHS[depth], _WIDTHS, dilations):
            self.spans.append(range(len(parts), len(parts) + count))
            for _ in range(count):
                parts.append(ConvNormAct(width, channels, 3, padding=dilation, dilation=dilation, bias=True,
                                         norm_cfg=norm_cfg, act_cfg=act_cfg))
                width = channels
            parts.append(None)  # the pooling has a number and no weights
        self.features = Numbered(parts)
        self.pooled = [True] * (num_stages - 1) + [with_last_pool]
        strides = [2**(i + self.pooled[i]) for i in range(num_stages)]
        self.out_channels, self.strides = [_WIDTHS[i] for i in self.out_indices], [strides[i] for i in self.out_indices]
        for span in self.spans[:max(frozen_stages, 0)]:
            for place in span:
                freeze(self.features[place])

    def execute(self, x: jt.Var) -> list[jt.Var]:
        if self.norm_eval:
            hold_norms(self)
        maps = []
        for i in range(max(self.out_indices) + 1):
            for place in self.spans[i]:
                layer = self.features[place]
                x = run_frozen(layer, x) if i < self.frozen_stages else layer(x)
            x = halve_map(x, ceil_mode=self.ceil_mode) if self.pooled[i] else x
            if i in self.out_indices:
                maps.append(x)
        return maps
