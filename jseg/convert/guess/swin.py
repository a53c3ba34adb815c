"""Swin Transformer's ImageNet weights, which carry no config: the authors', timm's, and MMSegmentation's files.

    ours (MMSegmentation's)                     the authors, timm
    patch_embed.projection, patch_embed.norm    patch_embed.proj, patch_embed.norm
    stages.<i>.blocks.<j>.norm1, norm2          layers.<i>.blocks.<j>.norm1, norm2
    ...attn.w_msa.qkv, proj, table              ...attn.qkv, proj, table
    ...ffn.layers.0.0, .1                       ...mlp.fc1, fc2
    stages.<i>.downsample.norm, reduction       layers.<i>.downsample; in timm since 0.9 layers.<i + 1>.downsample
    absolute_pos_embed                          absolute_pos_embed

Sources: mmsegmentation 1.2.2 mmseg/models/backbones/swin.py (Apache-2.0), microsoft/Swin-Transformer
models/swin_transformer.py (MIT), timm 1.0 timm/models/swin_transformer.py (Apache-2.0). Differences:

- a merging joins its four neighbours in the order of columns in the authors' network (row 0 column 0, row 1 column 0,
  ...), by channels in ours (PyTorch's unfold): the inputs of `reduction` and the values of `norm` are put in our order;
- `relative_position_index` is computed from the window, `attn_mask` from the picture;
- `norm` belongs to the classifier; norms of the maps, which a classifier lacks, start at weight 1 and bias 0, as
  MMSegmentation and the authors start them;
- maps no larger than one window are shifted here, as in MMSegmentation; the authors' and timm's networks do not shift
  them, which shows on pictures of 224 pixels in the last stage;
- a config with another window or `pretrain_img_size` gets tables and positions resized (bicubic, as MMSegmentation).

Swin V2 (`cpb_mlp`, `logit_scale`) is another network and is refused.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import numpy as np

from jseg.convert.guess import Guess, Shapes, rgb_note
from jseg.convert.layout import CLASSIFIER, Layout, Moved, fill_norms, resized_grid, square_side, without_prefix
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "guess", "merging_order", "recognise", "swin_block", "swin_layout",
           "swin_moves"]

NEAREST = "Swin backbone, ImageNet (the authors, timm, MMSegmentation)"
_TABLE = r"(?:stages|layers)\.(\d)\.blocks\.(\d+)\.attn\.(?:w_msa\.)?relative_position_bias_table"
_DROPS = ((r"(head|norm)\..*", CLASSIFIER), (r".*relative_position_index", "computed from the size of the window"),
          (r".*attn_mask", "computed from the size of the picture"))
OURS = Layout("a Swin of MMSegmentation", (
    (r"(stages|patch_embed)\..*|norm[0-9]\.(weight|bias)|absolute_pos_embed", r"\g<0>"),), _DROPS)
_BLOCK = r"layers\.(\d)\.blocks\.(\d+)\."
_RULES = ((r"patch_embed\.proj\.(weight|bias)", r"patch_embed.projection.\1"),
          (r"patch_embed\.norm\.(weight|bias)", r"\g<0>"), (r"absolute_pos_embed", r"\g<0>"),
          (rf"{_BLOCK}norm([12])\.(weight|bias)", r"stages.\1.blocks.\2.norm\3.\4"),
          (rf"{_BLOCK}attn\.(relative_position_bias_table|(?:qkv|proj)\.(?:weight|bias))",
           r"stages.\1.blocks.\2.attn.w_msa.\3"),
          (rf"{_BLOCK}mlp\.fc1\.(weight|bias)", r"stages.\1.blocks.\2.ffn.layers.0.0.\3"),
          (rf"{_BLOCK}mlp\.fc2\.(weight|bias)", r"stages.\1.blocks.\2.ffn.layers.1.\3"),
          (r"norm([0-9])\.(weight|bias)", r"\g<0>"))
_DOWN = r"layers\.(\d)\.downsample\.(norm\.weight|norm\.bias|reduction\.weight)"
AUTHORS = Layout("a Swin", (*_RULES, (_DOWN, r"stages.\1.downsample.\2")), _DROPS)
TIMM = Layout("timm's Swin", (*_RULES, (_DOWN, lambda found: f"stages.{int(found[1]) - 1}.downsample.{found[2]}")),
              _DROPS)


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a Swin backbone stands alone."""
    return any(re.fullmatch(_TABLE, key) for key in without_prefix(shapes)) and not any(
        key.startswith(("decode_head.", "sem_seg_head.")) for key in shapes)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    keys = without_prefix(shapes)
    try:
        block, layout = swin_block(keys), swin_layout(keys)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise ConvertError(f"{where}: an incomplete Swin backbone: {error} is missing or has an odd shape") from error
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(),),
                 translate=lambda found, model: swin_moves(layout, found, model["backbone"]))


