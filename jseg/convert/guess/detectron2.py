"""Mask2Former as Meta released it (detectron2, `.pkl` of NumPy arrays), on ResNet or Swin; and detectron2's R-50.pkl.

    ours                                        detectron2's
    backbone.conv1, bn1                         backbone.stem.conv1, .conv1.norm
    backbone.layer<n>.<b>.conv<i>, bn<i>        backbone.res<n + 1>.<b>.conv<i>, .conv<i>.norm
    ...downsample.0, .1                         ...shortcut, shortcut.norm
    backbone (Swin)                             the authors' keys, see `swin`
    decode_head.                                sem_seg_head.
      pixel_decoder.input_convs.<i>.conv, .gn     pixel_decoder.input_proj.<i>.0, .1
      pixel_decoder.level_encoding.weight         pixel_decoder.transformer.level_embed
      pixel_decoder.encoder.layers.<i>.           pixel_decoder.transformer.encoder.layers.<i>.
        self_attn; norms.0, .1                      self_attn; norm1, norm2
        ffn.layers.0.0, .1                          linear1, linear2
      pixel_decoder.lateral_convs, output_convs   pixel_decoder.adapter_<k>, layer_<k>, coarsest last
      pixel_decoder.mask_feature                  pixel_decoder.mask_features
      transformer_decoder.layers.<i>.             predictor.
        cross_attn.attn; norms.0                    transformer_cross_attention_layers.<i>.multihead_attn; norm
        self_attn.attn; norms.1                     transformer_self_attention_layers.<i>.self_attn; norm
        ffn.layers.0.0, .1; norms.2                 transformer_ffn_layers.<i>.linear1, linear2; norm
      transformer_decoder.post_norm               predictor.decoder_norm
      decoder_input_projs.<i>                     predictor.input_proj.<i>
      query_feat (static_query once), query_embed, level_embed      predictor.<the same>
      cls_embed, mask_embed.0, .2, .4             predictor.class_embed, mask_embed.layers.0, 1, 2

Sources: facebookresearch/Mask2Former mask2former/modeling (MIT), facebookresearch/detectron2
detectron2/modeling/backbone/resnet.py (Apache-2.0). Queries, keys and values stand in one matrix in the same order on
both sides. Files of before its format 2 keep the pixel decoder right under `sem_seg_head`. Left out:
`criterion.empty_weight`, `pixel_mean`, `pixel_std`. Pictures are RGB (detectron2's default of BGR is not
Mask2Former's). Heads have 32 channels each, as in all of its configs; no shape tells their number.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, resnet, rgb_note, swin, usual_scale, whole_config
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, Moved, count_indices
from jseg.errors import ConvertError

__all__ = ["NEAREST", "complete", "guess", "recognise"]

NEAREST = "Mask2Former, Meta's release (detectron2)"
_STAGE = r"res([2-5])\.(\d+)\."


def _layer(found: re.Match, rest: str) -> str:
    """A stage's key: they count from res2."""
    return f"layer{int(found[1]) - 1}.{found[2]}.{found.expand(rest)}"


RESNET = Layout("a ResNet of detectron2", (
    (r"stem\.conv1\.weight", "conv1.weight"), (rf"stem\.conv1\.norm\.{LEAF}", r"bn1.\1"),
    (rf"{_STAGE}conv([123])\.weight", lambda found: _layer(found, r"conv\3.weight")),
    (rf"{_STAGE}conv([123])\.norm\.{LEAF}", lambda found: _layer(found, r"bn\3.\4")),
    (rf"{_STAGE}shortcut\.weight", lambda found: _layer(found, "downsample.0.weight")),
    (rf"{_STAGE}shortcut\.norm\.{LEAF}", lambda found: _layer(found, r"downsample.1.\3"))),
    ((r"stem\.fc\..*|fc\..*", CLASSIFIER),))
_WB = r"(weight|bias)"
_PIXEL = r"(?:pixel_decoder\.)?"
_ENCODER = rf"{_PIXEL}transformer\.encoder\.layers\.(\d+)\."
_DECODER = r"predictor\.transformer_"


