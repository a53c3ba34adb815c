"""MiT's ImageNet weights, which carry no config: mmsegmentation's files and those of SegFormer's authors.

Sources: mmsegmentation 1.2.2 mmseg/models/backbones/mit.py (Apache-2.0) and tools/model_converters/mit2mmseg.py;
NVlabs/SegFormer's mmseg/models/backbones/mix_transformer.py. Strides of the patches, which no shape tells, are the
paper's.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes
from jseg.errors import ConvertError

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "MiT backbone, ImageNet"
_MMSEG, _AUTHORS = r"layers\.\d\.1\.\d+\.attn\.attn\.in_proj_weight", r"block\d\.\d+\.attn\.q\.weight"


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a MiT backbone stands alone."""
    return not any(key.startswith("decode_head.") for key in shapes) and any(
        re.fullmatch(rf"(backbone\.)?({_MMSEG}|{_AUTHORS})", key) for key in shapes)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    shapes = {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
    ours = any(re.fullmatch(_MMSEG, key) for key in shapes)
    names = {
        "block": r"layers\.{0}\.1\.", "embed": "layers.{0}.0.projection.weight", "sr": "layers.{0}.1.0.attn.sr.weight",
        "fc1": "layers.{0}.1.0.ffn.layers.0.weight", "bias": "layers.{0}.1.0.attn.attn.in_proj_bias"}
    if not ours:
        names = {"block": r"block{1}\.", "embed": "patch_embed{1}.proj.weight", "sr": "block{1}.0.attn.sr.weight",
                 "fc1": "block{1}.0.mlp.fc1.weight", "bias": "block{1}.0.attn.q.bias"}
    try:
        release = f"{NEAREST}, keys of {'mmsegmentation' if ours else 'the authors'}"
        return Guess(release, {"model": {"backbone": _block(shapes, names)}}, backbone_only=True)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ConvertError(f"{where}: an incomplete MiT backbone: {error} is missing or has an odd shape") from error


def _block(shapes: Shapes, names: Mapping[str, str]) -> dict[str, Any]:
    """Constructor arguments that shapes tell."""
    def key(name: str, stage: int) -> str:
        return names[name].format(stage, stage + 1)

    stages = next(i for i in range(10) if key("embed", i) not in shapes)
    embeds = [shapes[key("embed", i)] for i in range(max(stages, 1))]
    widths, first = [embed[0] for embed in embeds], embeds[0][0]
    depths = [
        len({found[1] for name in shapes if (found := re.match(key("block", i) + r"(\d+)\.", name))})
        for i in range(stages)]
    reductions = [shapes[key("sr", i)][-1] if key("sr", i) in shapes else 1 for i in range(stages)]
    return {
        "type": "MixVisionTransformer", "in_channels": embeds[0][1], "embed_dims": first, "num_stages": stages,
        "num_layers": depths, "num_heads": [width // first for width in widths],
        "patch_sizes": [embed[-1] for embed in embeds], "strides": [4] + [2] * (stages - 1), "sr_ratios": reductions,
        "out_indices": list(range(stages)), "mlp_ratio": shapes[key("fc1", 0)][0] // first,
        "qkv_bias": key("bias", 0) in shapes, "drop_path_rate": 0.1}
