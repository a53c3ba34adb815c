"""NLHead: FCNHead with a non-local block between its convolutions.

Paper: Wang et al., "Non-local Neural Networks", CVPR 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/nl_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviations: see `jseg.layers.non_local`.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt

from jseg.layers import NonLocal2d
from jseg.models.heads.fcn_head import FCNContextHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["NLHead"]


@MODELS.register()
class NLHead(FCNContextHead):
    """A convolution, a non-local block, a convolution, a classifier.

    Args:
        options: see `HeadOptions`.
        reduction, use_scale, mode: see `NonLocal2d`.
        others: see `FCNHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "NLHead", "channels": 8, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, reduction: int = 2, use_scale: bool = True,
                 mode: str = "embedded_gaussian", kernel_size: int = 3, concat_input: bool = True, dilation: int = 1):
        super().__init__(options, kernel_size=kernel_size, concat_input=concat_input, dilation=dilation)
        self.nl_block = NonLocal2d(options.channels, reduction=reduction, use_scale=use_scale, mode=mode,
                                   norm_cfg=options.norm_cfg)

    def context(self, x: jt.Var) -> jt.Var:
        """Every position with its weighted mean of all."""
        return self.nl_block(x)