def _head_layout(finer: int) -> Layout:
    """The head's table, of keys behind `sem_seg_head.`; `finer`: maps that do not go through the encoder."""
    def rank(found: re.Match) -> str:
        kind = {"adapter": "lateral_convs", "layer": "output_convs"}[found[1]]
        leaf = {"norm.weight": "gn.weight", "norm.bias": "gn.bias"}.get(found[3], f"conv.{found[3]}")
        return f"pixel_decoder.{kind}.{finer - int(found[2])}.{leaf}"

    return Layout(NEAREST, (
        (rf"{_PIXEL}input_proj\.(\d+)\.0\.{_WB}", r"pixel_decoder.input_convs.\1.conv.\2"),
        (rf"{_PIXEL}input_proj\.(\d+)\.1\.{_WB}", r"pixel_decoder.input_convs.\1.gn.\2"),
        (rf"{_PIXEL}transformer\.level_embed", "pixel_decoder.level_encoding.weight"),
        (rf"{_ENCODER}self_attn\.(\w+)\.{_WB}", r"pixel_decoder.encoder.layers.\1.self_attn.\2.\3"),
        (rf"{_ENCODER}norm1\.{_WB}", r"pixel_decoder.encoder.layers.\1.norms.0.\2"),
        (rf"{_ENCODER}norm2\.{_WB}", r"pixel_decoder.encoder.layers.\1.norms.1.\2"),
        (rf"{_ENCODER}linear1\.{_WB}", r"pixel_decoder.encoder.layers.\1.ffn.layers.0.0.\2"),
        (rf"{_ENCODER}linear2\.{_WB}", r"pixel_decoder.encoder.layers.\1.ffn.layers.1.\2"),
        (rf"{_PIXEL}(adapter|layer)_(\d+)\.(weight|bias|norm\.weight|norm\.bias)", rank),
        (rf"{_PIXEL}mask_features\.{_WB}", r"pixel_decoder.mask_feature.\1"),
        (rf"{_DECODER}cross_attention_layers\.(\d+)\.multihead_attn\.(.*)",
         r"transformer_decoder.layers.\1.cross_attn.attn.\2"),
        (rf"{_DECODER}cross_attention_layers\.(\d+)\.norm\.{_WB}", r"transformer_decoder.layers.\1.norms.0.\2"),
        (rf"{_DECODER}self_attention_layers\.(\d+)\.self_attn\.(.*)",
         r"transformer_decoder.layers.\1.self_attn.attn.\2"),
        (rf"{_DECODER}self_attention_layers\.(\d+)\.norm\.{_WB}", r"transformer_decoder.layers.\1.norms.1.\2"),
        (rf"{_DECODER}ffn_layers\.(\d+)\.linear1\.{_WB}", r"transformer_decoder.layers.\1.ffn.layers.0.0.\2"),
        (rf"{_DECODER}ffn_layers\.(\d+)\.linear2\.{_WB}", r"transformer_decoder.layers.\1.ffn.layers.1.\2"),
        (rf"{_DECODER}ffn_layers\.(\d+)\.norm\.{_WB}", r"transformer_decoder.layers.\1.norms.2.\2"),
        (rf"predictor\.decoder_norm\.{_WB}", r"transformer_decoder.post_norm.\1"),
        (rf"predictor\.input_proj\.(\d+)\.{_WB}", r"decoder_input_projs.\1.\2"),
        (r"predictor\.(?:query_feat|static_query)\.weight", "query_feat.weight"),
        (r"predictor\.(query_embed|level_embed)\.weight", r"\1.weight"),
        (rf"predictor\.class_embed\.{_WB}", r"cls_embed.\1"),
        (rf"predictor\.mask_embed\.layers\.([012])\.{_WB}",
         lambda found: f"mask_embed.{2 * int(found[1])}.{found[2]}")))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether it is Mask2Former with a deformable pixel decoder, or a ResNet with detectron2's names."""
    keys = {key.removeprefix("backbone.") for key in shapes}
    whole = any(key.endswith("predictor.class_embed.weight") for key in shapes)
    return (whole and any("transformer_cross_attention_layers" in key for key in shapes)
            or not whole and "stem.conv1.norm.weight" in keys and "res2.0.conv1.weight" in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The config of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    try:
        part = {key: shape for key, shape in shapes.items() if not key.startswith("sem_seg_head.")}
        backbone, layout = _backbone(part)
        if len(part) == len(shapes):
            return Guess("a ResNet backbone, ImageNet, keys of detectron2", {"model": {"backbone": backbone}},
                         backbone_only=True, targets=("ResNet", "ResNeXt"), notes=(
                             "torchvision's R-50.pkl was trained on RGB pictures; others of detectron2 are Caffe's "
                             "(style: caffe, BGR, std 1)",), translate=lambda found, model: layout.apply(found))
        head = _head(shapes, backbone)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, StopIteration) as error:
        raise ConvertError(f"{where}: an incomplete or other Mask2Former: {error} is missing or has an odd "
                           "shape") from error
    classes = head["num_classes"]
    return Guess(NEAREST, whole_config(backbone, head, usual_scale(classes), size_divisor=32), notes=(rgb_note(),),
                 translate=lambda found, model: _translate(found, model, layout))


