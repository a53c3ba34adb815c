"""SegformerHead: a 1x1 block for each map, all resized to the first and joined by one more.

Paper: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
sec. 3.2. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/segformer_head.py (Apache-2.0), whose keys and values
these are.

Deviations:
- the joining convolution runs on each map before it is resized, and the results are added up: a third of the operations
  and no joined map, with equal values, since both are linear and the weights of a resize sum to 1;
- `interpolate_mode` is "bilinear";
- `plain_convs`, which upstream does not know, is the authors' own head (NVlabs/SegFormer), also that of Hugging Face's
  transformers.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["SegformerHead"]


@MODELS.register()
class SegformerHead(SegmentationHead):
    """Several maps, each through a 1x1 block, joined at the size of the first.

    Args:
        options: see `HeadOptions`.
        interpolate_mode: "bilinear".
        plain_convs: the blocks before the resizing are convolutions with a bias, without norm and activation.
    Shape:
        features: list of (N, in_channels[i], H_i, W_i) -> (N, K, H_0, W_0)
    Raises:
        ConfigError: another `interpolate_mode`.
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType({"type": "SegformerHead", "channels": 8, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, interpolate_mode: str = "bilinear", plain_convs: bool = False):
        super().__init__(options)
        if interpolate_mode != "bilinear":
            raise ConfigError(f"interpolate_mode is {interpolate_mode!r}; accepted: 'bilinear'")
        blocks = {} if plain_convs else options.blocks
        self.convs = nn.Sequential(*[ConvNormAct(width, self.channels, 1, **blocks)
                                     for width in options.in_channels])
        self.fusion_conv = ConvNormAct(self.channels * len(options.in_channels), self.channels, 1,
                                       norm_cfg=options.norm_cfg, act_cfg={"type": "ReLU"})

    def decode(self, features: list[jt.Var]) -> jt.Var:
        """(N, channels, H_0, W_0) from the selected maps."""
        size, weight, joined = tuple(features[0].shape[2:]), self.fusion_conv.conv.weight, None
        for i, (x, block) in enumerate(zip(features, self.convs)):
            part = weight[:, i * self.channels:(i + 1) * self.channels]
            x = ops.pointwise(block(x), part, self.fusion_conv.conv.bias if i == 0 else None)
            joined = x if i == 0 else ops.bilinear_resize(x, size, align_corners=self.align_corners, add=joined)
        return self.fusion_conv.norm_and_activate(joined)
