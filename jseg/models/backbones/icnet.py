"""ICNet: one network on the picture at full, half and quarter size, of which the coarser two share their first layers.

Paper: Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018, sec. 3.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/icnet.py (Apache-2.0), whose words, keys and arithmetic these are.

Kept from upstream: pyramid pooling as in PSPNet; halving rounds down and the backbone's pooling rounds up, so sizes are
near those that `strides` tell. Deviation: the backbone may have any of ResNet's stems (upstream: the deep one).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, avg_pool, max_pool
from jseg.models.backbones.resnet import ResNet, ResNetV1c
from jseg.models.heads.psp_head import PyramidPooling
from jseg.registry import MODELS

__all__ = ["ICNet"]

_RELU = MappingProxyType({"type": "ReLU"})


@MODELS.register()
class ICNet(nn.Module):
    """Three strided convolutions on the picture; a ResNet's first half on the picture halved,
    and its second half on that map halved.

    Args:
        backbone_cfg: block of a ResNet with four stages.
        in_channels: channels of the picture.
        layer_channels: widths of the ResNet's second and fourth stage.
        light_branch_middle_channels: width of the first two strided convolutions.
        psp_out_channels: width of each branch of the pyramid pooling and of its result.
        out_channels: widths of the three results.
        pool_scales: sides of the pooling grids in cells.
        norm_cfg: of all convolution blocks but the ResNet's.
        act_cfg: of the pyramid pooling; ReLU follows the others.
        align_corners: how maps are resized.
    Shape:
        x: (N, in_channels, H, W), sides >= 16 -> [(N, out_channels[i], about H / strides[i], about W / strides[i])], at
            strides 8, 16 and 32
    Raises:
        ConfigError: a backbone that is no ResNet of four stages, or widths that are not its.
    """

    TINY = MappingProxyType({
        "type": "ICNet", "backbone_cfg": {**ResNetV1c.TINY, "depth": 18, "multi_grid": None},
        "layer_channels": [16, 64], "light_branch_middle_channels": 4, "psp_out_channels": 8,
        "out_channels": [8, 16, 16], "pool_scales": [1, 2], "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, backbone_cfg: dict, in_channels: int = 3, layer_channels: Sequence[int] = (512, 2048),
                 light_branch_middle_channels: int = 32, psp_out_channels: int = 512,
                 out_channels: Sequence[int] = (64, 256, 256), pool_scales: Sequence[int] = (1, 2, 3, 6),
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}), act_cfg: dict = _RELU,
                 align_corners: bool = False):
        super().__init__()
        self.backbone = MODELS.build(backbone_cfg, "backbone_cfg")
        if not isinstance(self.backbone, ResNet) or len(self.backbone.stage_channels) != 4 or len(out_channels) != 3:
            raise ConfigError(f"backbone_cfg {backbone_cfg.get('type')!r}, out_channels {list(out_channels)}; ICNet "
                              "needs a ResNet of four stages and three widths")
        found = [self.backbone.stage_channels[1], self.backbone.stage_channels[3]]
        if list(layer_channels) != found:
            raise ConfigError(f"layer_channels is {list(layer_channels)}; the backbone's second and fourth stage have "
                              f"{found} channels")
        self.align_corners, middle, last = align_corners, light_branch_middle_channels, layer_channels[1]
        blocks, words = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}, {"norm_cfg": norm_cfg, "act_cfg": _RELU}
        self.psp_modules = PyramidPooling(pool_scales, last, psp_out_channels, blocks=blocks,
                                          align_corners=align_corners)
        self.psp_bottleneck = ConvNormAct(last + len(pool_scales) * psp_out_channels, psp_out_channels, 3,
                                          padding=1, **blocks)
        self.conv_sub1 = nn.Sequential(*[ConvNormAct(before, after, 3, stride=2, padding=1, **words)
                                         for before, after in ((in_channels, middle), (middle, middle),
                                                               (middle, out_channels[0]))])
        self.conv_sub2 = ConvNormAct(layer_channels[0], out_channels[1], 1, **words)
        self.conv_sub4 = ConvNormAct(psp_out_channels, out_channels[2], 1, **words)
        self.out_channels, self.strides = list(out_channels), [8, 16, 32]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        fine, net = self.conv_sub1(x), self.backbone
        x = max_pool(net.stem_map(self._halved(x)), 3, stride=2, padding=1, ceil_mode=True)
        middle = net.run_stage(1, net.run_stage(0, x))
        x = net.run_stage(3, net.run_stage(2, self._halved(middle)))
        x = self.psp_bottleneck(jt.concat([*self.psp_modules(x), x], 1))
        return [fine, self.conv_sub2(middle), self.conv_sub4(x)]

    def _halved(self, x: jt.Var) -> jt.Var:
        """Upstream resizes by the factor 0.5, not to a size: without corners that is the mean of 2x2 pixels."""
        if not self.align_corners:
            return avg_pool(x, 2, stride=2)
        return ops.bilinear_resize(x, (x.shape[2] // 2, x.shape[3] // 2), align_corners=True)
