"""DINOv2, with and without registers: Meta's release, timm's, and transformers' Dinov2Model, which carry no config.

    ours, DINOv2                      timm, Meta                    transformers, behind `dinov2.` or nothing
    cls_token                         cls_token                     embeddings.cls_token
    register_tokens                   reg_token, register_tokens    embeddings.register_tokens
    pos_embed                         the same                      embeddings.position_embeddings
    patch_embed.projection            patch_embed.proj              embeddings.patch_embeddings.projection
    layers.<i>.ln1, ln2               blocks.<i>.norm1, norm2       encoder.layer.<i>.norm1, norm2
    layers.<i>.attn.attn.in_proj_*    blocks.<i>.attn.qkv.*         ...attention.attention.query, key, value
    layers.<i>.attn.attn.out_proj     blocks.<i>.attn.proj          ...attention.output.dense
    layers.<i>.gamma_1, gamma_2       blocks.<i>.ls1.gamma, ls2     ...layer_scale1.lambda1, layer_scale2
    layers.<i>.ffn.layers.0.0, .1     blocks.<i>.mlp.fc1, fc2       ...mlp.fc1, fc2
    ln1                               norm                          layernorm

Sources: facebookresearch/dinov2 dinov2/models/vision_transformer.py, timm 1.0 timm/models/vision_transformer.py and
layers/{patch_embed,pos_embed}.py, transformers 5.24 models/dinov2 and dinov2_with_registers (all Apache-2.0).

- The class token's own position is added to the token; timm's files with registers have done so already.
- A config with another grid gets the positions resized, and one with other patches the filters too, both as timm does
  (bicubic, antialiased; Beyer et al., "FlexiViT", CVPR 2023, for the filters): EoMT takes patches of 16 pixels from
  weights for 14.
- The giant model, whose feed-forward blocks are gated, has keys that no row knows. A VisionTransformer or MAE takes
  timm's and Meta's files without registers, see `vit`.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import numpy as np

from jseg.convert.guess import Guess, Shapes, rgb_note, vit
from jseg.convert.layout import CLASSIFIER, Layout, Moved, count_indices, square_side, without_prefix
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "guess", "recognise", "translate"]

NEAREST = "DINOv2 backbone (Meta, timm, transformers)"
_UNUSED = "what pretraining predicts masked patches with"
PLAIN = Layout("DINOv2", (*vit.VIT.rules, (r"(?:reg_token|register_tokens)", "register_tokens")),
               ((r"head(\..*)?", CLASSIFIER), (r"mask_token", _UNUSED)))
_HOME, _BLOCK = r"(?:dinov2(?:_with_registers)?\.)?", r"encoder\.layer\.(\d+)\."
HUGGING_FACE = Layout("DINOv2", tuple((_HOME + source, ours) for source, ours in (
    (r"embeddings\.(cls_token|register_tokens)", r"\1"), (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(weight|bias)", r"patch_embed.projection.\1"),
    (rf"{_BLOCK}norm([12])\.(weight|bias)", r"layers.\1.ln\2.\3"),
    (rf"{_BLOCK}attention\.attention\.(query|key|value)\.(weight|bias)", r"layers.\1.attn.attn.in_proj_\3.\2"),
    (rf"{_BLOCK}attention\.output\.dense\.(weight|bias)", r"layers.\1.attn.attn.out_proj.\2"),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", r"layers.\1.gamma_\2"),
    (rf"{_BLOCK}mlp\.fc1\.(weight|bias)", r"layers.\1.ffn.layers.0.0.\2"),
    (rf"{_BLOCK}mlp\.fc2\.(weight|bias)", r"layers.\1.ffn.layers.1.\2"),
    (r"layernorm\.(weight|bias)", r"ln1.\1"))),
    ((r"classifier\..*", CLASSIFIER), (r".*embeddings\.mask_token", _UNUSED)))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a DINOv2 stands alone."""
    keys = without_prefix(shapes)
    if any(re.fullmatch(rf"{_HOME}encoder\.layer\.0\.layer_scale1\.lambda1", key) for key in keys):
        return any(re.fullmatch(rf"{_HOME}embeddings\.position_embeddings", key) for key in keys)
    return vit.recognise(shapes, meta) and "blocks.0.ls1.gamma" in keys and (
        keys["patch_embed.proj.weight"][-1] == 14 or any(
            key in keys for key in ("reg_token", "register_tokens", "mask_token")))


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing or have odd shapes.
    """
    layout, moved = _moved(shapes)
    try:
        ours = {key: shapes[made.parts[0]] for key, made in moved.made.items()}
        width, colours, patch = ours["patch_embed.projection.weight"][:3]
        blocks = count_indices(ours, r"layers\.(\d+)\.ln1")
        places = ours["pos_embed"][1]
        block = {"type": "DINOv2", "img_size": square_side(places - _class_places(places), "pos_embed") * patch,
                 "patch_size": patch, "in_channels": colours, "embed_dims": width, "num_layers": blocks,
                 "num_heads": max(width // 64, 1), "mlp_ratio": ours["layers.0.ffn.layers.0.0.weight"][0] // width,
                 "num_registers": ours["register_tokens"][1] if "register_tokens" in ours else 0,
                 "out_indices": vit.quarters(blocks)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ConvertError(f"{where}: an incomplete or other DINOv2: {error} is missing or has an odd shape") from error
    others = ("VisionTransformer", "MAE") if layout is PLAIN and not block["num_registers"] else ()
    return Guess("DINOv2 backbone", {"model": {"backbone": block}}, backbone_only=True, targets=("DINOv2", *others),
                 notes=(f"num_heads {block['num_heads']}, by the width: no shape tells it", rgb_note()),
                 translate=lambda found, model: translate(found, model["backbone"]))


def _moved(shapes: Shapes) -> tuple[Layout, Moved]:
    layout = PLAIN if "cls_token" in without_prefix(shapes) else HUGGING_FACE
    return layout, layout.apply(shapes)


def _class_places(places: int) -> int:
    """1 where the class token has a position, else 0."""
    return 0 if int(places**0.5) ** 2 == places else 1


def translate(shapes: Shapes, block: Mapping[str, Any]) -> Moved:
    """Where each key goes in a backbone of that block."""
    if block["type"] != "DINOv2":
        return vit.translate(shapes, block)
    _, moved = _moved(shapes)
    made = moved.made
    for key in [key for key in made if key.endswith(".query")]:
        stem = key.rpartition(".")[0]
        made[stem] = Made(tuple(made.pop(f"{stem}.{piece}").parts[0] for piece in ("query", "key", "value")))
    _fit_positions(made, shapes, vit.grid_side({"img_size": 518, "patch_size": 14, **block}))
    _fit_filters(made, shapes, int(block.get("patch_size", 14)))
    if not block.get("final_norm", True) and not block.get("joint_blocks"):
        for key in ("ln1.weight", "ln1.bias"):
            moved.dropped[made.pop(key).parts[0]] = "the last norm; the config has none"
    return moved


def _fit_positions(made: dict[str, Made], shapes: Shapes, grid: int) -> None:
    """Positions of a grid of that side, and the class token with its own."""
    source, token = made["pos_embed"].parts[0], made["cls_token"].parts[0]
    _, places, width = shapes[source]
    extra = _class_places(places)
    side = square_side(places - extra, "pos_embed")
    if extra:
        made["cls_token"] = Made((token, source), change=lambda token, positions: token + positions[:, :1])

    def resized(positions: np.ndarray) -> np.ndarray:
        if side == grid:
            return positions[:, extra:]
        matrix = smooth_matrix(side, grid)  # (grid, side)
        found = np.einsum("ih,jw,hwc->ijc", matrix, matrix, positions[0, extra:].reshape(side, side, -1).astype(float))
        return found.reshape(1, grid * grid, -1)

    made["pos_embed"] = Made((source,), change=resized, size=(1, grid * grid, width))


def _fit_filters(made: dict[str, Made], shapes: Shapes, patch: int) -> None:
    """Filters of patches of that side, whose products with enlarged pictures are those of the old ones."""
    key = "patch_embed.projection.weight"
    source = made[key].parts[0]
    *front, _, side = shapes[source]
    if side != patch:
        matrix = np.linalg.pinv(smooth_matrix(side, patch).T)  # (patch, side)
        made[key] = Made((source,), size=(*front, patch, patch),
                         change=lambda x: np.einsum("ih,jw,dchw->dcij", matrix, matrix, x.astype(float)))


def smooth_matrix(size_in: int, size_out: int) -> np.ndarray:
    """The linear map of an antialiased bicubic resize along one axis (a = -0.5, as Pillow and PyTorch with
    `antialias=True`): (size_out, size_in), float64, rows sum to 1.
    """
    a, scale = -0.5, size_in / size_out
    x = np.abs(np.arange(size_in) + 0.5 - scale * (np.arange(size_out)[:, None] + 0.5)) / max(scale, 1.0)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    matrix = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return matrix / matrix.sum(1, keepdims=True)
