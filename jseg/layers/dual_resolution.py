"""What networks with a fine and a coarse branch are made of: residual blocks, their stem, aggregating pyramid pooling.

Papers: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes",
T-ITS 2022 (DAPPM, sec. III-C); Xu et al., "PIDNet", CVPR 2023 (PAPPM, sec. 4.2).
Keys and arithmetic: mmsegmentation 1.2.2, mmseg/models/utils/{basic_block,ppm}.py (Apache-2.0).
"""

from __future__ import annotations

from typing import Callable

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.activation import build_activation, relu
from jseg.layers.conv import ConvNormAct
from jseg.layers.norms import build_norm
from jseg.layers.pool import adaptive_avg_pool, avg_pool

__all__ = ["AggregatingPooling", "BasicResidual", "BottleneckResidual", "DualResolutionStem", "ParallelPooling",
           "PreactivatedBlock", "residual_layer"]


class BasicResidual(nn.Module):
    """Two 3x3 blocks and a shortcut.

    Args:
        in_channels, channels: widths of input and output.
        stride: of the first block.
        downsample: the shortcut's projection, or None.
        norm_cfg, act_cfg: norm of both, activation of the first.
        out_act_cfg: activation of the sum, or None.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))
    """

    expansion = 1
    activates_first = True  # whether the sum of a layer's first block is activated

    def __init__(self, in_channels: int, channels: int, *, stride: int, downsample: nn.Module | None, norm_cfg: dict,
                 act_cfg: dict, out_act_cfg: dict | None):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, channels, 3, stride=stride, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv2 = ConvNormAct(channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=out_act_cfg)
        self.downsample = downsample

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv2(self.conv1(x), residual=shortcut)


class BottleneckResidual(nn.Module):
    """1x1, 3x3 and 1x1 blocks and a shortcut.

    Args:
        channels: width of the first two; the output has twice as many.
        stride: of the 3x3 block.
        others: see `BasicResidual`.
    Shape:
        x: (N, in_channels, H, W) -> (N, 2 * channels, ceil(H / stride), ceil(W / stride))
    """

    expansion = 2
    activates_first = False

    def __init__(self, in_channels: int, channels: int, *, stride: int, downsample: nn.Module | None, norm_cfg: dict,
                 act_cfg: dict, out_act_cfg: dict | None):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, channels, 1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv2 = ConvNormAct(channels, channels, 3, stride=stride, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)
        self.conv3 = ConvNormAct(channels, channels * self.expansion, 1, norm_cfg=norm_cfg, act_cfg=out_act_cfg)
        self.downsample = downsample

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.conv2(self.conv1(x)), residual=shortcut)


