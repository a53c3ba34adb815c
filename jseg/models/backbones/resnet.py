"""ResNet, with the deep stem and the averaging shortcut of ResNet-C and -D, and dilated stages for segmentation.

Papers: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; He et al., "Bag of Tricks for Image
Classification with Convolutional Neural Networks", CVPR 2019 (C and D); Chen et al., "Rethinking Atrous Convolution",
2017 (dilation, multi-grid). Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/resnet.py and utils/res_layer.py
(Apache-2.0), whose words, keys and arithmetic these are.

Deviations: deformable convolutions and plugins are not here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Conv2d, build_norm, conv_norm, max_pool, relu
from jseg.layers.freeze import freeze, hold_norms, run_frozen
from jseg.layers.pool import avg_pool
from jseg.registry import MODELS

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "ResNetV1c", "ResNetV1d"]


class AvgPool(nn.Module):
    """Mean of `stride` x `stride` windows, smaller ones at the edge: the shortcut's first step in ResNet-D."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def execute(self, x: jt.Var) -> jt.Var:
        return x if self.stride == 1 else avg_pool(x, self.stride, ceil_mode=True, count_include_pad=False)


class Shortcut(nn.Sequential):
    """A projection to a block's width and stride: 1x1 convolution and norm, after averaging in ResNet-D.
    Keys "0" and "1", in ResNet-D "1" and "2".
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, avg_down: bool, norm_cfg: dict):
        conv = Conv2d(in_channels, out_channels, 1, stride=1 if avg_down else stride, bias=False)
        super().__init__(*([AvgPool(stride)] if avg_down else []), conv, build_norm(norm_cfg, out_channels)[1])

    def execute(self, x: jt.Var) -> jt.Var:
        *pool, conv, norm = self
        return conv_norm(pool[0](x) if pool else x, conv, norm)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
        in_channels, channels: widths of input and output.
        stride, dilation: of the first convolution.
        downsample: the shortcut's projection, or None.
        style: no effect here.
        groups, base_width: 1 and anything; a basic block has no groups.
    Shape:
        x: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int,
                 downsample: nn.Module | None, style: str, norm_cfg: dict, groups: int = 1, base_width: int = 4):
        super().__init__()
        if groups != 1:
            raise ConfigError("a basic block has no groups; use depth 50 or more")
        self.conv1 = Conv2d(in_channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = build_norm(norm_cfg, channels)[1]
        self.conv2 = Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = build_norm(norm_cfg, channels)[1]
        self.downsample = downsample

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = conv_norm(x, self.conv1, self.bn1, activation="relu")
        return conv_norm(x, self.conv2, self.bn2, activation="relu", residual=shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut.

    Args:
        in_channels: width of the input.
        channels: width of the 3x3 convolution without groups; the output has four times as many.
        stride, dilation: of the 3x3 convolution; with style "caffe" the first 1x1 has the stride.
        downsample: the shortcut's projection, or None.
        style: "pytorch" or "caffe".
        groups, base_width: ResNeXt's groups of the 3x3 convolution and their width at 64 channels.
    Shape:
        x: (N, in_channels, H, W) -> (N, 4 * channels, ceil(H / stride), ceil(W / stride))
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int,
                 downsample: nn.Module | None, style: str, norm_cfg: dict, groups: int = 1, base_width: int = 4):
        super().__init__()
        width = channels if groups == 1 else int(channels * (base_width / 64)) * groups
        first, second = (1, stride) if style == "pytorch" else (stride, 1)
        self.conv1 = Conv2d(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = build_norm(norm_cfg, width)[1]
        self.conv2 = Conv2d(width, width, 3, stride=second, padding=dilation, dilation=dilation,
                            groups=groups, bias=False)
        self.bn2 = build_norm(norm_cfg, width)[1]
        self.conv3 = Conv2d(width, channels * self.expansion, 1, bias=False)
        self.bn3 = build_norm(norm_cfg, channels * self.expansion)[1]
        self.downsample = downsample

    def execute(self, x: jt.Var) -> jt.Var:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.middle(conv_norm(x, self.conv1, self.bn1, activation="relu"))
        return conv_norm(x, self.conv3, self.bn3, activation="relu", residual=shortcut)

    def middle(self, x: jt.Var) -> jt.Var:
        """The part between the 1x1 convolutions."""
        return conv_norm(x, self.conv2, self.bn2, activation="relu")


class DeepStem(nn.Sequential):
    """Three 3x3 convolutions, the first strided. Keys "0" to "7". Shape:
    (N, C0, H, W) -> (N, C, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        half = channels // 2
        parts = []
        for first, last, stride in ((in_channels, half, 2), (half, half, 1), (half, channels, 1)):
            parts += [Conv2d(first, last, 3, stride=stride, padding=1, bias=False),
                      build_norm(norm_cfg, last)[1], nn.ReLU()]
        super().__init__(*parts)

    def execute(self, x: jt.Var) -> jt.Var:
        parts = list(self)
        for conv, norm in zip(parts[::3], parts[1::3]):
            x = conv_norm(x, conv, norm, activation="relu")
        return x


_DEPTHS = MappingProxyType({18: (BasicBlock, (2, 2, 2, 2)), 34: (BasicBlock, (3, 4, 6, 3)),
                            50: (Bottleneck, (3, 4, 6, 3)),
                            101: (Bottleneck, (3, 4, 23, 3)), 152: (Bottleneck, (3, 8, 36, 3))})


def make_stage(block: type, in_channels: int, channels: int, blocks: int, *, stride: int, dilation: int,
               avg_down: bool = False, multi_grid: Sequence[int] | None = None, contract_dilation: bool = False,
               **words) -> nn.Sequential:
    """The blocks of one stage, of which the first changes width and stride.

    Args:
        block: `BasicBlock` or `Bottleneck`, or a class with their constructor.
        multi_grid: dilation of each block instead of `dilation`.
        contract_dilation: halve the first block's dilation.
        words: `norm_cfg`, `style`, `groups`, `base_width`, and what else such a block takes.
    """
    out_channels = channels * block.expansion
    dilations = list(multi_grid) if multi_grid else [dilation] * blocks
    if not multi_grid and contract_dilation and dilation > 1:
        dilations[0] = dilation // 2
    made = []
    for i in range(blocks):
        shortcut = None
        if i == 0 and (stride != 1 or in_channels != out_channels):
            shortcut = Shortcut(in_channels, out_channels, stride, avg_down=avg_down, norm_cfg=words["norm_cfg"])
        made.append(block(in_channels if i == 0 else out_channels, channels, stride=stride if i == 0 else 1,
                          dilation=dilations[i], downsample=shortcut, **words))
    return nn.Sequential(*made)


def zero_last_norms(model: nn.Module) -> None:
    """Set the weight of each residual branch's last norm to 0, so that every block starts as its shortcut."""
    for module in model.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
            last.weight.assign(last.weight * 0)


@MODELS.register()
class ResNet(nn.Module):
    """Residual network.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: channels of the picture.
        stem_channels, base_channels: widths of the stem and of the first stage's blocks.
        num_stages, strides, dilations: number of stages, and stride and dilation of each.
        out_indices: stages whose maps are given.
        style: "pytorch" (the 3x3 convolution has the stride) or "caffe" (the first 1x1).
        deep_stem: three 3x3 convolutions instead of one 7x7.
        avg_down: shortcuts average before they project.
        norm_cfg: norm of every convolution.
        multi_grid: dilations of the last stage's blocks.
        contract_dilation: halve the dilation of each stage's first block.
        zero_init_residual: start each block as the identity.
        groups, base_width: of ResNeXt's 3x3 convolutions.
        frozen_stages: -1: none; 0: the stem; n: the stem and the first n stages. A frozen part computes as in
            evaluation (norms by their running statistics, which stand still) and its parameters get no gradient.
        norm_eval: all batch norms take their running statistics in training too, which stand still.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
            index
    Raises:
        ConfigError: an unknown depth or style, or lists of other lengths than `num_stages`.
    """

    DEPTHS = _DEPTHS  # depth -> block, and how many of them each stage has
    block_words = MappingProxyType({})  # what blocks of a subclass also take; it is set before this constructor runs
    TINY = MappingProxyType({"type": "ResNet", "depth": 18, "stem_channels": 8, "base_channels": 8,
                             "zero_init_residual": False})

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int = 64, base_channels: int = 64,
                 num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3), style: str = "pytorch", deep_stem: bool = False,
                 avg_down: bool = False, norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 multi_grid: Sequence[int] | None = None, contract_dilation: bool = False,
                 zero_init_residual: bool = True, groups: int = 1, base_width: int = 4,
                 frozen_stages: int = -1, norm_eval: bool = False):
        super().__init__()
        if depth not in self.DEPTHS or style not in ("pytorch", "caffe"):
            raise ConfigError(f"depth {depth}, style {style!r}; accepted: depth {', '.join(map(str, self.DEPTHS))}, "
                              "style 'pytorch' or 'caffe'")
        if (not 1 <= num_stages <= 4 or len(strides) != num_stages or len(dilations) != num_stages
            or max(out_indices) >= num_stages):
            raise ConfigError(f"num_stages {num_stages} (1 to 4): strides {list(strides)} and dilations "
                              f"{list(dilations)} need one value per stage, out_indices {list(out_indices)} lie below "
                              "it")
        if not -1 <= frozen_stages <= num_stages:
            raise ConfigError(f"frozen_stages is {frozen_stages}; -1 freezes nothing, 0 the stem, 1 to {num_stages} "
                              "stages")
        block, counts = self.DEPTHS[depth]
        self.frozen_stages, self.norm_eval = frozen_stages, norm_eval
        self.out_indices, self.deep_stem = tuple(out_indices), deep_stem
        if deep_stem:
            self.stem = DeepStem(in_channels, stem_channels, norm_cfg=norm_cfg)
        else:
            self.conv1 = Conv2d(in_channels, stem_channels, 7, stride=2, padding=3, bias=False)
            self.bn1 = build_norm(norm_cfg, stem_channels)[1]
        width, total, widths, reductions = stem_channels, 4, [], []
        for i in range(num_stages):
            channels = base_channels * 2**i
            stage = make_stage(block, width, channels, counts[i], stride=strides[i], dilation=dilations[i],
                               avg_down=avg_down, multi_grid=multi_grid if i == num_stages - 1 else None,
                               contract_dilation=contract_dilation, style=style, norm_cfg=norm_cfg, groups=groups,
                               base_width=base_width, **self.block_words)
            setattr(self, f"layer{i + 1}", stage)
            width, total = channels * block.expansion, total * strides[i]
            widths.append(width)
            reductions.append(total)
        self.stage_channels = widths
        self.out_channels = [widths[i] for i in self.out_indices]
        self.strides = [reductions[i] for i in self.out_indices]
        if zero_init_residual:
            zero_last_norms(self)
        if frozen_stages >= 0:
            stem = ("stem",) if deep_stem else ("conv1", "bn1")
            for name in (*stem, *(f"layer{i + 1}" for i in range(frozen_stages))):
                freeze(getattr(self, name))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        if self.norm_eval:
            hold_norms(self)
        x = max_pool(self.stem_map(x), 3, stride=2, padding=1)
        features = []
        for i in range(max(self.out_indices) + 1):
            x = self.run_stage(i, x)
            if i in self.out_indices:
                features.append(x)
        return features

    def run_stage(self, index: int, x: jt.Var) -> jt.Var:
        """What the stage at `index` (from 0) makes of the map before it."""
        layer = getattr(self, f"layer{index + 1}")
        return run_frozen(layer, x) if index < self.frozen_stages else layer(x)

    def stem_map(self, x: jt.Var) -> jt.Var:
        """What the stem gives at stride 2."""
        if self.frozen_stages < 0:
            return self.stem(x) if self.deep_stem else conv_norm(x, self.conv1, self.bn1, activation="relu")
        return run_frozen(self.stem, x) if self.deep_stem else relu(run_frozen(self.bn1, run_frozen(self.conv1, x)))


