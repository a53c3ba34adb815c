"""DepthwiseSeparableFCNHead: FCNHead of depthwise separable convolutions; Fast-SCNN's classifier.

Paper: Poudel et al., "Fast-SCNN: Fast Semantic Segmentation Network", BMVC 2019, sec. 3.2.4.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/sep_fcn_head.py (Apache-2.0), whose keys and arithmetic
these are.

Deviation: `dilation`, which upstream takes and forgets, is not a word of this head.
"""

from __future__ import annotations

from types import MappingProxyType

from jittor import nn

from jseg.layers import DepthwiseSeparableConv
from jseg.models.heads.fcn_head import FCNHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["DepthwiseSeparableFCNHead"]


@MODELS.register()
class DepthwiseSeparableFCNHead(FCNHead):
    """FCNHead whose blocks are a depthwise and a pointwise convolution.

    Args:
        options: see `HeadOptions`.
        dw_act_cfg: activation of the depthwise convolutions; None for none. ReLU follows the pointwise ones, whatever
            `act_cfg` says.
        num_convs, kernel_size, concat_input: see `FCNHead`.
    Shape:
        features: list of maps -> (N, K, h, w) of the selected map's size
    """

    TINY = MappingProxyType({"type": "DepthwiseSeparableFCNHead", "channels": 8, "norm_cfg": {"type": "BN"}})

    def __init__(self, options: HeadOptions, *, dw_act_cfg: dict | None = None, num_convs: int = 2,
                 kernel_size: int = 3, concat_input: bool = True):
        self._dw_act_cfg = dw_act_cfg
        super().__init__(options, num_convs=num_convs, kernel_size=kernel_size, concat_input=concat_input)

    def _block(self, width: int, kernel_size: int, dilation: int = 1) -> nn.Module:
        return DepthwiseSeparableConv(width, self.channels, kernel_size, padding=kernel_size // 2 * dilation,
                                      dilation=dilation, norm_cfg=self.options.norm_cfg, act_cfg={"type": "ReLU"},
                                      dw_act_cfg=self._dw_act_cfg)
