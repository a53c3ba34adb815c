"""MobileNetV3, with dilated last stages for segmentation (output stride 8).

Paper: Howard et al., "Searching for MobileNetV3", ICCV 2019.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/mobilenet_v3.py (Apache-2.0), whose words, keys and arithmetic
these are.

Deviations: `norm_eval` is not here: `frozen_stages` fixes the norms of the frozen layers.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, InvertedResidualV3, SqueezeExcitation
from jseg.layers.freeze import freeze, run_frozen
from jseg.registry import MODELS

__all__ = ["MobileNetV3"]

_STEM_CHANNELS, _SQUEEZE = 16, 4
_HSWISH = MappingProxyType({"type": "HSwish"})
# kernel_size, mid_channels, out_channels, squeeze and excitation, act_cfg's type, stride, dilation
_BLOCKS = MappingProxyType({
    "small": ((3, 16, 16, True, "ReLU", 2, 1), (3, 72, 24, False, "ReLU", 2, 1), (3, 88, 24, False, "ReLU", 1, 1),
              (5, 96, 40, True, "HSwish", 1, 2), (5, 240, 40, True, "HSwish", 1, 2), (5, 240, 40, True, "HSwish", 1, 2),
              (5, 120, 48, True, "HSwish", 1, 2), (5, 144, 48, True, "HSwish", 1, 2),
              (5, 288, 96, True, "HSwish", 1, 4), (5, 576, 96, True, "HSwish", 1, 4),
              (5, 576, 96, True, "HSwish", 1, 4)),
    "large": ((3, 16, 16, False, "ReLU", 1, 1), (3, 64, 24, False, "ReLU", 2, 1), (3, 72, 24, False, "ReLU", 1, 1),
              (5, 72, 40, True, "ReLU", 2, 1), (5, 120, 40, True, "ReLU", 1, 1), (5, 120, 40, True, "ReLU", 1, 1),
              (3, 240, 80, False, "HSwish", 1, 2), (3, 200, 80, False, "HSwish", 1, 2),
              (3, 184, 80, False, "HSwish", 1, 2), (3, 184, 80, False, "HSwish", 1, 2),
              (3, 480, 112, True, "HSwish", 1, 2), (3, 672, 112, True, "HSwish", 1, 2),
              (5, 672, 160, True, "HSwish", 1, 4), (5, 960, 160, True, "HSwish", 1, 4),
              (5, 960, 160, True, "HSwish", 1, 4))})
# the first block that `reduction_factor` thins, and the last layer's width
_LAST = MappingProxyType({"small": (8, 576), "large": (12, 960)})


@MODELS.register()
class MobileNetV3(nn.Module):
    """A strided 3x3 convolution, inverted residual blocks with squeeze and excitation, a 1x1 convolution.

    Args:
        arch: "small" (13 layers) or "large" (17), the first and the last convolution counted.
        norm_cfg: of every convolution.
        out_indices: layers whose maps are given, 0 the first convolution.
        frozen_stages: -1: none; n: layers 0 to n. A frozen layer computes as in evaluation (norms by their running
            statistics, which stand still) and its parameters get no gradient.
        reduction_factor: divides the widths of the last blocks.
        in_channels: channels of the picture.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
        index
    Raises:
        ConfigError: an unknown `arch`, or an index out of range.
    """

    TINY = MappingProxyType({"type": "MobileNetV3", "reduction_factor": 8})

    def __init__(self,
                 arch: str = "small",
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 out_indices: Sequence[int] = (0, 1, 12),
                 frozen_stages: int = -1,
                 reduction_factor: int = 1,
                 *,
                 in_channels: int = 3):
        super().__init__()
        if arch not in _BLOCKS:
            raise ConfigError(f"arch is {arch!r}; accepted: {', '.join(_BLOCKS)}")
        blocks, (thinned, last) = _BLOCKS[arch], _LAST[arch]
        layers = range(len(blocks) + 2)
        if (not out_indices or not set(out_indices) <= set(layers) or frozen_stages not in range(-1, len(layers))
                or reduction_factor < 1):
            raise ConfigError(f"out_indices {list(out_indices)} lie in 0 to {len(layers) - 1}, frozen_stages "
                              f"{frozen_stages} in -1 to {len(layers) - 1}; reduction_factor {reduction_factor} is at "
                              "least 1")
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        self.layer0 = ConvNormAct(in_channels, _STEM_CHANNELS, 3, stride=2, conv_cfg={"type": "Conv2dAdaptivePadding"},
                                  norm_cfg=norm_cfg, act_cfg=_HSWISH)
        widths, strides = [_STEM_CHANNELS], [2]
        for i, (kernel, middle, width, squeezes, activation, stride, dilation) in enumerate(blocks):
            factor = reduction_factor if i >= thinned else 1
            squeeze = SqueezeExcitation(middle // factor, _SQUEEZE) if squeezes else None
            block = InvertedResidualV3(widths[-1], width // factor, mid_channels=middle // factor, kernel_size=kernel,
                                       stride=stride, dilation=dilation, squeeze=squeeze,
                                       norm_cfg=norm_cfg, act_cfg={"type": activation})
            setattr(self, f"layer{i + 1}", block)
            widths.append(width // factor)
            strides.append(strides[-1] * stride)
        setattr(self, f"layer{len(blocks) + 1}", ConvNormAct(widths[-1], last, 1, norm_cfg=norm_cfg, act_cfg=_HSWISH))
        widths.append(last)
        strides.append(strides[-1])
        self.out_channels, self.strides = [widths[i] for i in self.out_indices], [strides[i] for i in self.out_indices]
        for i in range(frozen_stages + 1):
            freeze(getattr(self, f"layer{i}"))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        maps = []
        for i in range(max(self.out_indices) + 1):
            layer = getattr(self, f"layer{i}")
            x = run_frozen(layer, x) if i <= self.frozen_stages else layer(x)
            if i in self.out_indices:
                maps.append(x)
        return maps
