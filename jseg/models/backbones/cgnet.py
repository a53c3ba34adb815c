"""CGNet: blocks that join each position's neighbourhood, its surroundings (by dilation) and the whole map.

Paper: Wu et al., "CGNet: A Light-Weight Context Guided Network for Semantic Segmentation", TIP 2021, sec. III.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/cgnet.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviation: `norm_eval` is not here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, Linear, PReLU, adaptive_avg_pool, avg_pool, build_norm, relu
from jseg.registry import MODELS

__all__ = ["CGNet"]


def _activation(act_cfg: dict, channels: int) -> dict:
    """A PReLU has a slope for each channel, 0 at first."""
    return {**act_cfg, "num_parameters": channels, "init": 0.0} if act_cfg["type"] == "PReLU" else dict(act_cfg)


class GlobalContext(nn.Module):
    """Channels times a gate made from their means by two dense layers, `reduction` times narrower inside.
    Shape: (N, C, H, W) -> same.
    """

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ConfigError(f"reductions holds {reduction}; accepted: 1 to the stage's width, {channels}")
        self.fc = nn.Sequential(Linear(channels, channels // reduction), nn.ReLU(),
                                Linear(channels // reduction, channels))

    def execute(self, x: jt.Var) -> jt.Var:
        first, _, second = self.fc
        gate = jt.sigmoid(second(relu(first(adaptive_avg_pool(x, 1).reshape(x.shape[0], -1)))))  # (N, C)
        return x * gate.reshape(*x.shape[:2], 1, 1)


class NormPReLU(nn.Sequential):
    """Norm, then PReLU with a slope for each channel; keys "0" and "1". Shape: (N, C, H, W) -> same."""

    def __init__(self, channels: int, norm_cfg: dict):
        super().__init__(build_norm(norm_cfg, channels)[1], PReLU(channels, 0.0))


class ContextGuidedBlock(nn.Module):
    """A narrowing (or strided) block, a plain and a dilated depthwise convolution of it, joined;
    norm, PReLU, the global gate, the shortcut.

    Args:
        in_channels, out_channels: widths of input and output; equal without `downsample`.
        dilation: of the surroundings.
        reduction: of the global gate.
        downsample: stride 2, full width inside, a projection at the end and no shortcut.
        norm_cfg, act_cfg: norm of all, activation of the first block.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H, W), or half of that rounded up
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int, reduction: int, downsample: bool,
                 norm_cfg: dict, act_cfg: dict):
        super().__init__()
        width = out_channels if downsample else out_channels // 2
        side, stride = (3, 2) if downsample else (1, 1)
        self.conv1x1 = ConvNormAct(in_channels, width, side, stride=stride, padding=side // 2, norm_cfg=norm_cfg,
                                   act_cfg=_activation(act_cfg, width))
        self.f_loc = Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.f_sur = Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)
        self.bn = build_norm(norm_cfg, 2 * width)[1]
        self.activate = PReLU(2 * width, 0.0)
        self.bottleneck = Conv2d(2 * width, out_channels, 1, bias=False) if downsample else None
        self.f_glo = GlobalContext(out_channels, reduction)

    def execute(self, x: jt.Var) -> jt.Var:
        y = self.conv1x1(x)
        y = self.activate(self.bn(jt.concat([self.f_loc(y), self.f_sur(y)], 1)))
        return x + self.f_glo(y) if self.bottleneck is None else self.f_glo(self.bottleneck(y))


@MODELS.register()
class CGNet(nn.Module):
    """A stem and two stages of context guided blocks, each joined with the picture or with what it began from.

    Args:
        in_channels: channels of the picture.
        num_channels: widths of stem and stages.
        num_blocks, dilations, reductions: blocks of each stage, the dilation of their surroundings, the reduction of
            their gates.
        norm_cfg: of everything.
        act_cfg: of the convolution blocks.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])) at strides
        2, 4 and 8, whose widths are num_channels[0] + in_channels, 2 num_channels[1] + in_channels, 2 num_channels[2]
    Raises:
        ConfigError: lists of another length, or a reduction beyond the width.
    """

    TINY = MappingProxyType({"type": "CGNet", "num_channels": [8, 8, 16], "num_blocks": [2, 2], "reductions": [2, 4]})

    def __init__(self, in_channels: int = 3, num_channels: Sequence[int] = (32, 64, 128),
                 num_blocks: Sequence[int] = (3, 21), dilations: Sequence[int] = (2, 4),
                 reductions: Sequence[int] = (8, 16),
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 act_cfg: dict = MappingProxyType({"type": "PReLU"})):
        super().__init__()
        if [len(num_channels), len(num_blocks), len(dilations), len(reductions)] != [3, 2, 2, 2] or min(num_blocks) < 1:
            raise ConfigError(f"num_channels {list(num_channels)} needs 3 values; num_blocks {list(num_blocks)} (at "
                              f"least 1 each), dilations {list(dilations)} and reductions {list(reductions)} need 2")
        stem, first, second = num_channels
        self.stem = nn.Sequential(*[
            ConvNormAct(stem if i else in_channels, stem, 3, stride=1 if i else 2, padding=1, norm_cfg=norm_cfg,
                        act_cfg=_activation(act_cfg, stem))
            for i in range(3)])
        self.out_channels, self.strides = [stem + in_channels, 2 * first + in_channels, 2 * second], [2, 4, 8]
        for i, width in enumerate(self.out_channels):
            setattr(self, f"norm_prelu_{i}", NormPReLU(width, norm_cfg))
        for i, width in enumerate((first, second)):
            words = {"dilation": dilations[i], "reduction": reductions[i], "norm_cfg": norm_cfg, "act_cfg": act_cfg}
            setattr(self, f"level{i + 1}", nn.Sequential(
                *[ContextGuidedBlock(width if j else self.out_channels[i], width, downsample=j == 0, **words)
                  for j in range(num_blocks[i])]))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        half = avg_pool(x, 3, stride=2, padding=1)
        quarter = avg_pool(half, 3, stride=2, padding=1)
        stem = self.norm_prelu_0(jt.concat([self.stem(x), half], 1))
        before, x = _run_level(self.level1, stem)
        middle = self.norm_prelu_1(jt.concat([x, before, quarter], 1))
        before, x = _run_level(self.level2, middle)
        return [stem, middle, self.norm_prelu_2(jt.concat([before, x], 1))]


def _run_level(level: nn.Sequential, x: jt.Var) -> tuple[jt.Var, jt.Var]:
    """What the first block gives, and what the last gives."""
    first, *others = level
    before = x = first(x)
    for block in others:
        x = block(x)
    return before, x
