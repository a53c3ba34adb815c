"""MaskFormerForInstanceSegmentation with a Swin backbone, read out for semantic segmentation: MaskFormerHead.

Source: transformers 5.24 models/maskformer/{modeling,image_processing_pil}_maskformer.py (Apache-2.0): classes are read
at the masks' own size (`readout_size: masks`), and those scores are resized.
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule
from jseg.convert.hf.mask_keys import decoder_layers, readings
from jseg.convert.hf.plan import Plan, classifier, encoder_decoder, group_block, linear
from jseg.convert.hf.swin import swin_backbone, swin_constants, swin_rules, swin_widths

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("MaskFormerForInstanceSegmentation",), "MaskFormer"
_PIXELS, _TRANSFORMER = "model.pixel_level_module.decoder.", "model.transformer_module."


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    found = facts.block("backbone_config")
    found.choice("model_type", None, ["swin", "maskformer-swin"])
    backbone, body = swin_backbone(found), "model.pixel_level_module.encoder."
    stages = len(backbone["depths"])
    norms = [f"{body}hidden_states_norms.{i}" for i in range(stages)]
    return Plan(encoder_decoder(backbone, _head(facts, swin_widths(backbone)), direct=True),
                [*swin_rules(f"{body}model.", norms), *_pixel_rules(stages), *_decoder_rules(),
                 *readings("mask_embedder")],
                swin_constants(backbone))


def _head(facts: Facts, widths: list[int]) -> dict:
    found = facts.block("decoder_config", {})
    found.choice("model_type", "detr", ["detr", "maskformer-detr"])
    found.choice("auxiliary_loss", False, [False])
    act = {"type": {"relu": "ReLU", "gelu": "GELU"}[found.choice("activation_function", "relu", ["relu", "gelu"])]}
    width, dropout = found.integer("d_model", 256), found.number("dropout", 0.1, above=-1.0)
    attention = {"embed_dims": width, "num_heads": found.integer("decoder_attention_heads", 8),
                 "attn_drop": found.number("attention_dropout", 0.0, above=-1.0), "proj_drop": dropout}
    decoder = {"num_layers": found.layers("decoder_layers", 6), "layer_cfg": {
        "self_attn_cfg": attention, "cross_attn_cfg": attention,
        "ffn_cfg": {"embed_dims": width, "feedforward_channels": found.integer("decoder_ffn_dim", 2048),
                    "ffn_drop": dropout, "act_cfg": act}}}
    return {"type": "MaskFormerHead", "in_channels": widths, "feat_channels": facts.integer("fpn_feature_size", 256),
            "out_channels": facts.integer("mask_feature_size", 256), "num_classes": classifier(facts),
            "num_queries": found.integer("num_queries", 100),
            "pixel_decoder": {"type": "PixelDecoder", "norm_cfg": {"type": "GN", "num_groups": 32},
                              "act_cfg": {"type": "ReLU"}},
            "transformer_decoder": decoder, "positional_encoding": {"num_feats": width // 2, "normalize": True},
            "readout_size": "masks"}


def _pixel_rules(stages: int) -> list[Rule]:
    """Rows of the pyramid, whose layers the file numbers from the coarsest map and jseg from the finest."""
    decoder, rows = "decode_head.pixel_decoder.", []
    for k in range(stages - 1):
        ours = stages - 2 - k
        rows += [*group_block(f"{_PIXELS}fpn.layers.{k}.proj", f"{decoder}lateral_convs.{ours}"),
                 *group_block(f"{_PIXELS}fpn.layers.{k}.block", f"{decoder}output_convs.{ours}")]
    return [*rows, *group_block(f"{_PIXELS}fpn.stem", f"{decoder}last_feat_conv"),
            linear(f"{_PIXELS}mask_projection", f"{decoder}mask_feature")]


def _decoder_rules() -> list[Rule]:
    layer, ours = f"{_TRANSFORMER}decoder.layers.{{i}}.", "decode_head.transformer_decoder.layers.{i}."
    return [*decoder_layers(layer, ours, ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
                            {"self_attn": "self_attn", "encoder_attn": "cross_attn"}),
            linear(f"{_TRANSFORMER}input_projection", "decode_head.decoder_input_proj")]
