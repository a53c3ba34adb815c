"""MSDeformAttnPixelDecoder: deformable attention over the coarser maps, then a feature pyramid for the finer ones.

Papers: Zhu et al., "Deformable DETR", ICLR 2021; Cheng et al., "Masked-attention Mask Transformer for Universal Image
Segmentation" (Mask2Former), CVPR 2022, sec. 4.1.
Upstream: mmdetection 3.x mmdet/models/layers/msdeformattn_pixel_decoder.py (Apache-2.0), whose words, keys
(`postional_encoding` has none) and arithmetic these are.

Deviation: `strides` has no effect, because places are shares of the map (upstream multiplies by it and divides again).
"""

from __future__ import annotations

from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d, ConvNormAct
from jseg.layers.deformable import MultiScaleDeformableAttention
from jseg.layers.detr import DeformableEncoder
from jseg.layers.init import start_with_xavier
from jseg.layers.parameters import Table
from jseg.layers.sine_positions import SinePositionalEncoding
from jseg.layers.tokens import to_map, to_tokens
from jseg.models.pixel_decoders.pixel_decoder import GN, RELU, SINE, Pyramid
from jseg.registry import PIXEL_DECODERS, construct

__all__ = ["MSDeformAttnPixelDecoder"]


@PIXEL_DECODERS.register()
class MSDeformAttnPixelDecoder(Pyramid):
    """Deformable attention between the cells of several maps.

    Args:
        in_channels: widths of the maps, finest first.
        strides: no effect here.
        feat_channels, out_channels: width of every map inside, and of the map that masks are read from.
        num_outs: maps of the memory.
        norm_cfg, act_cfg: of the convolution blocks.
        encoder: words of `DeformableEncoder`; its num_levels coarsest maps go through it.
        positional_encoding: words of `SinePositionalEncoding`.
    Shape:
        features: list of (N, C_i, H_i, W_i), finest first -> (N, out_channels, H_0, W_0) and the memory, a list of
        (N, feat_channels, h, w), coarsest first
    Raises:
        ConfigError: widths that differ, more levels than maps, or more outputs than there are.
    """

    def __init__(self, in_channels: Sequence[int] = (256, 512, 1024, 2048), strides: Sequence[int] = (4, 8, 16, 32),
                 feat_channels: int = 256, out_channels: int = 256, num_outs: int = 3, norm_cfg: Mapping | None = GN,
                 act_cfg: Mapping | None = RELU, encoder: Mapping | None = None, positional_encoding: Mapping = SINE):
        encoder = construct(DeformableEncoder, encoder, "pixel_decoder.encoder")
        levels = encoder.layers[0].self_attn.num_levels
        if not 1 <= levels <= len(in_channels) or not 1 <= num_outs <= len(in_channels):
            raise ConfigError(f"pixel_decoder: num_levels of the attention is {levels}, num_outs {num_outs}; accepted: "
                              f"1 to the {len(in_channels)} maps that come in")
        super().__init__(in_channels[:len(in_channels) - levels][::-1], feat_channels, norm_cfg, act_cfg)
        self.num_levels, self.num_outs, self.encoder = levels, num_outs, encoder
        self.input_convs = nn.Sequential(*[ConvNormAct(width, feat_channels, 1, norm_cfg=norm_cfg, bias=True)
                                           for width in in_channels[:-levels - 1:-1]])
        self.postional_encoding = construct(SinePositionalEncoding, positional_encoding,
                                            "pixel_decoder.positional_encoding")
        if not encoder.embed_dims == self.postional_encoding.channels == feat_channels:
            raise ConfigError(f"pixel_decoder: feat_channels is {feat_channels}, embed_dims of the encoder "
                              f"{encoder.embed_dims}, twice num_feats {self.postional_encoding.channels}; make them "
                              "equal")
        self.level_encoding = Table(levels, feat_channels)
        self.mask_feature = Conv2d(feat_channels, out_channels, 1)
        self.memory_channels = feat_channels
        start_with_xavier(encoder, uniform=False)
        for module in encoder.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.set_initial_values()

    def execute(self, features: list[jt.Var]) -> tuple[jt.Var, list[jt.Var]]:
        coarse = features[:-self.num_levels - 1:-1]  # coarsest first
        sizes = [tuple(x.shape[2:]) for x in coarse]
        tokens = jt.concat([to_tokens(conv(x)) for conv, x in zip(self.input_convs, coarse)], 1)
        positions = jt.concat([self.postional_encoding(size) + self.level_encoding.weight[i]
                               for i, size in enumerate(sizes)], 1)
        tokens = self.encoder(tokens, positions, sizes)  # (N, cells, C)
        maps, first = [], 0
        for h, w in sizes:
            maps.append(to_map(tokens[:, first:first + h * w], (h, w)))
            first += h * w
        finer = features[:len(features) - self.num_levels][::-1]
        for x, lateral, output in zip(finer, self.lateral_convs, self.output_convs):
            maps.append(output(ops.bilinear_resize(maps[-1], tuple(x.shape[2:]), add=lateral(x))))
        return self.mask_feature(maps[-1]), maps[:self.num_outs]