def residual_layer(block: type, in_channels: int, channels: int, count: int, *, stride: int = 1,
                   project: Callable[[int, int, int], nn.Module], norm_cfg: dict, act_cfg: dict) -> nn.Sequential:
    """`count` blocks, of which the first changes width and stride, and of which the last one's sum is not activated.

    The sum of the first is activated if the block says so, even where it is the last.

    Args:
        block: `BasicResidual` or `BottleneckResidual`.
        channels: the blocks' width; the layer's is `channels * block.expansion`.
        project: (in_channels, out_channels, stride) -> a shortcut's projection.
    """
    width, words = channels * block.expansion, {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
    shortcut = project(in_channels, width, stride) if stride != 1 or in_channels != width else None
    made = [block(in_channels, channels, stride=stride, downsample=shortcut,
                  out_act_cfg=act_cfg if block.activates_first else None, **words)]
    for i in range(1, count):
        made.append(block(width, channels, stride=1, downsample=None, out_act_cfg=act_cfg if i < count - 1 else None,
                          **words))
    return nn.Sequential(*made)


class DualResolutionStem(nn.Module):
    """Two strided blocks and two residual layers, the second strided, each followed by ReLU;
    keys "0", "1", "2" and "4".

    Args:
        in_channels, channels: channels of the picture and of all but the last layer, which has twice as many.
        count: blocks of each layer.
        project, norm_cfg, act_cfg: see `residual_layer`.
    Shape:
        x: (N, in_channels, H, W) -> (N, 2 * channels, ceil(H / 8), ceil(W / 8))
    """

    def __init__(self, in_channels: int, channels: int, count: int, *, project: Callable, norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        words = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        parts = {"0": ConvNormAct(in_channels, channels, 3, stride=2, padding=1, **words),
                 "1": ConvNormAct(channels, channels, 3, stride=2, padding=1, **words),
                 "2": residual_layer(BasicResidual, channels, channels, count, project=project, **words),
                 "4": residual_layer(BasicResidual, channels, 2 * channels, count, stride=2, project=project, **words)}
        for key, part in parts.items():
            setattr(self, key, part)

    def execute(self, x: jt.Var) -> jt.Var:
        x = getattr(self, "1")(getattr(self, "0")(x))
        return relu(getattr(self, "4")(relu(getattr(self, "2")(x))))


class PooledBranch(nn.Module):
    """A mean over windows, or over everything, then a block, whose key is "1".

    Args:
        window: (side, stride, padding) in pixels, or None for the mean over everything.
        block: what follows.
    """

    def __init__(self, window: tuple[int, int, int] | None, block: nn.Module):
        super().__init__()
        self.window = window
        setattr(self, "1", block)

    def execute(self, x: jt.Var) -> jt.Var:
        if self.window is None:
            return getattr(self, "1")(adaptive_avg_pool(x, 1))
        side, stride, padding = self.window
        return getattr(self, "1")(avg_pool(x, side, stride=stride, padding=padding))


class AggregatingPooling(nn.Module):
    """DAPPM: pool to scales, resize each back, add it to the one before and convolve;
    join all and project, plus a projected shortcut.

    Blocks are norm, activation and convolution in that order.

    Args:
        in_channels, branch_channels, out_channels: widths of the input, of each scale and of the result.
        windows: (side, stride, padding) of each pooled scale but the last, which is the mean over everything.
        norm_cfg, act_cfg: of the blocks.
    Shape:
        x: (N, in_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, branch_channels: int, out_channels: int, *,
                 windows: tuple[tuple[int, int, int], ...] = ((5, 2, 2), (9, 4, 4), (17, 8, 8)), norm_cfg: dict,
                 act_cfg: dict):
        super().__init__()
        words = {"norm_cfg": norm_cfg, "act_cfg": act_cfg, "order": ("norm", "act", "conv"), "bias": False}
        pooled = [PooledBranch(window, ConvNormAct(in_channels, branch_channels, 1, **words))
                  for window in (*windows, None)]
        self.scales = nn.Sequential(ConvNormAct(in_channels, branch_channels, 1, **words), *pooled)
        self.processes = self._processes(branch_channels, len(pooled), words)
        self.compression = ConvNormAct(branch_channels * (len(pooled) + 1), out_channels, 1, **words)
        self.shortcut = ConvNormAct(in_channels, out_channels, 1, **words)

    def execute(self, x: jt.Var) -> jt.Var:
        first, *pooled = self.scales
        return self.compression(jt.concat(self._joined(first(x), [branch(x) for branch in pooled]),
                                          1)) + self.shortcut(x)

    @staticmethod
    def _processes(channels: int, count: int, words: dict) -> nn.Module:
        """The 3x3 blocks between the scales."""
        return nn.Sequential(*[ConvNormAct(channels, channels, 3, padding=1, **words) for _ in range(count)])

    def _joined(self, fine: jt.Var, pooled: list[jt.Var]) -> list[jt.Var]:
        """The maps to join, of the size of `fine`."""
        maps = [fine]
        for scale, process in zip(pooled, self.processes):
            maps.append(process(ops.bilinear_resize(scale, tuple(fine.shape[2:]), add=maps[-1])))
        return maps


class ParallelPooling(AggregatingPooling):
    """PAPPM: as DAPPM, but every scale is added to the finest one,
    and one grouped 3x3 block convolves all of them at once.
    """

    @staticmethod
    def _processes(channels: int, count: int, words: dict) -> nn.Module:
        return ConvNormAct(channels * count, channels * count, 3, padding=1, groups=count, **words)

    def _joined(self, fine: jt.Var, pooled: list[jt.Var]) -> list[jt.Var]:
        size = tuple(fine.shape[2:])
        return [fine, self.processes(jt.concat([ops.bilinear_resize(scale, size, add=fine) for scale in pooled], 1))]


class PreactivatedBlock(nn.Module):
    """Norm, activation, 3x3 convolution, norm, activation: what the heads of these networks begin with.

    Args:
        in_channels, channels: widths of input and output.
        keys: state keys of the convolution block and of the norm behind it.
        norm_cfg, act_cfg: of both.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, *, keys: tuple[str, str], norm_cfg: dict, act_cfg: dict):
        super().__init__()
        self.keys = keys
        setattr(self, keys[0], ConvNormAct(in_channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg,
                                           order=("norm", "act", "conv")))
        setattr(self, keys[1], build_norm(norm_cfg, channels)[1])
        self.activate = build_activation(act_cfg)

    def execute(self, x: jt.Var) -> jt.Var:
        block, norm = (getattr(self, key) for key in self.keys)
        return self.activate(norm(block(x)))
