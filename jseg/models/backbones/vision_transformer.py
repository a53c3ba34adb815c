"""VisionTransformer: tokens of one size, a class token, learned positions; also DeiT's network.

Papers: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021;
Touvron et al., "Training data-efficient image transformers", ICML 2021.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/vit.py (Apache-2.0), whose words, keys and arithmetic these are;
stochastic depth drops the feed-forward branches only, as there.

Deviations:
- positions are resized whenever the grid is another, upstream where the number of tokens is;
- `attn_drop_rate` is 0 (see layers.attention).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Dropout, PatchEmbed, build_norm, check_attn_drop, pair, to_map
from jseg.layers.freeze import freeze_except
from jseg.layers.init import trunc_normal
from jseg.layers.positions import resize_positions
from jseg.layers.transformer import TransformerEncoderLayer
from jseg.registry import MODELS

__all__ = ["VisionTransformer", "chosen_blocks"]


def chosen_blocks(out_indices: int | Sequence[int], count: int) -> tuple[int, ...]:
    """Blocks whose tokens are given: `out_indices` as a tuple, -1 for the last.

    Raises:
        ConfigError: an index that is no block of `count`.
    """
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    indices = tuple(count - 1 if i == -1 else i for i in indices)
    if not indices or min(indices) < 0 or max(indices) >= count:
        raise ConfigError(f"out_indices is {out_indices}; accepted: 0 to {count - 1}, or -1 for the last")
    return indices


@MODELS.register()
class VisionTransformer(nn.Module):
    """Vision transformer.

    Args:
        img_size: side of the pictures that the positions belong to, in pixels, or (vertical, horizontal); other
            pictures get the positions resized.
        patch_size: side of the patches in pixels.
        patch_pad: "corner", "same" or 0, see `PatchEmbed`.
        in_channels, embed_dims: channels of the picture, width of the tokens.
        num_layers, num_heads, mlp_ratio: blocks, heads, width of the feed-forward blocks over `embed_dims`.
        out_origin: give the tokens before the first block too.
        out_indices: blocks whose tokens are given; -1 for the last.
        qkv_bias: biases in the attention's projections.
        drop_rate: dropout after the positions and in both branches, in [0, 1).
        attn_drop_rate: 0.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        with_cls_token: whether the blocks see the class token.
        output_cls_token: each result is (map, class token (N, C)).
        norm_cfg, act_cfg: norms, and activation of the feed-forward blocks.
        patch_norm, patch_bias: norm after the patches, bias of their convolution.
        pre_norm, final_norm: norm before the first and after the last block.
        interpolate_mode: how positions are resized, "bicubic" or "bilinear".
        num_fcs: linear layers of a feed-forward block.
        frozen_exclude: parts of names of the parameters that are trained; "all" for every parameter.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, embed_dims, ceil(H / patch_size), ceil(W / patch_size)), a map per
            index
    Raises:
        ConfigError: an index that is no block, a class token asked for and not there, or dropout of attention weights.
    """

    TINY = MappingProxyType({"type": "VisionTransformer", "img_size": 64, "patch_size": 16, "embed_dims": 16,
                             "num_layers": 3, "num_heads": 2, "mlp_ratio": 2, "out_indices": [0, 2],
                             "final_norm": True})

    def __init__(self, img_size: int | Sequence[int] = 224, patch_size: int = 16, patch_pad: str | int = "corner",
                 in_channels: int = 3, embed_dims: int = 768, num_layers: int = 12, num_heads: int = 12,
                 mlp_ratio: int = 4, out_origin: bool = False, out_indices: int | Sequence[int] = -1,
                 qkv_bias: bool = True, drop_rate: float = 0.0, attn_drop_rate: float = 0.0,
                 drop_path_rate: float = 0.0, with_cls_token: bool = True, output_cls_token: bool = False,
                 norm_cfg: dict = MappingProxyType({"type": "LN"}), act_cfg: dict = MappingProxyType({"type": "GELU"}),
                 patch_norm: bool = False, patch_bias: bool = False, pre_norm: bool = False, final_norm: bool = False,
                 interpolate_mode: str = "bicubic", num_fcs: int = 2, frozen_exclude: Sequence[str] = ("all",)):
        super().__init__()
        if output_cls_token and not with_cls_token:
            raise ConfigError("output_cls_token needs with_cls_token: true")
        check_attn_drop(attn_drop_rate)
        self.out_indices, self.out_origin = chosen_blocks(out_indices, num_layers), out_origin
        self.with_cls_token, self.output_cls_token = with_cls_token, output_cls_token
        self.interpolate_mode = interpolate_mode
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, padding=patch_pad, bias=patch_bias,
                                      norm_cfg=norm_cfg if patch_norm else None,
                                      init_std=(2 / (in_channels * patch_size**2)) ** 0.5)
        self.grid = tuple(side // patch_size for side in pair(img_size))
        self.cls_token = trunc_normal((1, 1, embed_dims))
        self.pos_embed = trunc_normal((1, self.grid[0] * self.grid[1] + 1, embed_dims))
        self.drop_after_pos = Dropout(drop_rate)
        if pre_norm:
            self.ln_pre = build_norm(norm_cfg, embed_dims, channel_first=False)[1]
        self.layers = nn.Sequential(*[
            TransformerEncoderLayer(embed_dims, num_heads, mlp_ratio * embed_dims, drop_prob=drop_rate,
                                    drop_path_prob=rate, num_fcs=num_fcs, qkv_bias=qkv_bias, act_cfg=act_cfg,
                                    norm_cfg=norm_cfg)
            for rate in np.linspace(0.0, drop_path_rate, num_layers).tolist()])
        if final_norm:
            self.ln1 = build_norm(norm_cfg, embed_dims, channel_first=False)[1]
        self.pre_norm, self.final_norm = pre_norm, final_norm
        count = out_origin + len(self.out_indices)
        self.out_channels, self.strides = [embed_dims] * count, [patch_size] * count
        freeze_except(self, frozen_exclude)

    def execute(self, x: jt.Var) -> list:
        patches, size = self.patch_embed(x.transpose(0, 2, 3, 1))
        x = self._add_positions(patches, size)
        x = self.ln_pre(x) if self.pre_norm else x
        features = [self._output_map(x, size)] if self.out_origin else []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.final_norm and i == len(self.layers) - 1:
                x = self.ln1(x)
            if i in self.out_indices:
                features.append(self._output_map(x, size))
        return features

    def _add_positions(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        """Tokens with positions, and the class token before them where the blocks see it."""
        n, _, c = x.shape
        x = x + resize_positions(self.pos_embed[:, 1:], self.grid, size, mode=self.interpolate_mode)
        if self.with_cls_token:
            x = jt.concat([(self.cls_token + self.pos_embed[:, :1]).broadcast((n, 1, c)), x], 1)
        return self.drop_after_pos(x)

    def _output_map(self, x: jt.Var, size: tuple[int, int]):
        """The map of the tokens, with the class token if it is asked for."""
        found = to_map(x[:, 1:] if self.with_cls_token else x, size)
        return (found, x[:, 0]) if self.output_cls_token else found
