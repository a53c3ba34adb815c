"""PCPVT (Twins-PCPVT): a pyramid of transformers with attention over fewer keys and positions from a convolution.

Papers: Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, sec. 3.1;
Chu et al., "Conditional Positional Encodings for Vision Transformers", ICLR 2023.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/twins.py (Apache-2.0), whose words, keys and arithmetic these are,
down to its two draws of stochastic depth a branch.

Deviation: `attn_drop_rate` is 0 (see layers.attention).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import (FFN, Conv2d, Dropout, DropPath, PatchEmbed, ReducedAttention, build_norm, check_attn_drop,
                         to_map, to_tokens)
from jseg.registry import MODELS

__all__ = ["PCPVT", "TwinsLayer"]


class TwinsLayer(nn.Module):
    """Normalised attention and normalised feed-forward block, each with its shortcut.

    Args:
        attention: module that takes tokens, their map's size, `shortcut` and `factor`.
        channels, hidden_channels: C, width inside the feed-forward block.
        drop_prob, drop_path_prob: dropout in the feed-forward block; probability of each draw that drops a branch in
            training.
        attention_draws: draws for the attention's branch; the other has two.
    Shape:
        x: (N, H * W, C) and (H, W) -> (N, H * W, C)
    """

    def __init__(self, attention: nn.Module, channels: int, hidden_channels: int, *, drop_prob: float,
                 drop_path_prob: float, attention_draws: int):
        super().__init__()
        norm_cfg = {"type": "LN"}  # whatever the backbone's norm is
        self.norm1 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.attn = attention
        self.norm2 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.ffn = FFN(channels, hidden_channels, act_cfg={"type": "GELU"}, drop_prob=drop_prob)
        self.drop_path, self.attention_draws = DropPath(drop_path_prob), attention_draws

    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        x = self.attn(self.norm1(x), size, shortcut=x, factor=self._factor(x.shape[0], self.attention_draws))
        return self.ffn(self.norm2(x), shortcut=x, factor=self._factor(x.shape[0], 2))

    def _factor(self, n: int, draws: int) -> jt.Var | None:
        """The product of so many draws of stochastic depth for each picture."""
        factor = self.drop_path.factor(n)
        return factor if factor is None or draws == 1 else factor * self.drop_path.factor(n)


class PositionEncoding(nn.Module):
    """A 3x3 depthwise convolution of the tokens' map, added to them. Shape:
    (N, H * W, C) and (H, W) -> (N, H * W, C).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.proj = Conv2d(channels, channels, 3, padding=1, groups=channels)

    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        x = to_map(x, size)
        return to_tokens(self.proj.run(x, self.proj.weight, self.proj.bias, shortcut=x))


@MODELS.register()
class PCPVT(nn.Module):
    """Twins-PCPVT, stages at strides 4, 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        embed_dims, num_heads, mlp_ratios, depths, sr_ratios: width, heads, width of the feed-forward blocks over it,
            blocks, and reduction of the keys, one value per stage.
        patch_sizes, strides: side of each stage's patches, twice the same.
        out_indices: stages whose maps are given.
        qkv_bias: biases in the attention's projections.
        drop_rate: dropout after the patches and in both branches, in [0, 1).
        attn_drop_rate: 0.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        norm_cfg: norm of patches and stages.
        norm_after_stage: a norm after each stage.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
            index
    Raises:
        ConfigError: too few values for the stages, patches that are not their stride, or dropout of attention weights.
    """

    TINY = MappingProxyType({"type": "PCPVT", "embed_dims": [8, 16, 16, 32], "num_heads": [1, 2, 2, 4],
                             "mlp_ratios": [2, 2, 2, 2], "depths": [2, 1, 1, 1], "sr_ratios": [4, 2, 2, 1]})

    def __init__(self, in_channels: int = 3, embed_dims: Sequence[int] = (64, 128, 256, 512),
                 patch_sizes: Sequence[int] = (4, 2, 2, 2), strides: Sequence[int] = (4, 2, 2, 2),
                 num_heads: Sequence[int] = (1, 2, 4, 8), mlp_ratios: Sequence[int] = (4, 4, 4, 4),
                 out_indices: Sequence[int] = (0, 1, 2, 3), qkv_bias: bool = False, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 norm_cfg: dict = MappingProxyType({"type": "LN"}), depths: Sequence[int] = (3, 4, 6, 3),
                 sr_ratios: Sequence[int] = (8, 4, 2, 1), norm_after_stage: bool = False):
        super().__init__()
        count, lists = len(depths), (embed_dims, patch_sizes, strides, num_heads, mlp_ratios, sr_ratios)
        if min(map(len, lists)) < count or list(patch_sizes[:count]) != list(strides[:count]):
            raise ConfigError(f"{count} stages (depths {list(depths)}): embed_dims, num_heads, mlp_ratios, sr_ratios, "
                              "patch_sizes and strides need a value for each, and patch_sizes and strides are the same")
        check_attn_drop(attn_drop_rate)
        self.out_indices = tuple(i for i in out_indices if i < count)
        widths, rates, stages = [in_channels, *embed_dims], np.linspace(0.0, drop_path_rate, sum(depths)).tolist(), []
        for k in range(count):
            words = {"mlp_ratio": mlp_ratios[k], "qkv_bias": qkv_bias, "drop_prob": drop_rate,
                     "reduction": sr_ratios[k]}
            stages.append(nn.Sequential(*[self._block(k, i, embed_dims[k], num_heads[k],
                                                      drop_path_prob=rates[sum(depths[:k]) + i], **words)
                                          for i in range(depths[k])]))
        self.patch_embeds = nn.Sequential(*[PatchEmbed(widths[k], widths[k + 1], strides[k], norm_cfg=norm_cfg)
                                            for k in range(count)])
        self.position_encoding_drops = nn.Sequential(*[Dropout(drop_rate) for _ in range(count)])
        self.layers = nn.Sequential(*stages)
        self.position_encodings = nn.Sequential(*[PositionEncoding(width) for width in embed_dims])
        self.norm_list = None
        if norm_after_stage:
            self.norm_list = nn.Sequential(*[build_norm(norm_cfg, width, channel_first=False)[1]
                                             for width in embed_dims])
        reductions = np.cumprod(strides).tolist()
        self.out_channels = [embed_dims[i] for i in self.out_indices]
        self.strides = [reductions[i] for i in self.out_indices]

    def _block(self, stage: int, index: int, channels: int, heads: int, *, mlp_ratio: int, qkv_bias: bool,
               reduction: int, drop_prob: float, drop_path_prob: float) -> nn.Module:
        """Block `index` of a stage."""
        attention = ReducedAttention(channels, heads, reduction=reduction, bias=qkv_bias, norm_cfg={"type": "LN"},
                                     drop_prob=drop_prob)
        return TwinsLayer(attention, channels, mlp_ratio * channels, drop_prob=drop_prob, drop_path_prob=drop_path_prob,
                          attention_draws=2)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        features, x = [], x.transpose(0, 2, 3, 1)  # (N, H, W, C)
        for i, (embed, drop, blocks) in enumerate(zip(self.patch_embeds, self.position_encoding_drops, self.layers)):
            x, size = embed(x)
            x = drop(x)
            for j, block in enumerate(blocks):
                x = block(x, size)
                x = self.position_encodings[i](x, size) if j == 0 else x
            x = x if self.norm_list is None else self.norm_list[i](x)
            if i in self.out_indices:
                features.append(to_map(x, size))
            x = x.reshape(x.shape[0], *size, x.shape[2])
        return features