@MODELS.register()
class ResNetV1c(ResNet):
    """ResNet with the deep stem. Arguments: see `ResNet`."""

    TINY = MappingProxyType({**ResNet.TINY, "type": "ResNetV1c", "depth": 50, "strides": [1, 2, 1, 1],
                             "dilations": [1, 1, 2, 4], "multi_grid": [1, 2, 4], "contract_dilation": True})
    AVG_DOWN = False  # see `ResNet`: `avg_down`

    def __init__(self, depth: int, in_channels: int = 3, stem_channels: int = 64, base_channels: int = 64,
                 num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 out_indices: Sequence[int] = (0, 1, 2, 3), style: str = "pytorch",
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 multi_grid: Sequence[int] | None = None, contract_dilation: bool = False,
                 zero_init_residual: bool = True, frozen_stages: int = -1, norm_eval: bool = False):
        super().__init__(depth, in_channels, stem_channels, base_channels, num_stages, strides, dilations, out_indices,
                         style, True, self.AVG_DOWN, norm_cfg, multi_grid, contract_dilation, zero_init_residual,
                         frozen_stages=frozen_stages, norm_eval=norm_eval)


@MODELS.register()
class ResNetV1d(ResNetV1c):
    """ResNet with the deep stem and averaging shortcuts. Arguments: see `ResNet`."""

    TINY = MappingProxyType({**ResNet.TINY, "type": "ResNetV1d"})
    AVG_DOWN = True


