"""Mask2FormerHead: queries look at maps of several resolutions in turn, each only where its own mask was.

Paper: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (Mask2Former), CVPR 2022.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/mask2former_head.py over mmdetection 3.x
mmdet/models/dense_heads/mask2former_head.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations: `loss_cls` has num_classes + 1 class weights by default (upstream: those of COCO's 133 classes);
`num_things_classes` and `num_stuff_classes`, which upstream's segmentation head forgets, are not here; `strides` has no
effect, there as here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt
from jittor import nn

from jseg import ops
from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.layers.detr import Mask2FormerDecoder
from jseg.layers.init import start_with_xavier
from jseg.layers.parameters import Table
from jseg.layers.sine_positions import SinePositionalEncoding
from jseg.layers.tokens import to_tokens
from jseg.losses.set_criterion import SetCriterion
from jseg.models.heads.mask_head import DICE_LOSS, MASK_LOSS, MATCHING, MaskHead, default_class_loss
from jseg.models.pixel_decoders.ms_deform_attn_pixel_decoder import MSDeformAttnPixelDecoder
from jseg.models.pixel_decoders.pixel_decoder import SINE
from jseg.registry import MODELS, PIXEL_DECODERS, construct

__all__ = ["Mask2FormerHead"]

_HEADS = {"embed_dims": 8, "num_heads": 2}
_FFN = {"embed_dims": 8, "feedforward_channels": 16}


@MODELS.register()
class Mask2FormerHead(MaskHead):
    """Pixel decoder with deformable attention, decoder with masked attention, and a class and a mask for each query.

    Args:
        in_channels: widths of the maps, finest first.
        feat_channels: width of pixel decoder and queries.
        out_channels: width of the map that masks are read from.
        num_queries: Q.
        num_transformer_feat_level: maps of the memory that the layers look at in turn, coarsest first.
        pixel_decoder: block of `MSDeformAttnPixelDecoder`.
        enforce_decoder_input_project: project the memory also where it has the queries' width.
        transformer_decoder: words of `Mask2FormerDecoder`.
        positional_encoding: words of `SinePositionalEncoding`.
        loss_cls, loss_mask, loss_dice, train_cfg: see `SetCriterion`; `loss_cls` null: class weights 1, and 0.1 of no
            class.
        num_classes: K.
        align_corners, ignore_index, in_index, readout_size: see `MaskHead`.
        strides: no effect here.
    Shape:
        features: list of (N, C_i, H_i, W_i) -> num_layers + 1 readings, see `MaskHead`: of the queries as they start,
        and behind every layer
    Raises:
        ConfigError: widths that do not fit, or a block that does not.
    """

    TINY = MappingProxyType({
        "type": "Mask2FormerHead", "feat_channels": 8, "out_channels": 8, "num_queries": 7,
        "num_transformer_feat_level": 2,
        "pixel_decoder": {"type": "MSDeformAttnPixelDecoder", "num_outs": 2,
                          "norm_cfg": {"type": "GN", "num_groups": 2},
                          "positional_encoding": {"num_feats": 4, "normalize": True},
                          "encoder": {"num_layers": 1, "layer_cfg": {
                              "self_attn_cfg": {**_HEADS, "num_levels": 2, "num_points": 2, "dropout": 0.0},
                              "ffn_cfg": _FFN}}},
        "transformer_decoder": {"num_layers": 3,
                                "layer_cfg": {"self_attn_cfg": _HEADS, "cross_attn_cfg": _HEADS, "ffn_cfg": _FFN}},
        "positional_encoding": {"num_feats": 4, "normalize": True},
        "train_cfg": {"num_points": 50, "assigner": MATCHING}})

    def __init__(self, in_channels: Sequence[int], feat_channels: int, out_channels: int, num_classes: int,
                 pixel_decoder: Mapping, transformer_decoder: Mapping, num_queries: int = 100,
                 num_transformer_feat_level: int = 3, enforce_decoder_input_project: bool = False,
                 positional_encoding: Mapping = SINE, loss_cls: Mapping | None = None, loss_mask: Mapping = MASK_LOSS,
                 loss_dice: Mapping = DICE_LOSS, train_cfg: Mapping | None = None, align_corners: bool = False,
                 ignore_index: int = 255, in_index: Sequence[int] | None = None, strides: Sequence[int] | None = None,
                 readout_size: str | Sequence[int] | None = None):
        super().__init__(num_classes, in_index=in_index, channels=feat_channels, out_channels=out_channels,
                         num_queries=num_queries, query_channels=feat_channels, align_corners=align_corners,
                         ignore_index=ignore_index, readout_size=readout_size)
        levels = self.num_transformer_feat_level = num_transformer_feat_level
        self.pixel_decoder = PIXEL_DECODERS.build(pixel_decoder, "pixel_decoder", in_channels=list(in_channels),
                                                  feat_channels=feat_channels, out_channels=out_channels)
        if (not isinstance(self.pixel_decoder, MSDeformAttnPixelDecoder)
            or not self.pixel_decoder.num_levels == levels <= self.pixel_decoder.num_outs):
            raise ConfigError("pixel_decoder: accepted is MSDeformAttnPixelDecoder whose num_levels is "
                              f"num_transformer_feat_level, {levels}, and whose num_outs is not less")
        self.transformer_decoder = construct(Mask2FormerDecoder, transformer_decoder, "transformer_decoder")
        self.decoder_positional_encoding = construct(SinePositionalEncoding, positional_encoding, "positional_encoding")
        width = self.transformer_decoder.embed_dims
        if not width == self.decoder_positional_encoding.channels == feat_channels:
            raise ConfigError(f"feat_channels {feat_channels}, embed_dims of the transformer decoder {width} and twice "
                              f"num_feats {self.decoder_positional_encoding.channels} must be equal: queries and "
                              "places are added up")
        self.decoder_input_projs = nn.Sequential(*[Conv2d(feat_channels, width, 1)
                                                   for _ in range(levels * enforce_decoder_input_project)])
        self.query_feat, self.level_embed = Table(num_queries, feat_channels), Table(levels, feat_channels)
        start_with_xavier(self.transformer_decoder, uniform=False)
        self.criterion = SetCriterion(num_classes, loss_cls=loss_cls or default_class_loss(num_classes, 2.0),
                                      loss_mask=loss_mask, loss_dice=loss_dice, train_cfg=train_cfg,
                                      ignore_index=ignore_index, at_points=True)

    def execute(self, features: list[jt.Var], previous: jt.Var | None = None) -> list[tuple[jt.Var, jt.Var]]:
        mask_map, maps = self.pixel_decoder(self.select(features))
        maps = maps[:self.num_transformer_feat_level]
        sizes = [tuple(x.shape[2:]) for x in maps]
        projected = [conv(x) for conv, x in zip(self.decoder_input_projs, maps)] or maps
        memories = [to_tokens(x) + self.level_embed.weight[i] for i, x in enumerate(projected)]
        memory_pos = [self.decoder_positional_encoding(size) for size in sizes]
        query_pos, decoder = self.query_embed.weight.unsqueeze(0), self.transformer_decoder
        queries = self.query_feat.weight.unsqueeze(0)
        queries = queries.broadcast((mask_map.shape[0], *queries.shape[1:]))
        readings = [self.read(decoder.post_norm(queries), mask_map)]
        for i, layer in enumerate(decoder.layers):
            level = i % len(maps)
            mask = hidden_cells(readings[-1][1], sizes[level])
            queries = layer(queries, memories[level], query_pos=query_pos, memory_pos=memory_pos[level], mask=mask)
            readings.append(self.read(decoder.post_norm(queries), mask_map))
        return readings


def hidden_cells(masks: jt.Var, size: tuple[int, int]) -> jt.Var:
    """Where queries may look: 0 where their resized mask is at least one half, -inf elsewhere;
    a query without such a cell sees all.

    Shape:
        masks: (N, Q, h, w) logits -> (N, Q, H * W) for size (H, W), without gradient
    """
    with jt.no_grad():
        seen = jt.sigmoid(ops.bilinear_resize(masks, size)).reshape(*masks.shape[:2], -1) >= 0.5
        seen = seen.logical_or(seen.int32().sum(2, keepdims=True) == 0)
        return jt.ternary(seen, jt.zeros(seen.shape), jt.full(seen.shape, float("-inf"))).stop_grad()
