"""CCHead: FCNHead with criss-cross attention, several times the same, between its convolutions.

Paper: Huang et al., "CCNet: Criss-Cross Attention for Semantic Segmentation", ICCV 2019, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/cc_head.py (Apache-2.0), whose keys and arithmetic these are.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt

from jseg.errors import ConfigError
from jseg.layers import CrissCrossAttention
from jseg.models.heads.fcn_head import FCNContextHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["CCHead"]


@MODELS.register()
class CCHead(FCNContextHead):
    """A convolution, rounds of criss-cross attention with the same weights, a convolution, a classifier.

    Args:
        options: see `HeadOptions`.
        recurrence: rounds, >= 1; two reach every position from every other.
        others: see `FCNHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "CCHead", "channels": 16, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, recurrence: int = 2, kernel_size: int = 3, concat_input: bool = True,
                 dilation: int = 1):
        super().__init__(options, kernel_size=kernel_size, concat_input=concat_input, dilation=dilation)
        if recurrence < 1:
            raise ConfigError(f"recurrence is {recurrence}; accepted: 1 and more")
        self.recurrence, self.cca = recurrence, CrissCrossAttention(options.channels)

    def context(self, x: jt.Var) -> jt.Var:
        """Every position with its row and column, in rounds."""
        for _ in range(self.recurrence):
            x = self.cca(x)
        return x
