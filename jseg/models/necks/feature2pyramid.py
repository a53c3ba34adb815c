"""Feature2Pyramid: maps of one size become a pyramid by transposed convolutions and pooling;
between BEiT or MAE and UPerHead.

Paper: Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022, appendix (after XCiT, NeurIPS 2021).
Upstream: mmsegmentation 1.2.2 mmseg/models/necks/featurepyramid.py (Apache-2.0), whose words, keys and arithmetic these
are.

Deviation: each map is rescaled as its place in `rescales` says; upstream takes the scales that occur from the largest
to the smallest.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import build_norm, max_pool
from jseg.layers.conv_transpose import PatchConvTranspose2d
from jseg.registry import MODELS

__all__ = ["Feature2Pyramid"]

_SCALES = (4, 2, 1, 0.5, 0.25)


class Enlarge4(nn.Sequential):
    """Two transposed convolutions with norm and GELU between them. Keys "0", "1", "3".
    Shape: (N, C, H, W) -> (N, C, 4 H, 4 W).
    """

    def __init__(self, channels: int, norm_cfg: dict):
        super().__init__(PatchConvTranspose2d(channels, channels, 2), build_norm(norm_cfg, channels)[1], nn.Identity(),
                         PatchConvTranspose2d(channels, channels, 2))

    def execute(self, x: jt.Var) -> jt.Var:
        first, norm, _, second = self
        return second(norm(first(x), activation="gelu"))


@MODELS.register()
class Feature2Pyramid(nn.Module):
    """A pyramid of maps that had one size.

    Args:
        embed_dim: width of every map.
        rescales: factor of each map's size: 4, 2, 1, 0.5 or 0.25.
        norm_cfg: norm inside the enlargement by 4.
    Shape:
        maps: list of (N, embed_dim, H, W) -> list of (N, embed_dim, floor(rescales[i] * H), floor(rescales[i] * W))
    Raises:
        ConfigError: another factor.
    """

    TINY = MappingProxyType({"type": "Feature2Pyramid", "embed_dim": 16, "rescales": [2, 0.5, 4, 1]})

    def __init__(self, embed_dim: int, rescales: Sequence[float] = (4, 2, 1, 0.5),
                 norm_cfg: dict = MappingProxyType({"type": "SyncBN", "requires_grad": True})):
        super().__init__()
        if any(scale not in _SCALES for scale in rescales):
            raise ConfigError(f"rescales is {list(rescales)}; accepted: {', '.join(map(str, _SCALES))}")
        self.rescales = tuple(rescales)
        if 4 in rescales:
            self.upsample_4x = Enlarge4(embed_dim, norm_cfg)
        if 2 in rescales:
            self.upsample_2x = nn.Sequential(PatchConvTranspose2d(embed_dim, embed_dim, 2))
        self.out_channels = [embed_dim] * len(rescales)

    def execute(self, maps: list[jt.Var]) -> list[jt.Var]:
        if len(maps) != len(self.rescales):
            raise ValueError(f"Feature2Pyramid: {len(maps)} maps came, rescales lists {len(self.rescales)}")
        return [self._rescaled(x, scale) for x, scale in zip(maps, self.rescales)]

    def _rescaled(self, x: jt.Var, scale: float) -> jt.Var:
        if scale in (4, 2):
            return self.upsample_4x(x) if scale == 4 else self.upsample_2x(x)
        return x if scale == 1 else max_pool(x, round(1 / scale))
