"""MaskFormerHead: queries look at the coarsest map, and each becomes a class and a mask.

Paper: Cheng et al., "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021.
Upstream: mmsegmentation 1.2.2 mmseg/models/decode_heads/maskformer_head.py over mmdetection 3.x
mmdet/models/dense_heads/maskformer_head.py (Apache-2.0), whose words, keys and arithmetic these are.

Deviations: `loss_cls` has num_classes + 1 class weights by default (upstream: those of COCO's 133 classes);
`num_things_classes` and `num_stuff_classes`, which upstream's segmentation head forgets, are not here; no mask of
padded cells; in evaluation only the last layer is read.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Mapping, Sequence

import jittor as jt

from jseg.errors import ConfigError
from jseg.layers import Conv2d
from jseg.layers.detr import DetrDecoder
from jseg.layers.init import start_with_xavier
from jseg.layers.sine_positions import SinePositionalEncoding
from jseg.layers.tokens import to_tokens
from jseg.losses.set_criterion import SetCriterion
from jseg.models.heads.mask_head import MaskHead, default_class_loss
from jseg.models.pixel_decoders.pixel_decoder import SINE, PixelDecoder
from jseg.registry import MODELS, PIXEL_DECODERS, construct

__all__ = ["MaskFormerHead"]

_FOCAL = MappingProxyType({"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 20.0})
_DICE = MappingProxyType({"type": "DiceLoss", "naive_dice": True, "loss_weight": 1.0})
_HEADS = {"embed_dims": 8, "num_heads": 2}


@MODELS.register()
class MaskFormerHead(MaskHead):
    """Pixel decoder, transformer decoder, and a class and a mask for each query.

    Args:
        in_channels: widths of the maps, finest first.
        feat_channels: width of pixel decoder and queries.
        out_channels: width of the map that masks are read from.
        num_queries: Q.
        pixel_decoder: block of a `PIXEL_DECODERS` class.
        enforce_decoder_input_project: project the memory also where it has the queries' width.
        transformer_decoder: words of `DetrDecoder`.
        positional_encoding: words of `SinePositionalEncoding`.
        loss_cls, loss_mask, loss_dice, train_cfg: see `SetCriterion`; `loss_cls` null: class weights 1, and 0.1 of no
            class.
        num_classes: K.
        align_corners, ignore_index, in_index, readout_size: see `MaskHead`.
    Shape:
        features: list of (N, C_i, H_i, W_i) -> readings of the layers, see `MaskHead`; in evaluation the last alone
    Raises:
        ConfigError: widths that do not fit, or a block that does not.
    """

    TINY = MappingProxyType({
        "type": "MaskFormerHead", "feat_channels": 8, "out_channels": 8, "num_queries": 7,
        "pixel_decoder": {"type": "TransformerEncoderPixelDecoder", "norm_cfg": {"type": "GN", "num_groups": 2},
                          "positional_encoding": {"num_feats": 4, "normalize": True},
                          "encoder": {"num_layers": 1, "layer_cfg": {
                              "self_attn_cfg": _HEADS, "ffn_cfg": {"embed_dims": 8, "feedforward_channels": 16}}}},
        "transformer_decoder": {"num_layers": 2, "layer_cfg": {
            "self_attn_cfg": {**_HEADS, "attn_drop": 0.1}, "cross_attn_cfg": {**_HEADS, "attn_drop": 0.1},
            "ffn_cfg": {"embed_dims": 8, "feedforward_channels": 16, "ffn_drop": 0.1}}},
        "positional_encoding": {"num_feats": 4, "normalize": True},
        "train_cfg": {"assigner": {"type": "HungarianAssigner", "match_costs": [
            {"type": "ClassificationCost", "weight": 1.0},
            {"type": "FocalLossCost", "weight": 20.0, "binary_input": True},
            {"type": "DiceCost", "weight": 1.0, "pred_act": True, "eps": 1.0}]}}})

    def __init__(self, in_channels: Sequence[int], feat_channels: int, out_channels: int, pixel_decoder: Mapping,
                 transformer_decoder: Mapping, num_queries: int = 100, enforce_decoder_input_project: bool = False,
                 positional_encoding: Mapping = SINE, loss_cls: Mapping | None = None, loss_mask: Mapping = _FOCAL,
                 loss_dice: Mapping = _DICE, train_cfg: Mapping | None = None, num_classes: int = 150,
                 align_corners: bool = False, ignore_index: int = 255, in_index: Sequence[int] | None = None,
                 readout_size: str | Sequence[int] | None = None):
        super().__init__(num_classes, in_index=in_index, channels=feat_channels, out_channels=out_channels,
                         num_queries=num_queries, query_channels=out_channels, align_corners=align_corners,
                         ignore_index=ignore_index, readout_size=readout_size)
        self.pixel_decoder = PIXEL_DECODERS.build(pixel_decoder, "pixel_decoder", in_channels=list(in_channels),
                                                  feat_channels=feat_channels, out_channels=out_channels)
        if not isinstance(self.pixel_decoder, PixelDecoder):
            raise ConfigError(f"pixel_decoder: {pixel_decoder.get('type')} gives several maps of memory; accepted: "
                              "PixelDecoder and TransformerEncoderPixelDecoder")
        self.transformer_decoder = construct(DetrDecoder, transformer_decoder, "transformer_decoder")
        self.decoder_pe = construct(SinePositionalEncoding, positional_encoding, "positional_encoding")
        width, memory = self.transformer_decoder.embed_dims, self.pixel_decoder.memory_channels
        if not width == self.decoder_pe.channels == feat_channels == out_channels:
            raise ConfigError(f"feat_channels {feat_channels}, out_channels {out_channels}, embed_dims of the "
                              f"transformer decoder {width} and twice num_feats {self.decoder_pe.channels} must be "
                              "equal: queries and places are added up")
        projects = type(self.pixel_decoder) is PixelDecoder and (memory != width or enforce_decoder_input_project)
        if not projects and memory != width:
            raise ConfigError(f"pixel_decoder: its memory has {memory} channels, the transformer decoder {width}; make "
                              "them equal")
        self.decoder_input_proj = Conv2d(memory, width, 1) if projects else None
        start_with_xavier(self.transformer_decoder)
        self.criterion = SetCriterion(num_classes, loss_cls=loss_cls or default_class_loss(num_classes, 1.0),
                                      loss_mask=loss_mask, loss_dice=loss_dice, train_cfg=train_cfg,
                                      ignore_index=ignore_index)

    def execute(self, features: list[jt.Var], previous: jt.Var | None = None) -> list[tuple[jt.Var, jt.Var]]:
        mask_map, memory = self.pixel_decoder(self.select(features))
        memory = memory if self.decoder_input_proj is None else self.decoder_input_proj(memory)
        places = self.query_embed.weight.unsqueeze(0)  # (1, Q, C)
        start = jt.zeros((memory.shape[0], *places.shape[1:]), memory.dtype)
        read = self.transformer_decoder(start, to_tokens(memory), query_pos=places,
                                        memory_pos=self.decoder_pe(tuple(memory.shape[2:])))
        return [self.read(queries, mask_map) for queries in read]
