"""Swin Transformer's ImageNet weights in mmsegmentation's layout, which carry no config (the `pretrain/swin` files of
its configs).

Source: mmsegmentation 1.2.2 mmseg/models/backbones/swin.py (Apache-2.0). Official checkpoints have other keys and
another order in their mergings; mmsegmentation's tools/model_converters/swin2mmseg.py makes these of them.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes
from jseg.errors import ConvertError

__all__ = ["NEAREST", "complete", "guess", "recognise"]

NEAREST = "Swin backbone, ImageNet, mmsegmentation's keys"
_TABLE = r"stages\.(\d)\.blocks\.(\d+)\.attn\.w_msa\.relative_position_bias_table"


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a Swin backbone stands alone."""
    if any(key.startswith("decode_head.") for key in shapes):
        return False
    return any(re.fullmatch(rf"(backbone\.)?{_TABLE}", key) for key in shapes)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    shapes = {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
    try:
        tables = {(int(found[1]), int(found[2])): shapes[key] for key in shapes if (found := re.fullmatch(_TABLE, key))}
        stages = 1 + max(stage for stage, _ in tables)
        embed, offsets = shapes["patch_embed.projection.weight"], tables[0, 0][0]
        side = next(n for n in range(1, 100) if (2 * n - 1) ** 2 >= offsets)
        block = {
            "type": "SwinTransformer", "in_channels": embed[1], "embed_dims": embed[0], "patch_size": embed[-1],
            "window_size": side, "mlp_ratio": shapes["stages.0.blocks.0.ffn.layers.0.0.weight"][0] // embed[0],
            "depths": [sum(stage == i for stage, _ in tables) for i in range(stages)],
            "num_heads": [tables[i, 0][1] for i in range(stages)], "strides": [embed[-1]] + [2] * (stages - 1),
            "out_indices": [i for i in range(stages) if f"norm{i}.weight" in shapes],
            "qkv_bias": "stages.0.blocks.0.attn.w_msa.qkv.bias" in shapes,
            "patch_norm": "patch_embed.norm.weight" in shapes, "use_abs_pos_embed": "absolute_pos_embed" in shapes,
            "drop_path_rate": 0.3}
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise ConvertError(f"{where}: an incomplete Swin backbone: {error} is missing or has an odd shape") from error
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True)


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """A stated config as it is; backbones alone have none."""
    return settings
