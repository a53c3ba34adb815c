"""ConvNeXt as a backbone inside other models: ConvNextBackbone.

Source: transformers 5.24 models/convnext/modeling_convnext.py (Apache-2.0). Every norm has eps 1e-6, whatever
`layer_norm_eps` says.
"""

from __future__ import annotations

from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule, with_prefixes
from jseg.convert.hf.plan import gelu, linear, norm, stage_depths

__all__ = ["convnext_backbone", "convnext_rules"]

_BLOCK, _OURS = "encoder.stages.{i}.layers.{j}.", "stages.{i}.{j}."


def convnext_backbone(facts: Facts) -> dict:
    """The block of a backbone config."""
    depths = stage_depths(facts, [3, 3, 9, 3])
    stages = len(depths)
    widths = facts.integers("hidden_sizes", [96, 192, 384, 768], count=stages)
    scale = facts.number("layer_scale_init_value", 1e-6, above=-1.0)
    return {"type": "ConvNeXt", "arch": {"depths": depths, "channels": widths},
            "in_channels": facts.integer("num_channels", 3), "stem_patch_size": facts.integer("patch_size", 4),
            "act_cfg": gelu(facts), "drop_path_rate": 0.4, "layer_scale_init_value": max(scale, 0.0),
            "out_indices": list(range(stages)), "gap_before_final_norm": False}


def convnext_rules(block: dict, prefix: str) -> list[Rule]:
    """Rows of a backbone, behind `prefix`."""
    rules = [
        linear("embeddings.patch_embeddings", "downsample_layers.0.0"),
        norm("embeddings.layernorm", "downsample_layers.0.1"),
        norm("encoder.stages.{i}.downsampling_layer.0", "downsample_layers.{i}.0"),
        linear("encoder.stages.{i}.downsampling_layer.1", "downsample_layers.{i}.1"),
        linear(f"{_BLOCK}dwconv", f"{_OURS}depthwise_conv"), norm(f"{_BLOCK}layernorm", f"{_OURS}norm"),
        linear(f"{_BLOCK}pwconv1", f"{_OURS}pointwise_conv1"), linear(f"{_BLOCK}pwconv2", f"{_OURS}pointwise_conv2"),
        Rule(f"{_BLOCK}layer_scale_parameter", f"{_OURS}gamma")]
    rules += [norm(f"hidden_states_norms.stage{i + 1}", f"norm{i}") for i in block["out_indices"]]
    return with_prefixes(rules, prefix, "backbone.")