def swin_layout(keys: Shapes) -> Layout:
    """Whose keys these are; the last stage of the authors' has no merging, the first of timm's."""
    if any(key.startswith("stages.") for key in keys):
        return OURS
    return TIMM if not any(key.startswith("layers.0.downsample.") for key in keys) and any(
        key.startswith("layers.1.downsample.") for key in keys) else AUTHORS


def swin_block(keys: Shapes) -> dict[str, Any]:
    """Constructor arguments that shapes tell."""
    tables = {(int(found[1]), int(found[2])): keys[key] for key in keys if (found := re.fullmatch(_TABLE, key))}
    stages = 1 + max(stage for stage, _ in tables)
    ours = any(key.startswith("stages.") for key in keys)
    first, fc1 = ("stages.0.blocks.0", "ffn.layers.0.0") if ours else ("layers.0.blocks.0", "mlp.fc1")
    embed = keys["patch_embed.projection.weight" if ours else "patch_embed.proj.weight"]
    block = {
        "type": "SwinTransformer", "in_channels": embed[1], "embed_dims": embed[0], "patch_size": embed[-1],
        "window_size": _side(tables[0, 0][0]), "mlp_ratio": keys[f"{first}.{fc1}.weight"][0] // embed[0],
        "depths": [sum(stage == i for stage, _ in tables) for i in range(stages)],
        "num_heads": [tables[i, 0][1] for i in range(stages)], "strides": [embed[-1]] + [2] * (stages - 1),
        "out_indices": [i for i in range(stages) if f"norm{i}.weight" in keys] or list(range(stages)),
        "qkv_bias": f"{first}.attn.{'w_msa.' if ours else ''}qkv.bias" in keys,
        "patch_norm": "patch_embed.norm.weight" in keys, "use_abs_pos_embed": "absolute_pos_embed" in keys,
        "drop_path_rate": 0.3}
    if "absolute_pos_embed" in keys:
        block["pretrain_img_size"] = square_side(keys["absolute_pos_embed"][1], "absolute_pos_embed") * embed[-1]
    return block


def _side(rows: int) -> int:
    """The window's side of a table of relative positions."""
    return (square_side(rows, "relative_position_bias_table") + 1) // 2


def swin_moves(layout: Layout, shapes: Shapes, block: Mapping[str, Any]) -> Moved:
    """Where each key goes in a backbone of that block."""
    from jseg.layers.windows import relative_index
    moved, widths = layout.apply(shapes), [int(block["embed_dims"]) * 2**i for i in range(len(block["depths"]))]
    made, side = moved.made, int(block.get("window_size", 7))
    index = relative_index(side, side)
    for key in list(made):
        if key.endswith("relative_position_bias_table"):
            rows, heads = shapes[made[key].parts[0]]
            if (old := _side(rows)) != side:
                made[key] = Made(made[key].parts, size=((2 * side - 1)**2, heads),
                                 change=lambda x, old=old: resized_grid(x, 2 * old - 1, 2 * side - 1))
            made[key.replace("bias_table", "index")] = Made.filled(index.shape, index,
                                                                   "computed from the size of the window")
        elif layout is not OURS and ".downsample." in key:
            made[key] = Made(made[key].parts, change=merging_order)
    if "absolute_pos_embed" in made:
        _fit_positions(made, shapes, block)
    fill_norms(made, {f"norm{i}": widths[i] for i in block.get("out_indices", range(len(widths)))})
    return moved


def merging_order(x: np.ndarray) -> np.ndarray:
    """From neighbours, each with all its channels (rows run faster), to channels, each with its four neighbours
    (columns run faster), along the last axis.

    Shape:
        x: (..., 4 * C) -> same
    """
    x = x.reshape(*x.shape[:-1], 2, 2, -1)  # (..., column, row, C)
    return np.moveaxis(x, (-3, -2, -1), (-1, -2, -3)).reshape(*x.shape[:-3], -1)


def _fit_positions(made: dict[str, Made], shapes: Shapes, block: Mapping[str, Any]) -> None:
    """Absolute positions of the block's grid."""
    size, patch = block.get("pretrain_img_size", 224), int(block.get("patch_size", 4))
    sides = {int(side) // patch for side in (size if isinstance(size, (list, tuple)) else [size])}
    _, cells, width = shapes[made["absolute_pos_embed"].parts[0]]
    old, new = square_side(cells, "absolute_pos_embed"), sides.pop()
    if sides or old != new:
        if sides:
            raise ConvertError(f"backbone.pretrain_img_size is {size}; positions of a release are resized to squares")
        made["absolute_pos_embed"] = Made(made["absolute_pos_embed"].parts, size=(1, new * new, width),
                                          change=lambda x: resized_grid(x[0], old, new)[None])
