"""SETRMLAHead: SETR's head over aggregated levels.

Paper: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR
2021, sec. 3.3. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/setr_mla_head.py (Apache-2.0), whose words,
keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.models.heads.setr_up_head import Upscale
from jseg.registry import MODELS

__all__ = ["SETRMLAHead"]


@MODELS.register()
class SETRMLAHead(SegmentationHead):
    """Two blocks and an upsampling for each map; the results are joined.

    Args:
        options: see `HeadOptions`; `channels` is the number of maps times `mla_channels`.
        mla_channels: width of each path.
        up_scale: factor of the upsampling.
    Shape:
        features: list of (N, in_channels[i], H, W) of one size -> (N, K, up_scale * H, up_scale * W)
    Raises:
        ConfigError: another `channels`.
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType({"type": "SETRMLAHead", "channels": 16, "mla_channels": 4, "up_scale": 2,
                             "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, mla_channels: int = 128, up_scale: int = 4):
        super().__init__(options)
        count = len(options.in_channels)
        if options.channels != count * mla_channels:
            raise ConfigError(f"channels is {options.channels}; with {count} maps and mla_channels {mla_channels} it "
                              f"is {count * mla_channels}")
        self.up_convs = nn.Sequential(*[
            nn.Sequential(ConvNormAct(width, mla_channels, 3, padding=1, **options.blocks),
                          ConvNormAct(mla_channels, mla_channels, 3, padding=1, **options.blocks),
                          Upscale(up_scale, options.align_corners)) for width in options.in_channels])

    def decode(self, features: list[jt.Var]) -> jt.Var:
        """(N, channels, h, w) from the selected maps."""
        return jt.concat([path(x) for path, x in zip(self.up_convs, features)], 1)
