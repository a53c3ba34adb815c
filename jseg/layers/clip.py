"""The block of CLIP's transformers, of pictures and of texts.

Paper: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021.
State keys follow MMCV 2.x's BaseTransformerLayer (mmcv/cnn/bricks/transformer.py, Apache-2.0): `attentions.0.attn`,
`ffns.0`, `norms.0` and `norms.1`.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers.attention import MultiheadAttention
from jseg.layers.feed_forward import FFN
from jseg.layers.norms import build_norm

__all__ = ["CLIPLayer"]


class _Attention(nn.Module):
    """MMCV's wrapper of an attention, which has the name `attn` inside."""

    def __init__(self, channels: int, heads: int, bias: bool):
        super().__init__()
        self.attn = MultiheadAttention(channels, heads, bias=bias)


class CLIPLayer(nn.Module):
    """Normalised attention and normalised feed-forward block, each with its shortcut.

    Args:
        channels, heads, hidden_channels: C, number of heads, width inside the feed-forward block.
        qkv_bias: biases in the attention's projections.
        act_cfg, norm_cfg: activation of the feed-forward block, norm of both.
    Shape:
        x: (N, L, C); mask: (1, L, L), 0 where a token may look and -inf where not -> (N, L, C)
    """

    def __init__(self, channels: int, heads: int, hidden_channels: int, *, qkv_bias: bool = True, act_cfg: dict,
                 norm_cfg: dict):
        super().__init__()
        self.heads = heads
        self.attentions = nn.Sequential(_Attention(channels, heads, qkv_bias))
        self.ffns = nn.Sequential(FFN(channels, hidden_channels, act_cfg=dict(act_cfg)))
        self.norms = nn.Sequential(*[build_norm(norm_cfg, channels, channel_first=False)[1] for _ in range(2)])

    def execute(self, x: jt.Var, mask: jt.Var | None = None) -> jt.Var:
        return self.close(x, ops.attention(self.project(x), mask=mask))

    def project(self, x: jt.Var) -> jt.Var:
        """Queries, keys and values of tokens: (N, L, C) -> (N, L, 3, heads, C / heads)."""
        attn = self.attentions[0].attn
        qkv = ops.linear(self.norms[0](x), attn.in_proj_weight, attn.in_proj_bias)
        return qkv.reshape(*x.shape[:2], 3, self.heads, -1)

    def close(self, x: jt.Var, mixed: jt.Var) -> jt.Var:
        """What follows the attention, whose values are `mixed`: (N, L, C), (N, L, heads, C / heads) -> (N, L, C)."""
        out = self.attentions[0].attn.out_proj
        x = ops.linear(mixed.reshape(x.shape), out.weight, out.bias, shortcut=x)
        return self.ffns[0](self.norms[1](x), shortcut=x)
