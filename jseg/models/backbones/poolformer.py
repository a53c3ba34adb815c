"""PoolFormer: the shape of a transformer with a mean over neighbours in the place of attention.

Paper: Yu et al., "MetaFormer Is Actually What You Need for Vision", CVPR 2022.
Upstream: mmpretrain 1.2.0 mmpretrain/models/backbones/poolformer.py (Apache-2.0), whose words, keys and arithmetic
these are.

Deviations: `out_indices` takes numbers of the network's parts only (upstream also where two stages of one width have no
downsampling between them, and then takes the wrong norms).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, Dropout, DropPath, avg_pool, build_activation, build_norm
from jseg.layers.freeze import freeze, run_frozen
from jseg.layers.init import constant
from jseg.ops.common import per_channel
from jseg.registry import MODELS, nearest

__all__ = ["PoolFormer", "PoolFormerBlock", "VARIANTS"]

VARIANTS = MappingProxyType({  # blocks and width of each stage, first value of the scales per channel
    "s12": ((2, 2, 6, 2), (64, 128, 320, 512), 1e-5), "s24": ((4, 4, 12, 4), (64, 128, 320, 512), 1e-5),
    "s36": ((6, 6, 18, 6), (64, 128, 320, 512), 1e-6), "m36": ((6, 6, 18, 6), (96, 192, 384, 768), 1e-6),
    "m48": ((8, 8, 24, 8), (96, 192, 384, 768), 1e-6)})
_ARCH_WORDS = ("layers", "embed_dims", "mlp_ratios", "layer_scale_init_value")


class Projection(nn.Module):
    """A strided convolution, whose key is `proj`. Shape: (N, in_channels, H, W) -> (N, out_channels, H', W')."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int, padding: int):
        super().__init__()
        self.proj = Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.proj(x)


class ChannelMlp(nn.Module):
    """Two 1x1 convolutions with an activation between them; the second scales, drops paths and adds the shortcut.

    Args:
        channels, hidden: widths of input and output, and inside.
        act_cfg: the activation.
        drop_prob: dropout behind the activation and behind the second convolution.
    Shape:
        x, shortcut: (N, channels, H, W); scale: (channels,); factor: (N,) or None -> (N, channels, H, W)
    """

    def __init__(self, channels: int, hidden: int, *, act_cfg: dict, drop_prob: float):
        super().__init__()
        self.fc1, self.fc2 = Conv2d(channels, hidden, 1), Conv2d(hidden, channels, 1)
        self.activate, self.fused = build_activation(act_cfg), "gelu" if act_cfg["type"] == "GELU" else None
        self.drop = Dropout(drop_prob)

    def execute(self, x: jt.Var, *, scale: jt.Var, factor: jt.Var | None, shortcut: jt.Var) -> jt.Var:
        y = ops.pointwise(x, self.fc1.weight, self.fc1.bias, activation=self.fused)
        y = self.drop(y if self.fused else self.activate(y))
        if self.drop.drop_prob == 0.0:
            return ops.pointwise(y, self.fc2.weight, self.fc2.bias, scale=scale, factor=factor, shortcut=shortcut)
        y = self.drop(self.fc2(y)) * per_channel(scale)
        return shortcut + (y if factor is None else y * factor.reshape(-1, 1, 1, 1))


