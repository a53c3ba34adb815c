"""OCRHead: every pixel attends to the classes, each of which is the mean of the pixels that the head before gave to it.

Paper: Yuan et al., "Object-Contextual Representations for Semantic Segmentation", ECCV 2020, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/ocr_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviations: `scale` above 1 is refused (upstream's forward fails on it); a cascade runs the head before once per step
(see `EncoderDecoder`).
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, SelfAttentionBlock
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["OCRHead", "gather_classes"]


def gather_classes(features: jt.Var, scores: jt.Var, scale: float = 1.0) -> jt.Var:
    """One vector per class: the mean of all pixels, weighted by the softmax over pixels of the class's scaled scores.

    Shape:
        features: (N, C, H, W); scores: (N, K, H, W) -> (N, C, K, 1)
    Raises:
        ValueError: maps of two sizes.
    """
    n, c, h, w = features.shape
    if tuple(scores.shape[2:]) != (h, w):
        raise ValueError(f"OCRHead: the scores of the head before are {tuple(scores.shape)}, the features "
                         f"{tuple(features.shape)}; both heads must read maps of one size: set in_index")
    weights = nn.softmax(scale * scores.reshape(n, -1, h * w), dim=2)  # (N, K, H * W)
    return jt.matmul(features.reshape(n, c, h * w), weights.transpose(0, 2, 1)).unsqueeze(3)


class ObjectAttention(SelfAttentionBlock):
    """Attention of pixels to classes, joined with the pixels.

    Args:
        in_channels, channels: widths of the maps, and of queries, keys and values.
        blocks: norm_cfg and act_cfg.
    Shape:
        features: (N, in_channels, H, W); classes: (N, in_channels, K, 1) -> (N, in_channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, blocks: dict):
        super().__init__(in_channels, channels, in_channels, key_query_num_convs=2, blocks=blocks)
        self.bottleneck = ConvNormAct(2 * in_channels, in_channels, 1, **blocks)

    def execute(self, features: jt.Var, classes: jt.Var) -> jt.Var:
        return self.bottleneck(jt.concat([super().execute(features, classes), features], 1))


@MODELS.register()
class OCRHead(SegmentationHead):
    """A 3x3 block, the classes of the head before, attention to them, a classifier. Only behind another head.

    Args:
        options: see `HeadOptions`.
        ocr_channels: width of queries, keys and values.
        scale: factor on the scores before their softmax over pixels, at most 1.
    Shape:
        features: list of maps; previous: (N, K, h, w) -> (N, K, h, w), the selected map's size
    Raises:
        ConfigError: `scale` is not above 0 and at most 1.
    """

    TINY = MappingProxyType({"type": "OCRHead", "channels": 8, "ocr_channels": 4, "norm_cfg": {"type": "BN"}})
    needs_previous = True

    def __init__(self, options: HeadOptions, *, ocr_channels: int, scale: float = 1):
        super().__init__(options)
        if not 0 < scale <= 1:
            raise ConfigError(f"scale is {scale}; accepted: above 0 and at most 1 (a larger one would shrink the "
                              "queries, and the map with them)")
        self.scale = scale
        self.object_context_block = ObjectAttention(options.channels, ocr_channels, options.blocks)
        self.bottleneck = ConvNormAct(options.input_width, options.channels, 3, padding=1, **options.blocks)

    def execute(self, features: list, previous: jt.Var | None = None) -> jt.Var:
        x = self.bottleneck(self.select(features))
        return self.classify(self.object_context_block(x, gather_classes(x, previous, self.scale)))
