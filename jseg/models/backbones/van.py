"""VAN: attention made of a large convolution, taken apart into a depthwise, a dilated depthwise and a 1x1 one.

Paper: Guo et al., "Visual Attention Network", Computational Visual Media 2023 (arXiv 2202.09741), sec. 3.
Upstream: the authors' VAN-Segmentation, van.py@8285fc7 (Apache-2.0), whose words, keys and arithmetic these are, but
for the feed-forward block's depthwise convolution (`mlp.dwconv`, without a second `dwconv`). mmpretrain 1.2
mmpretrain/models/backbones/van.py (Apache-2.0) adds `arch` and `out_indices`; `remap_keys` takes its keys.

Deviations: blocks are MSCAN's with another attention (same values); `linear` and `patch_sizes` are not words.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.models.backbones.mscan import ConvAttentionStages, OverlapPatchEmbed, chosen_sizes
from jseg.registry import MODELS

__all__ = ["VAN", "VARIANTS"]


def _variant(embed_dims: Sequence[int], depths: Sequence[int]) -> Mapping[str, Sequence[int]]:
    return MappingProxyType({"embed_dims": embed_dims, "depths": depths, "mlp_ratios": (8, 8, 4, 4)})


VARIANTS = MappingProxyType({
    "b0": _variant((32, 64, 160, 256), (3, 3, 5, 2)), "b1": _variant((64, 128, 320, 512), (2, 2, 4, 2)),
    "b2": _variant((64, 128, 320, 512), (3, 3, 12, 3)), "b3": _variant((64, 128, 320, 512), (3, 5, 27, 3)),
    "b4": _variant((64, 128, 320, 512), (3, 6, 40, 3)), "b5": _variant((96, 192, 480, 768), (3, 3, 24, 3)),
    "b6": _variant((96, 192, 384, 768), (6, 6, 90, 6))})
_OTHER_NAMES = MappingProxyType({"tiny": "b0", "small": "b1", "base": "b2", "large": "b3", "t": "b0", "s": "b1",
                                 "b": "b2", "l": "b3"})  # mmpretrain's
_USUAL = MappingProxyType({"embed_dims": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "mlp_ratios": (8, 8, 4, 4)})
_MMPRETRAIN = ((r"^(patch_embed\d\.)projection\.", r"\1proj."), (r"^blocks(\d)\.", r"block\1."),
               (r"\.DW_conv\.", ".conv0."), (r"\.DW_D_conv\.", ".conv_spatial."))


class LargeKernelAttention(nn.Module):
    """A 5x5 depthwise convolution, a 7x7 depthwise one of dilation 3 and a 1x1 one, whose result gates the input
    (sec. 3.1, eq. 3): together they see 21 x 21 pixels.

    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv0 = Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.conv_spatial = Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.conv1 = Conv2d(channels, channels, 1)

    def execute(self, x: jt.Var) -> jt.Var:
        return ops.pointwise(self.conv_spatial(self.conv0(x)), self.conv1.weight, self.conv1.bias, gate=x)


@MODELS.register()
class VAN(ConvAttentionStages):
    """Visual attention network, four stages at strides 4, 8, 16 and 32.

    Args:
        arch: "b0" to "b6" (`VARIANTS`; mmpretrain's "tiny", "small", "base" and "large" are b0 to b3), whose sizes are
            then the defaults; or mmpretrain's block `{embed_dims, depths, ffn_ratios}`.
        in_channels: channels of the picture.
        embed_dims, depths, mlp_ratios: widths, blocks and feed-forward ratios, one for each of `num_stages` stages;
            None for those of `arch`, or without one the authors' defaults.
        drop_rate: dropout in the feed-forward blocks, in [0, 1).
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        norm_cfg, act_cfg: norm of blocks and embeddings, activation of the blocks.
        frozen_stages: -1: none; 0: the stem; n: the first n stages. A frozen part computes as in evaluation and its
            parameters get no gradient.
        out_indices: stages whose maps are given; None for all.
    Shape:
        x: (N, in_channels, H, W), any H and W >= 1 -> list of (N, out_channels[i], ceil(H / strides[i]),
            ceil(W / strides[i])), a map per index
    Raises:
        ConfigError: an unknown `arch`, lists whose lengths differ from `num_stages`, or an index that is no stage.
    """

    TINY = MappingProxyType({"type": "VAN", "embed_dims": [8, 16, 16, 32], "depths": [1, 1, 2, 1],
                             "mlp_ratios": [2, 2, 2, 2]})

    def __init__(self, *, arch: str | Mapping | None = None, in_channels: int = 3,
                 embed_dims: Sequence[int] | None = None, depths: Sequence[int] | None = None,
                 mlp_ratios: Sequence[float] | None = None, drop_rate: float = 0.0, drop_path_rate: float = 0.0,
                 num_stages: int = 4, norm_cfg: dict = MappingProxyType({"type": "SyncBN", "requires_grad": True}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), frozen_stages: int = -1,
                 out_indices: Sequence[int] | None = None):
        if isinstance(arch, Mapping):
            if set(arch) != {"embed_dims", "depths", "ffn_ratios"}:
                raise ConfigError(f"VAN: arch has {', '.join(map(str, arch))}; accepted: embed_dims, depths and "
                                  "ffn_ratios, or a name")
            embed_dims, depths, mlp_ratios, arch = arch["embed_dims"], arch["depths"], arch["ffn_ratios"], None
        name = _OTHER_NAMES.get(arch.lower(), arch.lower()) if isinstance(arch, str) else arch
        sizes = chosen_sizes("VAN", name, VARIANTS, _USUAL, embed_dims=embed_dims, depths=depths,
                             mlp_ratios=mlp_ratios)
        super().__init__(
            lambda channels: OverlapPatchEmbed(in_channels, channels, kernel_size=7, stride=4, norm_cfg=norm_cfg),
            sizes, num_stages=num_stages, make_gate=LargeKernelAttention, drop_rate=drop_rate,
            drop_path_rate=drop_path_rate, act_cfg=act_cfg, norm_cfg=norm_cfg, frozen_stages=frozen_stages)
        self.out_indices = tuple(range(num_stages) if out_indices is None else out_indices)
        if not self.out_indices or not set(self.out_indices) <= set(range(num_stages)):
            raise ConfigError(f"VAN: out_indices {list(self.out_indices)} lie in 0 to {num_stages - 1}")
        self.out_channels = [self.out_channels[i] for i in self.out_indices]
        self.strides = [self.strides[i] for i in self.out_indices]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        maps = super().execute(x)
        return [maps[i] for i in self.out_indices]

    @staticmethod
    def remap_keys(state: dict) -> dict:
        """Rename the keys of the authors' releases and of mmpretrain to ours."""
        renamed = ConvAttentionStages.remap_keys(state)
        for pattern, ours in _MMPRETRAIN:
            renamed = {re.sub(pattern, ours, key): value for key, value in renamed.items()}
        return renamed
