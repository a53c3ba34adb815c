"""BEiT: a vision transformer whose blocks learn the positions of tokens relative to each other, with layer scale.

Paper: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/beit.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations:
- pictures of other sizes than `img_size` are taken: tokens farther apart than the table reaches have the bias of its
  edge. Upstream takes `img_size` alone;
- `attn_drop_rate` is 0 (see layers.attention).
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import (FFN, Dropout, DropPath, Linear, PatchEmbed, build_norm, check_attn_drop,
                         check_heads, pair, to_map)
from jseg.layers.init import constant, trunc_normal, zeros
from jseg.layers.windows import relative_bias
from jseg.models.backbones.vision_transformer import chosen_blocks
from jseg.registry import MODELS

__all__ = ["BEiT", "BEiTLayer", "depth_in_order", "token_index"]


def depth_in_order(key: str, decay_type: str) -> int | None:
    """0 for tokens, positions and patches of a vision transformer, i + 1 for block i, None for the last norm.

    Raises:
        ConfigError: stage-wise decay; there are no stages.
    """
    if decay_type != "layer_wise":
        raise ConfigError(f"paramwise_cfg.decay_type: {decay_type}; a network without stages takes layer_wise")
    first, _, rest = key.partition(".")
    if first in ("cls_token", "register_tokens", "pos_embed", "patch_embed"):
        return 0
    return int(rest.partition(".")[0]) + 1 if first == "layers" else None


@functools.lru_cache(maxsize=8)
def token_index(size: tuple[int, int], window: tuple[int, int]) -> np.ndarray:
    """Row in the table of relative positions for each pair of tokens, the class token first.

    The table has a row for each offset within a grid of `window`, then one each for class to token, token to class,
    class to itself.

    Args:
        size: (h, w) of the grid of tokens.
        window: (h, w) of the grid the table is for.
    Returns:
        (h * w + 1, h * w + 1) int32.
    """
    (h, w), (rows, columns) = size, window
    down, right = (np.clip(np.arange(n)[:, None] - np.arange(n)[None, :], 1 - most, most - 1) + most - 1
                   for n, most in ((h, rows), (w, columns)))
    offsets = (2 * rows - 1) * (2 * columns - 1)
    index = np.empty((h * w + 1, h * w + 1), np.int32)
    index[1:, 1:] = (down[:, None, :, None] * (2 * columns - 1) + right[None, :, None, :]).reshape(h * w, h * w)
    index[0], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


class BEiTAttention(nn.Module):
    """Attention with a bias for each relative position.

    Args:
        channels, heads: C and number of heads.
        window: (h, w) of the grid the table is for.
        bias: "qv_bias" (queries and values), True (keys too) or False.
    Shape:
        x, shortcut: (N, L, C); index: (L, L), None for the whole window; scale: (C,); factor: (N,)
        -> shortcut + factor * scale * attention(x)
    """

    BUFFERS = ("relative_position_index",)

    def __init__(self, channels: int, heads: int, window: tuple[int, int], *, bias: bool | str):
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.has_qv_bias = heads, bias == "qv_bias"
        if self.has_qv_bias:
            self.q_bias, self.v_bias = zeros(channels), zeros(channels)
        self.relative_position_bias_table = trunc_normal(((2 * window[0] - 1) * (2 * window[1] - 1) + 3, heads))
        self.relative_position_index = jt.array(token_index(window, window).astype(np.float32)).stop_grad()
        self.qkv = Linear(channels, 3 * channels, bias=bias is True)
        self.proj = Linear(channels, channels)
        self.proj_drop = Dropout(0.0)

    def execute(self, x: jt.Var, index: jt.Var | None, *, scale: jt.Var, shortcut: jt.Var,
                factor: jt.Var | None) -> jt.Var:
        n, length, c = x.shape
        bias = jt.concat([self.q_bias, jt.zeros_like(self.q_bias), self.v_bias]) if self.has_qv_bias else self.qkv.bias
        qkv = ops.linear(x, self.qkv.weight, bias).reshape(n, length, 3, self.heads, c // self.heads)
        positions = relative_bias(self.relative_position_bias_table, self.relative_position_index
                                  if index is None else index)
        mixed = ops.attention(qkv, bias=positions).reshape(n, length, c)
        return self.proj.close_branch(mixed, self.proj_drop, scale=scale, factor=factor, shortcut=shortcut)


class BEiTLayer(nn.Module):
    """Normalised attention and normalised feed-forward block, each scaled per channel and with its shortcut.

    Args:
        channels, heads, hidden_channels: C, number of heads, width inside the feed-forward block.
        window, bias: see `BEiTAttention`.
        init_values: first value of both scales.
        others: as in `BEiT`.
    Shape:
        x: (N, L, C) -> same
    """

    def __init__(self, channels: int, heads: int, hidden_channels: int, *, window: tuple[int, int], bias: bool | str,
                 init_values: float, drop_path_prob: float, num_fcs: int, act_cfg: dict, norm_cfg: dict):
        super().__init__()
        self.ln1 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.attn = BEiTAttention(channels, heads, window, bias=bias)
        self.ln2 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.ffn = FFN(channels, hidden_channels, num_fcs=num_fcs, act_cfg=act_cfg)
        self.gamma_1, self.gamma_2 = constant(channels, init_values), constant(channels, init_values)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var, index: jt.Var | None) -> jt.Var:
        x = self.attn(self.ln1(x), index, scale=self.gamma_1, shortcut=x, factor=self.drop_path.factor(x.shape[0]))
        return self.ffn(self.ln2(x), scale=self.gamma_2, shortcut=x, factor=self.drop_path.factor(x.shape[0]))


@MODELS.register()
class BEiT(nn.Module):
    """BEiT's vision transformer.

    Args:
        img_size: side of the pictures that the tables of relative positions are for, in pixels, or (vertical,
            horizontal).
        patch_size: side of the patches in pixels.
        in_channels, embed_dims: channels of the picture, width of the tokens.
        num_layers, num_heads, mlp_ratio: blocks, heads, width of the feed-forward blocks over `embed_dims`.
        out_indices: blocks whose tokens are given; -1 for the last.
        qv_bias: biases of queries and values.
        attn_drop_rate: 0.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        norm_cfg, act_cfg: norms, and activation of the feed-forward blocks.
        patch_norm, final_norm: norm after the patches, and after the last block.
        num_fcs: linear layers of a feed-forward block.
        init_values: first value of the layer scales.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, embed_dims, H // patch_size, W // patch_size), a map per index
    Raises:
        ConfigError: an index that is no block, or dropout of attention weights.
    """

    QKV_BIAS: bool | str = "qv_bias"  # what `qv_bias` true means
    TINY = MappingProxyType({"type": "BEiT", "img_size": 48, "patch_size": 16, "embed_dims": 16, "num_layers": 3,
                             "num_heads": 2, "mlp_ratio": 2, "out_indices": [0, 2], "final_norm": True})

    def __init__(self, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_channels: int = 3,
                 embed_dims: int = 768, num_layers: int = 12, num_heads: int = 12, mlp_ratio: int = 4,
                 out_indices: int | Sequence[int] = -1, qv_bias: bool = True, attn_drop_rate: float = 0.0,
                 drop_path_rate: float = 0.0, norm_cfg: dict = MappingProxyType({"type": "LN"}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), patch_norm: bool = False, final_norm: bool = False,
                 num_fcs: int = 2, init_values: float = 0.1):
        super().__init__()
        check_attn_drop(attn_drop_rate)
        self.out_indices, self.final_norm = chosen_blocks(out_indices, num_layers), final_norm
        self.window = tuple(side // patch_size for side in pair(img_size))
        self.cls_token = trunc_normal((1, 1, embed_dims))
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, padding=0,
                                      norm_cfg=norm_cfg if patch_norm else None,
                                      init_std=(2 / (in_channels * patch_size**2)) ** 0.5)
        self.layers = nn.Sequential(*[
            BEiTLayer(embed_dims, num_heads, mlp_ratio * embed_dims, window=self.window,
                      bias=self.QKV_BIAS if qv_bias else False, init_values=init_values, drop_path_prob=rate,
                      num_fcs=num_fcs, act_cfg=act_cfg, norm_cfg=norm_cfg)
            for rate in np.linspace(0.0, drop_path_rate, num_layers).tolist()])
        if final_norm:
            self.ln1 = build_norm(norm_cfg, embed_dims, channel_first=False)[1]
        self.out_channels, self.strides = [embed_dims] * len(self.out_indices), [patch_size] * len(self.out_indices)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        patches, size = self.patch_embed(x.transpose(0, 2, 3, 1))
        tokens = jt.concat([self.cls_token.broadcast((x.shape[0], 1, patches.shape[2])), patches], 1)
        x = self.add_positions(tokens, size)
        index, features = None if size == self.window else jt.array(token_index(size, self.window)), []
        for i, layer in enumerate(self.layers):
            x = layer(x, index)
            if self.final_norm and i == len(self.layers) - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                features.append(to_map(x[:, 1:], size))
        return features

    def add_positions(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        """Tokens with absolute positions; BEiT has none. Shape: (N, 1 + h * w, C) -> same."""
        return x

    @staticmethod
    def depth_of(key: str, num_layers: int, decay_type: str) -> int | None:
        """Depth of a parameter for layer-wise decay: 0 for tokens, positions and patches,
        i + 1 for block i, None for the last norm.

        Raises:
            ConfigError: stage-wise decay; there are no stages.
        """
        return depth_in_order(key, decay_type)
