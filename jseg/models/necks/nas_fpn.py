"""NAS-FPN: a pyramid whose connections were searched for.

Paper: Ghiasi et al., "NAS-FPN: Learning Scalable Feature Pyramid Architecture for Object Detection", CVPR 2019.
Upstream: mmdetection 3.3 mmdet/models/necks/nas_fpn.py and MMCV 2.1 mmcv/ops/merge_cells.py (Apache-2.0), whose words,
keys and arithmetic these are.

Deviation: a side of one pixel is not pooled away.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, halve_map, nearest_resize, pool_to_size
from jseg.layers.init import uniform
from jseg.registry import MODELS

__all__ = ["NASFPN"]

_LEVELS = 5
# name of the cell, the two levels it takes (by their names in the paper, 3 to 7; "p4_2" is an inner one), what it makes
_CELLS = (("gp_64_4", "p6", "p4", "p4_1"), ("sum_44_4", "p4_1", "p4", "p4_2"), ("sum_43_3", "p4_2", "p3", "p3"),
          ("sum_34_4", "p3", "p4_2", "p4"), ("gp_43_5", "p4", "p3", "p5_1"), ("sum_55_5", "p5", "p5_1", "p5"),
          ("gp_54_7", "p5", "p4_2", "p7_1"), ("sum_77_7", "p7", "p7_1", "p7"), ("gp_75_6", "p7", "p5", "p6"))
_BARE = ("gp_43_5", "gp_54_7")  # cells without a convolution


class MergingCell(nn.Module):
    """Two maps, brought to one size and merged; then an activation, a 3x3 convolution and a norm. Key: `out_conv`.

    Args:
        channels: C.
        attends: weigh the first map's channels by the second's means (global pooling) before the sum.
        convolves: whether the convolution follows.
        norm_cfg: its norm, or None.
    Shape:
        x, y: (N, C, h_i, w_i) and a size (H, W) -> (N, C, H, W)
    """

    def __init__(self, channels: int, *, attends: bool, convolves: bool, norm_cfg: dict | None):
        super().__init__()
        self.attends = attends
        self.out_conv = ConvNormAct(channels, channels, 3, padding=1, bias=True, norm_cfg=norm_cfg,
                                    act_cfg={"type": "ReLU"}, order=("act", "conv", "norm")) if convolves else None

    def execute(self, x: jt.Var, y: jt.Var, size: tuple[int, int]) -> jt.Var:
        x, y = (_fitted(value, size) for value in (x, y))
        x = y + jt.sigmoid(y.mean([2, 3], keepdims=True)) * x if self.attends else x + y
        return x if self.out_conv is None else self.out_conv(x)


class MergingPass(nn.Module):
    """The cells in their order, each under its name.

    Shape:
        found: name of a level -> (N, channels, H, W); sizes: name -> (H, W) -> the levels after the pass
    """

    def __init__(self, channels: int, norm_cfg: dict | None):
        super().__init__()
        for name, *_ in _CELLS:
            setattr(self, name, MergingCell(channels, attends=name.startswith("gp"), convolves=name not in _BARE,
                                            norm_cfg=norm_cfg))

    def execute(self, found: Mapping[str, jt.Var], sizes: Mapping[str, tuple[int, int]]) -> dict[str, jt.Var]:
        found = dict(found)
        for cell, first, second, result in _CELLS:
            found[result] = getattr(self, cell)(found[first], found[second], sizes[result[:2]])
        return found


def _fitted(x: jt.Var, size: tuple[int, int]) -> jt.Var:
    """A map at another size: enlarged to the nearest value, or the largest values of windows."""
    own = tuple(x.shape[2:])
    if own == size:
        return x
    return nearest_resize(x, size) if own < size else pool_to_size(x, size)


@MODELS.register()
class NASFPN(nn.Module):
    """Five levels of one width, merged pair by pair in the order that was found, several times over.

    Args:
        in_channels: widths of all maps of the backbone, finest first.
        out_channels: width of every result.
        num_outs: 5; results beyond the maps used are the coarsest, pooled.
        stack_times: how often the levels are merged.
        start_level, end_level: the maps used, from `start_level` to `end_level`, both counted; -1: to the last.
        norm_cfg: norm of every convolution, or None.
    Shape:
        maps: list of (N, in_channels[i], H_i, W_i), finest first -> list of 5 maps (N, out_channels, h, w)
    Raises:
        ConfigError: levels or results that do not fit each other.
    """

    TINY = MappingProxyType({"type": "NASFPN", "out_channels": 8, "num_outs": 5, "stack_times": 2,
                             "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int, stack_times: int,
                 start_level: int = 0, end_level: int = -1, norm_cfg: dict | None = None):
        super().__init__()
        last = len(in_channels) - 1
        end = last if end_level == -1 else end_level
        extra = num_outs - (end - start_level + 1)
        if num_outs != _LEVELS or not 0 <= start_level <= end <= last or extra < 0 or (extra and end != last):
            raise ConfigError(f"start_level {start_level} and end_level {end_level} choose of {len(in_channels)} maps, "
                              f"num_outs is {num_outs}; it is {_LEVELS}, their number, or more where the last is "
                              "chosen")
        if stack_times < 1:
            raise ConfigError(f"stack_times is {stack_times}; accepted: 1 and more")
        self.in_channels, self.levels = list(in_channels), (start_level, end + 1)
        self.lateral_convs = nn.Sequential(*[ConvNormAct(width, out_channels, 1, norm_cfg=norm_cfg)
                                             for width in in_channels[start_level:end + 1]])
        self.extra_downsamples = nn.Sequential(*[
            nn.Sequential(ConvNormAct(out_channels, out_channels, 1, norm_cfg=norm_cfg)) for _ in range(extra)])
        self.fpn_stages = nn.Sequential(*[MergingPass(out_channels, norm_cfg) for _ in range(stack_times)])
        self.out_channels = [out_channels] * num_outs
        for module in self.modules():
            if isinstance(module, Conv2d):  # Caffe2's rule: uniform within sqrt(3 / fan_in)
                limit = (3 / (module.in_channels * module.kernel_size[0] * module.kernel_size[1]))**0.5
                module.weight = uniform(tuple(module.weight.shape), -limit, limit)

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        if len(maps) != len(self.in_channels):
            raise ValueError(f"NASFPN: {len(maps)} maps came, in_channels lists {len(self.in_channels)}")
        levels = [conv(x) for conv, x in zip(self.lateral_convs, maps[slice(*self.levels)])]
        for part in self.extra_downsamples:
            levels.append(halve_map(part[0](levels[-1])))
        names = [f"p{i}" for i in range(3, 3 + _LEVELS)]
        found = dict(zip(names, levels))
        sizes = {name: tuple(x.shape[2:]) for name, x in found.items()}
        for stage in self.fpn_stages:
            found = stage(found, sizes)
        return [found[name] for name in names]
