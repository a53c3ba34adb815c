"""Attention of queries to keys, each with a position of its own, and its residual connection.

Paper: Carion et al., "End-to-End Object Detection with Transformers" (DETR), ECCV 2020, sec. A.3: positions are added
to queries and keys in every layer, not to values. Upstream: MMCV 2.x mmcv/cnn/bricks/transformer.py
`MultiheadAttention` (Apache-2.0), whose words and keys (`attn.in_proj_weight`, `attn.in_proj_bias`, `attn.out_proj`)
these are.

Deviations: axes are always (N, L, C), `batch_first: true`; `dropout_layer` is Dropout or null.
"""

from __future__ import annotations

from typing import Mapping

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.attention import MultiheadAttention
from jseg.layers.drop import Dropout

__all__ = ["QueryAttention", "residual_dropout"]


def residual_dropout(proj_drop: float, dropout_layer: Mapping | None, where: str) -> float:
    """One probability for two dropouts in a row, which MMCV's blocks put before they add.

    Raises:
        ConfigError: `dropout_layer` is neither null nor Dropout.
    """
    if dropout_layer is not None and dropout_layer.get("type") != "Dropout":
        raise ConfigError(f"{where}: dropout_layer is {dict(dropout_layer)}; accepted: null, or type Dropout with "
                          "drop_prob")
    second = 0.0 if dropout_layer is None else float(dropout_layer.get("drop_prob", 0.5))
    return 1.0 - (1.0 - proj_drop) * (1.0 - second)


class QueryAttention(nn.Module):
    """query + dropout(projection(attention(query + query_pos, key + key_pos, value))).

    Args:
        embed_dims: C, divided by `num_heads`.
        num_heads: number of heads.
        attn_drop: dropout of the attention weights in training, which then stand in memory.
        proj_drop, dropout_layer: dropout of the projection's result.
        dropout: older word for `attn_drop` and `dropout_layer` together.
        batch_first: only True.
    Shape:
        query, query_pos: (N, L, C); key, value, key_pos: (N, M, C), positions also (1, ., C) -> (N, L, C);
        mask: (N, L, M), 0 where a query may look and -inf where not
    Raises:
        ConfigError: heads that do not divide the width, or a word that is not supported.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, attn_drop: float = 0.0, proj_drop: float = 0.0,
                 dropout_layer: Mapping | None = None, dropout: float | None = None, batch_first: bool = True):
        super().__init__()
        if not batch_first:
            raise ConfigError("attention: batch_first is false; accepted: true, axes are always (picture, token, "
                              "channel)")
        if dropout is not None:
            attn_drop, dropout_layer = dropout, {"type": "Dropout", "drop_prob": dropout}
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.attn = MultiheadAttention(embed_dims, num_heads)
        self.attn_drop = Dropout(attn_drop)
        self.proj_drop = Dropout(residual_dropout(proj_drop, dropout_layer, "attention"))

    def execute(self, query: jt.Var, key: jt.Var | None = None, *, query_pos: jt.Var | None = None,
                key_pos: jt.Var | None = None, mask: jt.Var | None = None) -> jt.Var:
        """Keys and values are `key`, or the queries themselves; then `key_pos` is `query_pos` too."""
        value, key_pos = (query, query_pos) if key is None else (key, key_pos)
        sources = (_with_positions(query, query_pos), _with_positions(value, key_pos), value)
        width, weight, bias = self.embed_dims, self.attn.in_proj_weight, self.attn.in_proj_bias
        q, k, v = (ops.linear(x, weight[i * width:(i + 1) * width], bias[i * width:(i + 1) * width])
                   .reshape(x.shape[0], x.shape[1], self.num_heads, -1) for i, x in enumerate(sources))
        drops = self.attn_drop.is_train and self.attn_drop.drop_prob > 0
        y = self._attend_dropping(q, k, v, mask) if drops else ops.attention(q, k, v, mask=mask)
        return self.attn.out_proj.close_branch(y.reshape(query.shape), self.proj_drop, shortcut=query)

    def _attend_dropping(self, q: jt.Var, k: jt.Var, v: jt.Var, mask: jt.Var | None) -> jt.Var:
        """Attention with some of its weights set to 0, (N, L, G, D)."""
        n, length, heads, width = q.shape
        q, k, v = (x.transpose(0, 2, 1, 3).reshape(n * heads, -1, width) for x in (q, k, v))
        scores = nn.bmm_transpose(q * width**-0.5, k).reshape(n, heads, length, -1)
        scores = scores if mask is None else scores + mask.unsqueeze(1)
        weights = self.attn_drop(nn.softmax(scores, dim=3))
        return nn.bmm(weights.reshape(n * heads, length, -1), v).reshape(n, heads, length, width).transpose(0, 2, 1, 3)


def _with_positions(x: jt.Var, positions: jt.Var | None) -> jt.Var:
    return x if positions is None else x + positions
