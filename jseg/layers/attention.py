"""Multi-head attention of tokens, over all of them or over a map made smaller first.

Papers: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Wang et al., "Pyramid Vision Transformer", ICCV 2021,
sec. 3.3 (spatial reduction). State keys are those of PyTorch's MultiheadAttention (`in_proj_weight`, `in_proj_bias`,
`out_proj`) and of mmsegmentation 1.2.2's EfficientMultiheadAttention (mmseg/models/backbones/mit.py, Apache-2.0):
`attn`, `sr`, `norm`.

Deviation: `ops.attention` keeps no weights, so that they cannot be dropped (`check_attn_drop`).
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers.conv import Conv2d
from jseg.layers.drop import Dropout
from jseg.layers.init import xavier_uniform, zeros
from jseg.layers.norms import build_norm
from jseg.layers.rotary import Rotary, turn_last
from jseg.layers.tokens import Linear, project_patches, to_map, to_tokens

__all__ = ["MultiheadAttention", "ReducedAttention", "check_attn_drop", "check_heads"]


def check_attn_drop(rate: float) -> None:
    """ConfigError unless the dropout of attention weights is 0: the operator never has them in memory."""
    if rate:
        raise ConfigError(f"attn_drop_rate is {rate}; accepted: 0, since attention weights are never in memory here; "
                          "use drop_rate or drop_path_rate")


def check_heads(channels: int, heads: int) -> None:
    """ConfigError unless `heads` divides `channels`."""
    if heads < 1 or channels % heads:
        raise ConfigError(f"num_heads is {heads}, which does not divide the width {channels}")


class MultiheadAttention(nn.Module):
    """Queries, keys and values by one matrix, attention, and a projection of the result.

    Args:
        channels: C, divided by `heads`.
        heads: number of heads.
        bias: of both projections; "qv": not of the keys.
    Shape:
        x: (N, L, C); source: (N, M, C), x where None; mask: see `ops.attention`, and rotary, of tokens to themselves
        -> (N, L, C)
    """

    def __init__(self, channels: int, heads: int, *, bias: bool | str = True):
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.in_proj_weight = xavier_uniform((3 * channels, channels))
        self.in_proj_bias = zeros((2 if bias == "qv" else 3) * channels) if bias else None
        self.has_key_bias = bias != "qv"
        self.out_proj = Linear(channels, channels, bias=bool(bias))

    def execute(self, x: jt.Var, source: jt.Var | None = None) -> jt.Var:
        return self.out_proj(self.mix(x, source))

    def mix(self, x: jt.Var, source: jt.Var | None = None, mask: jt.Var | None = None,
            rotary: Rotary | None = None) -> jt.Var:
        """What attention gives, before the projection."""
        n, length, c = x.shape
        if source is None:
            qkv = ops.linear(x, self.in_proj_weight, self._input_bias(c)).reshape(n, length, 3, self.heads, -1)
            if rotary is None:
                return ops.attention(qkv, mask=mask).reshape(n, length, c)
            turned = turn_last(qkv[:, :, :2], rotary)
            found = ops.attention(turned[:, :, 0], jt.concat([turned[:, :, 1:], qkv[:, :, 2:]], 2), mask=mask)
            return found.reshape(n, length, c)
        q_weight, kv_weight = self._split_queries(self.in_proj_weight, c)
        q_bias, kv_bias = self._split_queries(self.in_proj_bias, c)
        q = ops.linear(x, q_weight, q_bias).reshape(n, length, self.heads, -1)
        kv = ops.linear(source, kv_weight, kv_bias).reshape(n, source.shape[1], 2, self.heads, -1)
        return ops.attention(q, kv).reshape(n, length, c)

    def _input_bias(self, c: int) -> jt.Var | None:
        bias = self.in_proj_bias
        return bias if self.has_key_bias else jt.concat([bias[:c], jt.zeros_like(bias[:c]), bias[c:]])

    @staticmethod
    def _split_queries(values: jt.Var | None, c: int) -> tuple:
        """The part of the queries, and that of keys and values."""
        return (None, None) if values is None else (values[:c], values[c:])


class ReducedAttention(nn.Module):
    """Attention whose keys and values come from a map `reduction` times smaller in each direction;
    from the tokens themselves at 1.

    Args:
        channels, heads, bias: see `MultiheadAttention`.
        reduction: side of the windows that become one key.
        norm_cfg: norm of the smaller map.
        drop_prob: dropout of the result.
    Shape:
        x, shortcut: (N, H * W, C) with size (H, W); scale: (C,); factor: (N,); mask: (P, L, L) and rotary, at
        reduction 1 -> shortcut + factor * scale * attention(x)
    """

    def __init__(self, channels: int, heads: int, *, reduction: int = 1, bias: bool | str = True,
                 norm_cfg: dict | None = None, drop_prob: float = 0.0):
        super().__init__()
        self.attn = MultiheadAttention(channels, heads, bias=bias)
        self.proj_drop = Dropout(drop_prob)
        self.sr = None
        if reduction > 1:
            self.sr = Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = build_norm(norm_cfg, channels, channel_first=False)[1]

    def execute(self, x: jt.Var, size: tuple[int, int] | None = None, *, mask: jt.Var | None = None,
                rotary: Rotary | None = None, scale: jt.Var | None = None, shortcut: jt.Var | None = None,
                factor: jt.Var | None = None) -> jt.Var:
        mixed = self.attn.mix(x, self._reduced_tokens(x, size), mask, rotary)
        return self.attn.out_proj.close_branch(mixed, self.proj_drop, scale=scale, factor=factor, shortcut=shortcut)

    def on_map(self, x: jt.Var, *, shortcut: jt.Var, factor: jt.Var | None = None) -> jt.Var:
        """The same on maps. Shape: x, shortcut: (N, C, H, W) -> (N, C, H, W)."""
        size, tokens = tuple(x.shape[2:]), to_tokens(x)
        mixed, out = to_map(self.attn.mix(tokens, self._reduced_tokens(tokens, size)), size), self.attn.out_proj
        if self.proj_drop.drop_prob == 0.0 or not self.proj_drop.is_train:
            return ops.pointwise(mixed, out.weight, out.bias, factor=factor, shortcut=shortcut)
        y = self.proj_drop(ops.pointwise(mixed, out.weight, out.bias))
        return shortcut + (y if factor is None else y * factor.reshape(-1, 1, 1, 1))

    def _reduced_tokens(self, x: jt.Var, size: tuple[int, int] | None) -> jt.Var | None:
        """Tokens of the smaller map, or None for the tokens themselves."""
        if self.sr is None:
            return None
        return self.norm(project_patches(x.reshape(x.shape[0], *size, x.shape[2]), self.sr))
