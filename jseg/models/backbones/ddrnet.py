"""DDRNet: a branch at stride 8 and one down to stride 64, which exchange their maps twice.

Paper: Hong et al., "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation of Road Scenes",
T-ITS 2022, sec. III. Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/ddrnet.py (Apache-2.0), whose words, keys
and arithmetic these are.

Deviations: maps are resized to the fine branch's size, so that pictures of any size run (upstream: sides must be
multiples of 8); `norm_cfg` and `act_cfg` reach the first residual block of each layer and the pooling too (upstream:
BatchNorm and ReLU there).
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.layers import ConvNormAct, relu
from jseg.layers.dual_resolution import (AggregatingPooling, BasicResidual, BottleneckResidual, DualResolutionStem,
                                         residual_layer)
from jseg.models.backbones.resnet import Shortcut
from jseg.registry import MODELS

__all__ = ["DDRNet"]


@MODELS.register()
class DDRNet(nn.Module):
    """The two branches and their sum.

    Args:
        in_channels: channels of the picture.
        channels: width C of the stem.
        ppm_channels: width of each scale of the pooling.
        align_corners: how context is resized to the fine branch.
        norm_cfg, act_cfg: of the convolution blocks.
    Shape:
        x: (N, in_channels, H, W) -> [fine map after the first exchange, sum of both branches], whose widths are 2C and
        4C, both of size (ceil(H / 8), ceil(W / 8)). A head that is not training needs the second only.
    """

    TINY = MappingProxyType({"type": "DDRNet", "channels": 8, "ppm_channels": 8,
                             "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, in_channels: int = 3, channels: int = 32, ppm_channels: int = 128, align_corners: bool = False,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU", "inplace": True})):
        super().__init__()
        c, blocks, norm = channels, {"norm_cfg": norm_cfg, "act_cfg": act_cfg}, {"norm_cfg": norm_cfg}
        words = {"project": lambda before, after, stride: Shortcut(before, after, stride, avg_down=False,
                                                                   norm_cfg=norm_cfg), **blocks}
        self.align_corners = align_corners
        self.stem = DualResolutionStem(in_channels, c, 2, **words)
        self.context_branch_layers = nn.Sequential(residual_layer(BasicResidual, 2 * c, 4 * c, 2, stride=2, **words),
                                                   residual_layer(BasicResidual, 4 * c, 8 * c, 2, stride=2, **words),
                                                   residual_layer(BottleneckResidual, 8 * c, 8 * c, 1,
                                                                  stride=2, **words))
        self.compression_1 = ConvNormAct(4 * c, 2 * c, 1, **norm)
        self.compression_2 = ConvNormAct(8 * c, 2 * c, 1, **norm)
        self.down_1 = ConvNormAct(2 * c, 4 * c, 3, stride=2, padding=1, **norm)
        self.down_2 = nn.Sequential(ConvNormAct(2 * c, 4 * c, 3, stride=2, padding=1, **blocks),
                                    ConvNormAct(4 * c, 8 * c, 3, stride=2, padding=1, **norm))
        self.spatial_branch_layers = nn.Sequential(residual_layer(BasicResidual, 2 * c, 2 * c, 2, **words),
                                                   residual_layer(BasicResidual, 2 * c, 2 * c, 2, **words),
                                                   residual_layer(BottleneckResidual, 2 * c, 2 * c, 1, **words))
        self.spp = AggregatingPooling(16 * c, ppm_channels, 4 * c, **blocks)
        self.out_channels, self.strides = [2 * c, 4 * c], [8, 8]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        x = self.stem(x)
        context, fine = self.context_branch_layers[0](x), self.spatial_branch_layers[0](x)
        sent = self.compression_1(relu(context))
        context = self.down_1(relu(fine), residual=context)
        fine = first = self._added(fine, sent)
        context, fine = self.context_branch_layers[1](relu(context)), self.spatial_branch_layers[1](relu(fine))
        sent = self.compression_2(relu(context))
        first_down, second_down = self.down_2
        context = second_down(first_down(relu(fine)), residual=context)
        fine = self.spatial_branch_layers[2](relu(self._added(fine, sent)))
        context = self.spp(self.context_branch_layers[2](relu(context)))
        return [first, self._added(fine, context)]

    def _added(self, fine: jt.Var, coarse: jt.Var) -> jt.Var:
        """`fine` plus `coarse`, resized."""
        return ops.bilinear_resize(coarse, tuple(fine.shape[2:]), align_corners=self.align_corners, add=fine)
