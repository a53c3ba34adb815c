"""DINOv2: a plain vision transformer with layer scale and register tokens, trained without labels.

Papers: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; Darcet et al., "Vision
Transformers Need Registers", ICLR 2024.
Upstream: facebookresearch/dinov2 dinov2/models/vision_transformer.py, transformers 5.x models/dinov2 and timm 1.0
timm/models/vision_transformer.py (all Apache-2.0), whose arithmetic this is; words and keys are those of
`VisionTransformer` here.

Deviations:
- the class token holds its own position (the sum is all that upstream uses), `pos_embed` is of the patches alone;
- positions for other pictures are resized as transformers does (bicubic, a = -0.75, no antialiasing);
- pictures are filled up with zeros to whole patches, below and to the right; upstream cuts what is left over or stops;
- the giant model's SwiGLU is not here, nor the mask token of pretraining.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Callable, NamedTuple, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import LayerNorm, PatchEmbed, build_norm, pair, to_map
from jseg.layers.init import trunc_normal
from jseg.layers.positions import resize_positions
from jseg.layers.transformer import TransformerEncoderLayer
from jseg.models.backbones.beit import depth_in_order
from jseg.models.backbones.vision_transformer import chosen_blocks
from jseg.registry import MODELS

__all__ = ["DINOv2", "JointBlocks"]


class JointBlocks(NamedTuple):
    """The last blocks of a backbone, for a head whose own tokens go through them together with the picture's.

    tokens: (N, prefix + h * w, C), `prefix` of them before those of the patches; size: (h, w) of the patches; blocks:
    each takes tokens (N, L, C) and a mask (P, L, L) or None; norm: stands before every reading.
    """

    tokens: jt.Var
    prefix: int
    size: tuple[int, int]
    blocks: list[Callable]
    norm: LayerNorm


@MODELS.register()
class DINOv2(nn.Module):
    """DINOv2's vision transformer.

    Args:
        img_size: side of the pictures that the positions belong to, in pixels, or (vertical, horizontal); other
            pictures get the positions resized. None: no learned positions.
        patch_size: side of the patches in pixels.
        in_channels, embed_dims: channels of the picture, width of the tokens.
        num_layers, num_heads, mlp_ratio: blocks, heads, width of the feed-forward blocks over `embed_dims`.
        num_registers: register tokens behind the class token, which have no positions.
        out_indices: blocks whose tokens are given; -1 for the last.
        joint_blocks: 0, or how many of the last blocks are left to the head (EoMT): the result is then one pair, the
            map that goes into them, and `JointBlocks`.
        output_cls_token: each result is (map, class token (N, C)).
        final_norm: the last norm stands before every map that is given.
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        init_values: first value of the layer scales.
        norm_cfg, act_cfg: norms, and activation of the feed-forward blocks.
        qkv_bias: see `MultiheadAttention`.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, embed_dims, ceil(H / patch_size), ceil(W / patch_size)), a map per
            index
    Raises:
        ConfigError: an index that is no block, or joint blocks together with maps of other blocks.
    """

    TINY = MappingProxyType({"type": "DINOv2", "img_size": 64, "patch_size": 16, "embed_dims": 16, "num_layers": 3,
                             "num_heads": 2, "mlp_ratio": 2, "num_registers": 2, "out_indices": [0, 2],
                             "init_values": 0.3})

    def __init__(self, img_size: int | Sequence[int] | None = 518, patch_size: int = 14, in_channels: int = 3,
                 embed_dims: int = 768, num_layers: int = 12, num_heads: int = 12, mlp_ratio: int = 4,
                 num_registers: int = 0, out_indices: int | Sequence[int] = -1, joint_blocks: int = 0,
                 output_cls_token: bool = False, final_norm: bool = True, drop_path_rate: float = 0.0,
                 init_values: float = 1e-5, norm_cfg: dict = MappingProxyType({"type": "LN", "eps": 1e-6}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), qkv_bias: bool | str = True):
        super().__init__()
        self.out_indices = chosen_blocks(out_indices, num_layers)
        if not 0 <= joint_blocks < num_layers or joint_blocks and (out_indices != -1 or output_cls_token):
            raise ConfigError(f"joint_blocks is {joint_blocks}; accepted: 0 to {num_layers - 1}, and with more than 0 "
                              "no out_indices and no output_cls_token")
        self.joint_blocks, self.output_cls_token, self.final_norm = joint_blocks, output_cls_token, final_norm
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size, init_std=0.02)
        self.cls_token = trunc_normal((1, 1, embed_dims))
        self.register_tokens = trunc_normal((1, num_registers, embed_dims)) if num_registers else None
        self.prefix = 1 + num_registers
        self.grid = None if img_size is None else tuple(side // patch_size for side in pair(img_size))
        self.pos_embed = None if img_size is None else trunc_normal((1, self.grid[0] * self.grid[1], embed_dims))
        self.layers = nn.Sequential(*[
            TransformerEncoderLayer(embed_dims, num_heads, mlp_ratio * embed_dims, drop_path_prob=rate,
                                    qkv_bias=qkv_bias, act_cfg=act_cfg, norm_cfg=norm_cfg, init_values=init_values)
            for rate in np.linspace(0.0, drop_path_rate, num_layers).tolist()])
        self.ln1 = build_norm(norm_cfg, embed_dims, channel_first=False)[1] if final_norm or joint_blocks else None
        count = 1 if joint_blocks else len(self.out_indices)
        self.out_channels, self.strides = [embed_dims] * count, [patch_size] * count

    def execute(self, x: jt.Var) -> list:
        x, size = self._tokens(x)
        blocks = self.blocks_for(size)
        if self.joint_blocks:
            for block in blocks[:-self.joint_blocks]:
                x = block(x)
            joint = JointBlocks(x, self.prefix, size, blocks[-self.joint_blocks:], self.ln1)
            return [(to_map(x[:, self.prefix:], size), joint)]
        features = []
        for i, block in enumerate(blocks[:max(self.out_indices) + 1]):
            x = block(x)
            if i in self.out_indices:
                y = self.ln1(x) if self.final_norm else x
                found = to_map(y[:, self.prefix:], size)
                features.append((found, y[:, 0]) if self.output_cls_token else found)
        return features

    def blocks_for(self, size: tuple[int, int]) -> list[Callable]:
        """What the tokens of a picture with (h, w) patches go through: functions of tokens and mask."""
        return list(self.layers)

    def _tokens(self, x: jt.Var) -> tuple[jt.Var, tuple[int, int]]:
        """Class token, registers, and patches with their positions; (h, w) of the patches."""
        patches, size = self.patch_embed(x.transpose(0, 2, 3, 1))
        if self.pos_embed is not None:
            patches = patches + resize_positions(self.pos_embed, self.grid, size)
        first = [token for token in (self.cls_token, self.register_tokens) if token is not None]
        return jt.concat([*(token.broadcast((x.shape[0], *token.shape[1:])) for token in first), patches], 1), size

    @staticmethod
    def depth_of(key: str, num_layers: int, decay_type: str) -> int | None:
        """Depth of a parameter for layer-wise decay: i + 1 for block i, None for the last norm; tokens, positions and
        patches go with the first block, as EoMT's authors have it.

        Raises:
            ConfigError: stage-wise decay; there are no stages.
        """
        depth = depth_in_order(key, decay_type)
        return None if depth is None else max(depth, 1)