@MODELS.register()
class ResNeXt(ResNet):
    """ResNet whose 3x3 convolutions have groups (Xie et al.,
    "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017).

    Args:
        groups, base_width: number of groups, and their width in the first stage.
        others: see `ResNet`.
    """

    TINY = MappingProxyType({**ResNet.TINY, "type": "ResNeXt", "depth": 50, "groups": 4, "base_width": 16})

    def __init__(self, depth: int, groups: int = 1, base_width: int = 4, in_channels: int = 3, stem_channels: int = 64,
                 base_channels: int = 64, num_stages: int = 4, strides: Sequence[int] = (1, 2, 2, 2),
                 dilations: Sequence[int] = (1, 1, 1, 1), out_indices: Sequence[int] = (0, 1, 2, 3),
                 style: str = "pytorch", deep_stem: bool = False, avg_down: bool = False,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 multi_grid: Sequence[int] | None = None, contract_dilation: bool = False,
                 zero_init_residual: bool = True, frozen_stages: int = -1, norm_eval: bool = False):
        super().__init__(depth, in_channels, stem_channels, base_channels, num_stages, strides, dilations, out_indices,
                         style, deep_stem, avg_down, norm_cfg, multi_grid, contract_dilation, zero_init_residual,
                         groups, base_width, frozen_stages, norm_eval)
