"""SegformerForSemanticSegmentation: MixVisionTransformer and SegformerHead.

Source: transformers 5.24 models/segformer/modeling_segformer.py (Apache-2.0). Its norms have eps 1e-5 whatever
`layer_norm_eps` says; the head's projections have neither norm nor activation (`plain_convs`) and are joined coarsest
map first.
"""

from __future__ import annotations

from jseg.convert.guess.segformer import finest_first
from jseg.convert.hf.facts import LAYERS, Facts
from jseg.convert.hf.keys import Rule
from jseg.convert.hf.plan import Plan, classifier, encoder_decoder, gelu, joined, linear, norm

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES, PROCESSOR = ("SegformerForSemanticSegmentation",), "Segformer"
_BLOCK, _OURS = "segformer.encoder.block.{i}.{j}.", "backbone.layers.{i}.1.{j}."


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    stages = facts.integer("num_encoder_blocks", 4, high=8)
    lists = {"num_layers": facts.integers("depths", [2] * 4, count=stages, high=LAYERS),
             "num_heads": facts.integers("num_attention_heads", [1, 2, 5, 8], count=stages),
             "patch_sizes": facts.integers("patch_sizes", [7, 3, 3, 3], count=stages),
             "strides": facts.integers("strides", [4, 2, 2, 2], count=stages),
             "sr_ratios": facts.integers("sr_ratios", [8, 4, 2, 1], count=stages)}
    widths = facts.integers("hidden_sizes", [32, 64, 160, 256], count=stages)
    ratios = facts.integers("mlp_ratios", [4] * stages, count=stages)
    base = widths[0] // lists["num_heads"][0]
    if [base * heads for heads in lists["num_heads"]] != widths:
        raise facts.fault("hidden_sizes", f"widths whose heads are all {base} channels wide")
    if len(set(ratios)) > 1:
        raise facts.fault("mlp_ratios", "the same number for every stage")
    backbone = {"type": "MixVisionTransformer", "in_channels": facts.integer("num_channels", 3), "embed_dims": base,
                "num_stages": stages, **lists, "out_indices": list(range(stages)), "mlp_ratio": ratios[0],
                "qkv_bias": True, "drop_path_rate": 0.1, "act_cfg": gelu(facts),
                "norm_cfg": {"type": "LN", "eps": 1e-5}}
    width = facts.integer("decoder_hidden_size", 256)
    head = {"type": "SegformerHead", "in_channels": widths, "in_index": list(range(stages)), "channels": width,
            "num_classes": classifier(facts), "norm_cfg": {"type": "BN"}, "plain_convs": True, "dropout_ratio": 0.1,
            "align_corners": False}
    rules = [
        linear("segformer.encoder.patch_embeddings.{i}.proj", "backbone.layers.{i}.0.projection"),
        norm("segformer.encoder.patch_embeddings.{i}.layer_norm", "backbone.layers.{i}.0.norm"),
        norm("segformer.encoder.layer_norm.{i}", "backbone.layers.{i}.2"),
        *joined(f"{_BLOCK}attention.self.", ("query", "key", "value"), f"{_OURS}attn.attn.in_proj_"),
        linear(f"{_BLOCK}attention.output.dense", f"{_OURS}attn.attn.out_proj"),
        linear(f"{_BLOCK}attention.self.sr", f"{_OURS}attn.sr"),
        norm(f"{_BLOCK}attention.self.layer_norm", f"{_OURS}attn.norm"),
        norm(f"{_BLOCK}layer_norm_1", f"{_OURS}norm1"), norm(f"{_BLOCK}layer_norm_2", f"{_OURS}norm2"),
        Rule(f"{_BLOCK}mlp.dense1.{{p}}", f"{_OURS}ffn.layers.0.{{p}}", ones=2),
        linear(f"{_BLOCK}mlp.dwconv.dwconv", f"{_OURS}ffn.layers.1"),
        Rule(f"{_BLOCK}mlp.dense2.{{p}}", f"{_OURS}ffn.layers.4.{{p}}", ones=2),
        Rule("decode_head.linear_c.{i}.proj.{p}", "decode_head.convs.{i}.conv.{p}", ones=2),
        Rule("decode_head.linear_fuse.weight", "decode_head.fusion_conv.conv.weight",
             arrange=lambda weight: finest_first(weight, stages)),
        Rule("decode_head.batch_norm.{s}", "decode_head.fusion_conv.bn.{s}"),
        linear("decode_head.classifier", "decode_head.conv_seg")]
    return Plan(encoder_decoder(backbone, head, direct=True), rules)
