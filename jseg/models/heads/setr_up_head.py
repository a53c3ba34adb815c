"""SETRUPHead: SETR's naive and progressive upsampling heads.

Paper: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR
2021, sec. 3.3. Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/setr_up_head.py (Apache-2.0), whose words, keys
and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, build_norm
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["SETRUPHead", "Upscale"]


class Upscale(nn.Module):
    """`factor` times the height and width, bilinear. Shape: (N, C, H, W) -> (N, C, factor * H, factor * W)."""

    def __init__(self, factor: int, align_corners: bool):
        super().__init__()
        self.factor, self.align_corners = factor, align_corners

    def execute(self, x: jt.Var) -> jt.Var:
        size = tuple(int(side * self.factor) for side in x.shape[2:])
        return ops.bilinear_resize(x, size, align_corners=self.align_corners)


@MODELS.register()
class SETRUPHead(SegmentationHead):
    """A norm, then convolution blocks, each followed by an upsampling.

    Args:
        options: see `HeadOptions`.
        norm_layer: norm of the map that is read.
        num_convs: blocks.
        up_scale: factor of each upsampling.
        kernel_size: of the blocks, 1 or 3.
    Shape:
        features: list of maps -> (N, K, h, w), up_scale ** num_convs times the selected map's size
    Raises:
        ConfigError: another kernel size.
    """

    TINY = MappingProxyType({"type": "SETRUPHead", "channels": 8, "num_convs": 2, "up_scale": 2,
                             "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *,
                 norm_layer: dict = MappingProxyType({"type": "LN", "eps": 1e-6, "requires_grad": True}),
                 num_convs: int = 1, up_scale: int = 4, kernel_size: int = 3):
        super().__init__(options)
        if kernel_size not in (1, 3):
            raise ConfigError(f"kernel_size is {kernel_size}; accepted: 1, 3")
        self.norm = build_norm(norm_layer, options.input_width)[1]
        widths = [options.input_width] + [options.channels] * num_convs
        self.up_convs = nn.Sequential(*[
            nn.Sequential(ConvNormAct(width, options.channels, kernel_size, padding=kernel_size // 2, **options.blocks),
                          Upscale(up_scale, options.align_corners)) for width in widths[:num_convs]])

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        return self.up_convs(self.norm(features))
