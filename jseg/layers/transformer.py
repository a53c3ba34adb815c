"""The block of vision transformers.

Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021, sec.
3.1. State keys follow mmsegmentation 1.2.2 (mmseg/models/backbones/vit.py, Apache-2.0); stochastic depth drops the
feed-forward branch only, as there.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.attention import ReducedAttention
from jseg.layers.drop import DropPath
from jseg.layers.feed_forward import FFN
from jseg.layers.norms import build_norm

__all__ = ["TransformerEncoderLayer"]


class TransformerEncoderLayer(nn.Module):
    """Normalised attention and normalised feed-forward block, each with its shortcut.
    Keys: `ln1`, `attn`, `ln2`, `ffn`.

    Args:
        channels, heads, hidden_channels: C, number of heads, width inside the feed-forward block.
        drop_prob, drop_path_prob: dropout of both branches; probability of dropping the feed-forward branch in
            training.
        num_fcs, qkv_bias, act_cfg: linear layers of the feed-forward block, biases in the attention's projections,
            activation.
        norm_cfg: of both norms.
    Shape:
        x: (N, L, C) -> same
    """

    def __init__(self, channels: int, heads: int, hidden_channels: int, *, drop_prob: float = 0.0,
                 drop_path_prob: float = 0.0, num_fcs: int = 2, qkv_bias: bool = True, act_cfg: dict, norm_cfg: dict):
        super().__init__()
        self.ln1 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.attn = ReducedAttention(channels, heads, bias=qkv_bias, drop_prob=drop_prob)
        self.ln2 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.ffn = FFN(channels, hidden_channels, num_fcs=num_fcs, act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var) -> jt.Var:
        x = self.attn(self.ln1(x), shortcut=x)
        return self.ffn(self.ln2(x), shortcut=x, factor=self.drop_path.factor(x.shape[0]))
