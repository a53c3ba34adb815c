"""SVT (Twins-SVT): PCPVT whose even blocks attend within windows.

Paper: Chu et al., "Twins: Revisiting the Design of Spatial Attention in Vision Transformers", NeurIPS 2021, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/twins.py (Apache-2.0), whose words (`windiow_sizes` too), keys and
arithmetic these are: tokens that fill up the last windows are masked only where both sides of the map need them.

Deviations: those of PCPVT; the windows are put together again before the attention's projection, which then also adds
the shortcut.
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
from jseg.layers import Dropout, Linear, check_heads
from jseg.layers.windows import cut_windows, from_windows, to_windows, window_counts
from jseg.models.backbones.pcpvt import PCPVT, TwinsLayer
from jseg.registry import MODELS

__all__ = ["SVT"]


@functools.lru_cache(maxsize=64)
def filling_mask(height: int, width: int, side: int) -> np.ndarray | None:
    """What is added to the scores of windows: -1000 between tokens of the map and those that fill up;
    None where nothing is masked.

    Returns:
        (windows, side * side, side * side) float32, 0 or -1000.
    """
    if height % side == 0 or width % side == 0:
        return None
    rows, columns = window_counts((height, width), side)
    filled = np.ones((rows * side, columns * side), bool)
    filled[:height, :width] = False
    filled = cut_windows(filled, side)
    return np.where(filled[:, :, None] != filled[:, None, :], np.float32(-1000), np.float32(0))


class WindowAttention(nn.Module):
    """Attention in windows of a map. Keys: `qkv`, `proj`.

    Args:
        channels, heads: C and number of heads.
        side: of the windows, in tokens.
        qkv_bias: biases of queries, keys and values.
        drop_prob: dropout of the result.
    Shape:
        x, shortcut: (N, H * W, C) with size (H, W); factor: (N,) -> shortcut + factor * attention(x)
    """

    def __init__(self, channels: int, heads: int, side: int, *, qkv_bias: bool, drop_prob: float):
        super().__init__()
        check_heads(channels, heads)
        self.heads, self.side = heads, side
        self.qkv = Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj, self.proj_drop = Linear(channels, channels), Dropout(drop_prob)

    def execute(self, x: jt.Var, size: tuple[int, int], *, shortcut: jt.Var, factor: jt.Var | None) -> jt.Var:
        c, mask = x.shape[2], filling_mask(*size, self.side)
        windows = to_windows(x, size, self.side)
        qkv = self.qkv(windows).reshape(*windows.shape[:2], 3, self.heads, c // self.heads)
        mixed = ops.attention(qkv, mask=None if mask is None else jt.array(mask)).reshape(tuple(windows.shape))
        return self.proj.close_branch(from_windows(mixed, size, self.side), self.proj_drop, factor=factor,
                                      shortcut=shortcut)


@MODELS.register()
class SVT(PCPVT):
    """Twins-SVT, stages at strides 4, 8, 16 and 32.

    Args:
        windiow_sizes: side of each stage's windows, in tokens.
        others: see `PCPVT`.
    Raises:
        ConfigError: as `PCPVT`; fewer windows than stages.
    """

    TINY = MappingProxyType({**PCPVT.TINY, "type": "SVT", "windiow_sizes": [3, 3, 2, 2], "depths": [2, 2, 1, 2],
                             "drop_path_rate": 0.0})

    def __init__(self, in_channels: int = 3, embed_dims: Sequence[int] = (64, 128, 256),
                 patch_sizes: Sequence[int] = (4, 2, 2, 2), strides: Sequence[int] = (4, 2, 2, 2),
                 num_heads: Sequence[int] = (1, 2, 4), mlp_ratios: Sequence[int] = (4, 4, 4),
                 out_indices: Sequence[int] = (0, 1, 2, 3), qkv_bias: bool = False, drop_rate: float = 0.0,
                 attn_drop_rate: float = 0.0, drop_path_rate: float = 0.2,
                 norm_cfg: dict = MappingProxyType({"type": "LN"}), depths: Sequence[int] = (4, 4, 4),
                 sr_ratios: Sequence[int] = (4, 2, 1), windiow_sizes: Sequence[int] = (7, 7, 7),
                 norm_after_stage: bool = True):
        if len(windiow_sizes) < len(depths):
            raise ConfigError(f"windiow_sizes is {list(windiow_sizes)}; it needs a value for each of {len(depths)} "
                              "stages")
        self._sides = tuple(windiow_sizes)
        super().__init__(in_channels, embed_dims, patch_sizes, strides, num_heads, mlp_ratios, out_indices,
                         qkv_bias, drop_rate, attn_drop_rate, drop_path_rate, norm_cfg, depths, sr_ratios,
                         norm_after_stage)

    def _block(self, stage: int, index: int, channels: int, heads: int, *, mlp_ratio: int, qkv_bias: bool,
               reduction: int, drop_prob: float, drop_path_prob: float) -> nn.Module:
        if index % 2:
            return super()._block(stage, index, channels, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
                                  reduction=reduction, drop_prob=drop_prob, drop_path_prob=drop_path_prob)
        attention = WindowAttention(channels, heads, self._sides[stage], qkv_bias=qkv_bias, drop_prob=drop_prob)
        return TwinsLayer(attention, channels, mlp_ratio * channels, drop_prob=drop_prob, drop_path_prob=drop_path_prob,
                          attention_draws=1)
