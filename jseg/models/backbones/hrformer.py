"""HRFormer: HRNet whose blocks are attention in windows and a feed-forward block with a depthwise convolution.

Paper: Yuan et al., "HRFormer: High-Resolution Transformer for Dense Prediction", NeurIPS 2021, sec. 3.
Upstream: mmpose 1.3.2 mmpose/models/backbones/hrformer.py (Apache-2.0), whose words, keys and arithmetic these are; the
authors' classification and segmentation releases (HRNet/HRFormer@1245b88, MIT) compute the same with `upsample: {mode:
nearest}`, and `jseg convert` takes their keys.

Deviations:
- `multiscale_output` is a word of the class and true by itself, as in HRNet; upstream says it in `extra.stage4`;
- maps that miss the finer map's size by a few rows, once enlarged, are resized to it as the authors' networks do;
  upstream stops;
- the words of stage 1 that mean nothing there (`num_heads`, `num_mlp_ratios`) are passed over, `with_rpe` is true and
  `with_pad_mask` false.
"""

from __future__ import annotations

import functools
from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
import numpy as np
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, DropPath, Dropout, build_norm, conv_norm, nearest_resize, to_map, to_tokens
from jseg.layers.windows import from_windows, to_windows
from jseg.models.backbones.hrnet import Fusion, HRModule, HRNet, bilinear_enlarged
from jseg.models.backbones.swin_transformer import WindowMSA
from jseg.registry import MODELS

__all__ = ["HRFormer"]

_PLAIN = HRNet.STAGE_WORDS["BASIC"]
_KIND = "HRFORMERBLOCK"
_OWN_WORDS = ("num_heads", "mlp_ratios", "window_sizes")
_IDLE = ("num_heads", "num_mlp_ratios")  # of stage 1


class LocalWindowAttention(nn.Module):
    """Attention in windows of a map, which zeros on all sides fill up to whole windows. Key: `attn`.

    Shape:
        x, shortcut: (N, H * W, C); factor: (N,) -> shortcut + factor * attention(x)
    """

    def __init__(self, channels: int, heads: int, side: int):
        super().__init__()
        self.side, self.still = side, Dropout(0.0)
        self.attn = WindowMSA(channels, heads, side, qkv_bias=True, qk_scale=None)

    def execute(self, x: jt.Var, size: tuple[int, int], *, shortcut: jt.Var, factor: jt.Var | None) -> jt.Var:
        mixed = self.attn(to_windows(x, size, self.side, centred=True), None)
        mixed = from_windows(mixed, size, self.side, centred=True)
        return self.attn.proj.close_branch(mixed, self.still, factor=factor, shortcut=shortcut)


class CrossFFN(nn.Module):
    """1x1, 3x3 depthwise and 1x1 convolution, each with a norm and an activation.

    Args:
        channels, hidden_channels: widths outside and inside.
        norm_cfg: the norms; the activation is GELU.
    Shape:
        x: (N, channels, H, W) -> same
    """

    def __init__(self, channels: int, hidden_channels: int, *, norm_cfg: Mapping):
        super().__init__()
        self.fc1 = Conv2d(channels, hidden_channels, 1)
        self.norm1 = build_norm(norm_cfg, hidden_channels)[1]
        self.dw3x3 = Conv2d(hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels)
        self.norm2 = build_norm(norm_cfg, hidden_channels)[1]
        self.fc2 = Conv2d(hidden_channels, channels, 1)
        self.norm3 = build_norm(norm_cfg, channels)[1]

    def execute(self, x: jt.Var) -> jt.Var:
        for conv, norm in ((self.fc1, self.norm1), (self.dw3x3, self.norm2), (self.fc2, self.norm3)):
            x = conv_norm(x, conv, norm, activation="gelu")
        return x


class HRFormerBlock(nn.Module):
    """Attention in windows and a feed-forward block, each behind a layer norm and with a shortcut.

    Args:
        channels, heads: C and number of heads, which divides it.
        side: of the windows, in pixels of the map.
        mlp_ratio: width inside the feed-forward block over C.
        drop_path_prob: probability of dropping each branch in training.
        norm_cfg, transformer_norm_cfg: norms of convolutions, and before both branches.
    Shape:
        x: (N, C, H, W) -> same
    """

    def __init__(self, channels: int, heads: int, *, side: int, mlp_ratio: float, drop_path_prob: float,
                 norm_cfg: Mapping, transformer_norm_cfg: Mapping):
        super().__init__()
        self.norm1 = build_norm(transformer_norm_cfg, channels, channel_first=False)[1]
        self.attn = LocalWindowAttention(channels, heads, side)
        self.norm2 = build_norm(transformer_norm_cfg, channels)[1]
        self.ffn = CrossFFN(channels, int(channels * mlp_ratio), norm_cfg=norm_cfg)
        self.drop_path = DropPath(drop_path_prob)

    def execute(self, x: jt.Var) -> jt.Var:
        size, tokens = tuple(x.shape[2:]), to_tokens(x)
        tokens = self.attn(self.norm1(tokens), size, shortcut=tokens, factor=self.drop_path.factor(x.shape[0]))
        x = to_map(tokens, size)
        return x + self.drop_path(self.ffn(self.norm2(x)))


