"""DNLHead: FCNHead with a disentangled non-local block between its convolutions.

Paper: Yin et al., "Disentangled Non-Local Neural Networks", ECCV 2020, sec. 3.3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/dnl_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviations: see `jseg.layers.non_local`.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt

from jseg.layers import DisentangledNonLocal2d
from jseg.models.heads.fcn_head import FCNContextHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DNLHead"]


@MODELS.register()
class DNLHead(FCNContextHead):
    """A convolution, a disentangled non-local block, a convolution, a classifier.

    Args:
        options: see `HeadOptions`.
        reduction, use_scale, mode, temperature: see `DisentangledNonLocal2d`.
        others: see `FCNHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "DNLHead", "channels": 8, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, reduction: int = 2, use_scale: bool = True,
                 mode: str = "embedded_gaussian", temperature: float = 0.05, kernel_size: int = 3,
                 concat_input: bool = True, dilation: int = 1):
        super().__init__(options, kernel_size=kernel_size, concat_input=concat_input, dilation=dilation)
        self.dnl_block = DisentangledNonLocal2d(options.channels, reduction=reduction, use_scale=use_scale, mode=mode,
                                                temperature=temperature, norm_cfg=options.norm_cfg)

    def context(self, x: jt.Var) -> jt.Var:
        """Every position with its weighted mean of all, and one mean for all."""
        return self.dnl_block(x)
