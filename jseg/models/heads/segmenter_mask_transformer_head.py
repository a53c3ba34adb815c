"""SegmenterMaskTransformerHead: tokens of the classes join those of the patches,
and each patch is compared with each class.

Paper: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/segmenter_mask_head.py (Apache-2.0), whose words, keys and
arithmetic these are. There is no classifier `conv_seg`, and `channels` means nothing.

Deviation: `attn_drop_rate` is 0 (see layers.attention).
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
import numpy as np
from jittor import nn

from jseg.layers import Linear, build_norm, check_attn_drop, to_map, to_tokens
from jseg.layers.init import trunc_normal
from jseg.layers.transformer import TransformerEncoderLayer
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["SegmenterMaskTransformerHead"]


@MODELS.register()
class SegmenterMaskTransformerHead(SegmentationHead):
    """Mask transformer.

    Args:
        options: see `HeadOptions`; `act_cfg` and `norm_cfg` are those of the transformer.
        num_layers, num_heads, embed_dims, mlp_ratio: blocks, heads, width, and width of the feed-forward blocks over
            it.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        drop_rate: dropout in both branches, in [0, 1).
        attn_drop_rate: 0.
        num_fcs, qkv_bias: linear layers of a feed-forward block, biases in the attention's projections.
        init_std: standard deviation of the classes' first tokens.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    DEFAULTS = MappingProxyType({"act_cfg": {"type": "GELU"}, "norm_cfg": {"type": "LN"}})
    TINY = MappingProxyType({"type": "SegmenterMaskTransformerHead", "channels": 16, "num_layers": 2, "num_heads": 2,
                             "embed_dims": 16, "mlp_ratio": 2, "drop_path_rate": 0.0})

    def __init__(self, options: HeadOptions, *, num_layers: int, num_heads: int, embed_dims: int, mlp_ratio: int = 4,
                 drop_path_rate: float = 0.1, drop_rate: float = 0.0, attn_drop_rate: float = 0.0, num_fcs: int = 2,
                 qkv_bias: bool = True, init_std: float = 0.02):
        super().__init__(options)
        check_attn_drop(attn_drop_rate)
        self.conv_seg = None
        self.layers = nn.Sequential(*[
            TransformerEncoderLayer(embed_dims, num_heads, mlp_ratio * embed_dims, drop_prob=drop_rate,
                                    drop_path_prob=rate, num_fcs=num_fcs, qkv_bias=qkv_bias, **options.blocks)
            for rate in np.linspace(0.0, drop_path_rate, num_layers).tolist()])
        self.dec_proj = Linear(options.input_width, embed_dims)
        self.cls_emb = trunc_normal((1, self.num_classes, embed_dims), init_std)
        self.patch_proj = Linear(embed_dims, embed_dims, bias=False)
        self.classes_proj = Linear(embed_dims, embed_dims, bias=False)
        self.decoder_norm = build_norm(options.norm_cfg, embed_dims, channel_first=False)[1]
        self.mask_norm = build_norm(options.norm_cfg, self.num_classes, channel_first=False)[1]

    def execute(self, features: list, previous: jt.Var | None = None) -> jt.Var:
        x = self.select(features)
        size, x = tuple(x.shape[2:]), self.dec_proj(to_tokens(x))
        classes = self.cls_emb.broadcast((x.shape[0], *self.cls_emb.shape[1:]))
        x = self.decoder_norm(self.layers(jt.concat([x, classes], 1)))
        patches, classes = self.patch_proj(x[:, :-self.num_classes]), self.classes_proj(x[:, -self.num_classes:])
        return to_map(self.mask_norm(jt.matmul(_normalised(patches), _normalised(classes).transpose(0, 2, 1))), size)


def _normalised(x: jt.Var) -> jt.Var:
    """Vectors of the last axis at length 1."""
    return x / jt.maximum(jt.sqrt((x * x).sum(-1, keepdims=True)), 1e-12)
