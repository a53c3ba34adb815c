"""BeitForSemanticSegmentation: BEiT, Feature2Pyramid, UPerHead and FCNHead.

Source: transformers 5.24 models/beit/modeling_beit.py (Apache-2.0). `out_indices` count from the tokens before the
first block, which are 1 (upstream's quirk: [3, 5, 7, 11] are what comes out of the second, fourth, sixth and tenth
block). Pictures of another size than
`image_size` differ: transformers resizes the tables, jseg's BEiT holds their edge; the image processor makes
`image_size` of every picture.
"""

from __future__ import annotations

import numpy as np

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule, drop
from jseg.convert.hf.plan import Plan, encoder_decoder, gelu, linear, norm
from jseg.convert.hf.uper import uper_heads, uper_rules

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("BeitForSemanticSegmentation",), "Beit"
_BLOCK, _OURS = "beit.encoder.layer.{i}.", "backbone.layers.{i}."
_UNUSED = "of pre-training or classification, unused in segmentation"


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    from jseg.layers import pair
    width, layers = facts.integer("hidden_size", 768), facts.layers("num_hidden_layers", 12)
    hidden, patch = facts.integer("intermediate_size", 4 * width), facts.integer("patch_size", 16)
    if hidden % width:
        raise facts.fault("intermediate_size", f"a multiple of hidden_size, {width}")
    size = facts.side("image_size", 224)
    if max(pair(size)) > 64 * patch:
        raise facts.fault("image_size", f"at most 64 patches of {patch} pixels a side")
    key = "out_indices" if "out_indices" in facts else "segmentation_indices"
    indices = [i - 2 for i in facts.integers(key, [3, 5, 7, 11], count=4, low=2)]
    if sorted(set(indices)) != indices or indices[-1] >= layers:
        raise facts.fault(key, f"four rising numbers, 2 to {layers + 1}")
    facts.choice("use_absolute_position_embeddings", False, [False])
    if not facts.flag("use_relative_position_bias", False):
        raise facts.fault("use_relative_position_bias", "true")
    backbone = {"type": "BEiT", "img_size": size, "patch_size": patch,
                "in_channels": facts.integer("num_channels", 3), "embed_dims": width, "num_layers": layers,
                "num_heads": facts.integer("num_attention_heads", 12), "mlp_ratio": hidden // width,
                "out_indices": indices, "qv_bias": True, "drop_path_rate": 0.1, "act_cfg": gelu(facts),
                "norm_cfg": {"type": "LN", "eps": facts.number("layer_norm_eps", 1e-12)},
                "init_values": facts.number("layer_scale_init_value", 0.1)}
    neck = {"type": "Feature2Pyramid", "embed_dim": width, "rescales": [4, 2, 1, 0.5], "norm_cfg": {"type": "BN"}}
    head, auxiliary = uper_heads(facts, [width] * 4, width)
    return Plan(encoder_decoder(backbone, head, neck=neck, auxiliary=auxiliary, direct=True),
                [*_backbone_rules(), *_neck_rules(), *uper_rules("bn")], _constants(backbone))


def _backbone_rules() -> list[Rule]:
    attention = f"{_BLOCK}attention.attention."
    return [
        Rule("beit.embeddings.cls_token", "backbone.cls_token"), drop("beit.embeddings.mask_token", _UNUSED),
        drop("beit.layernorm.{p}", _UNUSED), drop("beit.pooler.layernorm.{p}", _UNUSED),
        linear("beit.embeddings.patch_embeddings.projection", "backbone.patch_embed.projection"),
        Rule(f"{attention}[query|key|value].weight", f"{_OURS}attn.qkv.weight"),
        Rule(f"{attention}query.bias", f"{_OURS}attn.q_bias"), Rule(f"{attention}value.bias", f"{_OURS}attn.v_bias"),
        Rule(f"{attention}relative_position_bias.relative_position_bias_table",
             f"{_OURS}attn.relative_position_bias_table"),
        drop(f"{attention}relative_position_bias.relative_position_index", "an index that follows from the grid"),
        linear(f"{_BLOCK}attention.output.dense", f"{_OURS}attn.proj"),
        linear(f"{_BLOCK}intermediate.dense", f"{_OURS}ffn.layers.0.0"),
        linear(f"{_BLOCK}output.dense", f"{_OURS}ffn.layers.1"),
        norm(f"{_BLOCK}layernorm_before", f"{_OURS}ln1"), norm(f"{_BLOCK}layernorm_after", f"{_OURS}ln2"),
        Rule(f"{_BLOCK}lambda_1", f"{_OURS}gamma_1"), Rule(f"{_BLOCK}lambda_2", f"{_OURS}gamma_2")]


def _neck_rules() -> list[Rule]:
    return [linear("fpn1.0", "neck.upsample_4x.0"), Rule("fpn1.1.{s}", "neck.upsample_4x.1.{s}"),
            linear("fpn1.3", "neck.upsample_4x.3"), linear("fpn2.0", "neck.upsample_2x.0")]


def _constants(backbone: dict) -> dict[str, np.ndarray]:
    """The index of relative positions of every block."""
    from jseg.layers import pair
    from jseg.models.backbones.beit import token_index
    window = tuple(side // backbone["patch_size"] for side in pair(backbone["img_size"]))
    index = token_index(window, window).astype(np.float32)
    return {f"backbone.layers.{i}.attn.relative_position_index": index for i in range(backbone["num_layers"])}
