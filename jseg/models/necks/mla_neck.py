"""MLANeck: sums of a transformer's maps from the last to the first, for SETR's head.

Paper: Zheng et al., "Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers", CVPR
2021, sec. 3.3. Upstream: mmsegmentation 1.2.2 mmseg/models/necks/mla_neck.py (Apache-2.0), whose words, keys and
arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.layers import ConvNormAct, build_norm
from jseg.registry import MODELS

__all__ = ["MLANeck"]


class Aggregation(nn.Module):
    """1x1 blocks, running sums from the last map to the first, 3x3 blocks. Shape:
    as `MLANeck`'s, results from the last map's on.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, blocks: dict):
        super().__init__()
        self.channel_proj = nn.Sequential(*[ConvNormAct(width, out_channels, 1, **blocks) for width in in_channels])
        self.feat_extract = nn.Sequential(*[ConvNormAct(out_channels, out_channels, 3, padding=1, **blocks)
                                            for _ in in_channels])

    def execute(self, maps: list[jt.Var]) -> list[jt.Var]:
        total, results = None, []
        projected = [block(x) for block, x in zip(self.channel_proj, maps)]
        for x, block in zip(reversed(projected), self.feat_extract):
            total = x if total is None else total + x
            results.append(block(total))
        return results


@MODELS.register()
class MLANeck(nn.Module):
    """Norms, then sums from the last map to the first.

    Args:
        in_channels, out_channels: widths of the maps, and of every result.
        norm_layer: norm of each map.
        norm_cfg, act_cfg: norm and activation of the blocks, None for none.
    Shape:
        maps: list of (N, in_channels[i], H, W) of one size -> as many (N, out_channels, H, W), the last map's first
    """

    TINY = MappingProxyType({"type": "MLANeck", "out_channels": 8})

    def __init__(self, in_channels: Sequence[int], out_channels: int,
                 norm_layer: dict = MappingProxyType({"type": "LN", "eps": 1e-6, "requires_grad": True}),
                 norm_cfg: dict | None = None, act_cfg: dict | None = None):
        super().__init__()
        self.norm = nn.Sequential(*[build_norm(norm_layer, width)[1] for width in in_channels])
        self.mla = Aggregation(in_channels, out_channels, {"norm_cfg": norm_cfg, "act_cfg": act_cfg})
        self.out_channels = [out_channels] * len(in_channels)

    def execute(self, maps: list[jt.Var]) -> list[jt.Var]:
        return self.mla([norm(x) for norm, x in zip(self.norm, maps)])
