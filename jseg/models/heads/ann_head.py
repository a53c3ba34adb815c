"""ANNHead: attention to the means of a pyramid of grids instead of all positions, across two maps and within one.

Paper: Zhu et al., "Asymmetric Non-local Neural Networks for Semantic Segmentation", ICCV 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/ann_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviations: `query_scales` holds ones only (upstream's forward fails on others); where queries and keys share a
projection, the copy of it in upstream's checkpoints is left out.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, SelfAttentionBlock
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["ANNHead"]


class AsymmetricBlock(nn.Module):
    """Attention of a map to grids of another or of itself, joined with the map and projected.

    Args:
        low_channels, high_channels: widths of the map that gives keys and values, and of the one that asks.
        project_channels: width of queries and keys.
        out_channels: width of the result.
        stages: attentions, which are added up.
        key_pool_scales: sides of the grids.
        share_key_query: one projection for queries and keys.
        blocks: norm_cfg and act_cfg.
        act_cfg: activation of the last block.
    Shape:
        low: (N, low_channels, h, w); high: (N, high_channels, H, W) -> (N, out_channels, H, W)
    """

    def __init__(self, low_channels: int, high_channels: int, project_channels: int, out_channels: int, *, stages: int,
                 key_pool_scales: Sequence[int], share_key_query: bool, blocks: dict, act_cfg: dict | None):
        super().__init__()
        self.stages = nn.Sequential(*[
            SelfAttentionBlock(low_channels, project_channels, out_channels, query_in_channels=high_channels,
                               share_key_query=share_key_query, value_out_norm=False, key_pool_scales=key_pool_scales,
                               blocks=blocks) for _ in range(stages)])
        self.bottleneck = ConvNormAct(out_channels + high_channels, out_channels, 1, norm_cfg=blocks["norm_cfg"],
                                      act_cfg=act_cfg)

    def execute(self, low: jt.Var, high: jt.Var) -> jt.Var:
        context = sum(stage(high, low) for stage in self.stages)
        return self.bottleneck(jt.concat([context, high], 1))


@MODELS.register()
class ANNHead(SegmentationHead):
    """Attention of the second map to the first, a 3x3 block, attention of its map to itself, a classifier.

    Args:
        options: see `HeadOptions`; two maps are read, the finer first.
        project_channels: width of queries and keys.
        query_scales: as many ones as attentions are added up.
        key_pool_scales: sides of the grids whose means are keys and values.
    Shape:
        features: list of maps -> (N, K, h, w) of the second selected map's size
    Raises:
        ConfigError: another number of maps, or other query scales.
    """

    DEFAULTS = MappingProxyType({"input_transform": "multiple_select"})
    TINY = MappingProxyType({"type": "ANNHead", "channels": 8, "project_channels": 4, "key_pool_scales": [1, 2],
                             "norm_cfg": {"type": "BN"}, "in_index": [-2, -1]})

    def __init__(self, options: HeadOptions, *, project_channels: int, query_scales: Sequence[int] = (1,),
                 key_pool_scales: Sequence[int] = (1, 3, 6, 8)):
        super().__init__(options)
        if options.input_transform != "multiple_select" or len(options.in_channels) != 2:
            raise ConfigError(f"in_channels is {options.in_channels}; two maps are read, the finer first")
        if not query_scales or set(query_scales) != {1}:
            raise ConfigError(f"query_scales is {query_scales!r}; accepted: a list of ones")
        low, high = options.in_channels
        words = {"stages": len(query_scales), "key_pool_scales": key_pool_scales, "blocks": options.blocks}
        self.fusion = AsymmetricBlock(low, high, project_channels, high, share_key_query=False, act_cfg=None, **words)
        self.bottleneck = ConvNormAct(high, options.channels, 3, padding=1, **options.blocks)
        self.context = AsymmetricBlock(options.channels, options.channels, project_channels, options.channels,
                                       share_key_query=True, act_cfg=options.act_cfg, **words)

    def decode(self, features: list[jt.Var]) -> jt.Var:
        """(N, channels, h, w) from the two selected maps."""
        x = self.bottleneck(self.dropout(self.fusion(*features)))
        return self.context(x, x)

    @staticmethod
    def remap_keys(state: dict) -> dict:
        """Give the second copy of a shared projection the name of the first, which wins where both are there."""
        copy = re.compile(r"^(context\.stages\.\d+\.)query_project\.")
        return {**{copy.sub(r"\1key_project.", key): value for key, value in state.items()},
                **{key: value for key, value in state.items() if not copy.match(key)}}
