"""Rows that Mask2Former's and MaskFormer's decoders share: layers of queries, and what reads classes and masks.

Source: transformers 5.24 models/mask2former/modeling_mask2former.py, models/maskformer/modeling_maskformer.py
(Apache-2.0).
"""

from __future__ import annotations

from jseg.convert.hf.keys import Rule, drop
from jseg.convert.hf.plan import joined, linear, norm

__all__ = ["decoder_layers", "feed_forward", "readings"]


def feed_forward(source: str, target: str) -> list[Rule]:
    """Two linear layers."""
    return [linear(f"{source}fc1", f"{target}ffn.layers.0.0"), linear(f"{source}fc2", f"{target}ffn.layers.1")]


def decoder_layers(source: str, target: str, norms: tuple[str, str, str], attentions: dict[str, str]) -> list[Rule]:
    """Layers of a decoder.

    Args:
        source, target: the layer in the file and ours, `{i}` its number.
        norms: names of its norms in the file, in the order of ours.
        attentions: the file's name of an attention with four projections -> ours.
    """
    rows = [norm(f"{source}{name}", f"{target}norms.{i}") for i, name in enumerate(norms)]
    for theirs, ours in attentions.items():
        rows += [*joined(f"{source}{theirs}.", ("q_proj", "k_proj", "v_proj"), f"{target}{ours}.attn.in_proj_"),
                 linear(f"{source}{theirs}.out_proj", f"{target}{ours}.attn.out_proj")]
    return rows + feed_forward(source, target)


def readings(embedder: str) -> list[Rule]:
    """Class and mask of a query, and the loss's weights."""
    return [linear("class_predictor", "decode_head.cls_embed"),
            *(linear(f"{embedder}.{i}.0", f"decode_head.mask_embed.{2 * i}") for i in range(3)),
            Rule("model.transformer_module.queries_embedder.weight", "decode_head.query_embed.weight"),
            linear("model.transformer_module.decoder.layernorm", "decode_head.transformer_decoder.post_norm"),
            drop("criterion.empty_weight", "class weights of the loss, which stand in the config")]
