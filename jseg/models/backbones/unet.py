"""UNet: an encoder of plain convolutions and a decoder that joins each of its maps again.

Paper: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/unet.py and utils/up_conv_block.py (Apache-2.0), whose words, keys
and arithmetic these are.

Deviations: pictures of any size are accepted (upstream refuses sides that the whole stride does not divide): the last
window of a pooling may be cut, and the decoder enlarges to the size of the encoder's map, which is twice the map
wherever upstream runs. Of the ways to enlarge, only `InterpConv`, which every published config uses, is here;
deformable convolutions and plugins are not.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import ConvNormAct, max_pool
from jseg.registry import MODELS, nearest

__all__ = ["UNet"]

_INTERP_CONV = ("conv_first", "kernel_size", "padding", "upsample_cfg")


class ConvStack(nn.Module):
    """3x3 blocks; the first has the stride, the others the dilation.

    Shape:
        x: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self,
                 in_channels: int,
                 channels: int,
                 count: int,
                 *,
                 stride: int = 1,
                 dilation: int = 1,
                 blocks: dict):
        super().__init__()
        first = [ConvNormAct(in_channels, channels, 3, stride=stride, padding=1, **blocks)]
        self.convs = nn.Sequential(
            *first, *[
                ConvNormAct(channels, channels, 3, padding=dilation, dilation=dilation, **blocks)
                for _ in range(count - 1)
            ])

    def execute(self, x: jt.Var) -> jt.Var:
        return self.convs(x)


class HalvingPool(nn.Module):
    """Maxima of 2x2 windows, cut at an odd edge. Shape: (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2))."""

    def execute(self, x: jt.Var) -> jt.Var:
        return max_pool(x, 2, ceil_mode=True)


class InterpConv(nn.Module):
    """Bilinear resize and a convolution block, whose key is its place in `interp_upsample`.

    Args:
        in_channels, channels: widths of input and output.
        cfg: `conv_first`, `kernel_size` (odd), `padding`, and `upsample_cfg: {scale_factor: 2, mode: bilinear,
            align_corners}`.
        blocks: norm_cfg and act_cfg.
    Shape:
        x: (N, in_channels, h, w), size: (H, W) -> (N, channels, H, W)
    Raises:
        ConfigError: another key, another way to resize, or a padding that changes the size.
    """

    def __init__(self, in_channels: int, channels: int, cfg: dict, *, blocks: dict):
        super().__init__()
        words = {key: value for key, value in cfg.items() if key != "type"}
        for key in words:
            if key not in _INTERP_CONV:
                raise ConfigError(
                    f"upsample_cfg: unknown key {key!r} for InterpConv{nearest(key, _INTERP_CONV)} (known: "
                    f"{', '.join(_INTERP_CONV)})")
        side, padding = words.get("kernel_size", 1), words.get("padding", 0)
        resize = {"scale_factor": 2, "mode": "bilinear", "align_corners": False, **words.get("upsample_cfg", {})}
        if resize["mode"] != "bilinear" or resize["scale_factor"] != 2 or side != 2 * padding + 1:
            raise ConfigError(
                f"upsample_cfg is {dict(cfg)}; accepted: scale_factor 2, mode bilinear, and an odd kernel_size k with "
                "padding (k - 1) / 2")
        self.conv_first, self.align_corners = words.get("conv_first", False), bool(resize["align_corners"])
        conv = ConvNormAct(in_channels, channels, side, padding=padding, **blocks)
        self.interp_upsample = nn.Sequential(*([conv] if self.conv_first else [nn.Identity(), conv]))

    def execute(self, x: jt.Var, size: tuple[int, int]) -> jt.Var:
        if self.conv_first:
            return ops.bilinear_resize(self.interp_upsample(x), size, align_corners=self.align_corners)
        return self.interp_upsample(ops.bilinear_resize(x, size, align_corners=self.align_corners))


class UpStage(nn.Module):
    """Enlarge a map to the encoder's of one stage before, join the two, convolve.

    Args:
        in_channels, channels: widths of the map and of the encoder's, which is the output's.
        count, dilation: of the convolutions after joining.
        upsample_cfg: see `UNet`; None where both maps have one size: a 1x1 block instead.
        blocks: norm_cfg and act_cfg.
    Shape:
        skip: (N, channels, H, W), x: (N, in_channels, h, w) -> (N, channels, H, W)
    """

    def __init__(self, in_channels: int, channels: int, count: int, *, dilation: int, upsample_cfg: dict | None,
                 blocks: dict):
        super().__init__()
        self.conv_block = ConvStack(2 * channels, channels, count, dilation=dilation, blocks=blocks)
        self.enlarges = upsample_cfg is not None
        self.upsample = (InterpConv(in_channels, channels, upsample_cfg, blocks=blocks)
                         if self.enlarges else ConvNormAct(in_channels, channels, 1, **blocks))

    def execute(self, skip: jt.Var, x: jt.Var) -> jt.Var:
        x = self.upsample(x, tuple(skip.shape[2:])) if self.enlarges else self.upsample(x)
        return self.conv_block(jt.concat([skip, x], 1))


