"""Multi-scale deformable attention: every query looks at a few points of each map, which it chooses itself.

Paper: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, sec. 4.1.
Upstream: MMCV 2.x mmcv/ops/multi_scale_deform_attn.py (Apache-2.0), whose words, keys, arithmetic and initial values
these are.

Deviations: queries are the cells of the maps themselves, as in every encoder (no reference boxes); axes are always (N,
L, C).
"""

from __future__ import annotations

import functools
import math
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.attention import check_heads
from jseg.layers.drop import Dropout
from jseg.layers.init import xavier_uniform
from jseg.layers.tokens import Linear

__all__ = ["MultiScaleDeformableAttention"]


class MultiScaleDeformableAttention(nn.Module):
    """x + dropout(projection(sum over points of weight * value at the point)).

    Args:
        embed_dims: C, divided by `num_heads`.
        num_heads, num_levels, num_points: heads, maps, and points of each map that a query looks at with each head.
        im2col_step: no effect here.
        dropout: of the result.
        batch_first: only True.
        norm_cfg: no effect, as upstream.
        value_proj_ratio: width of the values as a share of C.
    Shape:
        x: the cells of all maps, (N, L, C); positions: (1, L, C); sizes: (H, W) of each map, sum of H * W is L -> (N,
            L, C)
    Raises:
        ConfigError: heads that do not divide a width, or `batch_first` false.
        ValueError: another number of maps than `num_levels`.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4,
                 im2col_step: int = 64, dropout: float = 0.1, batch_first: bool = True, norm_cfg: dict | None = None,
                 value_proj_ratio: float = 1.0):
        super().__init__()
        width = int(embed_dims * value_proj_ratio)
        check_heads(embed_dims, num_heads)
        check_heads(width, num_heads)
        if not batch_first:
            raise ConfigError("self_attn_cfg: batch_first is false; accepted: true, axes are always (picture, token, "
                              "channel)")
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(embed_dims, 2 * points)
        self.attention_weights = Linear(embed_dims, points)
        self.value_proj = Linear(embed_dims, width)
        self.output_proj = Linear(width, embed_dims)
        self.dropout = Dropout(dropout)
        self.set_initial_values()

    def set_initial_values(self) -> None:
        """Initial values: each head looks in a direction of its own,
        point k at a distance of k cells, with equal weights.
        """
        for linear in (self.sampling_offsets, self.attention_weights):
            linear.weight.assign(linear.weight * 0)
        for linear in (self.value_proj, self.output_proj):
            linear.weight.assign(xavier_uniform(tuple(linear.weight.shape)))
        angle = np.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        way = np.stack([np.cos(angle), np.sin(angle)], 1)
        way = way / np.abs(way).max(1, keepdims=True)  # (G, 2)
        steps = np.arange(1, self.num_points + 1)
        offsets = np.broadcast_to(way[:, None, None] * steps[:, None],
                                  (self.num_heads, self.num_levels, self.num_points, 2))
        self.sampling_offsets.bias.assign(jt.array(offsets.reshape(-1).astype(np.float32)))

    def execute(self, x: jt.Var, positions: jt.Var, sizes: Sequence[tuple[int, int]]) -> jt.Var:
        if len(sizes) != self.num_levels:
            raise ValueError(f"deformable attention: got {len(sizes)} maps, num_levels is {self.num_levels}")
        n, length, _ = x.shape
        shape = n, length, self.num_heads, self.num_levels, self.num_points
        query, value = x + positions, self.value_proj(x)
        weights = nn.softmax(self.attention_weights(query).reshape(*shape[:3], -1), dim=3).reshape(shape)
        reference, cell = (jt.array(a) for a in _cell_centres(tuple(sizes)))
        points = reference + self.sampling_offsets(query).reshape(*shape, 2) * cell
        y = ops.deformable_attention(value.reshape(n, length, self.num_heads, -1), points, weights, sizes=sizes)
        return self.output_proj.close_branch(y.reshape(n, length, -1), self.dropout, shortcut=x)


@functools.lru_cache(maxsize=32)
def _cell_centres(sizes: tuple[tuple[int, int], ...]) -> tuple[np.ndarray, np.ndarray]:
    """Centres of all cells, (1, L, 1, 1, 1, 2), and one cell of each map,
    (1, 1, 1, maps, 1, 2), as (x, y) shares of the map.
    """
    centres = [np.stack(np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h), 2).reshape(-1, 2)
               for h, w in sizes]
    cells = np.array([(1.0 / w, 1.0 / h) for h, w in sizes])
    return (np.concatenate(centres).reshape(1, -1, 1, 1, 1, 2).astype(np.float32),
            cells.reshape(1, 1, 1, -1, 1, 2).astype(np.float32))