def _backbone(shapes: Shapes) -> tuple[dict[str, Any], Layout]:
    """The backbone's block and the layout of its keys."""
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked") and (
        key.startswith("backbone.") or key.split(".")[0] in ("stem", "res2", "res3", "res4", "res5"))}
    keys = {key.removeprefix("backbone."): shape for key, shape in shapes.items()}
    if "patch_embed.proj.weight" in keys:
        return swin.swin_block(keys), swin.swin_layout(keys)
    moved = RESNET.apply(shapes)
    return resnet.resnet_block({key: made.shape(shapes.__getitem__) for key, made in moved.made.items()}), RESNET


def _widths(backbone: Mapping[str, Any]) -> list[int]:
    """Channels of the backbone's four maps."""
    if backbone["type"] == "SwinTransformer":
        return [backbone["embed_dims"] * 2**i for i in range(4)]
    return [backbone.get("base_channels", 64) * 2**i * (4 if backbone["depth"] >= 50 else 1) for i in range(4)]


def _head(shapes: Shapes, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The head's arguments that shapes tell."""
    from jseg.models.heads.mask_head import DICE_LOSS, MASK_LOSS, MATCHING
    keys = {re.sub(r"^(?!predictor)(?!pixel_decoder)", "pixel_decoder.", key.removeprefix("sem_seg_head.")): shape
            for key, shape in shapes.items() if key.startswith("sem_seg_head.")}
    levels, width = keys["pixel_decoder.transformer.level_embed"]
    heads, encoder = max(width // 32, 1), "pixel_decoder.transformer.encoder.layers"
    first = f"{encoder}.0"
    points = keys[f"{first}.self_attn.attention_weights.weight"][0] // (heads * levels)
    attention = {"embed_dims": width, "num_heads": heads}
    sine = {"num_feats": width // 2, "normalize": True}
    return {
        "type": "Mask2FormerHead", "in_channels": _widths(backbone), "in_index": [0, 1, 2, 3], "feat_channels": width,
        "out_channels": keys["pixel_decoder.mask_features.weight"][0],
        "num_queries": keys["predictor.query_embed.weight"][0],
        "num_transformer_feat_level": keys["predictor.level_embed.weight"][0],
        "num_classes": keys["predictor.class_embed.weight"][0] - 1, "align_corners": False, "ignore_index": 255,
        "pixel_decoder": {
            "type": "MSDeformAttnPixelDecoder", "num_outs": 3, "norm_cfg": {"type": "GN", "num_groups": min(32, width)},
            "act_cfg": {"type": "ReLU"}, "positional_encoding": sine,
            "encoder": {"num_layers": count_indices(keys, rf"{re.escape(encoder)}\.(\d+)\."), "layer_cfg": {
                "self_attn_cfg": {**attention, "num_levels": levels, "num_points": points, "dropout": 0.0},
                "ffn_cfg": {"embed_dims": width, "feedforward_channels": keys[f"{first}.linear1.weight"][0]}}}},
        "enforce_decoder_input_project": "predictor.input_proj.0.weight" in keys, "positional_encoding": sine,
        "transformer_decoder": {
            "num_layers": count_indices(keys, r"predictor\.transformer_ffn_layers\.(\d+)\."), "layer_cfg": {
                "self_attn_cfg": attention, "cross_attn_cfg": attention, "ffn_cfg": {
                    "embed_dims": width,
                    "feedforward_channels": keys["predictor.transformer_ffn_layers.0.linear1.weight"][0]}}},
        "loss_mask": dict(MASK_LOSS), "loss_dice": dict(DICE_LOSS),
        "train_cfg": {"num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75,
                      "assigner": copy.deepcopy(MATCHING)}}


def _translate(shapes: Shapes, model: Mapping[str, Any], layout: Layout) -> Moved:
    """Where each key goes."""
    start, dropped = "sem_seg_head.", {}
    for key in shapes:
        if re.fullmatch(r"(sem_seg_head\.)?criterion\.empty_weight", key):
            dropped[key] = "class weights of the training's loss"
        elif key in ("pixel_mean", "pixel_std"):
            dropped[key] = "mean and std, which stand in the config"
    own = {key: shape for key, shape in shapes.items() if not key.startswith(start) and key not in dropped}
    block = model["backbone"]
    moved = swin.swin_moves(layout, own, block) if block["type"] == "SwinTransformer" else layout.apply(own)
    made = {f"backbone.{key}": value for key, value in moved.made.items()}
    inner = {key.removeprefix(start): key for key in shapes if key.startswith(start) and key not in dropped}
    finer = count_indices(inner, r"(?:pixel_decoder\.)?adapter_(\d+)\.")
    found = _head_layout(finer).apply({key: shapes[full] for key, full in inner.items()})
    for key, value in found.made.items():
        made[f"decode_head.{key}"] = type(value)(tuple(inner[part] for part in value.parts))
    return Moved(made, {**dropped, **moved.dropped, **found.dropped})


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """A stated config as it is; the account of the keys compares it with the weights."""
    return settings
