"""PIDNet: three branches, of detail (P), of context (I) and of boundaries (D), which decide where the other two count.

Paper: Xu et al., "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID Controllers", CVPR 2023, sec. 4.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/pidnet.py (Apache-2.0, after XuJiacong/PIDNet, MIT), whose words,
keys and arithmetic these are.

Deviations: maps are resized to the fine branch's size, so that pictures of any size run (upstream: sides must be
multiples of 8); `norm_cfg` and `act_cfg` reach the residual blocks, the fusions and the pooling too (upstream:
BatchNorm and ReLU there).
"""

from __future__ import annotations

from types import MappingProxyType

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, relu
from jseg.layers.dual_resolution import (AggregatingPooling, BasicResidual, BottleneckResidual, DualResolutionStem,
                                         ParallelPooling, residual_layer)
from jseg.registry import MODELS

__all__ = ["PIDNet"]


class PixelAttentionFusion(nn.Module):
    """Pag: where two maps agree, the coarse one counts; elsewhere the fine one.

    Args:
        in_channels, channels: width of both maps, and of the space in which they are compared.
        norm_cfg: of the projections.
    Shape:
        fine: (N, in_channels, H, W), coarse: (N, in_channels, h, w) -> (N, in_channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, norm_cfg: dict):
        super().__init__()
        self.f_i = ConvNormAct(in_channels, channels, 1, norm_cfg=norm_cfg)
        self.f_p = ConvNormAct(in_channels, channels, 1, norm_cfg=norm_cfg)

    def execute(self, fine: jt.Var, coarse: jt.Var) -> jt.Var:
        size = tuple(fine.shape[2:])
        share = jt.sigmoid((self.f_p(fine) * ops.bilinear_resize(self.f_i(coarse), size)).sum(
            1, keepdims=True))  # (N, 1, H, W)
        return share * ops.bilinear_resize(coarse, size) + (1 - share) * fine


class BoundaryFusion(nn.Module):
    """Bag: at boundaries the detail counts, elsewhere the context; then norm, activation and a 3x3 convolution.

    Shape:
        detail, context, boundary: (N, in_channels, H, W) each -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: dict, act_cfg: dict):
        super().__init__()
        self.conv = ConvNormAct(in_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg,
                                order=("norm", "act", "conv"))

    def execute(self, detail: jt.Var, context: jt.Var, boundary: jt.Var) -> jt.Var:
        share = jt.sigmoid(boundary)
        return self.conv(share * detail + (1 - share) * context)


