"""ViT, DeiT and MAE (timm, the authors' releases), and BEiT (the authors', timm), which carry no config.

    ours, VisionTransformer           ours, BEiT and MAE        theirs
    cls_token, pos_embed              the same                  cls_token, pos_embed
    patch_embed.projection            the same                  patch_embed.proj
    layers.<i>.ln1, ln2               the same                  blocks.<i>.norm1, norm2
    layers.<i>.attn.attn.in_proj_*    layers.<i>.attn.qkv.*     blocks.<i>.attn.qkv.* (queries, keys, values)
    layers.<i>.attn.attn.out_proj     layers.<i>.attn.proj      blocks.<i>.attn.proj
    layers.<i>.ffn.layers.0.0, .1     the same                  blocks.<i>.mlp.fc1, fc2
    ln1                               the same                  norm
    ln_pre                            -                         norm_pre

Sources: timm 1.0 timm/models/{vision_transformer,deit,beit}.py (Apache-2.0), facebookresearch/mae models_vit.py and
models_mae.py, microsoft/unilm beit/modeling_finetune.py and modeling_pretrain.py (MIT),
facebookresearch/deit models.py. What differs between releases:

- DINOv2's and DeiT-3's layer scales (`ls1.gamma`, `ls2.gamma`) are multiplied into the projections before them;
- positions without a place for the class token (DeiT-3) get one of zeros; DeiT's distillation token is left out with
  its place and its classifier, so its maps differ a little from the classifier's;
- `norm` is taken where the config has a final norm; `fc_norm`, the norm behind MAE's and BEiT's mean over tokens,
  belongs to the classifier; MAE's decoder and mask token are left out;
- BEiT's table of relative positions may be one for all blocks (`rel_pos_bias`, in files of the pretraining): each block
  gets it. `relative_position_index` may be there or not; it is computed;
- a config whose `img_size` is another one gets positions resized (bicubic, as MMSegmentation), and BEiT's tables by the
  authors' interpolation, whose places are spaced geometrically, since near ones matter more;
- weights without tables of relative positions (MAE's) fill MAE's with zeros and its scales with `init_values`, as
  MMSegmentation does: with 1 it computes what VisionTransformer does.

The number of heads is in no shape of a ViT: 64 channels each, but for the widths of `_HEADS`.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import numpy as np

from jseg.convert.guess import Guess, Shapes, rgb_note
from jseg.convert.layout import CLASSIFIER, Layout, Moved, count_indices, resized_grid, square_side, without_prefix
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "VIT", "grid_side", "guess", "quarters", "recognise", "translate"]

NEAREST = "ViT, DeiT, MAE or BEiT backbone (timm, the authors)"
_HEADS = {1280: 16, 1408: 16, 1664: 16, 1152: 16}
_DROPS = ((r"(head|head_dist|fc_norm|lm_head|pre_logits\.fc)(\..*)?", CLASSIFIER),
          (r"mask_token|decoder_.*", "what pretraining predicts masked patches with"),
          (r"dist_token", "the distillation token, which the backbone has not"),
          (r".*relative_position_index", "computed from the size of the grid"))
_SHARED = ((r"(cls_token|pos_embed)", r"\1"), (r"patch_embed\.proj\.(weight|bias)", r"patch_embed.projection.\1"),
           (r"blocks\.(\d+)\.norm([12])\.(weight|bias)", r"layers.\1.ln\2.\3"),
           (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", r"layers.\1.ffn.layers.0.0.\2"),
           (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", r"layers.\1.ffn.layers.1.\2"),
           (r"norm\.(weight|bias)", r"ln1.\1"))
VIT = Layout("a ViT", (
    *_SHARED, (r"norm_pre\.(weight|bias)", r"ln_pre.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"layers.\1.attn.attn.in_proj_\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"layers.\1.attn.attn.out_proj.\2"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"layers.\1.gamma_\2")), _DROPS)
BEIT = Layout("a BEiT or MAE", (
    *_SHARED, (r"blocks\.(\d+)\.(gamma_[12])", r"layers.\1.\2"),
    (r"blocks\.(\d+)\.attn\.(q_bias|v_bias|relative_position_bias_table|(?:qkv|proj)\.(?:weight|bias))",
     r"layers.\1.attn.\2"),
    (r"(rel_pos_bias\.relative_position_bias_table)", r"\1")), _DROPS)
_NO_NORM = "the last norm; the config has none"


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a vision transformer of one size of tokens stands alone."""
    keys = without_prefix(shapes)
    return ("cls_token" in keys and "blocks.0.attn.qkv.weight" in keys and "patch_embed.proj.weight" in keys
            and not any(key.startswith(("decode_head.", "text")) for key in keys))


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing or have odd shapes.
    """
    keys = without_prefix(shapes)
    try:
        beit = any("relative_position_bias_table" in key for key in keys)
        block = _beit_block(keys) if beit else _vit_block(keys)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ConvertError(f"{where}: an incomplete or other vision transformer: {error} is missing or has an odd "
                           "shape") from error
    notes = [] if beit else [f"num_heads {block['num_heads']}, by the width: no shape tells it"]
    if "dist_token" in keys:
        notes.append("DeiT's distillation token is left out: maps differ a little from the classifier's")
    half = rgb_note((127.5,) * 3, (127.5,) * 3)
    return Guess("BEiT backbone" if beit else "ViT, DeiT or MAE backbone", {"model": {"backbone": block}},
                 backbone_only=True, targets=("BEiT",) if beit else ("VisionTransformer", "MAE"),
                 notes=(*notes, half if beit else f"{rgb_note()}; ViTs of timm's augreg: mean and std 127.5"),
                 translate=lambda found, model: translate(found, model["backbone"]))


def _vit_block(keys: Shapes) -> dict[str, Any]:
    """VisionTransformer's arguments that shapes tell."""
    width, colours, patch = keys["patch_embed.proj.weight"][:3]
    blocks = count_indices(keys, r"blocks\.(\d+)\.attn\.qkv\.")
    places = keys["pos_embed"][1] - _extra_places(keys)
    flags = {"qkv_bias": "blocks.0.attn.qkv.bias" in keys, "patch_bias": "patch_embed.proj.bias" in keys,
             "pre_norm": "norm_pre.weight" in keys, "final_norm": "norm.weight" in keys}
    return {"type": "VisionTransformer", "img_size": square_side(places, "pos_embed") * patch, "patch_size": patch,
            "in_channels": colours, "embed_dims": width, "num_layers": blocks,
            "num_heads": _HEADS.get(width, max(width // 64, 1)),
            "mlp_ratio": keys["blocks.0.mlp.fc1.weight"][0] // width, "out_indices": quarters(blocks), **flags,
            "norm_cfg": {"type": "LN", "eps": 1e-6}, "interpolate_mode": "bicubic"}


def _extra_places(keys: Shapes) -> int:
    """Tokens before the patches that have a position: class and distillation tokens, or none."""
    places = keys["pos_embed"][1]
    if "dist_token" in keys:
        return 2
    side = int(places**0.5)
    return 0 if side * side == places else 1


def _beit_block(keys: Shapes) -> dict[str, Any]:
    """BEiT's arguments that shapes tell."""
    width, colours, patch = keys["patch_embed.proj.weight"][:3]
    blocks = count_indices(keys, r"blocks\.(\d+)\.attn\.qkv\.")
    rows, heads = next(shape for key, shape in keys.items() if key.endswith("relative_position_bias_table"))
    side = (square_side(rows - 3, "relative_position_bias_table") + 1) // 2
    return {"type": "BEiT", "img_size": side * patch, "patch_size": patch, "in_channels": colours,
            "embed_dims": width, "num_layers": blocks, "num_heads": heads,
            "mlp_ratio": keys["blocks.0.mlp.fc1.weight"][0] // width, "out_indices": quarters(blocks),
            "qv_bias": "blocks.0.attn.q_bias" in keys, "final_norm": "norm.weight" in keys,
            "norm_cfg": {"type": "LN", "eps": 1e-6}}


def quarters(blocks: int) -> list[int]:
    """The last block of each quarter."""
    return sorted({max((blocks * i) // 4 - 1, 0) for i in range(1, 5)})


# -- values ------------------------------------------------------------------------------------------------------------


def translate(shapes: Shapes, block: Mapping[str, Any]) -> Moved:
    """Where each key goes in a backbone of that block."""
    keys, beit = without_prefix(shapes), block["type"] in ("BEiT", "MAE")
    moved = (BEIT if beit else VIT).apply(shapes)
    made, blocks = moved.made, count_indices(keys, r"blocks\.(\d+)\.attn\.qkv\.")
    grid = grid_side(block)
    if not beit:
        _multiply_scales(made, keys, blocks)
    if "pos_embed" in made:
        _fit_positions(made, keys, grid)
    if not block.get("final_norm", False):
        for key in [key for key in made if re.fullmatch(r"ln1\.(weight|bias)", key)]:
            moved.dropped[made.pop(key).parts[0]] = _NO_NORM
    if beit:
        _fit_tables(made, shapes, block, blocks, grid)
    return moved


def grid_side(block: Mapping[str, Any]) -> int:
    """Side of the grid of tokens of a block; grids are square."""
    sides, patch = block.get("img_size", 224), int(block.get("patch_size", 16))
    sides = {int(side) // patch for side in (sides if isinstance(sides, (list, tuple)) else [sides])}
    if len(sides) != 1:
        raise ConvertError(f"backbone.img_size is {block['img_size']}; positions of a release are resized to squares")
    return sides.pop()


def _multiply_scales(made: dict[str, Made], keys: Shapes, blocks: int) -> None:
    """gamma * (W x + b) = (gamma W) x + gamma b."""
    for i in range(blocks):
        for number, name in (("1", "attn.attn.out_proj"), ("2", "ffn.layers.1")):
            scale = made.pop(f"layers.{i}.gamma_{number}", None)
            for leaf in ("weight", "bias") if scale is not None else ():
                key = f"layers.{i}.{name}.{leaf}"
                made[key] = Made((*made[key].parts, *scale.parts),
                                 change=lambda x, gamma: x * gamma.reshape(-1, *[1] * (x.ndim - 1)))


def _fit_positions(made: dict[str, Made], keys: Shapes, grid: int) -> None:
    """Positions of the class token and of a grid of that side."""
    extra, width = _extra_places(keys), keys["pos_embed"][2]
    side = square_side(keys["pos_embed"][1] - extra, "pos_embed")
    if extra == 1 and side == grid:
        return

    def change(positions: np.ndarray) -> np.ndarray:
        first = positions[:, :1] if extra else np.zeros((1, 1, width), np.float32)
        return np.concatenate([first, resized_grid(positions[0, extra:], side, grid)[None]], 1)

    made["pos_embed"] = Made(made["pos_embed"].parts, change=change, size=(1, 1 + grid * grid, width))


def _fit_tables(made: dict[str, Made], shapes: Shapes, block: Mapping[str, Any], blocks: int, grid: int) -> None:
    """Each block's table of relative positions, its index, and what MAE's weights lack."""
    from jseg.models.backbones.beit import token_index
    shared, heads = made.pop("rel_pos_bias.relative_position_bias_table", None), int(block["num_heads"])
    width, rows = int(block.get("embed_dims", 768)), (2 * grid - 1) ** 2 + 3
    for i in range(blocks):
        name = f"layers.{i}.attn.relative_position_bias_table"
        table = made.get(name, shared)
        if table is None:
            made[name] = Made.filled((rows, heads), 0.0, "tables of relative positions, which start at 0")
        else:
            side = (square_side(shapes[table.parts[0]][0] - 3, name) + 1) // 2
            made[name] = table if side == grid else Made(
                table.parts, size=(rows, heads), change=lambda x, side=side: resized_table(x, side, grid))
        index = token_index((grid, grid), (grid, grid))
        made[f"layers.{i}.attn.relative_position_index"] = Made.filled(index.shape, index,
                                                                       "computed from the size of the grid")
        for key in (f"layers.{i}.gamma_1", f"layers.{i}.gamma_2"):
            made.setdefault(key, Made.filled((width,), float(block.get("init_values", 0.1)),
                                             "layer scales, which start at init_values"))


def resized_table(table: np.ndarray, side: int, new_side: int) -> np.ndarray:
    """BEiT's table of relative positions for another grid; the rows of the class token stay.

    The old offsets are spaced geometrically over the new range (the interpolation of BEiT's authors), with a cubic
    spline between them.

    Shape:
        table: ((2 side - 1)^2 + 3, G) -> ((2 new_side - 1)^2 + 3, G)
    """
    old, new = 2 * side - 1, 2 * new_side - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if sum(middle**k for k in range(old // 2)) > new // 2 else (middle, high)
    steps = np.cumsum([low**k for k in range(old // 2)])
    matrix = spline_matrix(np.concatenate([-steps[::-1], [0.0], steps]), np.arange(new) - float(new // 2))
    grid = np.einsum("ih,jw,hwg->ijg", matrix, matrix, table[:-3].reshape(old, old, -1).astype(np.float64))
    return np.concatenate([grid.reshape(new * new, -1).astype(np.float32), table[-3:]])


def spline_matrix(places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The linear map from values at `places` to those of their cubic spline at `wanted`, with SciPy's end conditions
    (the first two and the last two pieces are one polynomial each); places beyond the ends take the ends' values.

    Shape:
        places: (n,) rising, n >= 4; wanted: (m,) -> (m, n) float64
    """
    n, h = len(places), np.diff(places)
    left, right = np.zeros((n, n)), np.zeros((n, n))  # left @ second derivatives = right @ values
    for i in range(1, n - 1):
        left[i, i - 1:i + 2] = h[i - 1], 2 * (h[i - 1] + h[i]), h[i]
        right[i, i - 1:i + 2] = 6 / h[i - 1], -6 / h[i - 1] - 6 / h[i], 6 / h[i]
    left[0, :3] = h[1], -h[0] - h[1], h[0]
    left[-1, -3:] = h[-1], -h[-2] - h[-1], h[-2]
    bend = np.linalg.solve(left, right)  # (n, n): values -> second derivatives
    x = np.clip(wanted, places[0], places[-1])
    i = np.clip(np.searchsorted(places, x, "right") - 1, 0, n - 2)
    a, b = (places[i + 1] - x) / h[i], (x - places[i]) / h[i]
    eye = np.eye(n)
    return (a[:, None] * eye[i] + b[:, None] * eye[i + 1]
            + (((a**3 - a) * h[i]**2 / 6)[:, None] * bend[i] + ((b**3 - b) * h[i]**2 / 6)[:, None] * bend[i + 1]))
