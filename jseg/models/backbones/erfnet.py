"""ERFNet: residual blocks of one-dimensional convolutions,
downsampled by convolution beside pooling and upsampled again to stride 2.

Paper: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation", T-ITS 2018.
Upstream: mmsegmentation 1.2.2 mmseg/models/backbones/erfnet.py (Apache-2.0), whose words, keys and arithmetic these
are.

Deviation: `conv_cfg`, `norm_cfg` and `act_cfg`, which upstream takes and forgets, are no words of this class: norms are
BatchNorm with eps 1e-3, activations ReLU.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import BatchNorm2d, Conv2d, Dropout, conv_norm, max_pool, relu
from jseg.layers.conv_transpose import ConvTranspose2d
from jseg.registry import MODELS

__all__ = ["ERFNet"]

EPS = 1e-3


class Downsampler(nn.Module):
    """A 3x3 convolution of stride 2 beside 2x2 pooling, joined; norm and ReLU. Shape:
    (N, C, H, W) -> (N, out_channels, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.bn = BatchNorm2d(out_channels, eps=EPS)

    def execute(self, x: jt.Var) -> jt.Var:
        y = self.conv(x)
        pooled = ops.bilinear_resize(max_pool(x, 2, stride=2), tuple(y.shape[2:]))  # differs from y where a side is odd
        return self.bn(jt.concat([y, pooled], 1), activation="relu")


class NonBottleneck(nn.Module):
    """Two pairs of 3x1 and 1x3 convolutions, the second pair dilated, with norms, dropout and a shortcut.

    Args:
        channels: width.
        drop_prob: of single values, before the shortcut is added.
        dilation: of the second pair.
    Shape:
        x: (N, channels, H, W) -> same
    """

    def __init__(self, channels: int, drop_prob: float = 0.0, dilation: int = 1):
        super().__init__()

        def pair(dilation: int) -> list[nn.Module]:
            down = Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1))
            right = Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation))
            return [down, nn.ReLU(), right, BatchNorm2d(channels, eps=EPS)]

        self.convs_layers = nn.Sequential(*pair(1), nn.ReLU(), *pair(dilation), Dropout(drop_prob))

    def execute(self, x: jt.Var) -> jt.Var:
        down, _, right, norm, _, second_down, _, second_right, second_norm, drop = self.convs_layers
        y = conv_norm(relu(down(x)), right, norm, activation="relu")
        y = relu(second_down(y))
        if drop.is_train and drop.drop_prob:
            return relu(drop(conv_norm(y, second_right, second_norm)) + x)
        return conv_norm(y, second_right, second_norm, activation="relu", residual=x)


class Upsampler(nn.Module):
    """A transposed 3x3 convolution of stride 2, norm and ReLU. Shape:
    (N, in_channels, H, W) -> (N, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
        self.bn = BatchNorm2d(out_channels, eps=EPS)

    def execute(self, x: jt.Var) -> jt.Var:
        return self.bn(self.conv(x), activation="relu")


@MODELS.register()
class ERFNet(nn.Module):
    """Encoder and decoder.

    Args:
        in_channels: channels of the picture.
        enc_downsample_channels: width after each downsampler.
        enc_stage_non_bottlenecks: residual blocks after each downsampler but the first.
        enc_non_bottleneck_dilations: dilations of the last of these stages, taken in turn.
        enc_non_bottleneck_channels: their widths, which follow from `enc_downsample_channels`.
        dec_upsample_channels: one for each upsampler, whose widths follow from `dec_non_bottleneck_channels`.
        dec_stages_non_bottleneck: residual blocks after each upsampler.
        dec_non_bottleneck_channels: width after each upsampler.
        dropout_ratio: of single values in the encoder's blocks.
    Shape:
        x: (N, in_channels, H, W), sides >= 2 ** downsamplers -> [(N, dec_non_bottleneck_channels[-1], about H / 2,
            about W / 2)] by
        default: three times halved, rounded up, and twice doubled
    Raises:
        ConfigError: lists whose lengths do not fit.
    """

    TINY = MappingProxyType({"type": "ERFNet", "enc_downsample_channels": [4, 8, 16],
                             "enc_stage_non_bottlenecks": [1, 2], "enc_non_bottleneck_dilations": [1, 2],
                             "enc_non_bottleneck_channels": [8, 16], "dec_upsample_channels": [8, 4],
                             "dec_stages_non_bottleneck": [1, 1], "dec_non_bottleneck_channels": [8, 4],
                             "dropout_ratio": 0.0})

    def __init__(self, in_channels: int = 3, enc_downsample_channels: Sequence[int] = (16, 64, 128),
                 enc_stage_non_bottlenecks: Sequence[int] = (5, 8),
                 enc_non_bottleneck_dilations: Sequence[int] = (2, 4, 8, 16),
                 enc_non_bottleneck_channels: Sequence[int] = (64, 128),
                 dec_upsample_channels: Sequence[int] = (64, 16), dec_stages_non_bottleneck: Sequence[int] = (2, 2),
                 dec_non_bottleneck_channels: Sequence[int] = (64, 16), dropout_ratio: float = 0.1):
        super().__init__()
        widths, counts = list(enc_downsample_channels), list(enc_stage_non_bottlenecks)
        dilations = list(enc_non_bottleneck_dilations)
        lengths = {len(widths) - 1, len(counts), len(enc_non_bottleneck_channels), len(dec_upsample_channels),
                   len(dec_stages_non_bottleneck), len(dec_non_bottleneck_channels)}
        if len(lengths) != 1 or not counts or counts[-1] % len(dilations):
            raise ConfigError(f"enc_downsample_channels {widths} needs one value more than the lists of stages and of "
                              f"dec_ words, and the last of enc_stage_non_bottlenecks {counts} is a multiple of the "
                              f"{len(dilations)} dilations")
        encoder = [Downsampler(in_channels, widths[0])]
        for i, (before, width) in enumerate(zip(widths, widths[1:])):
            last = i == len(counts) - 1
            encoder += [Downsampler(before, width),
                        *[NonBottleneck(width, dropout_ratio, dilations[j % len(dilations)] if last else 1)
                          for j in range(counts[i])]]
        decoder, before = [], widths[-1]
        for width, count in zip(dec_non_bottleneck_channels, dec_stages_non_bottleneck):
            decoder += [Upsampler(before, width), *[NonBottleneck(width) for _ in range(count)]]
            before = width
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.out_channels, self.strides = [before], [2]

    def execute(self, x: jt.Var) -> list[jt.Var]:
        return [self.decoder(self.encoder(x))]
