"""MSCAN, the encoder of SegNeXt: multi-scale convolutional attention.

Paper: Guo et al., "SegNeXt: Rethinking Convolutional Attention Design for Semantic Segmentation", NeurIPS 2022, sec.
3.1. Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/mscan.py (Apache-2.0), whose state keys and arithmetic these
are.

Deviations from upstream:
- maps stay (N, C, H, W) throughout; upstream turns them into tokens and back between blocks (same values);
- the strip branches may be any number; upstream builds what it is given and always runs three;
- operators do a block's elementwise steps on the way (gate, shortcuts, layer scale, stochastic depth), and without
  gradients BatchNorm too: `MSCABlock.execute`. No weight changes, so training and loading need nothing undone;
- `in_channels` is honoured; upstream's stem always takes 3;
- `num_batches_tracked` of the norms is not kept (see layers.norms).
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Callable, Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import BatchNorm2d, Conv2d, Dropout, DropPath, LayerNorm, build_activation, build_norm, mix_ffn
from jseg.layers.freeze import freeze, run_frozen
from jseg.layers.init import constant
from jseg.registry import MODELS, nearest

__all__ = ["ConvAttentionStages", "MSCAN", "OverlapPatchEmbed", "SIZES", "VARIANTS", "chosen_sizes"]

KERNEL_SIZES = (5, (1, 7), (1, 11), (1, 21))
PADDINGS = (2, (0, 3), (0, 5), (0, 10))
_STAGE = ("patch_embed", "block", "norm")  # the parts of a stage, in their order


class Mlp(nn.Module):
    """Feed-forward block: 1x1, 3x3 depthwise, activation, 1x1.

    Args:
        channels, hidden_channels: widths outside and inside.
        act_cfg: activation after the depthwise convolution.
        drop_prob: dropout after the activation and at the end, in [0, 1).
    Shape:
        x, shortcut: (N, channels, H, W); scale: (channels,); factor: (N,); affine: (scale, shift) of the input,
        (channels,) each, or folded: what `ops.fold_norms` makes of it -> shortcut + factor * scale * block(affine(x)),
        (N, channels, H, W)
    """

    def __init__(self, channels: int, hidden_channels: int, *, act_cfg: dict, drop_prob: float = 0.0):
        super().__init__()
        self.fc1 = Conv2d(channels, hidden_channels, 1)
        self.dwconv = Conv2d(hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels)
        self.fc2 = Conv2d(hidden_channels, channels, 1)
        self.activate = build_activation(act_cfg)
        self.is_gelu = act_cfg["type"] == "GELU"
        self.drop = Dropout(drop_prob)

    def execute(self, x: jt.Var, *, scale: jt.Var, shortcut: jt.Var, factor: jt.Var | None = None,
                affine: tuple = (None, None), folded: tuple | None = None) -> jt.Var:
        return mix_ffn(x, self.fc1, self.dwconv, self.fc2, self.activate, self.drop, is_gelu=self.is_gelu,
                       shortcut=shortcut, scale=scale, factor=factor, affine=affine, folded=folded)


class MSCAAttention(nn.Module):
    """Multi-scale convolutional attention (sec. 3.1, eq. 1): a k x k depthwise convolution, strips of several lengths
    applied to its output and summed with it, a 1x1 convolution; the result gates the input.

    Args:
        channels: C.
        kernel_sizes: side of the square kernel, then (1, k) for each strip pair; all odd.
        paddings: the paddings that keep the size, in the same form.
    Shape:
        x: (N, C, H, W) -> same
    Raises:
        ValueError: kernel sizes and paddings that do not keep the map's size.
    """

    def __init__(self, channels: int, kernel_sizes, paddings):
        super().__init__()
        side, strips = _checked_kernels(kernel_sizes, paddings)
        self.conv0 = Conv2d(channels, channels, side, padding=side // 2, groups=channels)
        self.branches = len(strips)
        for i, length in enumerate(strips):
            setattr(self, f"conv{i}_1", Conv2d(channels, channels, (1, length), padding=(0, length // 2),
                                               groups=channels))
            setattr(self, f"conv{i}_2", Conv2d(channels, channels, (length, 1), padding=(length // 2, 0),
                                               groups=channels))
        self.conv3 = Conv2d(channels, channels, 1)

    def execute(self, x: jt.Var) -> jt.Var:
        strips = []
        for i in range(self.branches):
            row, column = getattr(self, f"conv{i}_1"), getattr(self, f"conv{i}_2")
            strips.append((row.weight, row.bias, column.weight, column.bias))
        attention = ops.msca(x, self.conv0.weight, self.conv0.bias, strips)
        return ops.pointwise(attention, self.conv3.weight, self.conv3.bias, gate=x)


class MSCASpatialAttention(nn.Module):
    """1x1, activation, attention that gates what it gets, 1x1, plus the input.

    Args:
        channels: C.
        make_gate: C -> the attention, a module of maps (N, C, H, W).
        act_cfg: the activation.
    Shape:
        x, shortcut: (N, C, H, W); again: x, for its second use; scale: (C,); factor: (N,); affine: (scale, shift) of
        the input, (C,) each, or folded: what `ops.fold_norms` makes of it -> shortcut + factor * scale *
        attention(affine(x)), (N, C, H, W)
    """

    def __init__(self, channels: int, make_gate: Callable[[int], nn.Module], *, act_cfg: dict):
        super().__init__()
        self.proj_1 = Conv2d(channels, channels, 1)
        self.spatial_gating_unit = make_gate(channels)
        self.proj_2 = Conv2d(channels, channels, 1)
        self.activate = build_activation(act_cfg)
        self.is_gelu = act_cfg["type"] == "GELU"

    def execute(self, x: jt.Var, again: jt.Var, *, scale: jt.Var, shortcut: jt.Var, factor: jt.Var | None = None,
                affine: tuple = (None, None), folded: tuple | None = None) -> jt.Var:
        if folded is not None:
            weight, bias, again_scale, last_bias = folded
        else:
            weight, bias, again_scale, last_bias = self.proj_1.weight, self.proj_1.bias, affine[0], self.proj_2.bias
            last_bias = last_bias if affine[1] is None else last_bias + affine[1]
        hidden = ops.pointwise(x, weight, bias, activation="gelu" if self.is_gelu else None, input_scale=affine[0],
                               input_shift=affine[1])
        hidden = hidden if self.is_gelu else self.activate(hidden)
        return ops.pointwise(self.spatial_gating_unit(hidden), self.proj_2.weight, last_bias, residual=again,
                             residual_scale=again_scale, scale=scale, factor=factor, shortcut=shortcut)


class MSCABlock(nn.Module):
    """One residual block: normalised attention and normalised feed-forward, each scaled per channel.

    Args:
        channels: C.
        make_gate: see `MSCASpatialAttention`.
        mlp_ratio: width of the feed-forward block over C.
        drop_prob: dropout inside the feed-forward block.
        drop_path_prob: probability of dropping each residual branch in training.
        act_cfg, norm_cfg: activations and norms.
    Shape:
        x: (N, C, H, W) -> same; folded: what `ops.fold_norms` makes of `folds`
    """

    def __init__(self, channels: int, *, make_gate: Callable[[int], nn.Module], mlp_ratio: float, drop_prob: float,
                 drop_path_prob: float, act_cfg: dict, norm_cfg: dict):
        super().__init__()
        self.norm1 = build_norm(norm_cfg, channels)[1]
        self.attn = MSCASpatialAttention(channels, make_gate, act_cfg=act_cfg)
        self.norm2 = build_norm(norm_cfg, channels)[1]
        self.mlp = Mlp(channels, int(channels * mlp_ratio), act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)
        self.layer_scale_1 = constant(channels, 1e-2)
        self.layer_scale_2 = constant(channels, 1e-2)

    def execute(self, x: jt.Var, folded: list[tuple] | None = None) -> jt.Var:
        if folded is not None:
            x = self.attn(x, x, scale=self.layer_scale_1, shortcut=x, folded=folded[0])
            return self.mlp(x, scale=self.layer_scale_2, shortcut=x, folded=folded[1])
        if jt.flags.no_grad and not ops.uses_plain() and self.has_fixed_norms:
            x = self.attn(x, x, scale=self.layer_scale_1, shortcut=x, affine=self.norm1.affine())
            return self.mlp(x, scale=self.layer_scale_2, shortcut=x, affine=self.norm2.affine())
        y, again, x = self.norm1.fork_output(x)
        x = self.attn(y, again, scale=self.layer_scale_1, factor=self.drop_path.factor(x.shape[0]), shortcut=x)
        y, _, x = self.norm2.fork_output(x)
        return self.mlp(y, scale=self.layer_scale_2, factor=self.drop_path.factor(x.shape[0]), shortcut=x)

    def folds(self) -> list[ops.Fold]:
        """Its norms and the convolutions behind them, for `ops.fold_norms`; the first norm's output is used twice."""
        proj, fc1 = self.attn.proj_1, self.mlp.fc1
        return [ops.Fold(proj.weight, proj.bias, self.norm1.parts, self.norm1.eps, self.attn.proj_2.bias),
                ops.Fold(fc1.weight, fc1.bias, self.norm2.parts, self.norm2.eps)]

    @property
    def has_fixed_norms(self) -> bool:
        """Whether both norms are BatchNorm by running statistics:
        one scale and shift per channel, which operators can take over.
        """
        return all(isinstance(norm, BatchNorm2d) and not norm.is_train for norm in (self.norm1, self.norm2))