class LightBoundaryFusion(nn.Module):
    """Light-Bag: as Bag, with two 1x1 blocks of sums in which each map is added to its share of the other.

    Shape:
        detail, context, boundary: (N, in_channels, H, W) each -> (N, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: dict):
        super().__init__()
        self.f_p = ConvNormAct(in_channels, out_channels, 1, norm_cfg=norm_cfg)
        self.f_i = ConvNormAct(in_channels, out_channels, 1, norm_cfg=norm_cfg)

    def execute(self, detail: jt.Var, context: jt.Var, boundary: jt.Var) -> jt.Var:
        share = jt.sigmoid(boundary)
        return self.f_p((1 - share) * context + detail, residual=self.f_i(context + share * detail))


@MODELS.register()
class PIDNet(nn.Module):
    """The three branches and their fusion.

    Args:
        in_channels: channels of the picture.
        channels: width C of the stem.
        ppm_channels: width of each scale of the pooling.
        num_stem_blocks: residual blocks of the stem's and the P branch's layers. 2 makes the light network (PIDNet-S
            and -M): narrow D branch, parallel pooling, light fusion.
        num_branch_blocks: residual blocks of the I branch's first two layers.
        align_corners: how context is resized to the fine branches.
        norm_cfg, act_cfg: of the convolution blocks.
    Shape:
        x: (N, in_channels, H, W) -> [P after its first fusion, fused map, D after its second sum], whose widths are 2C,
        4C and 2C, all of size (ceil(H / 8), ceil(W / 8)). A head that is not training needs the second only.
    """

    TINY = MappingProxyType({"type": "PIDNet", "channels": 8, "ppm_channels": 8, "num_stem_blocks": 2,
                             "num_branch_blocks": 2, "norm_cfg": {"type": "GN", "num_groups": 2}})

    def __init__(self, in_channels: int = 3, channels: int = 64, ppm_channels: int = 96, num_stem_blocks: int = 2,
                 num_branch_blocks: int = 3, align_corners: bool = False,
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU", "inplace": True})):
        super().__init__()
        if min(num_stem_blocks, num_branch_blocks) < 1:
            raise ConfigError(f"num_stem_blocks {num_stem_blocks} and num_branch_blocks {num_branch_blocks} must be at "
                              "least 1")
        c, light = channels, num_stem_blocks == 2
        blocks, norm = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}, {"norm_cfg": norm_cfg}
        layer = _layer_maker(blocks)
        self.align_corners = align_corners
        self.stem = DualResolutionStem(in_channels, c, num_stem_blocks, project=_projection(norm_cfg), **blocks)
        self.i_branch_layers = nn.Sequential(layer(BasicResidual, 2 * c, 4 * c, num_branch_blocks, stride=2),
                                             layer(BasicResidual, 4 * c, 8 * c, num_branch_blocks, stride=2),
                                             layer(BottleneckResidual, 8 * c, 8 * c, 2, stride=2))
        self.p_branch_layers = nn.Sequential(layer(BasicResidual, 2 * c, 2 * c, num_stem_blocks),
                                             layer(BasicResidual, 2 * c, 2 * c, num_stem_blocks),
                                             layer(BottleneckResidual, 2 * c, 2 * c, 1))
        self.compression_1 = ConvNormAct(4 * c, 2 * c, 1, **norm)
        self.compression_2 = ConvNormAct(8 * c, 2 * c, 1, **norm)
        self.pag_1, self.pag_2 = PixelAttentionFusion(2 * c, c, norm_cfg), PixelAttentionFusion(2 * c, c, norm_cfg)
        width = c if light else 2 * c
        first = _single_block(2 * c, width, blocks)
        second = layer(BottleneckResidual, c, c, 1) if light else _single_block(2 * c, 2 * c, blocks)
        self.d_branch_layers = nn.Sequential(first, second, layer(BottleneckResidual, 2 * c, 2 * c, 1))
        self.diff_1 = ConvNormAct(4 * c, width, 3, padding=1, **norm)
        self.diff_2 = ConvNormAct(8 * c, 2 * c, 3, padding=1, **norm)
        self.spp = (ParallelPooling if light else AggregatingPooling)(16 * c, ppm_channels, 4 * c, **blocks)
        self.dfm = LightBoundaryFusion(4 * c, 4 * c, norm_cfg=norm_cfg) if light else BoundaryFusion(
            4 * c, 4 * c, **blocks)
        self.out_channels, self.strides = [2 * c, 4 * c, 2 * c], [8, 8, 8]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        x = self.stem(x)
        p, i, d = self.p_branch_layers[0](x), relu(self.i_branch_layers[0](x)), self.d_branch_layers[0](x)
        p = first_p = self.pag_1(p, self.compression_1(i))
        d = self._resized(self.diff_1(i), d, add=d)
        p, i, d = self.p_branch_layers[1](relu(p)), relu(self.i_branch_layers[1](i)), self.d_branch_layers[1](relu(d))
        p = self.pag_2(p, self.compression_2(i))
        d = second_d = self._resized(self.diff_2(i), d, add=d)
        p, i, d = self.p_branch_layers[2](relu(p)), self.i_branch_layers[2](i), self.d_branch_layers[2](relu(d))
        return [first_p, self.dfm(p, self._resized(self.spp(i), p), d), second_d]

    def _resized(self, x: jt.Var, like: jt.Var, *, add: jt.Var | None = None) -> jt.Var:
        return ops.bilinear_resize(x, tuple(like.shape[2:]), align_corners=self.align_corners, add=add)


def _projection(norm_cfg: dict):
    """How shortcuts are projected: a 1x1 block."""
    return lambda before, after, stride: ConvNormAct(before, after, 1, stride=stride, norm_cfg=norm_cfg)


def _layer_maker(blocks: dict):
    """`residual_layer` with these norms, activations and projections."""
    def make(*args, stride: int = 1) -> nn.Sequential:
        return residual_layer(*args, stride=stride, project=_projection(blocks["norm_cfg"]), **blocks)
    return make


def _single_block(in_channels: int, channels: int, blocks: dict) -> BasicResidual:
    """One basic block whose sum is not activated."""
    shortcut = None if in_channels == channels else _projection(blocks["norm_cfg"])(in_channels, channels, 1)
    return BasicResidual(in_channels, channels, stride=1, downsample=shortcut, out_act_cfg=None, **blocks)
