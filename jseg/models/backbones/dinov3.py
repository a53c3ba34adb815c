"""DINOv3: DINOv2's transformer with rotary positions instead of learned ones, and without biases of the keys.

Paper: Simeoni et al., "DINOv3", arXiv 2508.10104.
Upstream: transformers 5.24 models/{dinov3_vit,eomt_dinov3} (Apache-2.0), whose arithmetic this is; words and keys are
those of `DINOv2`.

Deviations: of what moves places in training, shift and jitter, which are off in all releases, are not here; the gated
feed-forward blocks of the largest models are not either.
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Sequence

import numpy as np

from jseg.errors import ConfigError
from jseg.layers.rotary import rotary_positions
from jseg.models.backbones.dinov2 import DINOv2
from jseg.registry import MODELS

__all__ = ["DINOv3"]


@MODELS.register()
class DINOv3(DINOv2):
    """DINOv3's vision transformer.

    Args:
        rope_base: ratio of the longest wavelength of the rotary positions to the shortest.
        rope_stretch: in training places are multiplied by a number between 1 / rope_stretch and rope_stretch, one for
            each step; 1 for none.
        key_bias: whether the keys have biases too.
        others: see `DINOv2`.
    Shape:
        see `DINOv2`
    Raises:
        ConfigError: see `DINOv2`; a width of the heads that is no multiple of 4, or a stretch below 1.
    """

    TINY = MappingProxyType({"type": "DINOv3", "embed_dims": 16, "num_layers": 3, "num_heads": 2, "mlp_ratio": 2,
                             "num_registers": 2, "out_indices": [0, 2], "init_values": 0.3, "rope_stretch": 1.0})

    def __init__(self, patch_size: int = 16, in_channels: int = 3, embed_dims: int = 768, num_layers: int = 12,
                 num_heads: int = 12, mlp_ratio: int = 4, num_registers: int = 4,
                 out_indices: int | Sequence[int] = -1, joint_blocks: int = 0, output_cls_token: bool = False,
                 final_norm: bool = True, drop_path_rate: float = 0.0, init_values: float = 1e-5,
                 norm_cfg: dict = MappingProxyType({"type": "LN", "eps": 1e-5}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), rope_base: float = 100.0,
                 rope_stretch: float = 2.0, key_bias: bool = False):
        super().__init__(None, patch_size, in_channels, embed_dims, num_layers, num_heads, mlp_ratio, num_registers,
                         out_indices, joint_blocks, output_cls_token, final_norm, drop_path_rate, init_values,
                         norm_cfg, act_cfg, True if key_bias else "qv")
        if embed_dims % (4 * num_heads) or rope_stretch < 1:
            raise ConfigError(f"embed_dims {embed_dims} over num_heads {num_heads} must be a multiple of 4, and "
                              f"rope_stretch, {rope_stretch}, at least 1")
        self.head_width, self.rope_base, self.rope_stretch = embed_dims // num_heads, rope_base, rope_stretch

    def blocks_for(self, size: tuple[int, int]) -> list:
        """See `DINOv2.blocks_for`."""
        stretch = 1.0
        if self.rope_stretch > 1 and self.is_training():
            reach = np.log(self.rope_stretch)
            stretch = float(np.exp(np.random.uniform(-reach, reach)))  # the same on all ranks
        rotary = rotary_positions(size, self.head_width, base=self.rope_base, stretch=stretch)
        return [functools.partial(layer, rotary=rotary) for layer in self.layers]
