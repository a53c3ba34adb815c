"""EomtForUniversalSegmentation and its form on DINOv3, read out for semantic segmentation: DINOv2 or DINOv3, EoMTHead.

Source: transformers 5.24 models/eomt/{modeling,image_processing_pil}_eomt.py and models/eomt_dinov3/
modeling_eomt_dinov3.py (Apache-2.0). Models of semantic
segmentation cut pictures into windows (`do_split_image`); checkpoints trained on instances or panoptic segments convert
too, their label maps then have things and stuff as classes. Pictures of another size than `image_size`, at which
transformers stops, get the positions resized.
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule, drop
from jseg.convert.hf.plan import Plan, classifier, encoder_decoder, gelu, joined, linear, norm

__all__ = ["ARCHITECTURES", "PROCESSOR", "plan"]

ARCHITECTURES = ("EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation")
PROCESSOR = "Eomt"


def plan(facts: Facts) -> Plan:
    """The model of a config."""
    from jseg.models.heads.mask_head import DICE_LOSS, MASK_LOSS, default_class_loss
    width, classes = facts.integer("hidden_size", 1024), classifier(facts)
    blocks, registers = facts.layers("num_blocks", 4), facts.integer("num_register_tokens", 4, low=0)
    has_rotary = facts.values["architectures"] == [ARCHITECTURES[1]]
    backbone = {"type": "DINOv3" if has_rotary else "DINOv2", "patch_size": facts.integer("patch_size", 16),
                "in_channels": facts.integer("num_channels", 3), "embed_dims": width,
                "num_layers": facts.layers("num_hidden_layers", 24),
                "num_heads": facts.integer("num_attention_heads", 16), "num_registers": registers,
                "joint_blocks": blocks, "drop_path_rate": facts.number("drop_path_rate", 0.0, above=-1.0),
                "init_values": facts.number("layerscale_value", 1.0), "act_cfg": gelu(facts),
                "norm_cfg": {"type": "LN", "eps": facts.number("layer_norm_eps", 1e-6)},
                **(_rotary_words(facts, width) if has_rotary else _learned_words(facts))}
    weights = {name: facts.number(f"{name}_weight", usual) for name, usual in
               (("class", 2.0), ("mask", 5.0), ("dice", 5.0), ("no_object", 0.1))}
    class_loss = default_class_loss(classes, weights["class"])
    class_loss["class_weight"][-1] = weights["no_object"]
    head = {"type": "EoMTHead", "in_channels": [width], "num_classes": classes,
            "num_queries": facts.integer("num_queries", 200), "num_blocks": blocks,
            "num_upscale_blocks": facts.layers("num_upscale_blocks", 2, low=0), "loss_cls": class_loss,
            "loss_mask": {**MASK_LOSS, "loss_weight": weights["mask"]},
            "loss_dice": {**DICE_LOSS, "loss_weight": weights["dice"]}, "train_cfg": _matching(facts, weights)}
    return Plan(encoder_decoder(backbone, head, direct=False), [
        *_backbone_rules(registers), *(_rotary_rules(backbone["key_bias"]) if has_rotary else _learned_rules()),
        *_head_rules()])


def _learned_words(facts: Facts) -> dict:
    """What DINOv2 has of its own."""
    facts.choice("use_swiglu_ffn", False, [False])
    return {"img_size": facts.side("image_size", 640), "mlp_ratio": facts.integer("mlp_ratio", 4)}


def _rotary_words(facts: Facts, width: int) -> dict:
    """What DINOv3 has of its own."""
    facts.choice("use_gated_mlp", False, [False])
    for key, usual in (("query_bias", True), ("value_bias", True), ("proj_bias", True), ("mlp_bias", True),
                       ("pos_embed_shift", None), ("pos_embed_jitter", None)):
        facts.choice(key, usual, [usual])
    hidden, rope = facts.integer("intermediate_size", 4 * width), facts.block("rope_parameters", {})
    if hidden % width:
        raise facts.fault("intermediate_size", f"a multiple of hidden_size, {width}")
    rope.choice("rope_type", "default", ["default"])
    return {"mlp_ratio": hidden // width, "rope_base": rope.number("rope_theta", 100.0),
            "rope_stretch": facts.number("pos_embed_rescale", 1.0 if "pos_embed_rescale" in facts.values else 2.0),
            "key_bias": facts.flag("key_bias", False)}


def _matching(facts: Facts, weights: dict[str, float]) -> dict:
    """The head's `train_cfg`."""
    from jseg.models.heads.mask_head import MATCHING
    order = [weights[name] for name in ("class", "mask", "dice")]
    costs = [{**cost, "weight": weight} for cost, weight in zip(MATCHING["match_costs"], order)]
    return {"num_points": facts.integer("train_num_points", 12544, high=1 << 20),
            "oversample_ratio": facts.number("oversample_ratio", 3.0),
            "importance_sample_ratio": facts.number("importance_sample_ratio", 0.75, above=-1.0),
            "assigner": {**MATCHING, "match_costs": costs}}


