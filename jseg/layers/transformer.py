"""The block of vision transformers.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
sec. 3.1; Touvron et al., "Going deeper with Image Transformers", ICCV 2021, sec. 2 (layer scale). State keys follow
mmsegmentation 1.2.2 (mmseg/models/backbones/vit.py, Apache-2.0, and its beit.py for the scales); stochastic depth drops
the feed-forward branch only, as there; with layer scale both branches, as BEiT and DINOv2 do.
"""

from __future__ import annotations

import jittor as jt
from jittor import nn

from jseg.layers.attention import ReducedAttention
from jseg.layers.drop import DropPath
from jseg.layers.feed_forward import FFN
from jseg.layers.init import constant
from jseg.layers.norms import build_norm
from jseg.layers.rotary import Rotary

__all__ = ["TransformerEncoderLayer"]


class TransformerEncoderLayer(nn.Module):
    """Normalised attention and normalised feed-forward block, each with its shortcut.
    Keys: `ln1`, `attn`, `ln2`, `ffn`, and `gamma_1`, `gamma_2` of layer scale.

    Args:
        channels, heads, hidden_channels: C, number of heads, width inside the feed-forward block.
        drop_prob, drop_path_prob: dropout of both branches; probability of dropping the feed-forward branch in
            training, and with `init_values` either branch.
        num_fcs, qkv_bias, act_cfg: linear layers of the feed-forward block, biases in the attention's projections,
            activation.
        norm_cfg: of both norms.
        init_values: first value of the scales of both branches, one for each channel; None for no scales.
    Shape:
        x: (N, L, C); mask: (P, L, L), see `ops.attention`; rotary: places of the last tokens -> same as x
    """

    def __init__(self, channels: int, heads: int, hidden_channels: int, *, drop_prob: float = 0.0,
                 drop_path_prob: float = 0.0, num_fcs: int = 2, qkv_bias: bool | str = True, act_cfg: dict,
                 norm_cfg: dict, init_values: float | None = None):
        super().__init__()
        self.ln1 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.attn = ReducedAttention(channels, heads, bias=qkv_bias, drop_prob=drop_prob)
        self.ln2 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.ffn = FFN(channels, hidden_channels, num_fcs=num_fcs, act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)
        self.gamma_1, self.gamma_2 = (None if init_values is None else constant(channels, init_values)
                                      for _ in range(2))

    def execute(self, x: jt.Var, mask: jt.Var | None = None, *, rotary: Rotary | None = None) -> jt.Var:
        factor = None if self.gamma_1 is None else self.drop_path.factor(x.shape[0])
        x = self.attn(self.ln1(x), mask=mask, rotary=rotary, scale=self.gamma_1, shortcut=x, factor=factor)
        return self.ffn(self.ln2(x), scale=self.gamma_2, shortcut=x, factor=self.drop_path.factor(x.shape[0]))