@MODELS.register()
class UNet(nn.Module):
    """U-shaped network; its maps go from the coarsest to the finest.

    Args:
        in_channels: channels of the picture.
        base_channels: width of the first stage; each stage has twice the width of the one before.
        num_stages: stages of the encoder; the decoder has one less.
        strides: of each encoder stage's first convolution, 1 or 2.
        enc_num_convs, dec_num_convs: convolutions of each stage.
        downsamples: whether each stage after the first pools before it convolves, where its stride is 1.
        enc_dilations, dec_dilations: of each stage's convolutions after the first.
        norm_cfg, act_cfg: of every convolution block.
        upsample_cfg: `{type: InterpConv}` with its words.
    Shape:
        x: (N, in_channels, H, W) -> `num_stages` maps (N, out_channels[i], ceil(H / strides[i]), ceil(W / strides[i]))
    Raises:
        ConfigError: lists that do not fit `num_stages`, strides other than 1 and 2, or an unknown way to enlarge.
    """

    TINY = MappingProxyType({
        "type": "UNet", "base_channels": 8, "num_stages": 4, "strides": [1, 1, 2, 1],
        "downsamples": [True, False, False], "enc_num_convs": [1, 2, 1, 1], "dec_num_convs": [1, 2, 1],
        "enc_dilations": [1, 2, 1, 1], "dec_dilations": [1, 2, 1]})

    def __init__(self,
                 in_channels: int = 3,
                 base_channels: int = 64,
                 num_stages: int = 5,
                 strides: Sequence[int] = (1, 1, 1, 1, 1),
                 enc_num_convs: Sequence[int] = (2, 2, 2, 2, 2),
                 dec_num_convs: Sequence[int] = (2, 2, 2, 2),
                 downsamples: Sequence[bool] = (True, True, True, True),
                 enc_dilations: Sequence[int] = (1, 1, 1, 1, 1),
                 dec_dilations: Sequence[int] = (1, 1, 1, 1),
                 norm_cfg: dict = MappingProxyType({"type": "BN"}),
                 act_cfg: dict = MappingProxyType({"type": "ReLU"}),
                 upsample_cfg: dict = MappingProxyType({"type": "InterpConv"})):
        super().__init__()
        encoder_lists = {"strides": strides, "enc_num_convs": enc_num_convs, "enc_dilations": enc_dilations}
        decoder_lists = {"dec_num_convs": dec_num_convs, "downsamples": downsamples, "dec_dilations": dec_dilations}
        for length, lists in ((num_stages, encoder_lists), (num_stages - 1, decoder_lists)):
            for name, values in lists.items():
                if len(values) != length:
                    raise ConfigError(f"{name} needs {length} values with num_stages {num_stages}, got {list(values)}")
        if not set(strides) <= {1, 2} or min(*enc_num_convs, *dec_num_convs) < 1:
            raise ConfigError(
                f"strides {list(strides)} are 1 or 2 each; enc_num_convs {list(enc_num_convs)} and dec_num_convs "
                f"{list(dec_num_convs)} are at least 1")
        if upsample_cfg.get("type") != "InterpConv":
            raise ConfigError(f"upsample_cfg names {upsample_cfg.get('type')!r}; accepted: InterpConv")
        blocks = {"norm_cfg": norm_cfg, "act_cfg": act_cfg}
        widths = [base_channels * 2**i for i in range(num_stages)]
        halves = [strides[0] == 2] + [stride == 2 or pools for stride, pools in zip(strides[1:], downsamples)]
        encoder, decoder = [], []
        for i in range(num_stages):
            stack = ConvStack(widths[i - 1] if i else in_channels, widths[i], enc_num_convs[i], stride=strides[i],
                              dilation=enc_dilations[i], blocks=blocks)
            encoder.append(nn.Sequential(*([HalvingPool()] if i and halves[i] and strides[i] == 1 else []), stack))
            if i:
                decoder.append(UpStage(widths[i], widths[i - 1], dec_num_convs[i - 1], dilation=dec_dilations[i - 1],
                                       upsample_cfg=upsample_cfg if halves[i] else None, blocks=blocks))
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.out_channels = widths[::-1]
        self.strides = [2**sum(halves[:i + 1]) for i in range(num_stages)][::-1]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        maps = [skips.pop()]
        for stage in list(self.decoder)[::-1]:
            maps.append(stage(skips.pop(), maps[-1]))
        return maps
