"""EfficientNet: MobileNet's blocks, wider and deeper by one rule.

Paper: Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; L2: Xie et al.,
"Self-training with Noisy Student improves ImageNet classification", CVPR 2020.
Upstream: mmpretrain 1.2 mmpretrain/models/backbones/efficientnet.py (Apache-2.0), whose words, keys and arithmetic
these are. Weights of torchvision and timm fit too: `jseg convert` renames their keys.

Deviations: the models for Edge TPUs are not here; layers behind the last map that is given are frozen, for nothing
trains them.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, InvertedResidualV3, SqueezeExcitation, make_divisible
from jseg.layers.freeze import freeze, hold_norms, run_frozen
from jseg.registry import MODELS, nearest

__all__ = ["EfficientNet", "VARIANTS", "layer_sizes"]

VARIANTS = MappingProxyType({  # factors of widths and of depths
    "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4), "b4": (1.4, 1.8), "b5": (1.6, 2.2),
    "b6": (1.8, 2.6), "b7": (2.0, 3.1), "b8": (2.2, 3.6), "l2": (4.3, 5.3)})
# kernel size, channels, stride of the first block, expansion, blocks; those of one tuple are one layer
_LAYERS = (((3, 16, 1, 1, 1),), ((3, 24, 2, 6, 2),), ((5, 40, 2, 6, 2),), ((3, 80, 2, 6, 3), (5, 112, 1, 6, 3)),
           ((5, 192, 2, 6, 4), (3, 320, 1, 6, 1)))
_STEM, _LAST, _SQUEEZE = 32, 1280, 4


@MODELS.register()
class EfficientNet(nn.Module):
    """A strided 3x3 convolution, five layers of inverted residual blocks, a 1x1 convolution: layers 0 to 6.

    Args:
        arch: a name of `VARIANTS`, or `[factor of widths, factor of depths]`.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        out_indices: layers whose maps are given; 1 to 5 have strides 2, 4, 8, 16 and 32.
        frozen_stages: the first n layers compute as in evaluation and their parameters get no gradient.
        conv_cfg: `{type: Conv2dAdaptivePadding}` pads strided convolutions as TensorFlow does (timm's `tf_`
            releases), None evenly (torchvision's and timm's others).
        norm_cfg, act_cfg: of every convolution.
        norm_eval: all batch norms take their running statistics in training too, which stand still.
        in_channels: channels of the picture.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
        index
    Raises:
        ConfigError: an unknown `arch`, another `conv_cfg`, or an index out of range.
    """

    TINY = MappingProxyType({"type": "EfficientNet", "arch": [0.25, 0.5], "out_indices": [2, 3, 4, 6]})

    def __init__(self, arch: str | Sequence[float] = "b0", drop_path_rate: float = 0.0,
                 out_indices: Sequence[int] = (6,), frozen_stages: int = 0,
                 conv_cfg: dict | None = MappingProxyType({"type": "Conv2dAdaptivePadding"}),
                 norm_cfg: dict = MappingProxyType({"type": "BN", "eps": 1e-3}),
                 act_cfg: dict = MappingProxyType({"type": "Swish"}), norm_eval: bool = False, *, in_channels: int = 3):
        super().__init__()
        adaptive = (conv_cfg or {}).get("type") == "Conv2dAdaptivePadding"
        if not adaptive and conv_cfg not in (None, {"type": "Conv2d"}):
            raise ConfigError(f"conv_cfg is {dict(conv_cfg)}; accepted: {{type: Conv2dAdaptivePadding}} or null")
        layers = range(len(_LAYERS) + 2)
        if not out_indices or not set(out_indices) <= set(layers) or frozen_stages not in range(len(layers) + 1):
            raise ConfigError(f"out_indices {list(out_indices)} lie in 0 to {layers[-1]}, frozen_stages "
                              f"{frozen_stages} in 0 to {len(layers)}")
        stem, sizes, last = layer_sizes(arch)
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        parts = [ConvNormAct(in_channels, stem, 3, stride=2, **({"conv_cfg": conv_cfg} if adaptive else
                                                               {"padding": 1}), **blocks)]
        rates = iter(np.linspace(0.0, drop_path_rate, sum(map(len, sizes))).tolist())
        width, widths, strides = stem, [stem], [2]
        for layer in sizes:
            made = []
            for kernel, channels, stride, expansion in layer:
                inner = int(width * expansion)
                squeeze = SqueezeExcitation(inner, expansion * _SQUEEZE, (act_cfg, {"type": "Sigmoid"}), divisor=1)
                made.append(InvertedResidualV3(width, channels, mid_channels=inner, kernel_size=kernel, stride=stride,
                                               adaptive=adaptive, squeeze=squeeze, drop_path_prob=next(rates),
                                               **blocks))
                width = channels
            parts.append(nn.Sequential(*made))
            widths.append(width)
            strides.append(strides[-1] * layer[0][2])
        parts.append(ConvNormAct(width, last, 1, **blocks))
        self.layers = nn.Sequential(*parts)
        widths, strides = [*widths, last], [*strides, strides[-1]]
        self.out_channels, self.strides = [widths[i] for i in self.out_indices], [strides[i] for i in self.out_indices]
        for layer in (*parts[:frozen_stages], *parts[max(self.out_indices) + 1:]):
            freeze(layer)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        if self.norm_eval:
            hold_norms(self)
        maps = []
        for i in range(max(self.out_indices) + 1):
            x = run_frozen(self.layers[i], x) if i < self.frozen_stages else self.layers[i](x)
            if i in self.out_indices:
                maps.append(x)
        return maps


def layer_sizes(arch: str | Sequence[float]) -> tuple[int, list[list[tuple[int, int, int, int]]], int]:
    """Channels of the first convolution; (kernel size, channels, stride, expansion) of each block of each layer;
    channels of the last convolution.

    Raises:
        ConfigError: an unknown `arch`.
    """
    if isinstance(arch, str) and arch not in VARIANTS:
        raise ConfigError(f"arch is {arch!r}{nearest(arch, VARIANTS)}; accepted: {', '.join(VARIANTS)}, or a factor of "
                          "widths and one of depths")
    wide, deep = VARIANTS[arch] if isinstance(arch, str) else arch
    layers = []
    for groups in _LAYERS:
        layer = []
        for kernel, channels, stride, expansion, count in groups:
            layer += [(kernel, make_divisible(channels * wide, 8), stride if i == 0 else 1, expansion)
                      for i in range(math.ceil(deep * count))]
        layers.append(layer)
    return make_divisible(_STEM * wide, 8), layers, make_divisible(_LAST * wide, 8)
