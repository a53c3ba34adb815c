"""DPTForSemanticSegmentation without a convolutional stem: VisionTransformer and DPTHead.

Source: transformers 5.24 models/dpt/modeling_dpt.py (Apache-2.0). Positions are resized bilinearly; the head's scores
are enlarged twice with aligned corners before they are read (`upsample_scores`); residual units have a batch norm, or
biases instead (`unit_norm`).
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule, drop
from jseg.convert.hf.plan import Plan, classifier, encoder_decoder, gelu, joined, linear, norm

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("DPTForSemanticSegmentation",), "DPT"
_BLOCK, _OURS = "dpt.encoder.layer.{i}.", "backbone.layers.{i}."
_FUSION = "neck.fusion_stage.layers.{i}.residual_layer{j}."
_UNIT = "decode_head.fusion_blocks.{i}.res_conv_unit{j}"


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    facts.choice("is_hybrid", False, [False])
    if facts.values.get("backbone_config") or facts.values.get("backbone"):
        raise facts.fault("backbone_config", "null: the vision transformer of the config itself")
    width, patch = facts.integer("hidden_size", 768), facts.integer("patch_size", 16)
    hidden = facts.integer("intermediate_size", 3072)
    if hidden % width:
        raise facts.fault("intermediate_size", f"a multiple of hidden_size, {width}")
    facts.choice("reassemble_factors", [4, 2, 1, 0.5], [[4, 2, 1, 0.5]])
    facts.choice("head_in_index", -1, [-1])
    has_norm = facts.flag("use_batch_norm_in_fusion_residual", False)
    facts.choice("use_bias_in_fusion_residual", not has_norm, [not has_norm])
    layers, act = facts.layers("num_hidden_layers", 12), gelu(facts)
    backbone = {"type": "VisionTransformer", "img_size": facts.side("image_size", 384), "patch_size": patch,
                "patch_pad": 0, "in_channels": facts.integer("num_channels", 3), "embed_dims": width,
                "num_layers": layers, "num_heads": facts.integer("num_attention_heads", 12),
                "mlp_ratio": hidden // width, "qkv_bias": facts.flag("qkv_bias", True), "patch_bias": True,
                "out_indices": sorted(facts.integers("backbone_out_indices", [2, 5, 8, 11], count=4, low=0)),
                "output_cls_token": True, "interpolate_mode": "bilinear", "act_cfg": act,
                "norm_cfg": {"type": "LN", "eps": facts.number("layer_norm_eps", 1e-12)}}
    head = {"type": "DPTHead", "in_channels": [width] * 4, "in_index": [0, 1, 2, 3],
            "input_transform": "multiple_select", "embed_dims": width,
            "channels": facts.integer("fusion_hidden_size", 256), "num_classes": classifier(facts),
            "post_process_channels": facts.integers("neck_hidden_sizes", [96, 192, 384, 768], count=4),
            "readout_type": facts.choice("readout_type", "project", ["ignore", "add", "project"]),
            "norm_cfg": {"type": "BN"}, "unit_norm": has_norm, "upsample_scores": True, "dropout_ratio": 0.1,
            "align_corners": False}
    return Plan(encoder_decoder(backbone, head, direct=True), [*_backbone_rules(), *_head_rules()])


def _backbone_rules() -> list[Rule]:
    unused = "of the encoder's own result, which segmentation does not read"
    return [
        Rule("dpt.embeddings.cls_token", "backbone.cls_token"),
        Rule("dpt.embeddings.position_embeddings", "backbone.pos_embed"),
        linear("dpt.embeddings.patch_embeddings.projection", "backbone.patch_embed.projection"),
        *joined(f"{_BLOCK}attention.attention.", ("query", "key", "value"), f"{_OURS}attn.attn.in_proj_"),
        linear(f"{_BLOCK}attention.output.dense", f"{_OURS}attn.attn.out_proj"),
        linear(f"{_BLOCK}intermediate.dense", f"{_OURS}ffn.layers.0.0"),
        linear(f"{_BLOCK}output.dense", f"{_OURS}ffn.layers.1"),
        norm(f"{_BLOCK}layernorm_before", f"{_OURS}ln1"), norm(f"{_BLOCK}layernorm_after", f"{_OURS}ln2"),
        drop("dpt.layernorm.{p}", unused), drop("dpt.pooler.dense.{p}", unused)]


def _head_rules() -> list[Rule]:
    first = "never used: no finer map joins the coarsest one"
    return [
        *(drop(f"neck.fusion_stage.layers.0.residual_layer1.{name}", first)
          for name in ("convolution{j}.{p}", "batch_norm{j}.{s}")),
        linear("neck.reassemble_stage.layers.{i}.projection", "decode_head.reassemble_blocks.projects.{i}.conv"),
        linear("neck.reassemble_stage.layers.{i}.resize", "decode_head.reassemble_blocks.resize_layers.{i}"),
        linear("neck.reassemble_stage.readout_projects.{i}.0", "decode_head.reassemble_blocks.readout_projects.{i}.0"),
        Rule("neck.convs.{i}.weight", "decode_head.convs.{i}.conv.weight"),
        linear("neck.fusion_stage.layers.{i}.projection", "decode_head.fusion_blocks.{i}.project.conv"),
        *(row for n in (1, 2) for row in (
            linear(f"{_FUSION}convolution{n}", f"{_UNIT}.conv{n}.conv"),
            Rule(f"{_FUSION}batch_norm{n}.{{s}}", f"{_UNIT}.conv{n}.bn.{{s}}"))),
        Rule("head.head.0.weight", "decode_head.project.conv.weight"),
        Rule("head.head.1.{s}", "decode_head.project.bn.{s}"), linear("head.head.4", "decode_head.conv_seg"),
        drop("auxiliary_head.head.{i}.{s}", "an auxiliary head on the fused map, used in training only")]