def _backbone_rules(registers: int) -> list[Rule]:
    block, ours = "layers.{i}.", "backbone.layers.{i}."
    return [
        Rule("embeddings.cls_token", "backbone.cls_token"),
        Rule("embeddings.register_tokens", "backbone.register_tokens") if registers else
        drop("embeddings.register_tokens", "a table without rows"),
        norm(f"{block}norm1", f"{ours}ln1"), norm(f"{block}norm2", f"{ours}ln2"),
        Rule(f"{block}layer_scale1.lambda1", f"{ours}gamma_1"), Rule(f"{block}layer_scale2.lambda1", f"{ours}gamma_2"),
        norm("layernorm", "backbone.ln1")]


def _learned_rules() -> list[Rule]:
    """Keys of the form on DINOv2 alone."""
    block, ours = "layers.{i}.", "backbone.layers.{i}."
    return [
        Rule("embeddings.position_embeddings.weight", "backbone.pos_embed", before=1),
        linear("embeddings.patch_embeddings.projection", "backbone.patch_embed.projection"),
        *joined(f"{block}attention.", ("q_proj", "k_proj", "v_proj"), f"{ours}attn.attn.in_proj_"),
        linear(f"{block}attention.out_proj", f"{ours}attn.attn.out_proj"),
        linear(f"{block}mlp.fc1", f"{ours}ffn.layers.0.0"), linear(f"{block}mlp.fc2", f"{ours}ffn.layers.1")]


def _rotary_rules(key_bias: bool) -> list[Rule]:
    """Keys of the form on DINOv3 alone."""
    block, ours = "layers.{i}.", "backbone.layers.{i}."
    biases = "q_proj|k_proj|v_proj" if key_bias else "q_proj|v_proj"
    return [
        linear("embeddings.patch_embeddings", "backbone.patch_embed.projection"),
        Rule(f"{block}attention.[q_proj|k_proj|v_proj].weight", f"{ours}attn.attn.in_proj_weight"),
        Rule(f"{block}attention.[{biases}].bias", f"{ours}attn.attn.in_proj_bias"),
        linear(f"{block}attention.o_proj", f"{ours}attn.attn.out_proj"),
        linear(f"{block}mlp.up_proj", f"{ours}ffn.layers.0.0"), linear(f"{block}mlp.down_proj", f"{ours}ffn.layers.1")]


def _head_rules() -> list[Rule]:
    scale, ours = "upscale_block.block.{i}.", "decode_head.upscale.{i}."
    return [
        Rule("query.weight", "decode_head.query_embed.weight"), linear("class_predictor", "decode_head.cls_embed"),
        *(linear(f"mask_head.fc{i + 1}", f"decode_head.mask_embed.{2 * i}") for i in range(3)),
        linear(f"{scale}conv1", f"{ours}conv1"), linear(f"{scale}conv2", f"{ours}conv2"),
        norm(f"{scale}layernorm2d", f"{ours}norm"), Rule("attn_mask_probs", "decode_head.attn_mask_probs"),
        drop("criterion.empty_weight", "class weights of the loss, which stand in the config")]