class SeparableStep(nn.Sequential):
    """A strided 3x3 depthwise convolution and a 1x1 one, each with a norm. Keys "0" to "3". Shape:
    (N, in_channels, H, W) -> (N, out_channels, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm_cfg: Mapping):
        super().__init__(Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False),
                         build_norm(norm_cfg, in_channels)[1], Conv2d(in_channels, out_channels, 1, bias=False),
                         build_norm(norm_cfg, out_channels)[1])

    def execute(self, x: jt.Var, *, activation: str | None = "relu", residual: jt.Var | None = None) -> jt.Var:
        """activation(norm(conv(...)) + residual)."""
        depthwise, first, pointwise, second = self
        return conv_norm(conv_norm(x, depthwise, first), pointwise, second, activation=activation, residual=residual)


def nearest_enlarged(x: jt.Var, y: jt.Var, factor: int) -> jt.Var:
    """y plus a coarser map, each pixel of which becomes factor x factor; bilinear to the size of y where that misses
    a few rows. Shape: x: (N, C, h, w); y: (N, C, H, W) -> (N, C, H, W).
    """
    x = nearest_resize(x, (x.shape[2] * factor, x.shape[3] * factor))
    return ops.bilinear_resize(x, tuple(y.shape[2:]), align_corners=True, add=y)


@MODELS.register()
class HRFormer(HRNet):
    """A stem of stride 4 and four stages, each of which adds a branch of half the resolution; windows of attention on
    every branch from the second stage on.

    Args:
        extra: `{stage1: {...}, ..., stage4: {...}}` as in HRNet, where the block "HRFORMERBLOCK" has num_heads,
            mlp_ratios and window_sizes too, one number per branch. Beside the stages: drop_path_rate, the stochastic
            depth of the last block, in [0, 1), of which earlier ones get less, linearly from 0; upsample, how coarse
            maps are enlarged: `{mode: bilinear, align_corners: false}` or `{mode: nearest}`.
        transformer_norm_cfg: norm before attention and feed-forward blocks.
        others: see `HRNet`.
    Shape:
        x: (N, in_channels, H, W) -> list of (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i])), strides
            4, 8, 16, 32
    Raises:
        ConfigError: a stage that is missing, has other words, or lists of other lengths than `num_branches`.
    """

    STAGE_WORDS = MappingProxyType({**HRNet.STAGE_WORDS, _KIND: (*_PLAIN, *_OWN_WORDS)})
    TINY = MappingProxyType({"type": "HRFormer", "extra": {
        "drop_path_rate": 0.0, "upsample": {"mode": "nearest"}, "stage1": HRNet.TINY["extra"]["stage1"],
        **{f"stage{i}": {**HRNet.TINY["extra"][f"stage{i}"], "block": _KIND, "num_heads": [1, 2, 2, 3][:i],
                         "mlp_ratios": [2] * i, "window_sizes": [3] * i} for i in (2, 3, 4)}}})

    def __init__(self, extra: Mapping, in_channels: int = 3,
                 norm_cfg: dict = MappingProxyType({"type": "BN", "requires_grad": True}),
                 transformer_norm_cfg: dict = MappingProxyType({"type": "LN", "eps": 1e-6}), frozen_stages: int = -1,
                 zero_init_residual: bool = False, multiscale_output: bool = True):
        extra = dict(extra)
        if (extra.pop("with_rpe", True), extra.pop("with_pad_mask", False)) != (True, False):
            raise ConfigError("extra: with_rpe is true and with_pad_mask false here")
        self.add_enlarged = _enlarging(extra.pop("upsample", {"mode": "bilinear"}))
        self.transformer_norm_cfg, drop_path_rate = transformer_norm_cfg, extra.pop("drop_path_rate", 0.0)
        if isinstance(extra.get("stage1"), Mapping):
            extra["stage1"] = {word: value for word, value in extra["stage1"].items() if word not in _IDLE}
        depths = [(stage.get("num_blocks", [0])[0], stage.get("num_modules", 0)) for name, stage in sorted(
            extra.items()) if isinstance(stage, Mapping) and name != "stage1"]
        rates = iter(np.linspace(0.0, drop_path_rate, sum(a * b for a, b in depths)).tolist())
        self.drop_paths = [[[next(rates) for _ in range(blocks)] for _ in range(modules)] for blocks, modules in depths]
        super().__init__(extra, in_channels, norm_cfg, frozen_stages, zero_init_residual, multiscale_output)

    def stage_widths(self, stage: Mapping) -> list[int]:
        """Channels of the maps of a stage."""
        return list(stage["num_channels"]) if stage["block"] == _KIND else super().stage_widths(stage)

    def make_module(self, stage: Mapping, widths: Sequence[int], norm_cfg: Mapping, *, place: tuple[int, int],
                    multiscale_output: bool) -> HRModule:
        """See `HRNet.make_module`."""
        if stage["block"] != _KIND:
            return super().make_module(stage, widths, norm_cfg, place=place, multiscale_output=multiscale_output)
        rates, branches = self.drop_paths[place[0]][place[1]], []
        for width, blocks, heads, ratio, side in zip(widths, *(stage[word] for word in ("num_blocks", *_OWN_WORDS))):
            branches.append(nn.Sequential(*[
                HRFormerBlock(width, heads, side=side, mlp_ratio=ratio, drop_path_prob=rates[min(j, len(rates) - 1)],
                              norm_cfg=norm_cfg, transformer_norm_cfg=self.transformer_norm_cfg)
                for j in range(blocks)]))
        step = functools.partial(SeparableStep, norm_cfg=norm_cfg)
        return HRModule(branches, widths, lambda i: Fusion(i, widths, norm_cfg, make_step=step,
                                                           add_enlarged=self.add_enlarged),
                        multiscale_output=multiscale_output)


def _enlarging(cfg: Mapping):
    """(coarser map, map, factor) -> their sum, as `upsample` says."""
    mode, align_corners = cfg.get("mode"), cfg.get("align_corners") or False
    if mode not in ("nearest", "bilinear") or align_corners or not set(cfg) <= {"mode", "align_corners"}:
        raise ConfigError(f"extra.upsample is {dict(cfg)}; accepted: {{mode: nearest}}, {{mode: bilinear}}")
    return nearest_enlarged if mode == "nearest" else bilinear_enlarged
