"""HRFormer's ImageNet weights (the authors, mmpose) and the backbone of the authors' segmentation models, which carry
no config.

    ours (mmpose's)                               the authors
    <block>.attn.attn.qkv                         attn.attn.q_proj, k_proj, v_proj, one behind the other
    <block>.attn.attn.proj                        attn.attn.out_proj
    <block>.ffn                                   mlp
    all others                                    the same

Sources: HRNet/HRFormer cls/models/hrt.py and seg/lib/models/backbones/hrt (MIT), mmpose 1.3.2
mmpose/models/backbones/hrformer.py (Apache-2.0). Left out: what classifies (`incre_modules`, `downsamp_modules`,
`final_layer`, `classifier`) or segments (`conv3x3`, `ocr_*`, `cls_head`, `aux_head`) behind the backbone.

What no key shows: the authors' networks enlarge maps to the nearest value (said in the block), mmpose's bilinearly; and
which rate of stochastic depth they had.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.guess.hrnet import stage_sizes
from jseg.convert.layout import CLASSIFIER, Layout, Moved, square_side, without_prefix
from jseg.models.made import Made

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "HRFormer backbone (the authors, mmpose)"
_BLOCK = r"(stage[234]\.\d+\.branches\.\d\.\d+)\."
_FIRST = "stage2.0.branches.0.0."
_PIECES = ("q_proj", "k_proj", "v_proj")
LAYOUT = Layout("an HRFormer", (
    (rf"{_BLOCK}attn\.attn\.([qkv]_proj)\.(weight|bias)", r"\1.attn.attn.qkv.\3 of \2"),
    (rf"{_BLOCK}attn\.attn\.out_proj\.(weight|bias)", r"\1.attn.attn.proj.\2"),
    (rf"{_BLOCK}mlp\.(.*)", r"\1.ffn.\2"),
    (r"((conv|bn)[12]|layer1|transition[123]|stage[234])\..*", r"\g<0>")), (
    (r"(incre_modules|downsamp_modules|final_layer|classifier)\..*", CLASSIFIER),
    (r"(conv3x3|aux_head|cls_head|ocr_[a-z_]+)\..*", "the head of a segmentation release"),
    (r".*relative_position_index", "computed from the size of the window")))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether an HRFormer stands alone, or under a head of its authors'."""
    keys = without_prefix(shapes)
    return f"{_FIRST}attn.attn.relative_position_bias_table" in keys and "transition1.0.0.weight" in keys and not any(
        key.startswith("decode_head.") for key in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    extra = read_block(_stages, without_prefix(shapes), where, "HRFormer")
    return Guess(NEAREST, {"model": {"backbone": {"type": "HRFormer", "extra": extra}}}, backbone_only=True,
                 notes=(rgb_note(),), translate=lambda found, model: _translate(found, model["backbone"]))


def _stages(keys: Shapes) -> dict[str, Any]:
    """`extra`, as far as shapes tell."""
    authors = f"{_FIRST}attn.attn.q_proj.weight" in keys
    extra: dict[str, Any] = {"drop_path_rate": 0.2, "upsample": {"mode": "nearest" if authors else "bilinear"}}
    for name, sizes in stage_sizes(keys, "norm1").items():
        if name != "stage1":
            first = [f"{name}.0.branches.{j}.0." for j in range(sizes["num_branches"])]
            tables = [keys[f"{prefix}attn.attn.relative_position_bias_table"] for prefix in first]
            inner = [keys[f"{prefix}{'mlp' if authors else 'ffn'}.fc1.weight"] for prefix in first]
            sizes.update(block="HRFORMERBLOCK", num_heads=[heads for _, heads in tables],
                         mlp_ratios=[shape[0] // shape[1] for shape in inner],
                         window_sizes=[(square_side(rows, "relative_position_bias_table") + 1) // 2
                                       for rows, _ in tables])
        extra[name] = sizes
    return extra


def _translate(shapes: Shapes, block: Mapping[str, Any]) -> Moved:
    """Where each key goes in a backbone of that block."""
    from jseg.layers.windows import relative_index
    moved = LAYOUT.apply(shapes)
    made, pieces = {}, {}
    for key, value in moved.made.items():
        name, _, piece = key.partition(" of ")
        if piece:
            pieces.setdefault(name, {})[piece] = value.parts[0]
        else:
            made[name] = value
    made.update({name: Made(tuple(found[piece] for piece in _PIECES)) for name, found in pieces.items()})
    for key in [key for key in made if key.endswith("relative_position_bias_table")]:
        stage, branch = re.match(r"(stage\d)\.\d+\.branches\.(\d)", key).groups()
        side = block["extra"][stage]["window_sizes"][int(branch)]
        index = relative_index(side, side)
        made[key.replace("bias_table", "index")] = Made.filled(index.shape, index,
                                                               "computed from the size of the window")
    return Moved(made, moved.dropped)
