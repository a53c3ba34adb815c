"""NVIDIA's names in SegFormer's configs (MMSegmentation 0.x, NVlabs/SegFormer), said in MMSegmentation's words.

`mit_b0` to `mit_b5` are MixVisionTransformer with the paper's sizes (table 6); `SegFormerHead` with
`decoder_params.embed_dim` is SegformerHead of that width which projects maps without norm and activation.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["segformer_words"]

_DEPTHS = {"0": [2, 2, 2, 2], "1": [2, 2, 2, 2], "2": [3, 4, 6, 3], "3": [3, 4, 18, 3], "4": [3, 8, 27, 3],
           "5": [3, 6, 40, 3]}


def segformer_words(model: dict[str, Any]) -> dict[str, Any]:
    """A model block with NVIDIA's names replaced; any other comes back as it is."""
    backbone, head = model.get("backbone"), model.get("decode_head")
    kind = backbone.get("type") if isinstance(backbone, dict) else None
    if isinstance(kind, str) and (found := re.fullmatch(r"mit_b([0-5])", kind)):
        sizes = {"type": "MixVisionTransformer", "embed_dims": 32 if found[1] == "0" else 64,
                 "num_layers": _DEPTHS[found[1]], "num_heads": [1, 2, 5, 8], "sr_ratios": [8, 4, 2, 1],
                 "drop_path_rate": 0.1}
        rest = {key: value for key, value in backbone.items() if key not in ("type", "style")}
        model = {**model, "backbone": {**sizes, **rest}}
    if isinstance(head, dict) and head.get("type") == "SegFormerHead":
        words = head.get("decoder_params") if isinstance(head.get("decoder_params"), dict) else {}
        rest = {key: value for key, value in head.items() if key not in ("type", "feature_strides", "decoder_params")}
        model = {**model, "decode_head": {"type": "SegformerHead", **rest,
                                          "channels": words.get("embed_dim", head.get("channels")),
                                          "plain_convs": True}}
    return model
