"""Attention of the positions of one map to those of another, with 1x1 projections.

Paper: Wang et al., "Non-local Neural Networks", CVPR 2018 (the form); Vaswani et al., NeurIPS 2017 (scaling).
State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/self_attention_block.py, Apache-2.0): `key_project`,
`query_project`, `value_project`, `out_project`, numbered where one has several convolutions.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.conv import ConvNormAct

__all__ = ["SelfAttentionBlock"]


class SelfAttentionBlock(nn.Module):
    """softmax(query key^T / sqrt(channels)) value, projected.

    Args:
        in_channels: width of both maps.
        channels: width of queries, keys and values.
        out_channels: width of the result.
        key_query_num_convs, value_out_num_convs: 1x1 blocks of each projection.
        blocks: norm_cfg and act_cfg of every 1x1 block.
    Shape:
        query: (N, in_channels, H, W); key: (N, in_channels, h, w) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, key_query_num_convs: int = 1,
                 value_out_num_convs: int = 1, blocks: dict):
        super().__init__()
        self.key_project = _projection(in_channels, channels, key_query_num_convs, blocks)
        self.query_project = _projection(in_channels, channels, key_query_num_convs, blocks)
        self.value_project = _projection(in_channels, channels, value_out_num_convs, blocks)
        self.out_project = _projection(channels, out_channels, value_out_num_convs, blocks)

    def execute(self, query: jt.Var, key: jt.Var) -> jt.Var:
        n, _, h, w = query.shape
        found = ops.attention(_tokens(self.query_project(query)), _tokens(self.key_project(key)),
                              _tokens(self.value_project(key)))
        return self.out_project(found.reshape(n, h * w, -1).transpose(0, 2, 1).reshape(n, -1, h, w))


def _projection(in_channels: int, channels: int, count: int, blocks: dict) -> nn.Module:
    """One 1x1 block, or several in a row."""
    parts = [ConvNormAct(in_channels if i == 0 else channels, channels, 1, **blocks) for i in range(count)]
    return parts[0] if count == 1 else nn.Sequential(*parts)


def _tokens(x: jt.Var) -> jt.Var:
    """(N, C, H, W) -> (N, H * W, 1, C)."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h * w).transpose(0, 2, 1).reshape(n, h * w, 1, c)
