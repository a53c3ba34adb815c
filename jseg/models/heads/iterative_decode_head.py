"""IterativeDecodeHead (K-Net): the classifier's weights are kernels, renewed stage by stage from the pixels they chose.

Paper: Zhang et al., "K-Net: Towards Unified Image Segmentation", NeurIPS 2021, sec. 3.2.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/knet_head.py (Apache-2.0), whose keys and arithmetic these are.

Deviations: kernels are 1x1 and maps keep their size, as in every published model (`conv_kernel_size`,
`feat_gather_stride` and `mask_transform_stride` are 1); attention weights cannot be dropped; an update head's
`num_classes` must be that of the head that makes the first kernels.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import (FFN, Conv2d, ConvNormAct, LayerNorm, Linear, ReducedAttention, build_activation, build_norm,
                         check_attn_drop)
from jseg.layers.init import normal, xavier_uniform
from jseg.models.heads.base import Head, SegmentationHead
from jseg.registry import MODELS, Registry

__all__ = ["IterativeDecodeHead", "KernelUpdateHead", "KernelUpdator"]

PARTS = Registry("part of K-Net")
_RELU, _LN = MappingProxyType({"type": "ReLU"}), MappingProxyType({"type": "LN"})


@PARTS.register()
class KernelUpdator(nn.Module):
    """Mix each kernel with the sum of the pixels it chose, by two gates (sec. 3.2, equations 4 and 5).

    Args:
        in_channels: width of the pieces into which kernels and sums are cut.
        feat_channels: width inside; equal to `in_channels`.
        out_channels: width of the result; None for `in_channels`.
        gate_sigmoid: gates between 0 and 1.
        gate_norm_act: norm and activation of what the gates are computed from.
        activate_out: activation of what the gates choose from.
        norm_cfg, act_cfg: norms and activations.
    Shape:
        sums, kernels: (N, K, C), C a multiple of in_channels -> (N, K, C / in_channels * out_channels)
    Raises:
        ConfigError: `feat_channels` differs from `in_channels`.
    """

    def __init__(self, in_channels: int = 256, feat_channels: int = 64, out_channels: int | None = None,
                 gate_sigmoid: bool = True, gate_norm_act: bool = False, activate_out: bool = False,
                 norm_cfg: dict = _LN, act_cfg: dict = _RELU):
        super().__init__()
        if feat_channels != in_channels:
            raise ConfigError(f"feat_channels is {feat_channels} and in_channels {in_channels}; kernels are cut into "
                              "pieces of both widths, which must be equal")
        self.width, self.gate_sigmoid, self.activate_out = in_channels, gate_sigmoid, activate_out
        for name, width in (("dynamic_layer", 2), ("input_layer", 2), ("input_gate", 1), ("update_gate", 1)):
            setattr(self, name, Linear(in_channels, width * in_channels))
        names = ("gate_norm",) * gate_norm_act + ("norm_in", "norm_out", "input_norm_in", "input_norm_out")
        for name in names:
            setattr(self, name, build_norm(norm_cfg, in_channels, channel_first=False)[1])
        self.gate_norm_act, self.activate = gate_norm_act, build_activation(act_cfg)
        self.fc_layer = Linear(in_channels, out_channels or in_channels)
        self.fc_norm = build_norm(norm_cfg, out_channels or in_channels, channel_first=False)[1]

    def execute(self, sums: jt.Var, kernels: jt.Var) -> jt.Var:
        n, count, _ = kernels.shape
        from_sums = self.dynamic_layer(sums.reshape(-1, self.width))
        from_kernels = self.input_layer(kernels.reshape(-1, self.width))
        sum_in, sum_out = from_sums[:, :self.width], from_sums[:, self.width:]
        kernel_in, kernel_out = from_kernels[:, :self.width], from_kernels[:, self.width:]
        both = sum_in * kernel_in  # (N * K * pieces, width)
        if self.gate_norm_act:
            both = self.activate(self.gate_norm(both))
        kernel_gate, sum_gate = self.input_norm_in(self.input_gate(both)), self.norm_in(self.update_gate(both))
        if self.gate_sigmoid:
            kernel_gate, sum_gate = jt.sigmoid(kernel_gate), jt.sigmoid(sum_gate)
        sum_out, kernel_out = self.norm_out(sum_out), self.input_norm_out(kernel_out)
        if self.activate_out:
            sum_out, kernel_out = self.activate(sum_out), self.activate(kernel_out)
        mixed = self.fc_norm(self.fc_layer(sum_gate * sum_out + kernel_gate * kernel_out))
        return self.activate(mixed).reshape(n, count, -1)


@PARTS.register()
class KernelUpdateHead(nn.Module):
    """One stage: gather each kernel's pixels, renew it by them, let kernels see one another, score the map.

    Args:
        num_classes: K.
        num_ffn_fcs, feedforward_channels, ffn_act_cfg: layers of the feed-forward block, their width and activation.
        num_heads: heads of the attention among kernels.
        num_mask_fcs: linear layers with norm and `act_cfg` between a kernel and the weights that score.
        in_channels: width of map and kernels.
        out_channels: width of the scoring weights; equal to `in_channels`.
        dropout: of the feed-forward block; only 0, which is also that of attention weights.
        conv_kernel_size, feat_gather_stride, mask_transform_stride: only 1.
        feat_transform_cfg: words of a 1x1 block before the map is read, or None.
        kernel_init: smaller initial weights of the last layer.
        with_ffn: whether there is a feed-forward block.
        kernel_updator_cfg: block of a `KernelUpdator`.
    Shape:
        x: (N, C, H, W); kernels: (N, K, C); scores: (N, K, H, W) -> scores (N, K, H, W), kernels (N, K, C)
    """

    def __init__(self, num_classes: int = 150, num_ffn_fcs: int = 2, num_heads: int = 8, num_mask_fcs: int = 3,
                 feedforward_channels: int = 2048, in_channels: int = 256, out_channels: int = 256,
                 dropout: float = 0.0, act_cfg: dict = _RELU, ffn_act_cfg: dict = _RELU, conv_kernel_size: int = 1,
                 feat_transform_cfg: dict | None = None, kernel_init: bool = False, with_ffn: bool = True,
                 feat_gather_stride: int = 1, mask_transform_stride: int = 1,
                 kernel_updator_cfg: dict = MappingProxyType({"type": "KernelUpdator", "in_channels": 256,
                                                              "feat_channels": 256})):
        super().__init__()
        if (conv_kernel_size, feat_gather_stride, mask_transform_stride) != (1, 1, 1) or out_channels != in_channels:
            raise ConfigError(f"conv_kernel_size is {conv_kernel_size}, feat_gather_stride {feat_gather_stride}, "
                              f"mask_transform_stride {mask_transform_stride}; accepted: 1. out_channels "
                              f"{out_channels} and in_channels {in_channels} must be equal")
        check_attn_drop(dropout)
        self.num_classes = num_classes
        self.attention, self.attention_norm = ReducedAttention(in_channels, num_heads), LayerNorm(in_channels)
        self.kernel_update_conv = PARTS.build(kernel_updator_cfg, "kernel_updator_cfg")
        self.feat_transform = _transform(in_channels, feat_transform_cfg)
        self.ffn = FFN(in_channels, feedforward_channels, num_fcs=num_ffn_fcs,
                       act_cfg=ffn_act_cfg) if with_ffn else None
        self.ffn_norm = LayerNorm(in_channels) if with_ffn else None
        parts = []
        for _ in range(num_mask_fcs):
            parts += [Linear(in_channels, in_channels, bias=False), LayerNorm(in_channels), nn.Identity()]
        self.mask_fcs, self.activate = nn.Sequential(*parts), build_activation(act_cfg)
        self.fc_mask = Linear(in_channels, out_channels)
        for module in self.modules():
            if isinstance(module, (Conv2d, Linear)):
                module.weight = xavier_uniform(module.weight.shape)
        if kernel_init:
            self.fc_mask.weight = normal(self.fc_mask.weight.shape, 0.01)

    def execute(self, x: jt.Var, kernels: jt.Var, scores: jt.Var) -> tuple[jt.Var, jt.Var]:
        x = x if self.feat_transform is None else self.feat_transform(x)
        n, c, h, w = x.shape
        pixels = x.reshape(n, c, h * w)
        shares = nn.softmax(scores, dim=1).reshape(n, -1, h * w)  # (N, K, L)
        sums = jt.matmul(shares, pixels.transpose(0, 2, 1))  # (N, K, C)
        kernels = self.kernel_update_conv(sums, kernels)
        kernels = self.attention_norm(self.attention(kernels, shortcut=kernels))
        if self.ffn is not None:
            kernels = self.ffn_norm(self.ffn(kernels, shortcut=kernels))
        weights, layers = kernels, list(self.mask_fcs)
        for linear, norm in zip(layers[::3], layers[1::3]):
            weights = self.activate(norm(linear(weights)))
        return jt.matmul(self.fc_mask(weights), pixels).reshape(n, -1, h, w), kernels


@MODELS.register()
class IterativeDecodeHead(Head):
    """A head whose classifier gives the first kernels and scores, and stages that renew both, each with a loss.

    Args:
        num_stages: length of `kernel_update_head`.
        kernel_generate_head: block of an ordinary head; its inputs, classes and losses are this head's.
        kernel_update_head: blocks of `KernelUpdateHead`, first to last.
    Shape:
        features: list of maps -> list of num_stages + 1 scores (N, K, h, w)
    Raises:
        ConfigError: another number of stages, other classes or widths, or a head that does not classify one map.
    """

    TINY = MappingProxyType({
        "type": "IterativeDecodeHead", "num_stages": 2,
        "kernel_generate_head": {"type": "FCNHead", "channels": 8, "norm_cfg": {"type": "BN"}},
        "kernel_update_head": [{
            "type": "KernelUpdateHead", "num_classes": 5, "num_heads": 2, "num_mask_fcs": 1, "feedforward_channels": 8,
            "in_channels": 8, "out_channels": 8, "feat_transform_cfg": {"act_cfg": None},
            "kernel_updator_cfg": {"type": "KernelUpdator", "in_channels": 4, "feat_channels": 4}}] * 2})

    def __init__(self, num_stages: int, kernel_generate_head: dict, kernel_update_head: Sequence[dict]):
        super().__init__()
        if not isinstance(kernel_update_head, (list, tuple)) or len(kernel_update_head) != num_stages:
            raise ConfigError(f"num_stages is {num_stages}, and kernel_update_head must be a list of as many blocks")
        head = MODELS.build(kernel_generate_head, "kernel_generate_head")
        if not isinstance(head, SegmentationHead) or type(head).execute is not SegmentationHead.execute:
            raise ConfigError(f"kernel_generate_head: {type(head).__name__} does more than classify one map; accepted: "
                              "FCNHead, PSPHead, ASPPHead and their like")
        self.kernel_generate_head = head
        self.num_classes, self.ignore_index = head.num_classes, head.ignore_index
        self.align_corners = head.align_corners
        self.kernel_update_head = nn.Sequential(
            *[PARTS.build(block, f"kernel_update_head[{i}]") for i, block in enumerate(kernel_update_head)])
        for stage in self.kernel_update_head:
            width = stage.fc_mask.weight.shape[0]
            if (stage.num_classes, width) != (head.num_classes, head.channels):
                raise ConfigError(f"kernel_update_head: num_classes {stage.num_classes} and in_channels {width}; the "
                                  f"kernels of kernel_generate_head are {head.num_classes} of {head.channels} channels")

    def execute(self, features: list, previous: jt.Var | None = None) -> list[jt.Var]:
        head = self.kernel_generate_head
        x = head.decode(head.select(features))
        count, width = head.conv_seg.weight.shape[:2]
        kernels = head.conv_seg.weight.reshape(1, count, width).broadcast((x.shape[0], count, width))
        stages = [head.classify(x)]
        for stage in self.kernel_update_head:
            scores, kernels = stage(x, kernels, stages[-1])
            stages.append(scores)
        return stages

    def loss(self, outputs: list[jt.Var], labels: jt.Var) -> dict[str, jt.Var]:
        return {f"{key}.s{i}": value for i, scores in enumerate(outputs)
                for key, value in self.kernel_generate_head.loss(scores, labels).items()}

    def scores(self, outputs: list[jt.Var], size: tuple[int, int]) -> jt.Var:
        return self.kernel_generate_head.scores(outputs[-1], size)


def _transform(channels: int, words: Mapping | None) -> nn.Module | None:
    """The convolution block that `feat_transform_cfg` names; its activation is ReLU where not given."""
    if words is None:
        return None
    words = {"act_cfg": dict(_RELU), **words}
    side = words.pop("kernel_size", 1)
    if side != 1:
        raise ConfigError(f"feat_transform_cfg: kernel_size is {side}; accepted: 1, since the block has no padding")
    return ConvNormAct(channels, channels, 1, **words)
