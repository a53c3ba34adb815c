"""GCHead: FCNHead with a global context block between its convolutions.

Paper: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCV Workshops
2019, sec. 3.3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/gc_head.py and MMCV 2.x mmcv/cnn/bricks/context_block.py
(Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.layers.init import ones, zeros
from jseg.models.heads.fcn_head import FCNContextHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["ContextBlock", "GCHead"]

POOLING, FUSIONS = ("att", "avg"), ("channel_add", "channel_mul")


class PictureNorm(nn.Module):
    """Norm over all values of a picture, with a factor and a term per channel of shape (C, 1, 1), and ReLU.

    Shape:
        x: (N, C, 1, 1) -> same
    """

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = ones((channels, 1, 1)), zeros((channels, 1, 1))

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.norm(x, self.weight.reshape(-1), self.bias.reshape(-1), over="group", activation="relu")[0]


class ChannelTerm(nn.Sequential):
    """Two 1x1 convolutions with a norm and ReLU between them; the last starts at 0. Keys "0", "1" and "3".

    Shape:
        context: (N, channels, 1, 1) -> same
    """

    def __init__(self, channels: int, width: int):
        super().__init__(Conv2d(channels, width, 1), PictureNorm(width), nn.Identity(), Conv2d(width, channels, 1))
        self[3].weight = zeros(self[3].weight.shape)


class ContextBlock(nn.Module):
    """One vector for the whole map, which is added to every position, or weighs the channels, or both.

    Args:
        channels: C.
        ratio: width inside, as a share of C; at least one channel must be left.
        pooling_type: "att" (a mean with learned weights of positions) or "avg".
        fusion_types: "channel_add", "channel_mul" or both; the product comes first.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ConfigError: another word, or a ratio that leaves no channel.
    """

    def __init__(self, channels: int, *, ratio: float = 1 / 4, pooling_type: str = "att",
                 fusion_types: Sequence[str] = ("channel_add",)):
        super().__init__()
        if pooling_type not in POOLING or not fusion_types or not set(fusion_types) <= set(FUSIONS):
            raise ConfigError(f"pooling_type is {pooling_type!r}, fusion_types {fusion_types!r}; accepted: "
                              f"{' or '.join(POOLING)}, and a list of {' and '.join(FUSIONS)}")
        width = int(channels * ratio)
        if width < 1:
            raise ConfigError(f"ratio {ratio} leaves none of {channels} channels")
        self.conv_mask = Conv2d(channels, 1, 1) if pooling_type == "att" else None
        self.channel_add_conv = ChannelTerm(channels, width) if "channel_add" in fusion_types else None
        self.channel_mul_conv = ChannelTerm(channels, width) if "channel_mul" in fusion_types else None

    def execute(self, x: jt.Var) -> jt.Var:
        context, y = self._pooled(x), x
        if self.channel_mul_conv is not None:
            y = y * jt.sigmoid(self.channel_mul_conv(context))
        return y if self.channel_add_conv is None else y + self.channel_add_conv(context)

    def _pooled(self, x: jt.Var) -> jt.Var:
        """(N, C, 1, 1)."""
        if self.conv_mask is None:
            return x.mean([2, 3], keepdims=True)
        n, c, h, w = x.shape
        weights = nn.softmax(self.conv_mask(x).reshape(n, h * w), dim=1)
        return jt.matmul(x.reshape(n, c, h * w), weights.unsqueeze(2)).unsqueeze(3)


@MODELS.register()
class GCHead(FCNContextHead):
    """A convolution, a global context block, a convolution, a classifier.

    Args:
        options: see `HeadOptions`.
        ratio, pooling_type, fusion_types: see `ContextBlock`.
        others: see `FCNHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "GCHead", "channels": 16, "norm_cfg": {"type": "BN"},
                             "fusion_types": ["channel_add", "channel_mul"]})

    def __init__(self, options: HeadOptions, *, ratio: float = 1 / 4, pooling_type: str = "att",
                 fusion_types: Sequence[str] = ("channel_add",), kernel_size: int = 3, concat_input: bool = True,
                 dilation: int = 1):
        super().__init__(options, kernel_size=kernel_size, concat_input=concat_input, dilation=dilation)
        self.gc_block = ContextBlock(options.channels, ratio=ratio, pooling_type=pooling_type,
                                     fusion_types=fusion_types)

    def context(self, x: jt.Var) -> jt.Var:
        """Every position with the context of the whole map."""
        return self.gc_block(x)
