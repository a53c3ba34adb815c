"""SegFormer as NVIDIA released it (MMSegmentation 0.x): whole models with their own head.

    ours (decode_head.)          theirs
    convs.<i>.conv               linear_c<i + 1>.proj, linear layers
    fusion_conv.conv, .bn        linear_fuse.conv, .bn
    conv_seg                     linear_pred

Source: NVlabs/SegFormer mmseg/models/decode_heads/segformer_head.py and backbones/mix_transformer.py. The backbone's
keys are those of mit_b0.pth to mit_b5.pth (see `MixVisionTransformer.remap_keys`). What differs:

- their head projects maps without norm and activation, MMSegmentation's with both: `SegformerHead` has `plain_convs`
  for theirs;
- `linear_fuse` joins maps from coarse to fine, ours from fine to coarse: its input channels are put in our order;
- their `conv_seg` is never used and is left out;
- norms behind patches and reductions have eps 1e-5 there and 1e-6 here, as in MMSegmentation, which moves results by
  some 1e-5 of their range.

Files carry their config (translated by `jseg.convert.mmseg_segformer`); without it, it is made of the shapes.
"""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from jseg.convert.guess import Guess, Shapes, mit, usual_scale, whole_config
from jseg.convert.layout import LEAF, Layout, Moved
from jseg.convert.pickle_data import brief
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "complete", "finest_first", "guess", "recognise"]

NEAREST = "SegFormer, NVIDIA's release"
HEAD = Layout(NEAREST, (
    (r"decode_head\.linear_c([1-4])\.proj\.(weight|bias)",
     lambda found: f"decode_head.convs.{int(found[1]) - 1}.conv.{found[2]}"),
    (rf"decode_head\.linear_fuse\.(conv|bn)\.{LEAF}", r"decode_head.fusion_conv.\1.\2"),
    (r"decode_head\.linear_pred\.(weight|bias)", r"decode_head.conv_seg.\1")),
    ((r"decode_head\.conv_seg\..*", "a classifier that the release never uses"),))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether it is a SegFormer with NVIDIA's head."""
    return "decode_head.linear_c1.proj.weight" in shapes and "backbone.block1.0.attn.q.weight" in shapes


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The config of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    part = {key: shape for key, shape in shapes.items() if key.startswith("backbone.")}
    backbone = mit.guess(part, numpy_values=numpy_values, meta=meta, where=where).config["model"]["backbone"]
    try:
        widths = [shapes[f"decode_head.linear_c{i}.proj.weight"][1] for i in (1, 2, 3, 4)]
        head = {"type": "SegformerHead", "in_channels": widths, "in_index": [0, 1, 2, 3], "plain_convs": True,
                "channels": shapes["decode_head.linear_fuse.conv.weight"][0], "dropout_ratio": 0.1,
                "num_classes": shapes["decode_head.linear_pred.weight"][0], "norm_cfg": {"type": "BN"},
                "align_corners": False, "ignore_index": 255,
                "loss_decode": {"type": "CrossEntropyLoss", "loss_weight": 1.0}}
    except (KeyError, IndexError) as error:
        raise ConvertError(f"{where}: an incomplete SegFormer: {error} is missing or has an odd shape") from error
    return Guess(NEAREST, whole_config(backbone, head, usual_scale(head["num_classes"])), translate=_translate)


def _translate(shapes: Shapes, model: Mapping[str, Any]) -> Moved:
    """Where each key goes."""
    from jseg.models.backbones.mix_vision_transformer import MixVisionTransformer
    moved = HEAD.apply({key: shape for key, shape in shapes.items() if not key.startswith("backbone.")})
    own = {key.removeprefix("backbone."): key for key in shapes if key.startswith("backbone.")}
    made = {f"backbone.{key}": Made.of(value) for key, value in MixVisionTransformer.remap_keys(own).items()}
    for key, value in moved.made.items():
        shape = shapes[value.parts[0]]
        if key == "decode_head.fusion_conv.conv.weight":
            value = Made(value.parts, change=finest_first)
        elif key.endswith(".conv.weight") and len(shape) == 2:
            value = Made(value.parts, ones=2)
        made[key] = value
    moved.made = made
    return moved


def finest_first(weight: np.ndarray, maps: int = 4) -> np.ndarray:
    """The inputs of `linear_fuse`, put in the opposite order of maps. Shape: (E, maps * E, 1, 1) -> same."""
    return weight.reshape(weight.shape[0], maps, -1, *weight.shape[2:])[:, ::-1].reshape(weight.shape)


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """A stated config, if it is of this head; the account of the keys compares the rest.

    Raises:
        ConvertError: another head.
    """
    head = settings["model"]["decode_head"]
    if not isinstance(head, dict) or head.get("type") != "SegformerHead" or not head.get("plain_convs"):
        kind = brief(head.get("type")) if isinstance(head, dict) else "a list"
        raise ConvertError(f"{where}: config ({origin}): model.decode_head is {kind}; the weights are of NVIDIA's "
                           "head: SegFormerHead of its configs, or SegformerHead with plain_convs: true")
    return settings
