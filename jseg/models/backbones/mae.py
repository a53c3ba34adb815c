"""MAE: BEiT's network with absolute positions and biases of queries, keys and values.

Paper: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/mae.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations: those of BEiT; absolute positions are resized to the picture's grid (bicubic).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt

from jseg.layers.init import trunc_normal
from jseg.layers.positions import resize_positions
from jseg.models.backbones.beit import BEiT
from jseg.registry import MODELS

__all__ = ["MAE"]


@MODELS.register()
class MAE(BEiT):
    """The encoder of a masked autoencoder.

    Args:
        img_size: side of the pictures that positions and tables are for, in pixels, or (vertical, horizontal).
        others: see `BEiT`.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, embed_dims, H // patch_size, W // patch_size), a map per index
    """

    QKV_BIAS = True
    TINY = MappingProxyType({**BEiT.TINY, "type": "MAE"})

    def __init__(self, img_size: int | Sequence[int] = 224, patch_size: int = 16, in_channels: int = 3,
                 embed_dims: int = 768, num_layers: int = 12, num_heads: int = 12, mlp_ratio: int = 4,
                 out_indices: int | Sequence[int] = -1, attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 norm_cfg: dict = MappingProxyType({"type": "LN"}), act_cfg: dict = MappingProxyType({"type": "GELU"}),
                 patch_norm: bool = False, final_norm: bool = False, num_fcs: int = 2, init_values: float = 0.1):
        super().__init__(img_size, patch_size, in_channels, embed_dims, num_layers, num_heads, mlp_ratio, out_indices,
                         True, attn_drop_rate, drop_path_rate, norm_cfg, act_cfg, patch_norm, final_norm,
                         num_fcs, init_values)
        self.pos_embed = trunc_normal((1, self.window[0] * self.window[1] + 1, embed_dims))
        for i, layer in enumerate(self.layers, 1):  # as in BEiT's pretraining: later blocks begin smaller
            layer.attn.relative_position_bias_table *= 0
            layer.attn.proj.weight /= (2 * i) ** 0.5
            layer.ffn.layers[-1].weight /= (2 * i) ** 0.5

    def add_positions(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        """Tokens with absolute positions. Shape: (N, 1 + h * w, C) -> same."""
        return x + jt.concat([self.pos_embed[:, :1], resize_positions(self.pos_embed[:, 1:], self.window, size)], 1)
