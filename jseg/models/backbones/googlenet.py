"""GoogLeNet: modules of several convolutions side by side.

Paper: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015; with batch norm, as Ioffe & Szegedy, ICML 2015.
Upstream: torchvision 0.29 torchvision/models/googlenet.py (BSD-3-Clause), whose keys and arithmetic these are; where
the paper has a 5x5 convolution, it has a 3x3 one.

Deviations: without the auxiliary classifiers; `transform_input` is not a word: pictures that weights of torchvision
have seen are (x - 127.5) / 127.5 for each channel, which `data_preprocessor` says.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, Numbered, max_pool
from jseg.layers.freeze import freeze, hold_norms, run_frozen
from jseg.registry import MODELS

__all__ = ["GoogLeNet"]

# widths of a module: 1x1; 1x1 and 3x3; 1x1 and 3x3; 1x1 behind the pooling
_MODULES = (MappingProxyType({"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)}),
            MappingProxyType({"a": (192, 96, 208, 16, 48, 64), "b": (160, 112, 224, 24, 64, 64),
                              "c": (128, 128, 256, 24, 64, 64), "d": (112, 144, 288, 32, 64, 64),
                              "e": (256, 160, 320, 32, 128, 128)}),
            MappingProxyType({"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)}))
_STEM = (64, 64, 192)


class Inception(nn.Module):
    """Four branches whose maps are joined: 1x1; 1x1 and 3x3; 1x1 and 3x3; pooling and 1x1.

    Args:
        in_channels: width of the input.
        widths: of the six convolutions, in that order.
        blocks: `norm_cfg` and `act_cfg` of each.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, widths: Sequence[int], **blocks):
        super().__init__()
        one, two, three, four, five, six = widths
        self.branch1 = ConvNormAct(in_channels, one, 1, **blocks)
        self.branch2 = nn.Sequential(ConvNormAct(in_channels, two, 1, **blocks),
                                     ConvNormAct(two, three, 3, padding=1, **blocks))
        self.branch3 = nn.Sequential(ConvNormAct(in_channels, four, 1, **blocks),
                                     ConvNormAct(four, five, 3, padding=1, **blocks))
        self.branch4 = Numbered([None, ConvNormAct(in_channels, six, 1, **blocks)])  # 0 is the pooling
        self.out_channels = one + three + five + six

    def execute(self, x: jt.Var) -> jt.Var:
        around = max_pool(x, 3, stride=1, padding=1)
        return jt.concat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4[1](around)], 1)


@MODELS.register()
class GoogLeNet(nn.Module):
    """GoogLeNet up to its last map: a stem and three stages of modules at strides 4, 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        out_indices: maps that are given: 0 the stem's, 1 to 3 the stages'.
        frozen_stages: -1: none; 0: the stem; n: the stem and the first n stages. A frozen part computes as in
            evaluation (norms by their running statistics, which stand still) and its parameters get no gradient.
        norm_cfg, act_cfg: of every convolution.
        norm_eval: all batch norms take their running statistics in training too, which stand still.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], H', W'), a map per index; H' is about H / strides[i]:
            its first halving is rounded up, the next ones leave out a last pixel that fills no window
    Raises:
        ConfigError: an index or a number of frozen stages out of range.
    """

    TINY = MappingProxyType({"type": "GoogLeNet", "out_indices": [0, 1, 2, 3]})

    def __init__(self, in_channels: int = 3, out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "eps": 0.001}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU"}), norm_eval: bool = False):
        super().__init__()
        if not out_indices or not set(out_indices) <= set(range(4)) or frozen_stages not in range(-1, 4):
            raise ConfigError(f"out_indices {list(out_indices)} lie in 0 to 3, frozen_stages {frozen_stages} in -1 to "
                              "3")
        self.out_indices, self.frozen_stages, self.norm_eval = tuple(out_indices), frozen_stages, norm_eval
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        self.conv1 = ConvNormAct(in_channels, _STEM[0], 7, stride=2, padding=3, **blocks)
        self.conv2 = ConvNormAct(_STEM[0], _STEM[1], 1, **blocks)
        self.conv3 = ConvNormAct(_STEM[1], _STEM[2], 3, padding=1, **blocks)
        self.stages, widths = [["conv1", "conv2", "conv3"]], [_STEM[2]]
        for i, modules in enumerate(_MODULES, 3):
            self.stages.append([f"inception{i}{letter}" for letter in modules])
            width = widths[-1]
            for name, sizes in zip(self.stages[-1], modules.values()):
                setattr(self, name, Inception(width, sizes, **blocks))
                width = getattr(self, name).out_channels
            widths.append(width)
        self.out_channels = [widths[i] for i in self.out_indices]
        self.strides = [4 * 2**i for i in self.out_indices]
        for names in self.stages[:frozen_stages + 1]:
            for name in names:
                freeze(getattr(self, name))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        if self.norm_eval:
            hold_norms(self)
        maps = []
        for i in range(max(self.out_indices) + 1):
            if i:
                x = max_pool(x, 2 if i == 3 else 3, stride=2, ceil_mode=True)
            for name in self.stages[i]:
                part = getattr(self, name)
                x = run_frozen(part, x) if i <= self.frozen_stages else part(x)
                x = max_pool(x, 3, stride=2, ceil_mode=True) if name == "conv1" else x
            if i in self.out_indices:
                maps.append(x)
        return maps
