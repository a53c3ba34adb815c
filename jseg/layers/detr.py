"""DETR's encoder and decoder, and the variants of Mask2Former:
attention and feed-forward layers with a norm behind each.

Papers: Carion et al., "End-to-End Object Detection with Transformers" (DETR), ECCV 2020; Zhu et al., "Deformable DETR",
ICLR 2021 (deformable encoder); Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation"
(Mask2Former), CVPR 2022, sec. 3.2 (cross-attention comes first).
Upstream: mmdetection 3.x mmdet/models/layers/transformer/{detr,deformable_detr,mask2former}_layers.py (Apache-2.0),
whose words and keys these are.

Deviations: no mask of padded cells; `num_cp` (recomputing layers to save memory) has no effect.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers.deformable import MultiScaleDeformableAttention
from jseg.layers.feed_forward import FFN
from jseg.layers.norms import build_norm
from jseg.layers.query_attention import QueryAttention, residual_dropout
from jseg.registry import construct

__all__ = ["DeformableEncoder", "DetrDecoder", "DetrEncoder", "Mask2FormerDecoder", "Perceptron"]

_ATTENTION = MappingProxyType({"embed_dims": 256, "num_heads": 8, "dropout": 0.0})
_RELU = MappingProxyType({"type": "ReLU"})
_LN = MappingProxyType({"type": "LN"})


class Perceptron(FFN):
    """x + dropout(two or more linear layers): MMCV's FFN by its words.

    Args:
        embed_dims, feedforward_channels: widths outside and inside.
        num_fcs: linear layers, >= 2.
        act_cfg: activation of all but the last.
        ffn_drop: dropout after each layer.
        dropout_layer: one more dropout of the result, or None.
        add_identity: only True.
    Shape:
        x: (N, L, embed_dims) -> same
    Raises:
        ConfigError: `add_identity` is false, or both dropouts of the result are wanted.
    """

    def __init__(self, embed_dims: int = 256, feedforward_channels: int = 1024, num_fcs: int = 2,
                 act_cfg: Mapping = _RELU, ffn_drop: float = 0.0, dropout_layer: Mapping | None = None,
                 add_identity: bool = True):
        if not add_identity or (dropout_layer is not None and residual_dropout(0.0, dropout_layer, "ffn_cfg") > 0.0):
            raise ConfigError(f"ffn_cfg: add_identity is {add_identity}, dropout_layer {dropout_layer}; accepted: "
                              "true, and null: use ffn_drop")
        super().__init__(embed_dims, feedforward_channels, num_fcs=num_fcs, act_cfg=dict(act_cfg), drop_prob=ffn_drop)

    def execute(self, x: jt.Var) -> jt.Var:
        return super().execute(x, shortcut=x)


class _Layer(nn.Module):
    """What every layer has: self-attention, a feed-forward part and `count` norms."""

    def __init__(self, self_attn: nn.Module, ffn_cfg: Mapping | None, norm_cfg: Mapping, count: int):
        super().__init__()
        self.self_attn, self.embed_dims = self_attn, self_attn.embed_dims
        self.ffn = construct(Perceptron, ffn_cfg, "ffn_cfg")
        self.norms = nn.Sequential(*[build_norm(norm_cfg, self.embed_dims, channel_first=False)[1]
                                     for _ in range(count)])


class EncoderLayer(_Layer):
    """Self-attention and feed-forward. Shape: x: (N, L, C); positions: (1, L, C) -> (N, L, C).

    Args:
        self_attn_cfg, ffn_cfg, norm_cfg: words of `QueryAttention` and `Perceptron`, and a norm block.
    """

    def __init__(self, self_attn_cfg: Mapping = _ATTENTION, ffn_cfg: Mapping | None = None, norm_cfg: Mapping = _LN):
        super().__init__(construct(QueryAttention, self_attn_cfg, "self_attn_cfg"), ffn_cfg, norm_cfg, 2)

    def execute(self, x: jt.Var, positions: jt.Var) -> jt.Var:
        first, second = self.norms
        return second(self.ffn(first(self.self_attn(x, query_pos=positions))))


class DeformableEncoderLayer(_Layer):
    """The same with `MultiScaleDeformableAttention` over several maps, whose `sizes` are (H, W) each."""

    def __init__(self, self_attn_cfg: Mapping | None = None, ffn_cfg: Mapping | None = None, norm_cfg: Mapping = _LN):
        super().__init__(construct(MultiScaleDeformableAttention, self_attn_cfg, "self_attn_cfg"), ffn_cfg, norm_cfg, 2)

    def execute(self, x: jt.Var, positions: jt.Var, sizes: list[tuple[int, int]]) -> jt.Var:
        first, second = self.norms
        return second(self.ffn(first(self.self_attn(x, positions, sizes))))


class DecoderLayer(_Layer):
    """Self-attention of the queries, attention to the memory, feed-forward.

    Args:
        self_attn_cfg, cross_attn_cfg, ffn_cfg, norm_cfg: words of `QueryAttention` (twice) and `Perceptron`, and a norm
            block.
    Shape:
        queries: (N, Q, C); memory: (N, L, C); query_pos, memory_pos: (1, ., C); mask: (N, Q, L) or None -> (N, Q, C)
    """

    def __init__(self, self_attn_cfg: Mapping = _ATTENTION, cross_attn_cfg: Mapping = _ATTENTION,
                 ffn_cfg: Mapping | None = None, norm_cfg: Mapping = _LN):
        super().__init__(construct(QueryAttention, self_attn_cfg, "self_attn_cfg"), ffn_cfg, norm_cfg, 3)
        self.cross_attn = construct(QueryAttention, cross_attn_cfg, "cross_attn_cfg")

    def execute(self, queries: jt.Var, memory: jt.Var, *, query_pos: jt.Var, memory_pos: jt.Var,
                mask: jt.Var | None = None) -> jt.Var:
        first, second, third = self.norms
        queries = first(self.self_attn(queries, query_pos=query_pos))
        queries = second(self.cross_attn(queries, memory, query_pos=query_pos, key_pos=memory_pos, mask=mask))
        return third(self.ffn(queries))


class Mask2FormerDecoderLayer(DecoderLayer):
    """`DecoderLayer` with the attention to the memory first."""

    def execute(self, queries: jt.Var, memory: jt.Var, *, query_pos: jt.Var, memory_pos: jt.Var,
                mask: jt.Var | None = None) -> jt.Var:
        first, second, third = self.norms
        queries = first(self.cross_attn(queries, memory, query_pos=query_pos, key_pos=memory_pos, mask=mask))
        queries = second(self.self_attn(queries, query_pos=query_pos))
        return third(self.ffn(queries))


class DetrEncoder(nn.Module):
    """`num_layers` layers, one after the other.

    Args:
        num_layers: >= 1.
        layer_cfg: words of each layer.
        num_cp: no effect here.
    Shape:
        x: (N, L, C), further arguments as the layers take them -> (N, L, C)
    """

    LAYER = EncoderLayer

    def __init__(self, num_layers: int, layer_cfg: Mapping | None = None, num_cp: int = -1):
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"encoder: num_layers is {num_layers}; accepted: 1 and more")
        self.layers = nn.Sequential(*[construct(self.LAYER, layer_cfg, "layer_cfg") for _ in range(num_layers)])
        self.embed_dims = self.layers[0].embed_dims

    def execute(self, x: jt.Var, *more) -> jt.Var:
        for layer in self.layers:
            x = layer(x, *more)
        return x


class DeformableEncoder(DetrEncoder):
    """`DetrEncoder` of `DeformableEncoderLayer`s."""

    LAYER = DeformableEncoderLayer


class DetrDecoder(nn.Module):
    """Layers that move queries, and the norm that stands before every reading of them.

    Args:
        num_layers: >= 1.
        layer_cfg: words of each layer.
        post_norm_cfg: norm before a reading.
        return_intermediate: whether every layer's queries are read, in training.
    Shape:
        arguments as of `DecoderLayer` -> list of (N, Q, C), a reading a layer; in evaluation the last alone
    """

    LAYER = DecoderLayer

    def __init__(self, num_layers: int, layer_cfg: Mapping | None = None, post_norm_cfg: Mapping = _LN,
                 return_intermediate: bool = True):
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"transformer_decoder: num_layers is {num_layers}; accepted: 1 and more")
        self.layers = nn.Sequential(*[construct(self.LAYER, layer_cfg, "layer_cfg") for _ in range(num_layers)])
        self.embed_dims, self.return_intermediate = self.layers[0].embed_dims, return_intermediate
        self.post_norm = build_norm(post_norm_cfg, self.embed_dims, channel_first=False)[1]

    def execute(self, queries: jt.Var, memory: jt.Var, *, query_pos: jt.Var, memory_pos: jt.Var) -> list[jt.Var]:
        read = []
        for i, layer in enumerate(self.layers):
            queries = layer(queries, memory, query_pos=query_pos, memory_pos=memory_pos)
            if i + 1 == len(self.layers) or self.return_intermediate and self.is_training():
                read.append(self.post_norm(queries))
        return read


class Mask2FormerDecoder(DetrDecoder):
    """`DetrDecoder` of `Mask2FormerDecoderLayer`s; the head runs the layers itself,
    because it makes a mask between any two.
    """

    LAYER = Mask2FormerDecoderLayer
