"""STDCHead: learns where label values change; it helps training alone.

Paper: Fan et al., "Rethinking BiSeNet For Real-time Semantic Segmentation", CVPR 2021, sec. 3.3.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/stdc_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviation: `fusion_kernel`, a parameter without gradient upstream, is a buffer.
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
import numpy as np

from jseg.losses.targets import detail_map
from jseg.models.heads.fcn_head import FCNHead
from jseg.models.heads.options import HeadOptions
from jseg.registry import MODELS

__all__ = ["STDCHead"]


@MODELS.register()
class STDCHead(FCNHead):
    """FCNHead of two classes, detail or not, with targets from the label map (`jseg.losses.targets.detail_map`).

    Args:
        options: see `HeadOptions`; `num_classes` is 2.
        boundary_threshold: above which a filter response, and the weighted sum of three scales, is a detail.
        others: see `FCNHead`.
    Shape:
        features: list of maps -> (N, 2, h, w) of the selected map's size
    """

    BUFFERS = ("laplacian_kernel", "fusion_kernel")
    TINY = MappingProxyType({**FCNHead.TINY, "type": "STDCHead", "num_classes": 2, "num_convs": 1,
                             "concat_input": False,
                             "loss_decode": [{"type": "CrossEntropyLoss", "use_sigmoid": True}, {"type": "DiceLoss"}]})
    own_targets = True

    def __init__(self, options: HeadOptions, *, boundary_threshold: float = 0.1, num_convs: int = 2,
                 kernel_size: int = 3, concat_input: bool = True, dilation: int = 1):
        super().__init__(options, num_convs=num_convs, kernel_size=kernel_size, concat_input=concat_input,
                         dilation=dilation)
        self.boundary_threshold = boundary_threshold
        laplacian = np.full((1, 1, 3, 3), -1.0, np.float32)
        laplacian[..., 1, 1] = 8.0
        self.laplacian_kernel = jt.array(laplacian).stop_grad()
        self.fusion_kernel = jt.array(np.array([0.6, 0.3, 0.1], np.float32).reshape(1, 3, 1, 1)).stop_grad()

    def loss(self, outputs: jt.Var, labels: jt.Var) -> dict[str, jt.Var]:
        return self.criterion(outputs, detail_map(labels, self.laplacian_kernel, self.fusion_kernel,
                                                  threshold=self.boundary_threshold))