class PoolFormerBlock(nn.Module):
    """The mean over neighbours minus the pixel, then a perceptron over channels; each behind a norm, with a shortcut.

    Args:
        channels: C.
        pool_size: side of the neighbourhood in pixels, odd.
        mlp_ratio: width inside the perceptron over C.
        norm_cfg, act_cfg: the norms, and the perceptron's activation.
        drop_prob, drop_path_prob: dropout in the perceptron, and of whole branches.
        layer_scale: first value of the scales per channel.
    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int, *, pool_size: int, mlp_ratio: float, norm_cfg: dict, act_cfg: dict,
                 drop_prob: float, drop_path_prob: float, layer_scale: float):
        super().__init__()
        self.pool_size = pool_size
        self.norm1, self.norm2 = (build_norm(norm_cfg, channels)[1] for _ in range(2))
        self.mlp = ChannelMlp(channels, int(channels * mlp_ratio), act_cfg=act_cfg, drop_prob=drop_prob)
        self.drop_path = DropPath(drop_path_prob)
        self.layer_scale_1, self.layer_scale_2 = constant(channels, layer_scale), constant(channels, layer_scale)

    def execute(self, x: jt.Var) -> jt.Var:
        y, again, x = self.norm1.fork_output(x)
        around = avg_pool(y, self.pool_size, stride=1, padding=self.pool_size // 2, count_include_pad=False)
        x = x + self.drop_path((around - again) * per_channel(self.layer_scale_1))
        y, _, x = self.norm2.fork_output(x)
        return self.mlp(y, scale=self.layer_scale_2, factor=self.drop_path.factor(x.shape[0]), shortcut=x)


@MODELS.register()
class PoolFormer(nn.Module):
    """PoolFormer. Its parts are numbered: 0, 2, 4 and 6 are the stages, 1, 3 and 5 the convolutions between them.

    Args:
        arch: a name of `VARIANTS`, or `{layers: [...], embed_dims: [...]}`, blocks and width of each stage, with
            `mlp_ratios` (4 each) and `layer_scale_init_value` (1e-5) if wished.
        pool_size: side of the neighbourhood in pixels, odd.
        norm_cfg, act_cfg: norms, and activation of the blocks.
        in_patch_size, in_stride, in_pad: first convolution, in pixels.
        down_patch_size, down_stride, down_pad: convolutions between stages.
        drop_rate: dropout in the perceptrons, in [0, 1).
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        out_indices: parts whose maps are given, each with a norm of its own; -1 for the last.
        frozen_stages: -1: nothing; 0: the first convolution; n: that and the first n parts compute as in evaluation,
            and their parameters get no gradient.
        in_channels: channels of the picture.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], H', W'), a map per index; with the usual padding
        about H over strides[i], rounded down for the first convolution and up for the others
    Raises:
        ConfigError: an unknown `arch`, lists of other lengths, or an index that is no part.
    """

    TINY = MappingProxyType({"type": "PoolFormer", "out_indices": [0, 2, 4, 6], "frozen_stages": -1,
                             "arch": {"layers": [1, 1, 2, 1], "embed_dims": [8, 12, 16, 24],
                                      "layer_scale_init_value": 0.5}})

    def __init__(self, arch: str | Mapping = "s12", pool_size: int = 3,
                 norm_cfg: dict = MappingProxyType({"type": "GN", "num_groups": 1}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), in_patch_size: int = 7, in_stride: int = 4,
                 in_pad: int = 2, down_patch_size: int = 3, down_stride: int = 2, down_pad: int = 1,
                 drop_rate: float = 0.0, drop_path_rate: float = 0.0, out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = 0, *, in_channels: int = 3):
        super().__init__()
        layers, widths, ratios, layer_scale = _sizes(arch)
        count = 2 * len(layers) - 1
        indices = [i + count if i < 0 else i for i in ([out_indices] if isinstance(out_indices, int) else out_indices)]
        if not indices or not set(indices) <= set(range(count)) or frozen_stages not in range(-1, count + 1):
            raise ConfigError(f"out_indices {out_indices} lie in {-count} to {count - 1}, frozen_stages "
                              f"{frozen_stages} in -1 to {count}")
        if pool_size < 1 or pool_size % 2 == 0:
            raise ConfigError(f"pool_size is {pool_size}; accepted: an odd number")
        self.out_indices, self.frozen_stages = tuple(indices), frozen_stages
        self.patch_embed = Projection(in_channels, widths[0], in_patch_size, stride=in_stride, padding=in_pad)
        network, last = [], max(sum(layers) - 1, 1)
        for i, (blocks, width) in enumerate(zip(layers, widths)):
            rates = [drop_path_rate * (j + sum(layers[:i])) / last for j in range(blocks)]
            network.append(nn.Sequential(*[
                PoolFormerBlock(width, pool_size=pool_size, mlp_ratio=ratios[i], norm_cfg=norm_cfg, act_cfg=act_cfg,
                                drop_prob=drop_rate, drop_path_prob=rate, layer_scale=layer_scale) for rate in rates]))
            if i + 1 < len(layers):
                network.append(Projection(width, widths[i + 1], down_patch_size, stride=down_stride, padding=down_pad))
        self.network = nn.Sequential(*network)
        for i in self.out_indices:
            setattr(self, f"norm{i}", build_norm(norm_cfg, widths[(i + 1) // 2])[1])
        self.out_channels = [widths[(i + 1) // 2] for i in self.out_indices]
        self.strides = [in_stride * down_stride**((i + 1) // 2) for i in self.out_indices]
        for part in self._frozen():
            freeze(part)

    def execute(self, x: jt.Var) -> list[jt.Var]:
        frozen, maps = self._frozen(), []

        def run(part, value):
            return run_frozen(part, value) if any(part is other for other in frozen) else part(value)

        x = run(self.patch_embed, x)
        for i in range(max(self.out_indices) + 1):
            x = run(self.network[i], x)
            if i in self.out_indices:
                maps.append(run(getattr(self, f"norm{i}"), x))
        return maps

    def _frozen(self) -> list[nn.Module]:
        """The frozen parts, with the norms of their maps."""
        parts = [self.patch_embed] if self.frozen_stages >= 0 else []
        for i in range(self.frozen_stages):
            parts.append(self.network[i])
            parts += [getattr(self, f"norm{i}")] if i in self.out_indices else []
        return parts


def _sizes(arch: str | Mapping) -> tuple[list, list, list, float]:
    """Blocks, widths and ratios of the stages, and the first value of the scales; ConfigError where they do not fit."""
    if isinstance(arch, str):
        if arch not in VARIANTS:
            raise ConfigError(f"arch is {arch!r}{nearest(arch, VARIANTS)}; accepted: {', '.join(VARIANTS)}, or a block")
        layers, widths, layer_scale = VARIANTS[arch]
        return list(layers), list(widths), [4] * len(layers), layer_scale
    if not {"layers", "embed_dims"} <= set(arch) <= set(_ARCH_WORDS):
        raise ConfigError(f"arch has {', '.join(map(str, arch))}; accepted: {', '.join(_ARCH_WORDS)}, the first two "
                          "always")
    layers, widths = list(arch["layers"]), list(arch["embed_dims"])
    ratios = list(arch.get("mlp_ratios", [4] * len(layers)))
    if not len(layers) == len(widths) == len(ratios) >= 1 or any(a == b for a, b in zip(widths, widths[1:])):
        raise ConfigError(f"arch: layers {layers}, embed_dims {widths} and mlp_ratios {ratios} have one number a "
                          "stage, and no stage has the width of the one before")
    return layers, widths, ratios, arch.get("layer_scale_init_value", 1e-5)
