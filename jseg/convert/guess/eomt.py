"""EoMT as its authors released it (tue-mps/eomt): a timm ViT of DINOv2 with queries, without a config.

    ours                              theirs, behind `network.`
    backbone.*                        encoder.backbone.*, see `dinov2`
    decode_head.query_embed.weight    q.weight
    decode_head.cls_embed             class_head
    decode_head.mask_embed.<i>        mask_head.<i>
    decode_head.upscale.<i>           upscale.<i>
    decode_head.attn_mask_probs       attn_mask_probs

Source: tue-mps/eomt models/{eomt,vit,scale_block}.py and training/lightning_module.py (MIT). Pictures are cut into as
few windows of the size of the training pictures as cover them, as there for semantic segmentation; no key tells whether
a model was trained for instances or panoptic segments. Releases on DINOv3 hold differences to weights that are not in
them, and cannot be read.
"""

from __future__ import annotations

from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, dinov2, whole_config
from jseg.convert.layout import Layout, Moved, count_indices
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "complete", "guess", "recognise"]

NEAREST = "EoMT of its authors"
_BODY = "network.encoder.backbone."
HEAD = Layout(NEAREST, (
    (r"network\.q\.weight", "query_embed.weight"), (r"network\.class_head\.(weight|bias)", r"cls_embed.\1"),
    (r"network\.mask_head\.(\d)\.(weight|bias)", r"mask_embed.\1.\2"),
    (r"network\.upscale\.(\d+)\.(conv1|conv2|norm)\.(weight|bias)", r"upscale.\1.\2.\3"),
    (r"network\.(attn_mask_probs)", r"\1")),
    ((r"network\.encoder\.pixel_(mean|std)", "mean and std, which stand in the config"),
     (r"criterion\.empty_weight", "class weights of the loss, which stand in the config")))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether it is the authors' network."""
    return {"network.q.weight", "network.class_head.weight", f"{_BODY}cls_token"} <= set(shapes)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The config of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing or have odd shapes.
    """
    from jseg.models.heads.mask_head import MATCHING
    found = dinov2.guess(_part(shapes), numpy_values=numpy_values, meta=meta, where=where)
    backbone = found.config["model"]["backbone"]
    try:
        backbone["joint_blocks"] = shapes["network.attn_mask_probs"][0]
        head = {"type": "EoMTHead", "in_channels": [backbone["embed_dims"]], "num_blocks": backbone["joint_blocks"],
                "num_classes": shapes["network.class_head.weight"][0] - 1,
                "num_queries": shapes["network.q.weight"][0],
                "num_upscale_blocks": count_indices(shapes, r"network\.upscale\.(\d+)\."),
                "train_cfg": {"assigner": MATCHING}}
    except (KeyError, IndexError) as error:
        raise ConvertError(f"{where}: an incomplete EoMT: {error} is missing or has an odd shape") from error
    del backbone["out_indices"]
    side = backbone["img_size"]
    config = whole_config(backbone, head)
    config["model"]["test_cfg"] = {"mode": "slide", "crop_size": [side] * 2, "stride": [side] * 2, "even": True}
    config["data_preprocessor"]["size"] = [side] * 2
    config["test_dataloader"]["dataset"]["pipeline"][1] = {"type": "PillowResize", "shortest_edge": side}
    return Guess(NEAREST, config, translate=_translate, notes=found.notes[:1])


def _part(shapes: Shapes) -> dict[str, tuple]:
    """The backbone's keys without what stands before them."""
    return {key[len(_BODY):]: shape for key, shape in shapes.items() if key.startswith(_BODY)}


def _translate(shapes: Shapes, model: Mapping[str, Any]) -> Moved:
    """Where each key goes."""
    moved = HEAD.apply({key: shape for key, shape in shapes.items() if not key.startswith(_BODY)})
    moved.made = {f"decode_head.{key}": value for key, value in moved.made.items()}
    body = dinov2.translate(_part(shapes), model["backbone"])
    moved.dropped.update({_BODY + key: why for key, why in body.dropped.items()})
    for key, value in body.made.items():
        moved.made[f"backbone.{key}"] = Made(tuple(_BODY + part for part in value.parts), change=value.change,
                                             size=value.size)
    return moved


def complete(settings: dict, found: Guess, *, origin: str, where: str, notes: list[str]) -> dict:
    """A stated config as it is; the account of the keys compares it with the weights."""
    return settings
