"""Mask2FormerForUniversalSegmentation with a Swin backbone, read out for semantic segmentation: Mask2FormerHead.

Source: transformers 5.24 models/mask2former/{modeling,image_processing_pil}_mask2former.py (Apache-2.0): masks are
resized to 384 x 384 whatever the picture, and classes are read there (`readout_size`). Checkpoints trained on instances
or panoptic segments convert too; their label maps then have things and stuff as classes.
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule
from jseg.convert.hf.mask_keys import decoder_layers, feed_forward, readings
from jseg.convert.hf.plan import Plan, classifier, encoder_decoder, group_block, linear, norm
from jseg.convert.hf.swin import swin_backbone, swin_constants, swin_rules, swin_widths

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("Mask2FormerForUniversalSegmentation",), "Mask2Former"
_LEVELS, _POINTS = 3, 4  # fixed in transformers
_PIXELS, _TRANSFORMER = "model.pixel_level_module.decoder.", "model.transformer_module."


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    found = facts.block("backbone_config")
    found.choice("model_type", None, ["swin"])
    backbone = swin_backbone(found)
    body = "model.pixel_level_module.encoder."
    facts.choice("common_stride", 4, [4])
    facts.choice("feature_strides", [4, 8, 16, 32], [[4, 8, 16, 32]])
    facts.choice("pre_norm", False, [False])
    norms = [f"{body}hidden_states_norms.stage{i + 1}" for i in backbone["out_indices"]]
    return Plan(encoder_decoder(backbone, _head(facts, swin_widths(backbone)), direct=True),
                [*swin_rules(body, norms), *_pixel_rules(), *_decoder_rules(),
                 *readings(f"{_TRANSFORMER}decoder.mask_predictor.mask_embedder")],
                swin_constants(backbone))


def _head(facts: Facts, widths: list[int]) -> dict:
    heads, width = facts.integer("num_attention_heads", 8), facts.integer("feature_size", 256)
    hidden = facts.integer("hidden_dim", 256)
    act = {"type": {"relu": "ReLU", "gelu": "GELU"}[facts.choice("activation_function", "relu", ["relu", "gelu"])]}
    dropout = facts.number("dropout", 0.0, above=-1.0)
    places = {"num_feats": width // 2, "normalize": True}
    attention = {"embed_dims": hidden, "num_heads": heads, "dropout": dropout}
    encoder = {"num_layers": facts.layers("encoder_layers", 6), "layer_cfg": {
        "self_attn_cfg": {"embed_dims": width, "num_heads": heads, "num_levels": _LEVELS, "num_points": _POINTS,
                          "dropout": dropout},
        "ffn_cfg": {"embed_dims": width, "feedforward_channels": facts.integer("encoder_feedforward_dim", 1024),
                    "ffn_drop": dropout, "act_cfg": {"type": "ReLU"}}}}
    decoder = {"num_layers": facts.layers("decoder_layers", 10, low=2) - 1, "layer_cfg": {
        "self_attn_cfg": attention, "cross_attn_cfg": attention,
        "ffn_cfg": {"embed_dims": hidden, "feedforward_channels": facts.integer("dim_feedforward", 2048),
                    "ffn_drop": dropout, "act_cfg": act}}}
    return {"type": "Mask2FormerHead", "in_channels": widths, "feat_channels": width,
            "out_channels": facts.integer("mask_feature_size", 256), "num_classes": classifier(facts),
            "num_queries": facts.integer("num_queries", 100), "num_transformer_feat_level": _LEVELS,
            "enforce_decoder_input_project": facts.flag("enforce_input_projection", False),
            "pixel_decoder": {"type": "MSDeformAttnPixelDecoder", "num_outs": _LEVELS,
                              "norm_cfg": {"type": "GN", "num_groups": 32}, "act_cfg": {"type": "ReLU"},
                              "positional_encoding": places, "encoder": encoder},
            "transformer_decoder": decoder,
            "positional_encoding": {"num_feats": hidden // 2, "normalize": True}, "readout_size": [384, 384]}


def _pixel_rules() -> list[Rule]:
    layer, ours = f"{_PIXELS}encoder.layers.{{i}}.", "decode_head.pixel_decoder.encoder.layers.{i}."
    decoder = "decode_head.pixel_decoder."
    return [*group_block(f"{_PIXELS}input_projections.{{i}}", f"{decoder}input_convs.{{i}}"),
            *group_block(f"{_PIXELS}adapter_1", f"{decoder}lateral_convs.0"),
            *group_block(f"{_PIXELS}layer_1", f"{decoder}output_convs.0"),
            Rule(f"{_PIXELS}level_embed", f"{decoder}level_encoding.weight"),
            linear(f"{_PIXELS}mask_projection", f"{decoder}mask_feature"),
            *(linear(f"{layer}self_attn.{name}", f"{ours}self_attn.{name}")
              for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")),
            norm(f"{layer}self_attn_layer_norm", f"{ours}norms.0"), norm(f"{layer}final_layer_norm", f"{ours}norms.1"),
            *feed_forward(layer, ours)]


def _decoder_rules() -> list[Rule]:
    layer, ours = f"{_TRANSFORMER}decoder.layers.{{i}}.", "decode_head.transformer_decoder.layers.{i}."
    return [*decoder_layers(layer, ours, ("cross_attn_layer_norm", "self_attn_layer_norm", "final_layer_norm"),
                            {"self_attn": "self_attn"}),
            Rule(f"{layer}cross_attn.in_proj_{{p}}", f"{ours}cross_attn.attn.in_proj_{{p}}"),
            linear(f"{layer}cross_attn.out_proj", f"{ours}cross_attn.attn.out_proj"),
            Rule(f"{_TRANSFORMER}queries_features.weight", "decode_head.query_feat.weight"),
            Rule(f"{_TRANSFORMER}level_embed.weight", "decode_head.level_embed.weight"),
            linear(f"{_TRANSFORMER}input_projections.{{i}}", "decode_head.decoder_input_projs.{i}")]
