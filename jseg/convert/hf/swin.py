"""Swin Transformer as a backbone inside other models: SwinBackbone, and MaskFormer's own copy of it.

Source: transformers 5.24 models/swin/modeling_swin.py, models/maskformer/modeling_maskformer_swin.py (Apache-2.0).
Merged patches are joined by column, row, channel there, by channel, row, column here. The index of relative positions,
which files of 4.x hold, follows from the window.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np

from jseg.convert.guess.swin import merging_order
from jseg.convert.hf.facts import Facts
from jseg.convert.hf.keys import Rule, drop, with_prefixes
from jseg.convert.hf.plan import gelu, joined, linear, norm, stage_depths

__all__ = ["swin_backbone", "swin_constants", "swin_rules", "swin_widths"]

_BLOCK, _OURS = "encoder.layers.{i}.blocks.{j}.", "stages.{i}.blocks.{j}."


def swin_backbone(facts: Facts) -> dict:
    """The block of a backbone config."""
    depths = stage_depths(facts, [2, 2, 6, 2])
    stages = len(depths)
    patch = facts.integer("patch_size", 4)
    return {"type": "SwinTransformer", "pretrain_img_size": facts.side("image_size", 224),
            "in_channels": facts.integer("num_channels", 3), "embed_dims": facts.integer("embed_dim", 96),
            "patch_size": patch, "window_size": facts.integer("window_size", 7, high=64),
            "mlp_ratio": facts.number("mlp_ratio", 4.0), "depths": depths,
            "num_heads": facts.integers("num_heads", [3, 6, 12, 24], count=stages),
            "strides": [patch] + [2] * (stages - 1), "out_indices": list(range(stages)),
            "qkv_bias": facts.flag("qkv_bias", True), "patch_norm": True, "drop_path_rate": 0.1,
            "use_abs_pos_embed": facts.choice("use_absolute_embeddings", False, [False]), "act_cfg": gelu(facts),
            "norm_cfg": {"type": "LN", "eps": facts.choice("layer_norm_eps", 1e-5, [1e-5])}}


def swin_widths(block: dict) -> list[int]:
    """Channels of its maps."""
    return [block["embed_dims"] << i for i in range(len(block["depths"]))]


def swin_constants(block: dict) -> dict[str, np.ndarray]:
    """The index of relative positions of every block."""
    from jseg.layers.windows import relative_index
    index = relative_index(block["window_size"], block["window_size"]).astype(np.float32)
    return {f"backbone.stages.{i}.blocks.{j}.attn.w_msa.relative_position_index": index
            for i, depth in enumerate(block["depths"]) for j in range(depth)}


def swin_rules(body: str, norms: Sequence[str]) -> list[Rule]:
    """Rows of a backbone.

    Args:
        body: what stands before `embeddings` and `encoder`.
        norms: the norms of the maps, finest first.
    """
    rules = [
        linear("embeddings.patch_embeddings.projection", "patch_embed.projection"),
        norm("embeddings.norm", "patch_embed.norm"),
        *joined(f"{_BLOCK}attention.self.", ("query", "key", "value"), f"{_OURS}attn.w_msa.qkv."),
        Rule(f"{_BLOCK}attention.self.relative_position_bias_table", f"{_OURS}attn.w_msa.relative_position_bias_table"),
        drop(f"{_BLOCK}attention.self.relative_position_index", "an index that follows from the window"),
        linear(f"{_BLOCK}attention.output.dense", f"{_OURS}attn.w_msa.proj"),
        norm(f"{_BLOCK}layernorm_before", f"{_OURS}norm1"), norm(f"{_BLOCK}layernorm_after", f"{_OURS}norm2"),
        linear(f"{_BLOCK}intermediate.dense", f"{_OURS}ffn.layers.0.0"),
        linear(f"{_BLOCK}output.dense", f"{_OURS}ffn.layers.1"),
        Rule("encoder.layers.{i}.downsample.norm.{p}", "stages.{i}.downsample.norm.{p}", arrange=merging_order),
        Rule("encoder.layers.{i}.downsample.reduction.weight", "stages.{i}.downsample.reduction.weight",
             arrange=merging_order)]
    unused = "a norm that classification alone uses"
    return [*with_prefixes(rules, body, "backbone."),
            *(norm(source, f"backbone.norm{i}") for i, source in enumerate(norms)),
            drop(f"{body}layernorm.{{p}}", unused), drop(f"{body}swin.layernorm.{{p}}", unused)]
