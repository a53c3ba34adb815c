"""Attention of the positions of one map to those of another, with 1x1 projections.

Paper: Wang et al., "Non-local Neural Networks", CVPR 2018 (the form); Vaswani et al., NeurIPS 2017 (scaling).
State keys follow mmsegmentation 1.2.2 (mmseg/models/utils/self_attention_block.py, Apache-2.0): `key_project`,
`query_project`, `value_project`, `out_project`, numbered where one has several convolutions.

Deviation: where queries and keys share a projection, it is there once, as `key_project`.
"""

from __future__ import annotations

from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.conv import Conv2d, ConvNormAct
from jseg.layers.init import zeros
from jseg.layers.pool import adaptive_avg_pool
from jseg.layers.tokens import to_map, to_tokens

__all__ = ["SelfAttentionBlock"]


class SelfAttentionBlock(nn.Module):
    """softmax(query key^T / sqrt(channels)) value, projected.

    Args:
        in_channels: width of the map that gives keys and values.
        channels: width of queries and keys, and of values where they are projected at the end.
        out_channels: width of the result.
        query_in_channels: width of the map that gives queries; None for `in_channels`.
        share_key_query: one projection for both.
        key_query_num_convs, value_out_num_convs: convolutions of each projection.
        key_query_norm, value_out_norm: blocks with norm and activation, or plain convolutions; a plain
            `out_project` starts at 0.
        matmul_norm: divide the scores by sqrt(channels).
        with_out: project the result; without, values have `out_channels`.
        key_pool_scales: sides of the grids whose means are keys and values; none: every position is.
        blocks: norm_cfg and act_cfg of the blocks.
    Shape:
        query: (N, query_in_channels, H, W); key: (N, in_channels, h, w) -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, *, query_in_channels: int | None = None,
                 share_key_query: bool = False, key_query_num_convs: int = 1, value_out_num_convs: int = 1,
                 key_query_norm: bool = True, value_out_norm: bool = True, matmul_norm: bool = True,
                 with_out: bool = True, key_pool_scales: Sequence[int] = (), blocks: dict | None = None):
        super().__init__()
        key_blocks, value_blocks = blocks if key_query_norm else None, blocks if value_out_norm else None
        self.key_project = _projection(in_channels, channels, key_query_num_convs, key_blocks)
        self.query_project = None
        self.upstream_copies = {"key_project": "query_project"} if share_key_query else {}  # its second name there
        if not share_key_query:
            self.query_project = _projection(query_in_channels or in_channels, channels, key_query_num_convs,
                                             key_blocks)
        self.value_project = _projection(in_channels, channels if with_out else out_channels, value_out_num_convs,
                                         value_blocks)
        self.out_project = _projection(channels, out_channels, value_out_num_convs, value_blocks) if with_out else None
        if isinstance(self.out_project, Conv2d):
            self.out_project.weight = zeros(self.out_project.weight.shape)
        self.is_train = True
        self.scale, self.key_pool_scales = channels ** -0.5 if matmul_norm else 1.0, tuple(key_pool_scales)

    def execute(self, query: jt.Var, key: jt.Var) -> jt.Var:
        keys, values = self.key_project(key), self.value_project(key)
        same = self.query_project is None and query is key and not self.is_train  # else norms see both
        queries = keys if same else (self.query_project or self.key_project)(query)
        tokens = to_tokens(queries), self._grid_tokens(keys), self._grid_tokens(values)
        found = ops.attention(*[x.unsqueeze(2) for x in tokens], scale=self.scale)  # (N, H * W, 1, channels)
        context = to_map(found.squeeze(2), tuple(query.shape[2:]))
        return context if self.out_project is None else self.out_project(context)

    def _grid_tokens(self, x: jt.Var) -> jt.Var:
        """(N, C, h, w) -> tokens (N, S, C): of every position, or the means of every grid."""
        if not self.key_pool_scales:
            return to_tokens(x)
        return jt.concat([to_tokens(adaptive_avg_pool(x, side)) for side in self.key_pool_scales], 1)


def _projection(in_channels: int, channels: int, count: int, blocks: dict | None) -> nn.Module:
    """One 1x1 block, or several in a row; plain convolutions without `blocks`."""
    def made(width):
        return Conv2d(width, channels, 1) if blocks is None else ConvNormAct(width, channels, 1, **blocks)

    parts = [made(in_channels if i == 0 else channels) for i in range(count)]
    return parts[0] if count == 1 else nn.Sequential(*parts)
