"""PixelDecoder and TransformerEncoderPixelDecoder:
a feature pyramid, with or without a transformer on the coarsest map.

Papers: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017; Cheng et al., "Per-Pixel Classification
is Not All You Need for Semantic Segmentation" (MaskFormer), NeurIPS 2021, sec. 3.3.
Upstream: mmdetection 3.x mmdet/models/layers/pixel_decoder.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviation: no mask of padded cells (see `SinePositionalEncoding`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct, nearest_resize
from jseg.layers.detr import DetrEncoder
from jseg.layers.init import start_with_xavier
from jseg.layers.sine_positions import SinePositionalEncoding
from jseg.layers.tokens import to_map, to_tokens
from jseg.registry import PIXEL_DECODERS, construct

__all__ = ["PixelDecoder", "Pyramid", "TransformerEncoderPixelDecoder"]

GN = MappingProxyType({"type": "GN", "num_groups": 32})
RELU = MappingProxyType({"type": "ReLU"})
SINE = MappingProxyType({"num_feats": 128, "normalize": True})


class Pyramid(nn.Module):
    """The finer maps, each joined with what comes from the coarser ones. Keys: `lateral_convs`, `output_convs`.

    Args:
        in_channels: widths of the finer maps, in the order of the keys.
        channels: width of all results.
        norm_cfg, act_cfg: of the blocks; the lateral ones have no activation.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm_cfg: Mapping | None, act_cfg: Mapping | None):
        super().__init__()
        self.lateral_convs = nn.Sequential(*[ConvNormAct(width, channels, 1, norm_cfg=norm_cfg)
                                             for width in in_channels])
        self.output_convs = nn.Sequential(*[ConvNormAct(channels, channels, 3, padding=1, norm_cfg=norm_cfg,
                                                        act_cfg=act_cfg)
                                            for _ in in_channels])


@PIXEL_DECODERS.register()
class PixelDecoder(Pyramid):
    """A feature pyramid; the memory is the coarsest map as it came.

    Args:
        in_channels: widths of the maps, finest first.
        feat_channels, out_channels: widths of the pyramid, and of the map that masks are read from.
        norm_cfg, act_cfg: of the blocks.
    Shape:
        features: list of (N, C_i, H_i, W_i), finest first -> (N, out_channels, H_0, W_0) and (N, C_last, h, w)
    """

    def __init__(self, in_channels: Sequence[int], feat_channels: int, out_channels: int, norm_cfg: Mapping | None = GN,
                 act_cfg: Mapping | None = RELU):
        super().__init__(in_channels[:-1], feat_channels, norm_cfg, act_cfg)
        self.last_feat_conv = self.first_step(in_channels[-1], feat_channels, norm_cfg, act_cfg)
        self.mask_feature = Conv2d(feat_channels, out_channels, 3, padding=1)
        self.memory_channels = in_channels[-1]

    @staticmethod
    def first_step(in_channels: int, channels: int, norm_cfg: Mapping | None,
                   act_cfg: Mapping | None) -> nn.Module | None:
        """The block on the coarsest map."""
        return ConvNormAct(in_channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=act_cfg)

    def execute(self, features: list[jt.Var]) -> tuple[jt.Var, jt.Var]:
        return self.climb(features, self.last_feat_conv(features[-1])), features[-1]

    def climb(self, features: list[jt.Var], y: jt.Var) -> jt.Var:
        """The map that masks are read from, starting with the coarsest map of the pyramid."""
        for x, lateral, output in zip(features[-2::-1], reversed(list(self.lateral_convs)),
                                      reversed(list(self.output_convs))):
            y = output(lateral(x) + nearest_resize(y, tuple(x.shape[2:])))
        return self.mask_feature(y)


@PIXEL_DECODERS.register()
class TransformerEncoderPixelDecoder(PixelDecoder):
    """`PixelDecoder` behind a transformer over the coarsest map, whose result is the memory.

    Args:
        encoder: words of `DetrEncoder`, whose width is `feat_channels`.
        positional_encoding: words of `SinePositionalEncoding`.
        others: see `PixelDecoder`.
    Shape:
        features: as there -> (N, out_channels, H_0, W_0) and (N, feat_channels, h, w)
    Raises:
        ConfigError: widths that differ.
    """

    def __init__(self, in_channels: Sequence[int], feat_channels: int, out_channels: int, norm_cfg: Mapping | None = GN,
                 act_cfg: Mapping | None = RELU, encoder: Mapping | None = None, positional_encoding: Mapping = SINE):
        super().__init__(in_channels, feat_channels, out_channels, norm_cfg, act_cfg)
        self.encoder = construct(DetrEncoder, encoder, "pixel_decoder.encoder")
        self.positional_encoding = construct(SinePositionalEncoding, positional_encoding,
                                             "pixel_decoder.positional_encoding")
        if not self.encoder.embed_dims == self.positional_encoding.channels == feat_channels:
            raise ConfigError(f"pixel_decoder: feat_channels is {feat_channels}, embed_dims of the encoder "
                              f"{self.encoder.embed_dims}, twice num_feats {self.positional_encoding.channels}; make "
                              "them equal")
        self.encoder_in_proj = Conv2d(in_channels[-1], feat_channels, 1)
        self.encoder_out_proj = ConvNormAct(feat_channels, feat_channels, 3, padding=1, norm_cfg=norm_cfg,
                                            act_cfg=act_cfg)
        self.memory_channels = feat_channels
        start_with_xavier(self.encoder)

    @staticmethod
    def first_step(in_channels: int, channels: int, norm_cfg: Mapping | None, act_cfg: Mapping | None) -> None:
        """The transformer takes the place of the block."""
        return None

    def execute(self, features: list[jt.Var]) -> tuple[jt.Var, jt.Var]:
        size = tuple(features[-1].shape[2:])
        tokens = self.encoder(to_tokens(self.encoder_in_proj(features[-1])), self.positional_encoding(size))
        memory = to_map(tokens, size)
        return self.climb(features, self.encoder_out_proj(memory)), memory
