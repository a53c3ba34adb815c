"""ConvNeXt: convolutional blocks in the shape of a transformer's.

Paper: Liu et al., "A ConvNet for the 2020s", CVPR 2022.
Upstream: mmpretrain 1.2 mmpretrain/models/backbones/convnext.py (Apache-2.0), whose words, keys and arithmetic these
are.

Deviations:
- maps stay (N, C, H, W), and the second product of a block scales, drops and adds the shortcut on the way (same
  values);
- `gap_before_final_norm: true` gives maps of one place, for a classifier alone; the response normalisation of
  ConvNeXt V2 is not here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, DropPath, Linear, build_activation, build_norm
from jseg.layers.freeze import freeze, run_frozen
from jseg.layers.init import constant
from jseg.models.backbones.vision_transformer import chosen_blocks
from jseg.registry import MODELS, nearest

__all__ = ["ConvNeXt", "VARIANTS"]

VARIANTS = MappingProxyType({
    "atto": ([2, 2, 6, 2], [40, 80, 160, 320]), "femto": ([2, 2, 6, 2], [48, 96, 192, 384]),
    "pico": ([2, 2, 6, 2], [64, 128, 256, 512]), "nano": ([2, 2, 8, 2], [80, 160, 320, 640]),
    "tiny": ([3, 3, 9, 3], [96, 192, 384, 768]), "small": ([3, 3, 27, 3], [96, 192, 384, 768]),
    "base": ([3, 3, 27, 3], [128, 256, 512, 1024]), "large": ([3, 3, 27, 3], [192, 384, 768, 1536]),
    "xlarge": ([3, 3, 27, 3], [256, 512, 1024, 2048]), "huge": ([3, 3, 27, 3], [352, 704, 1408, 2816])})


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, norm, two products over channels with an activation between them, and the shortcut.

    Args:
        channels: C; inside the block there are four times as many.
        linear: whether the products' weights have two axes (a linear layer's) or four (a 1x1 convolution's).
        layer_scale: first value of the scale per channel; 0 for none.
        drop_path_prob: probability of dropping the branch in training.
    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int, *, linear: bool, layer_scale: float, drop_path_prob: float, act_cfg: dict,
                 norm_cfg: dict):
        super().__init__()
        self.depthwise_conv = Conv2d(channels, channels, 7, padding=3, groups=channels, init_std=0.02)
        self.norm = build_norm(norm_cfg, channels)[1]
        widths = (channels, 4 * channels), (4 * channels, channels)
        self.pointwise_conv1, self.pointwise_conv2 = (Linear(*pair) if linear else Conv2d(*pair, 1, init_std=0.02)
                                                      for pair in widths)
        self.activate, self.fused = build_activation(act_cfg), "gelu" if act_cfg["type"] == "GELU" else None
        self.gamma = constant(channels, layer_scale) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var) -> jt.Var:
        first, second = self.pointwise_conv1, self.pointwise_conv2
        y = ops.pointwise(self.norm(self.depthwise_conv(x)), first.weight, first.bias, activation=self.fused)
        y = y if self.fused else self.activate(y)
        return ops.pointwise(y, second.weight, second.bias, scale=self.gamma,
                             factor=self.drop_path.factor(x.shape[0]), shortcut=x)


@MODELS.register()
class ConvNeXt(nn.Module):
    """ConvNeXt, stages at strides 4, 8, 16 and 32.

    Args:
        arch: a name of `VARIANTS`, or `{depths: [...], channels: [...]}`, blocks and width of each stage.
        in_channels: channels of the picture.
        stem_patch_size: side of the first patches, and their stride, in pixels.
        norm_cfg, act_cfg: norms, and activation of the blocks.
        linear_pw_conv: whether the blocks' weights are linear layers' (see `ConvNeXtBlock`).
        drop_path_rate: stochastic depth of the last block, in [0, 1); earlier blocks get less, linearly from 0.
        layer_scale_init_value: first value of the scales per channel; 0 for none.
        out_indices: stages whose maps are given, each with a norm of its own; -1 for the last.
        frozen_stages: the first n stages, with what comes before them, compute as in evaluation and their parameters
            get no gradient.
        gap_before_final_norm: take the mean over places before the norm of the last stage, for classification; then
            `out_indices` is that stage alone.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], H // strides[i], W // strides[i]), a map per index
    Raises:
        ConfigError: an unknown `arch`, an index that is no stage, or `gap_before_final_norm` with maps of several
            stages.
    """

    TINY = MappingProxyType({"type": "ConvNeXt", "arch": {"depths": [1, 1, 2, 1], "channels": [8, 16, 16, 32]},
                             "out_indices": [0, 1, 2, 3],
                             "layer_scale_init_value": 0.5, "gap_before_final_norm": False})

    def __init__(self, arch: str | Mapping = "tiny", in_channels: int = 3, stem_patch_size: int = 4,
                 norm_cfg: dict = MappingProxyType({"type": "LN2d", "eps": 1e-6}),
                 act_cfg: dict = MappingProxyType({"type": "GELU"}), linear_pw_conv: bool = True,
                 drop_path_rate: float = 0.0, layer_scale_init_value: float = 1e-6,
                 out_indices: int | Sequence[int] = -1, frozen_stages: int = 0, gap_before_final_norm: bool = True):
        super().__init__()
        depths, channels = _sizes(arch)
        chosen = chosen_blocks(out_indices, len(depths))
        if gap_before_final_norm and tuple(chosen) != (len(depths) - 1,):
            raise ConfigError("gap_before_final_norm: true gives one vector a picture (it is for classification); set "
                              "it to false")
        if not 0 <= frozen_stages <= len(depths):
            raise ConfigError(f"frozen_stages is {frozen_stages}; accepted: 0 to {len(depths)}")
        self.out_indices, self.frozen_stages, self.gives_vectors = chosen, frozen_stages, gap_before_final_norm
        rates, stages = np.linspace(0.0, drop_path_rate, sum(depths)).tolist(), []
        parts = [nn.Sequential(Conv2d(in_channels, channels[0], stem_patch_size, stride=stem_patch_size, init_std=0.02),
                               build_norm(norm_cfg, channels[0])[1])]
        parts += [nn.Sequential(build_norm(norm_cfg, before)[1], Conv2d(before, after, 2, stride=2, init_std=0.02))
                  for before, after in zip(channels, channels[1:])]
        for i, (depth, width) in enumerate(zip(depths, channels)):
            stages.append(nn.Sequential(*[
                ConvNeXtBlock(width, linear=linear_pw_conv, layer_scale=layer_scale_init_value, drop_path_prob=rate,
                              act_cfg=act_cfg,
                              norm_cfg=norm_cfg) for rate in rates[sum(depths[:i]):sum(depths[:i]) + depth]]))
            if i in self.out_indices:
                setattr(self, f"norm{i}", build_norm(norm_cfg, width)[1])
        self.downsample_layers, self.stages = nn.Sequential(*parts), nn.Sequential(*stages)
        self.out_channels = [channels[i] for i in self.out_indices]
        self.strides = [stem_patch_size * 2**i for i in self.out_indices]
        for i in range(frozen_stages):
            freeze(self.downsample_layers[i])
            freeze(self.stages[i])

    def execute(self, x: jt.Var) -> list[jt.Var]:
        features = []
        for i, parts in enumerate(zip(self.downsample_layers, self.stages)):
            for part in parts:
                x = run_frozen(part, x) if i < self.frozen_stages else part(x)
            if i in self.out_indices:
                x = x.mean([2, 3], keepdims=True) if self.gives_vectors else x  # (N, C, 1, 1)
                features.append(getattr(self, f"norm{i}")(x))
        return features

    @staticmethod
    def depth_of(key: str, num_layers: int, decay_type: str) -> int | None:
        """Depth of a parameter for the decay of the learning rate, as mmsegmentation counts it.

        By stages: 0 for all downsampling, i + 1 for stage i. By layers, `num_layers` of which the last stage is the
        last: the third stage has one for three blocks. None for the norms of the maps.
        """
        part, _, rest = key.partition(".")
        if part not in ("downsample_layers", "stages"):
            return None
        stage, block = (int(word) for word in (rest.split(".") + ["0"])[:2])
        if decay_type == "stage_wise":
            return 0 if part == "downsample_layers" else stage + 1
        if stage == 3:
            return num_layers
        return (0, 2, 3)[stage] if part == "downsample_layers" else (1, 2, 3 + block // 3)[stage]


def _sizes(arch: str | Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Depths and widths of the stages."""
    if isinstance(arch, Mapping):
        if set(arch) != {"depths", "channels"} or len(arch["depths"]) != len(arch["channels"]):
            raise ConfigError(f"arch is {dict(arch)}; accepted: depths and channels, one value each a stage")
        return list(arch["depths"]), list(arch["channels"])
    if arch not in VARIANTS:
        raise ConfigError(f"arch is {arch!r}{nearest(arch, VARIANTS)} (known: {', '.join(VARIANTS)})")
    return VARIANTS[arch]
