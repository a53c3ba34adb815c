"""SwinTransformer: attention in windows, which every second block shifts; four stages.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/swin.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations:
- the windows are put together again before the attention's projection (a product by token: same values), which then
  also adds the shortcut;
- absolute positions are resized to the picture's grid (bicubic), where upstream stops;
- `pad_small_map: false` is mmpretrain's (and the authors'): a map no larger than one window is not shifted, as in
  classification;
- `attn_drop_rate` is 0 (see layers.attention).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import (FFN, Dropout, DropPath, Linear, PatchEmbed, PatchMerging, build_norm, check_attn_drop,
                         check_heads, pair, to_map)
from jseg.layers.freeze import freeze, run_frozen
from jseg.layers.init import trunc_normal
from jseg.layers.positions import resize_positions
from jseg.layers.windows import from_windows, relative_bias, relative_index, shift_mask, to_windows
from jseg.registry import MODELS

__all__ = ["SwinTransformer"]


class WindowMSA(nn.Module):
    """The parameters of attention in windows, and attention up to its projection.

    Args:
        channels, heads: C and number of heads, which divides it.
        side: of the windows, in tokens.
        qkv_bias: biases of queries, keys and values.
        qk_scale: factor of the scores; None for one over the root of a head's width.
    Shape:
        x: (windows, side * side, C) -> same
    """

    BUFFERS = ("relative_position_index",)

    def __init__(self, channels: int, heads: int, side: int, *, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.scale = heads, qk_scale or (channels // heads) ** -0.5
        self.relative_position_bias_table = trunc_normal(((2 * side - 1) ** 2, heads))
        self.relative_position_index = jt.array(relative_index(side, side).astype(np.float32)).stop_grad()
        self.qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = Linear(channels, channels)

    def execute(self, x: jt.Var, mask: jt.Var | None) -> jt.Var:
        count, length, c = x.shape
        bias = relative_bias(self.relative_position_bias_table, self.relative_position_index)
        qkv = self.qkv(x).reshape(count, length, 3, self.heads, c // self.heads)
        return ops.attention(qkv, bias=bias, mask=mask, scale=self.scale).reshape(count, length, c)


class ShiftWindowMSA(nn.Module):
    """Attention in windows of a map. Shape: x, shortcut: (N, H * W, C); factor:
    (N,) -> shortcut + factor * attention(x).
    """

    def __init__(self, channels: int, heads: int, side: int, shift: int, *, qkv_bias: bool, qk_scale: float | None,
                 drop_prob: float, shift_small: bool):
        super().__init__()
        self.side, self.shift, self.shift_small = side, shift, shift_small
        self.w_msa = WindowMSA(channels, heads, side, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.proj_drop = Dropout(drop_prob)

    def execute(self, x: jt.Var, size: tuple[int, int], *, shortcut: jt.Var, factor: jt.Var | None) -> jt.Var:
        shift = self.shift if self.shift_small or min(size) > self.side else 0
        mask = jt.array(shift_mask(*size, self.side, shift)) if shift else None
        mixed = self.w_msa(to_windows(x, size, self.side, shift), mask)
        mixed = from_windows(mixed, size, self.side, shift)
        return self.w_msa.proj.close_branch(mixed, self.proj_drop, factor=factor, shortcut=shortcut)


class SwinBlock(nn.Module):
    """Normalised attention in windows and normalised feed-forward block, each with its shortcut.
    Shape: (N, H * W, C) -> same.

    Args:
        side, shift: of the windows, in tokens; `shift_small`: of maps no larger than one window, too.
        others: as in `SwinTransformer`.
    """

    def __init__(self, channels: int, heads: int, *, side: int, shift: int, mlp_ratio: float, qkv_bias: bool,
                 qk_scale: float | None, drop_prob: float, drop_path_prob: float, act_cfg: dict, norm_cfg: dict,
                 shift_small: bool):
        super().__init__()
        self.norm1 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.attn = ShiftWindowMSA(channels, heads, side, shift, qkv_bias=qkv_bias, qk_scale=qk_scale,
                                   drop_prob=drop_prob, shift_small=shift_small)
        self.norm2 = build_norm(norm_cfg, channels, channel_first=False)[1]
        self.ffn = FFN(channels, int(mlp_ratio * channels), act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        x = self.attn(self.norm1(x), size, shortcut=x, factor=self.drop_path.factor(x.shape[0]))
        return self.ffn(self.norm2(x), shortcut=x, factor=self.drop_path.factor(x.shape[0]))


class SwinBlockSequence(nn.Module):
    """One stage: blocks, and the merging of patches for the next stage, if there is one.

    Shape:
        x: (N, H * W, C) and (H, W) -> what the blocks give, and tokens and size for the next stage
    """

    def __init__(self, blocks: Sequence[SwinBlock], downsample: PatchMerging | None):
        super().__init__()
        self.blocks, self.downsample = nn.Sequential(*blocks), downsample

    def execute(self, x: jt.Var, size: tuple[int, int]) -> tuple:
        for block in self.blocks:
            x = block(x, size)
        return x, *((x, size) if self.downsample is None else self.downsample(x, size))


@MODELS.register()
class SwinTransformer(nn.Module):
    """Transformer of shifted windows.

    Args:
        pretrain_img_size: side of the pictures that the absolute positions belong to, in pixels.
        in_channels: channels of the picture.
        embed_dims: width of the first stage; each stage has twice that of the one before.
        patch_size: side of the first patches, in pixels; `strides[0]` is the same.
        window_size: side of the windows, in tokens.
        mlp_ratio: width of the feed-forward blocks over that of their stage.
        depths, num_heads: blocks and heads of each stage.
        strides: of patches and mergings.
        out_indices: stages whose maps are given.
        qkv_bias, qk_scale: biases of queries, keys and values; factor of the scores, None for the usual one.
        patch_norm: norms in patches and mergings.
        drop_rate: dropout after the patches and in both branches, in [0, 1).
        attn_drop_rate: 0.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        use_abs_pos_embed: learned absolute positions.
        act_cfg, norm_cfg: activation of the feed-forward blocks, and norm everywhere.
        frozen_stages: -1: none; 0: the patches; n: the patches and the first n stages with the norms of their maps. A
            frozen part computes as in evaluation and its parameters get no gradient.
        pad_small_map: shift the windows of maps no larger than one, too, as MMSegmentation does; false for classifiers.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
            index
    Raises:
        ConfigError: lists of different lengths, a first stride that is not `patch_size`, or dropout of attention
        weights.
    """

    TINY = MappingProxyType({"type": "SwinTransformer", "pretrain_img_size": 32, "embed_dims": 8, "window_size": 3,
                             "mlp_ratio": 2, "depths": [2, 1, 1, 2], "num_heads": [1, 2, 2, 4], "drop_path_rate": 0.0,
                             "use_abs_pos_embed": True})

    def __init__(self, pretrain_img_size: int | Sequence[int] = 224, in_channels: int = 3, embed_dims: int = 96,
                 patch_size: int = 4, window_size: int = 7, mlp_ratio: float = 4, depths: Sequence[int] = (2, 2, 6, 2),
                 num_heads: Sequence[int] = (3, 6, 12, 24), strides: Sequence[int] = (4, 2, 2, 2),
                 out_indices: Sequence[int] = (0, 1, 2, 3), qkv_bias: bool = True,
                 qk_scale: float | None = None, patch_norm: bool = True, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.1, use_abs_pos_embed: bool = False,
                 act_cfg: dict = MappingProxyType({"type": "GELU"}),
                 norm_cfg: dict = MappingProxyType({"type": "LN"}), frozen_stages: int = -1,
                 pad_small_map: bool = True):
        super().__init__()
        if (not len(depths) == len(num_heads) == len(strides) or max(out_indices) >= len(depths)
            or strides[0] != patch_size):
            raise ConfigError(f"depths {list(depths)}, num_heads {list(num_heads)} and strides {list(strides)} need "
                              f"one value per stage, out_indices {list(out_indices)} lie below their number, and "
                              f"strides[0] is patch_size ({patch_size})")
        check_attn_drop(attn_drop_rate)
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        patch_cfg, total = norm_cfg if patch_norm else None, sum(depths)
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, norm_cfg=patch_cfg)
        self.grid = tuple(side // patch_size for side in pair(pretrain_img_size))
        self.absolute_pos_embed = (trunc_normal((1, self.grid[0] * self.grid[1], embed_dims))
                                   if use_abs_pos_embed else None)
        self.drop_after_pos = Dropout(drop_rate)
        drop_paths = np.linspace(0.0, drop_path_rate, total).tolist()
        widths, stages = [embed_dims * 2**i for i in range(len(depths))], []
        for i, width in enumerate(widths):
            blocks = [SwinBlock(width, num_heads[i], side=window_size, shift=window_size // 2 if j % 2 else 0,
                                mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, qk_scale=qk_scale, drop_prob=drop_rate,
                                drop_path_prob=drop_paths[sum(depths[:i]) + j],
                                act_cfg=act_cfg, norm_cfg=norm_cfg, shift_small=pad_small_map)
                      for j in range(depths[i])]
            last = i == len(depths) - 1
            stages.append(SwinBlockSequence(blocks, None if last
                                            else PatchMerging(width, 2 * width, strides[i + 1], norm_cfg=patch_cfg)))
        self.stages = nn.Sequential(*stages)
        for i in out_indices:
            setattr(self, f"norm{i}", build_norm(norm_cfg, widths[i], channel_first=False)[1])
        reductions = np.cumprod(strides).tolist()
        self.out_channels, self.strides = [widths[i] for i in out_indices], [reductions[i] for i in out_indices]
        self._freeze()

    def execute(self, x: jt.Var) -> list[jt.Var]:
        run = _run_if(self.frozen_stages >= 0)
        x, size = run(self.patch_embed, x.transpose(0, 2, 3, 1))  # (N, L, C)
        if self.absolute_pos_embed is not None:
            x = x + resize_positions(self.absolute_pos_embed, self.grid, size)
        x, features = run(self.drop_after_pos, x), []
        for i, stage in enumerate(self.stages):
            run = _run_if(i < self.frozen_stages)
            found, x, next_size = run(stage, x, size)
            if i in self.out_indices:
                features.append(to_map(run(getattr(self, f"norm{i}"), found), size))
            size = next_size
        return features

    def _freeze(self) -> None:
        """Take the gradient from what `frozen_stages` names."""
        if self.frozen_stages >= 0:
            freeze(self.patch_embed)
            if self.absolute_pos_embed is not None:
                self.absolute_pos_embed.stop_grad()
        for i in range(self.frozen_stages):
            freeze(self.stages[i])
            if i in self.out_indices:
                freeze(getattr(self, f"norm{i}"))


def _run_if(frozen: bool):
    """`run_frozen`, or a plain call."""
    return run_frozen if frozen else lambda module, *inputs: module(*inputs)
