"""FPNHead: each map of a pyramid is convolved and upsampled to the finest, and all are added up (Semantic FPN).

Paper: Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/fpn_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["FPNHead"]


class Double(nn.Module):
    """Twice the height and width, bilinear. Shape: (N, C, H, W) -> (N, C, 2 H, 2 W)."""

    def __init__(self, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.bilinear_resize(x, (2 * x.shape[2], 2 * x.shape[3]), align_corners=self.align_corners)


@MODELS.register()
class FPNHead(SegmentationHead):
    """One path a map: a 3x3 block and an upsampling by 2 until the finest map's stride is reached, one block where it
    has that.

    Args:
        options: see `HeadOptions`.
        feature_strides: strides of the maps, powers of 2 with the smallest first.
    Shape:
        features: list of maps -> (N, K, h, w) of the finest selected map's size
    Raises:
        ConfigError: `feature_strides` are not such numbers, or not one for each map.
    """

    TINY = MappingProxyType(
        {"type": "FPNHead", "channels": 8, "feature_strides": [4, 8, 16, 32], "norm_cfg": {"type": "BN"}})
    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})

    def __init__(self, options: HeadOptions, *, feature_strides: Sequence[int]):
        super().__init__(options)
        steps = [(stride // feature_strides[0]).bit_length() - 1 for stride in feature_strides]
        fitting = [stride == feature_strides[0] << max(step, 0) for stride, step in zip(feature_strides, steps)]
        if options.input_transform != "multiple_select" or len(steps) != len(options.in_channels) or not all(fitting):
            raise ConfigError(f"feature_strides {list(feature_strides)}: one for each of the maps "
                              f"{list(options.in_index)} (input_transform multiple_select), the first times a power "
                              "of 2")
        paths = []
        for width, step in zip(options.in_channels, steps):
            path = []
            for i in range(max(step, 1)):
                before = width if i == 0 else options.channels
                path.append(ConvNormAct(before, options.channels, 3, padding=1, **options.blocks))
                path += [Double(options.align_corners)] if step else []
            paths.append(nn.Sequential(*path))
        self.scale_heads = nn.Sequential(*paths)

    def decode(self, features: list) -> jt.Var:
        """(N, channels, h, w) from the selected maps."""
        first, *others = [path(x) for path, x in zip(self.scale_heads, features)]
        for x in others:
            first = ops.bilinear_resize(x, tuple(first.shape[2:]), align_corners=self.align_corners, add=first)
        return first
