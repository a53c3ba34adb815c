"""FPN: a top-down path that brings coarse maps to the fine ones.

Paper: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/necks/fpn.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations: `upsample_cfg` takes `mode` and `align_corners`, no `scale_factor`: maps always take the size of the finer
one; `conv_cfg` is not a word.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, nearest_resize, relu
from jseg.layers.init import xavier_uniform
from jseg.registry import MODELS

__all__ = ["FPN"]

_SOURCES = (False, True, "on_input", "on_lateral", "on_output")


@MODELS.register()
class FPN(nn.Module):
    """1x1 blocks to one width, sums from the coarsest map to the finest, a 3x3 block on each.

    Args:
        in_channels: widths of all maps of the backbone.
        out_channels: width of every result.
        num_outs: results; those beyond the maps used are made coarser by `add_extra_convs` or by taking every second
            pixel.
        start_level, end_level: the maps used, [start_level, end_level); end_level -1: to the last.
        add_extra_convs: False, or where the strided convolutions of the extra results begin: "on_input" (the last map
            used), "on_lateral" (it after its 1x1 block) or "on_output" (the last result). True: "on_output", or
            "on_input" with `extra_convs_on_inputs`.
        relu_before_extra_convs: ReLU before every extra convolution but the first.
        no_norm_on_lateral: leave the norm out of the 1x1 blocks.
        norm_cfg, act_cfg: norm (None for none) and activation of the blocks.
        upsample_cfg: `{mode: nearest}`, or `{mode: bilinear, align_corners: false}`.
    Shape:
        maps: list of (N, in_channels[i], H_i, W_i), finest first -> list of `num_outs` maps (N, out_channels, h, w)
    Raises:
        ConfigError: levels, results or words that do not fit each other.
    """

    TINY = MappingProxyType({"type": "FPN", "out_channels": 8, "num_outs": 4})

    def __init__(self,
                 in_channels: Sequence[int],
                 out_channels: int,
                 num_outs: int,
                 start_level: int = 0,
                 end_level: int = -1,
                 add_extra_convs: bool | str = False,
                 extra_convs_on_inputs: bool = False,
                 relu_before_extra_convs: bool = False,
                 no_norm_on_lateral: bool = False,
                 norm_cfg: dict | None = None,
                 act_cfg: dict | None = None,
                 upsample_cfg: dict = MappingProxyType({"mode": "nearest"})):
        super().__init__()
        end = len(in_channels) if end_level == -1 else end_level
        used, extra = in_channels[start_level:end], num_outs - (end - start_level)
        if not 0 <= start_level < end <= len(in_channels) or extra < 0 or (extra and end_level != -1):
            raise ConfigError(f"start_level {start_level} and end_level {end_level} choose of {len(in_channels)} maps, "
                              f"num_outs is {num_outs}; it is their number, or more where end_level is -1")
        if add_extra_convs not in _SOURCES:
            raise ConfigError(f"add_extra_convs is {add_extra_convs!r}; accepted: {', '.join(map(repr, _SOURCES))}")
        if add_extra_convs is True:
            add_extra_convs = "on_input" if extra_convs_on_inputs else "on_output"
        self.in_channels, self.levels, self.extra = list(in_channels), (start_level, end), extra
        self.add_extra_convs, self.relu_before_extra_convs = add_extra_convs, relu_before_extra_convs
        self.upsample = _upsampling(upsample_cfg)
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        lateral = {**blocks, "norm_cfg": None if no_norm_on_lateral else norm_cfg}
        self.lateral_convs = nn.Sequential(*[ConvNormAct(width, out_channels, 1, **lateral) for width in used])
        widths, strides = [out_channels] * len(used), [1] * len(used)
        if add_extra_convs:
            widths += [used[-1] if add_extra_convs == "on_input" and i == 0 else out_channels for i in range(extra)]
            strides += [2] * extra
        self.fpn_convs = nn.Sequential(*[ConvNormAct(width, out_channels, 3, stride=stride, padding=1, **blocks)
                                         for width, stride in zip(widths, strides)])
        self.out_channels = [out_channels] * num_outs
        for module in self.modules():
            if isinstance(module, Conv2d):
                module.weight = xavier_uniform(module.weight.shape)

    def execute(self, maps: Sequence[jt.Var]) -> list[jt.Var]:
        if len(maps) != len(self.in_channels):
            raise ValueError(f"FPN: {len(maps)} maps came, in_channels lists {len(self.in_channels)}")
        used = maps[slice(*self.levels)]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used)]
        for i in range(len(used) - 1, 0, -1):
            laterals[i - 1] = self.upsample(laterals[i], laterals[i - 1])
        convs = list(self.fpn_convs)
        results = [conv(x) for conv, x in zip(convs, laterals)]
        for i in range(self.extra):
            if not self.add_extra_convs:
                results.append(results[-1][:, :, ::2, ::2])
            elif i == 0:
                source = {"on_input": used[-1], "on_lateral": laterals[-1],
                          "on_output": results[-1]}[self.add_extra_convs]
                results.append(convs[len(used)](source))
            else:
                results.append(convs[len(used) + i](relu(results[-1]) if self.relu_before_extra_convs else results[-1]))
        return results


def _upsampling(cfg: Mapping):
    """(coarse, fine) -> fine plus coarse resized to it, as `upsample_cfg` says."""
    mode, align_corners = cfg.get("mode", "nearest"), cfg.get("align_corners") or False
    if mode not in ("nearest", "bilinear") or not set(cfg) <= {"mode", "align_corners"}:
        raise ConfigError(f"upsample_cfg is {dict(cfg)}; accepted: mode 'nearest' or 'bilinear', and align_corners")
    if mode == "nearest":
        return lambda coarse, fine: fine + nearest_resize(coarse, tuple(fine.shape[2:]))
    return lambda coarse, fine: ops.bilinear_resize(
        coarse, tuple(fine.shape[2:]), align_corners=align_corners, add=fine)
