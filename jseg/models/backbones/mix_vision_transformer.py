"""MixVisionTransformer (MiT), the encoder of SegFormer: overlapping patches, attention over fewer keys, Mix-FFN.

Paper: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers", NeurIPS 2021,
sec. 3.1. Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/mit.py (Apache-2.0), whose words, keys and arithmetic
these are.

Deviations:
- the residual stream stays (N, C, H, W), and only attention sees tokens; upstream has tokens and makes maps of them
  (same values);
- `attn_drop_rate` is 0 (see layers.attention), and pictures smaller than a reduction's window are taken.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import (Conv2d, Dropout, DropPath, ReducedAttention, build_activation, build_norm,
                         check_attn_drop, mix_ffn)
from jseg.models.made import Made
from jseg.registry import MODELS

__all__ = ["MixVisionTransformer"]

_AUTHORS = (  # (pattern of an authors' key, ours with the stage from 0)
    (r"^patch_embed(\d)\.proj\.", "layers.{0}.0.projection."), (r"^patch_embed(\d)\.norm\.", "layers.{0}.0.norm."),
    (r"^norm(\d)\.", "layers.{0}.2."),
    (r"^block(\d)\.(\d+)\.(norm[12]|attn\.sr|attn\.norm)\.", "layers.{0}.1.{1}.{2}."),
    (r"^block(\d)\.(\d+)\.attn\.(?:q|kv)\.(weight|bias)$", "layers.{0}.1.{1}.attn.attn.in_proj_{2}"),
    (r"^block(\d)\.(\d+)\.attn\.proj\.", "layers.{0}.1.{1}.attn.attn.out_proj."),
    (r"^block(\d)\.(\d+)\.mlp\.fc1\.", "layers.{0}.1.{1}.ffn.layers.0."),
    (r"^block(\d)\.(\d+)\.mlp\.dwconv\.dwconv\.", "layers.{0}.1.{1}.ffn.layers.1."),
    (r"^block(\d)\.(\d+)\.mlp\.fc2\.", "layers.{0}.1.{1}.ffn.layers.4."))


class OverlapPatchEmbed(nn.Module):
    """A strided convolution whose windows overlap, and a norm. Shape:
    (N, C0, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, *, patch_size: int, stride: int, norm_cfg: dict):
        super().__init__()
        self.projection = Conv2d(in_channels, channels, patch_size, stride=stride, padding=patch_size // 2)
        self.norm = build_norm(norm_cfg, channels)[1]

    def execute(self, x: jt.Var) -> jt.Var:
        return self.norm(self.projection(x))


class MixFFN(nn.Module):
    """1x1, 3x3 depthwise, activation, 1x1. Keys: `layers.0`, `layers.1`, `layers.4`.

    Shape:
        x, shortcut: (N, C, H, W); factor: (N,) -> shortcut + factor * block(x)
    """

    def __init__(self, channels: int, hidden_channels: int, *, act_cfg: dict, drop_prob: float):
        super().__init__()
        self.activate, self.is_gelu = build_activation(act_cfg), act_cfg["type"] == "GELU"
        self.drop = Dropout(drop_prob)
        self.layers = nn.Sequential(
            Conv2d(channels, hidden_channels, 1),
            Conv2d(hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels),
            nn.Identity(), nn.Identity(), Conv2d(hidden_channels, channels, 1))

    def execute(self, x: jt.Var, *, shortcut: jt.Var, factor: jt.Var | None) -> jt.Var:
        fc1, depthwise, _, _, fc2 = self.layers
        return mix_ffn(x, fc1, depthwise, fc2, self.activate, self.drop, is_gelu=self.is_gelu, shortcut=shortcut,
                       factor=factor)


class TransformerEncoderLayer(nn.Module):
    """Normalised attention and normalised Mix-FFN, each with its shortcut.

    Args:
        channels, heads: width and number of heads.
        mlp_ratio: width of the feed-forward block over C.
        reduction: see `ReducedAttention`.
        drop_prob, drop_path_prob: dropout of both branches, and probability of dropping each in training.
    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int, heads: int, *, mlp_ratio: int, reduction: int, qkv_bias: bool, drop_prob: float,
                 drop_path_prob: float, act_cfg: dict, norm_cfg: dict):
        super().__init__()
        self.norm1 = build_norm(norm_cfg, channels)[1]
        self.attn = ReducedAttention(channels, heads, reduction=reduction, bias=qkv_bias, norm_cfg=norm_cfg,
                                     drop_prob=drop_prob)
        self.norm2 = build_norm(norm_cfg, channels)[1]
        self.ffn = MixFFN(channels, mlp_ratio * channels, act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var) -> jt.Var:
        y, _, x = self.norm1.fork_output(x)
        x = self.attn.on_map(y, shortcut=x, factor=self.drop_path.factor(x.shape[0]))
        y, _, x = self.norm2.fork_output(x)
        return self.ffn(y, shortcut=x, factor=self.drop_path.factor(x.shape[0]))


@MODELS.register()
class MixVisionTransformer(nn.Module):
    """Mix transformer, four stages at strides 4, 8, 16 and 32.

    Args:
        in_channels: channels of the picture.
        embed_dims: width of one head; stage i has `embed_dims * num_heads[i]` channels.
        num_stages: number of stages; the lists that follow have a value for each.
        num_layers, num_heads, patch_sizes, strides, sr_ratios: blocks, heads, kernel and stride of the patches, and
            reduction of the keys.
        out_indices: stages whose maps are given.
        mlp_ratio: width of the feed-forward blocks over that of their stage.
        qkv_bias: biases in the attention's projections.
        drop_rate: dropout of both branches, in [0, 1).
        attn_drop_rate: 0.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        act_cfg, norm_cfg: activation of the feed-forward blocks, and norm everywhere.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), a map per
            index
    Raises:
        ConfigError: lists of other lengths than `num_stages`, an index beyond it, or dropout of attention weights.
    """

    TINY = MappingProxyType({"type": "MixVisionTransformer", "embed_dims": 8, "num_layers": [1, 2, 1, 1],
                             "num_heads": [1, 2, 2, 4], "sr_ratios": [4, 2, 2, 1], "mlp_ratio": 2})

    def __init__(self, in_channels: int = 3, embed_dims: int = 64, num_stages: int = 4,
                 num_layers: Sequence[int] = (3, 4, 6, 3), num_heads: Sequence[int] = (1, 2, 4, 8),
                 patch_sizes: Sequence[int] = (7, 3, 3, 3), strides: Sequence[int] = (4, 2, 2, 2),
                 sr_ratios: Sequence[int] = (8, 4, 2, 1), out_indices: Sequence[int] = (0, 1, 2, 3), mlp_ratio: int = 4,
                 qkv_bias: bool = True, drop_rate: float = 0.0, attn_drop_rate: float = 0.0,
                 drop_path_rate: float = 0.0,
                 act_cfg: dict = MappingProxyType({"type": "GELU"}),
                 norm_cfg: dict = MappingProxyType({"type": "LN", "eps": 1e-6})):
        super().__init__()
        lists = {"num_layers": num_layers, "num_heads": num_heads, "patch_sizes": patch_sizes, "strides": strides,
                 "sr_ratios": sr_ratios}
        for name, values in lists.items():
            if len(values) != num_stages:
                raise ConfigError(f"{name} needs {num_stages} values (one per stage), got {list(values)}")
        if max(out_indices) >= num_stages:
            raise ConfigError(f"out_indices is {list(out_indices)}; accepted: 0 to {num_stages - 1}")
        check_attn_drop(attn_drop_rate)
        self.out_indices = tuple(out_indices)
        drop_paths, stages, widths = np.linspace(0.0, drop_path_rate, sum(num_layers)).tolist(), [], [in_channels]
        for i in range(num_stages):
            channels, first = embed_dims * num_heads[i], sum(num_layers[:i])
            embed = OverlapPatchEmbed(widths[-1], channels, patch_size=patch_sizes[i], stride=strides[i],
                                      norm_cfg=norm_cfg)
            blocks = [TransformerEncoderLayer(channels, num_heads[i], mlp_ratio=mlp_ratio, reduction=sr_ratios[i],
                                              qkv_bias=qkv_bias, drop_prob=drop_rate,
                                              drop_path_prob=drop_paths[first + j], act_cfg=act_cfg,
                                              norm_cfg=norm_cfg) for j in range(num_layers[i])]
            stages.append(nn.Sequential(embed, nn.Sequential(*blocks), build_norm(norm_cfg, channels)[1]))
            widths.append(channels)
        self.layers = nn.Sequential(*stages)
        reductions = np.cumprod(strides).tolist()
        self.out_channels, self.strides = [widths[1 + i] for i in out_indices], [reductions[i] for i in out_indices]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        features = []
        for i, (embed, blocks, norm) in enumerate(self.layers):
            x = norm(blocks(embed(x)))
            if i in self.out_indices:
                features.append(x)
        return features

    @staticmethod
    def remap_keys(state: dict) -> dict:
        """Rename the authors' keys (NVlabs/SegFormer, mit_b0.pth to mit_b5.pth) to ours, which are mmsegmentation's.

        Theirs count stages from 1, have queries apart from keys and values, and linear layers where ours are 1x1
        convolutions. Other keys pass unchanged.
        """
        renamed = {}
        for key, value in state.items():
            name = key
            for pattern, ours in _AUTHORS:
                if re.match(pattern, key):
                    name = re.sub(pattern, lambda found, ours=ours: ours.format(int(found[1]) - 1,
                                                                                *found.groups()[1:]), key)
            pair = re.sub(r"\.q\.(weight|bias)$", r".kv.\1", key)
            if name != key and key.endswith((".kv.weight", ".kv.bias")) and pair == key:
                continue  # it comes with the queries
            if name != key and pair != key:
                value = Made((value, *([state[pair]] if pair in state else [])))
            elif name != key and re.search(r"\.mlp\.fc[12]\.weight$", key):
                value = Made((value,), ones=2)
            renamed[name] = value
        return renamed
