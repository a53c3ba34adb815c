"""FCNHead: a few convolutions and a classifier; the auxiliary head of most models.

Paper: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/fcn_head.py (Apache-2.0).
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["FCNContextHead", "FCNHead"]


@MODELS.register()
class FCNHead(SegmentationHead):
    """Convolutions, their result joined with their input if wished, a classifier.

    Args:
        options: see `HeadOptions`.
        num_convs: convolutions, >= 0; with 0 the width is `in_channels`.
        kernel_size, dilation: of the convolutions.
        concat_input: join input and result by one more convolution.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "FCNHead", "channels": 8, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, num_convs: int = 2, kernel_size: int = 3, concat_input: bool = True,
                 dilation: int = 1):
        super().__init__(options)
        width, channels = options.input_width, options.channels
        if num_convs < 0 or dilation < 1 or (num_convs == 0 and width != channels):
            raise ConfigError(f"num_convs {num_convs} (at least 0), dilation {dilation} (at least 1); without "
                              f"convolutions in_channels {width} and channels {channels} must be equal")
        widths = [width, *[channels] * num_convs][:num_convs]
        self.convs = nn.Sequential(*[self._block(before, kernel_size, dilation) for before in widths])
        self.conv_cat = self._block(width + channels, kernel_size) if concat_input else None

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        return self.joined(features, self.convs(features))

    def joined(self, features: jt.Var, x: jt.Var) -> jt.Var:
        """What the convolutions made, joined with their input where `concat_input`."""
        return x if self.conv_cat is None else self.conv_cat(jt.concat([features, x], 1))

    def _block(self, width: int, kernel_size: int, dilation: int = 1) -> nn.Module:
        """A convolution block from `width` to `channels` that keeps the size."""
        padding = kernel_size // 2 * dilation
        return ConvNormAct(width, self.channels, kernel_size, padding=padding, dilation=dilation, **self.options.blocks)


class FCNContextHead(FCNHead):
    """FCNHead of two convolutions with a block between them; base of the heads that are just that.

    Args:
        options: see `HeadOptions`.
        kernel_size, concat_input, dilation: see `FCNHead`.
    """

    def __init__(self, options: HeadOptions, *, kernel_size: int = 3, concat_input: bool = True, dilation: int = 1):
        super().__init__(options, num_convs=2, kernel_size=kernel_size, concat_input=concat_input, dilation=dilation)

    def context(self, x: jt.Var) -> jt.Var:
        """The block between the convolutions. Shape: (N, channels, h, w) -> same."""
        raise NotImplementedError

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        first, second = self.convs
        return self.joined(features, second(self.context(first(features))))