class MSCABlocks(nn.Sequential):
    """The blocks of a stage; on a GPU without gradients all their norms are folded together. Shape: (N, C, H, W) ->
    same."""

    def execute(self, x: jt.Var) -> jt.Var:
        blocks = list(self.layers.values())
        if not (ops.folds_norms(x) and all(block.has_fixed_norms for block in blocks)):
            return super().execute(x)
        folded = ops.fold_norms(x, [fold for block in blocks for fold in block.folds()])
        for i, block in enumerate(blocks):
            x = block(x, folded[2 * i:2 * i + 2])
        return x


class StemConv(nn.Module):
    """Two strided 3x3 convolutions. Shape: (N, C0, H, W) -> (N, C, ceil(H/4), ceil(W/4))."""

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        super().__init__()
        self.proj = nn.Sequential(
            Conv2d(in_channels, channels // 2, 3, stride=2, padding=1),
            build_norm(norm_cfg, channels // 2)[1],
            nn.GELU(),
            Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            build_norm(norm_cfg, channels)[1])

    def execute(self, x: jt.Var) -> jt.Var:
        conv_1, norm_1, _, conv_2, norm_2 = self.proj
        return norm_2(conv_2(norm_1(conv_1(x), activation="gelu")))


class OverlapPatchEmbed(nn.Module):
    """A strided convolution and a norm before a stage.
    Shape: (N, C0, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, *, kernel_size: int = 3, stride: int = 2, norm_cfg: dict):
        super().__init__()
        self.proj = Conv2d(in_channels, channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = build_norm(norm_cfg, channels)[1]

    def execute(self, x: jt.Var) -> jt.Var:
        return self.norm(self.proj(x))


VARIANTS = {
    "tiny": {"embed_dims": [32, 64, 160, 256], "depths": [3, 3, 5, 2], "mlp_ratios": [8, 8, 4, 4]},
    "small": {"embed_dims": [64, 128, 320, 512], "depths": [2, 2, 4, 2], "mlp_ratios": [8, 8, 4, 4]},
    "base": {"embed_dims": [64, 128, 320, 512], "depths": [3, 3, 12, 3], "mlp_ratios": [8, 8, 4, 4]},
    "large": {"embed_dims": [64, 128, 320, 512], "depths": [3, 5, 27, 3], "mlp_ratios": [8, 8, 4, 4]},
}
SIZES = MappingProxyType({"embed_dims": [64, 128, 256, 512], "depths": [3, 4, 6, 3], "mlp_ratios": [4, 4, 4, 4]})


class ConvAttentionStages(nn.Module):
    """Stages at strides 4, 8, 16... of blocks whose attention is a gate made by convolutions: MSCAN, VAN.

    Args:
        stem: what brings a picture to the first stage, at stride 4.
        sizes: `embed_dims`, `depths` and `mlp_ratios`, one value per stage each.
        make_gate: see `MSCASpatialAttention`.
        others: as in `MSCAN`.
    Shape:
        x: as the stem takes it -> list of (N, embed_dims[i], ceil(H / 2**(i+2)), ceil(W / 2**(i+2)))
    Raises:
        ConfigError: lists of other lengths than the number of stages, or `frozen_stages` beyond it.
    """

    def __init__(self, stem: Callable[[int], nn.Module], sizes: Mapping[str, Sequence], *, num_stages: int,
                 make_gate: Callable[[int], nn.Module], drop_rate: float, drop_path_rate: float, act_cfg: dict,
                 norm_cfg: dict, frozen_stages: int):
        super().__init__()
        for name, values in sizes.items():
            if len(values) != num_stages:
                raise ConfigError(f"{type(self).__name__}: {name} needs {num_stages} values (one per stage), got "
                                  f"{list(values)}")
        if not -1 <= frozen_stages <= num_stages:
            raise ConfigError(f"{type(self).__name__}: frozen_stages is {frozen_stages}; -1 freezes nothing, 0 the "
                              f"stem, 1 to {num_stages} stages")
        embed_dims, depths, mlp_ratios = (sizes[name] for name in ("embed_dims", "depths", "mlp_ratios"))
        self.num_stages, self.frozen_stages = num_stages, frozen_stages
        self.out_channels, self.strides = list(embed_dims), [4 * 2**i for i in range(num_stages)]
        drop_paths = np.linspace(0.0, drop_path_rate, sum(depths)).tolist()
        for i in range(num_stages):
            embed = (stem(embed_dims[0]) if i == 0 else
                     OverlapPatchEmbed(embed_dims[i - 1], embed_dims[i], norm_cfg=norm_cfg))
            first = sum(depths[:i])
            blocks = [MSCABlock(embed_dims[i], make_gate=make_gate, mlp_ratio=mlp_ratios[i], drop_prob=drop_rate,
                                drop_path_prob=drop_paths[first + j], act_cfg=act_cfg, norm_cfg=norm_cfg)
                      for j in range(depths[i])]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", MSCABlocks(*blocks))
            setattr(self, f"norm{i + 1}", LayerNorm(embed_dims[i], axis=1))
            for name in _STAGE:
                if self._is_frozen(name, i + 1):
                    freeze(getattr(self, f"{name}{i + 1}"))

    def execute(self, x: jt.Var) -> list[jt.Var]:
        features = []
        for i in range(1, self.num_stages + 1):
            for name in _STAGE:
                part = getattr(self, f"{name}{i}")
                x = run_frozen(part, x) if self._is_frozen(name, i) else part(x)
            features.append(x)
        return features

    def _is_frozen(self, name: str, stage: int) -> bool:
        """Whether a part of a stage (from 1) is frozen; the stem is the first part of the first."""
        return stage <= self.frozen_stages or (name, stage, self.frozen_stages) == ("patch_embed", 1, 0)

    @staticmethod
    def remap_keys(state: dict) -> dict:
        """Rename the keys of another release to ours.

        The authors' releases and original JSeg wrap the feed-forward block's depthwise convolution
        (`mlp.dwconv.dwconv.weight`); mmsegmentation 1.x does not. All other keys pass unchanged.
        """
        return {re.sub(r"\.mlp\.dwconv\.dwconv\.", ".mlp.dwconv.", key): value for key, value in state.items()}


@MODELS.register()
class MSCAN(ConvAttentionStages):
    """Multi-scale convolutional attention network, four stages at strides 4, 8, 16 and 32.

    Args:
        variant: "tiny", "small", "base" or "large" (`VARIANTS`), whose sizes are then the defaults.
        in_channels: channels of the picture.
        embed_dims, depths, mlp_ratios: widths, blocks and feed-forward ratios, one for each of `num_stages` stages;
            None for the variant's, or without a variant MMSegmentation's (`SIZES`).
        drop_rate: dropout in the feed-forward blocks, in [0, 1).
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        attention_kernel_sizes, attention_kernel_paddings: see `MSCAAttention`.
        act_cfg, norm_cfg: activation of the blocks and norm of blocks and embeddings.
        frozen_stages: -1: none; 0: the stem; n: the first n stages. A frozen part computes as in evaluation (no
            dropout, norms by their running statistics, which stand still) and its parameters get no gradient, so that
            no optimizer moves them.
    Shape:
        x: (N, in_channels, H, W), any H and W >= 1 -> list of (N, embed_dims[i], ceil(H / 2**(i+2)), ceil(W /
            2**(i+2)))
    Raises:
        ConfigError: unknown variant, or lists whose lengths differ from `num_stages`.
    """

    TINY = MappingProxyType({"type": "MSCAN", "embed_dims": [8, 16, 16, 32], "depths": [1, 1, 2, 1],
                             "mlp_ratios": [2, 2, 2, 2]})

    def __init__(self, *, variant: str | None = None, in_channels: int = 3, embed_dims=None, depths=None,
                 mlp_ratios=None, drop_rate: float = 0.0, drop_path_rate: float = 0.0, num_stages: int = 4,
                 attention_kernel_sizes=KERNEL_SIZES, attention_kernel_paddings=PADDINGS,
                 act_cfg: dict | None = None, norm_cfg: dict | None = None, frozen_stages: int = -1):
        act_cfg, norm_cfg = act_cfg or {"type": "GELU"}, norm_cfg or {"type": "BN"}
        super().__init__(
            lambda channels: StemConv(in_channels, channels, norm_cfg=norm_cfg),
            chosen_sizes("MSCAN", variant, VARIANTS, SIZES, embed_dims=embed_dims, depths=depths,
                         mlp_ratios=mlp_ratios), num_stages=num_stages,
            make_gate=lambda channels: MSCAAttention(channels, attention_kernel_sizes, attention_kernel_paddings),
            drop_rate=drop_rate, drop_path_rate=drop_path_rate, act_cfg=act_cfg, norm_cfg=norm_cfg,
            frozen_stages=frozen_stages)


def chosen_sizes(name: str, variant: str | None, variants: Mapping, usual: Mapping, **given) -> dict[str, list]:
    """Widths, depths and ratios: explicit ones, else the variant's, else the usual ones.

    Args:
        name: of the class, for messages.
        variant: a name of `variants`, or None.
        given: `embed_dims`, `depths` and `mlp_ratios`, None where not given.
    Raises:
        ConfigError: an unknown variant.
    """
    if variant is not None and variant not in variants:
        raise ConfigError(f"{name}: unknown variant {variant!r}{nearest(variant, variants)} (known: "
                          f"{', '.join(variants)})")
    return {key: list(values or variants.get(variant, usual)[key]) for key, values in given.items()}


def _checked_kernels(kernel_sizes, paddings) -> tuple[int, list[int]]:
    """The square kernel's side and the strips' lengths, after checking that the paddings keep the map's size."""
    side, strips = kernel_sizes[0], []
    wanted = [side // 2]
    for kernel in kernel_sizes[1:]:
        if len(kernel) != 2 or kernel[0] != 1:
            raise ValueError(f"attention_kernel_sizes: strips are [1, k], got {list(kernel)}")
        strips.append(int(kernel[1]))
        wanted.append([0, kernel[1] // 2])
    given = [list(p) if isinstance(p, (list, tuple)) else p for p in paddings]
    if given != wanted or any(k % 2 == 0 for k in [side, *strips]):
        raise ValueError(f"attention_kernel_paddings {given} do not keep the size for kernels {kernel_sizes}; "
                         f"kernels must be odd and their paddings {wanted}")
    return int(side), strips
