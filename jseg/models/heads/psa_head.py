"""PSAHead: every position says what it takes from, and gives to, each position around it.

Paper: Zhao et al., "PSANet: Point-wise Spatial Attention Network for Scene Parsing", ECCV 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/psa_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct
from jseg.models.heads.base import SegmentationHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["PSAHead"]

TYPES = ("collect", "distribute", "bi-direction")


def shrunk_size(size: tuple[int, int], factor: int) -> tuple[tuple[int, int], bool]:
    """Sides of the shrunk map, and whether it keeps corner centres: where `factor` divides neither side."""
    align_corners = bool(size[0] % factor and size[1] % factor)
    return tuple((side - 1) // factor + 1 if align_corners else side // factor for side in size), align_corners


@MODELS.register()
class PSAHead(SegmentationHead):
    """Attention whose weights a convolution gives by relative position, joined with the map, through a 3x3 block.

    Args:
        options: see `HeadOptions`.
        mask_size: (height, width) of the window of relative positions, in cells of the shrunk map; with `compact` its
            product is the number of the shrunk map's cells.
        psa_type: "collect", "distribute" or "bi-direction" (both, side by side).
        compact: weights are by absolute position.
        shrink_factor: the map is that many times smaller where attention works.
        normalization_factor: what sums are divided by; None for the window's cells.
        psa_softmax: weights by softmax.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    Raises:
        ConfigError: another type; later ValueError: `compact` and a map of another size.
    """

    TINY = MappingProxyType({"type": "PSAHead", "channels": 8, "mask_size": [5, 7],
                             "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, options: HeadOptions, *, mask_size: Sequence[int], psa_type: str = "bi-direction",
                 compact: bool = False, shrink_factor: int = 2, normalization_factor: float | None = 1.0,
                 psa_softmax: bool = True):
        super().__init__(options)
        if psa_type not in TYPES or shrink_factor < 1:
            raise ConfigError(f"psa_type is {psa_type!r}, shrink_factor {shrink_factor}; accepted: {', '.join(TYPES)}, "
                              "and integers of at least 1")
        width, channels, blocks = options.input_width, options.channels, options.blocks
        self.mask_size, self.shrink_factor = tuple(mask_size), shrink_factor
        cells = self.mask_size[0] * self.mask_size[1]
        self.compact, self.psa_softmax = compact, psa_softmax
        self.factor = 1.0 / (cells if normalization_factor is None else normalization_factor)
        self.branches = [("collect", ""), ("distribute", "_p")] if psa_type == "bi-direction" else [(psa_type, "")]
        for _, suffix in self.branches:
            setattr(self, f"reduce{suffix}", ConvNormAct(width, channels, 1, **blocks))
            setattr(self, f"attention{suffix}", nn.Sequential(ConvNormAct(channels, channels, 1, **blocks),
                                                              Conv2d(channels, cells, 1, bias=False)))
        self.proj = ConvNormAct(len(self.branches) * channels, width, 1, padding=1, **blocks)
        self.bottleneck = ConvNormAct(2 * width, channels, 3, padding=1, **blocks)

    def decode(self, features: jt.Var) -> jt.Var:
        """(N, channels, h, w) from the selected map."""
        height, width = size = tuple(features.shape[2:])
        align_corners = self.align_corners
        if self.shrink_factor != 1:
            size, align_corners = shrunk_size(size, self.shrink_factor)
        found = []
        for kind, suffix in self.branches:
            x = getattr(self, f"reduce{suffix}")(features)
            x = ops.bilinear_resize(x, size, align_corners=align_corners)
            found.append(self._attended(x, getattr(self, f"attention{suffix}")(x), kind))
        y = self.proj(jt.concat(found, 1) if len(found) > 1 else found[0])  # two cells wider and higher
        y = ops.bilinear_resize(y, (height, width), align_corners=align_corners)
        return self.bottleneck(jt.concat([features, y], 1))

    def _attended(self, x: jt.Var, weights: jt.Var, kind: str) -> jt.Var:
        """The sums of x (N, C, h, w) by the weights, of relative positions or with `compact` of absolute ones."""
        n, c, h, w = x.shape
        if self.compact:
            if weights.shape[1] != h * w:
                raise ValueError(f"PSAHead: mask_size {self.mask_size} has {weights.shape[1]} cells, the shrunk map "
                                 f"{h} x {w}; with compact they must be as many: give pictures of one size")
            weights = weights.reshape(n, h * w, h * w)
            weights = weights.transpose(0, 2, 1) if self._turned(kind) else weights
        else:
            weights = ops.psa_mask(weights, self.mask_size, kind).reshape(n, h * w, h * w)
        weights = nn.softmax(weights, dim=1) if self.psa_softmax else weights
        return jt.matmul(x.reshape(n, c, h * w), weights).reshape(n, c, h, w) * self.factor

    def _turned(self, kind: str) -> bool:
        """Whether compact weights lie the other way round: of "collect" alone, of "distribute" beside "collect"."""
        return kind == ("collect" if len(self.branches) == 1 else "distribute")
