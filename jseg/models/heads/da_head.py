"""DAHead: attention among positions and attention among channels, side by side.

Paper: Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/da_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviation: the classifiers of the two branches run for the loss alone.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg.layers import Conv2d, ConvNormAct, Scale, SelfAttentionBlock
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DAHead"]


class PositionAttention(SelfAttentionBlock):
    """The map and, times a factor that starts at 0, the attention of its positions. Shape: (N, channels, H, W) -> same.

    Args:
        channels, pam_channels: widths of the map, and of queries and keys.
    """

    def __init__(self, channels: int, pam_channels: int):
        super().__init__(channels, pam_channels, channels, matmul_norm=False, with_out=False)
        self.gamma = Scale(0.0)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.gamma(super().execute(x, x)) + x


class ChannelAttention(nn.Module):
    """The map and, times a factor that starts at 0, means of its channels, the least alike weighing most.

    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self):
        super().__init__()
        self.gamma = Scale(0.0)

    def execute(self, x: jt.Var) -> jt.Var:
        n, c, h, w = x.shape
        channels = x.reshape(n, c, h * w)
        likeness = jt.matmul(channels, channels.transpose(0, 2, 1))  # (N, C, C)
        weights = nn.softmax(likeness.max(2, keepdims=True) - likeness, dim=2)
        return self.gamma(jt.matmul(weights, channels).reshape(n, c, h, w)) + x


@MODELS.register()
class DAHead(SegmentationHead):
    """Two branches of a 3x3 block, an attention and another 3x3 block; a classifier of their sum and one of each.

    Args:
        options: see `HeadOptions`.
        pam_channels: width of queries and keys of the position attention.
    Shape:
        features: list of maps -> logits (N, K, h, w), and the branches' maps (N, channels, h, w)
    """

    TINY = MappingProxyType({"type": "DAHead", "channels": 8, "pam_channels": 4, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, pam_channels: int):
        super().__init__(options)
        width, channels = options.input_width, options.channels
        for name in ("pam", "cam"):
            setattr(self, f"{name}_in_conv", ConvNormAct(width, channels, 3, padding=1, **options.blocks))
            setattr(self, f"{name}_out_conv", ConvNormAct(channels, channels, 3, padding=1, **options.blocks))
            setattr(self, f"{name}_conv_seg", Conv2d(channels, options.score_channels, 1, init_std=0.01))
        self.pam, self.cam = PositionAttention(channels, pam_channels), ChannelAttention()

    def execute(self, features: list, previous: jt.Var | None = None) -> tuple[jt.Var, jt.Var, jt.Var]:
        x = self.select(features)
        positions = self.pam_out_conv(self.pam(self.pam_in_conv(x)))
        channels = self.cam_out_conv(self.cam(self.cam_in_conv(x)))
        return self.classify(positions + channels), positions, channels

    def loss(self, outputs: tuple[jt.Var, jt.Var, jt.Var], labels: jt.Var) -> dict[str, jt.Var]:
        logits, positions, channels = outputs
        branches = {"pam_cam": logits, "pam": self.pam_conv_seg(self.dropout(positions)),
                    "cam": self.cam_conv_seg(self.dropout(channels))}
        return {f"{name}.{key}": value for name, scores in branches.items() for key,
                value in super(DAHead, self).loss(scores, labels).items()}

    def scores(self, outputs: tuple[jt.Var, jt.Var, jt.Var], size: tuple[int, int]) -> jt.Var:
        return super().scores(outputs[0], size)
