"""Pipelines of foreign configs: 1.x step by step, 0.x and original JSeg with their older names,
and test-time augmentation.

Upstream: mmseg/datasets/transforms (1.2.2), mmseg/datasets/pipelines (0.30), python/jseg/datasets/pipelines (original
JSeg).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jseg.convert.mmseg_notes import Notes, as_list, as_pair, brief

__all__ = ["Pictures", "new_pipeline", "old_pipeline", "test_time_augmentation", "TRANSFORM_KEYS"]

TRANSFORM_KEYS = {  # transforms that jseg has, with the arguments that mean the same in both
    "AdjustGamma": ("gamma",), "CLAHE": ("clip_limit", "tile_grid_size"),
    "LoadAnnotations": ("reduce_zero_label", "imdecode_backend"),
    "LoadImageFromFile": ("to_float32", "color_type", "imdecode_backend", "scale"),
    "Normalize": ("mean", "std", "to_rgb"), "PackSegInputs": (),
    "Pad": ("size", "size_divisor", "pad_to_square", "pad_val", "padding_mode"),
    "PhotoMetricDistortion": ("brightness_delta", "contrast_range", "saturation_range", "hue_delta"),
    "RandomChoiceResize": ("scales", "resize_type", "keep_ratio", "interpolation", "max_size"),
    "RandomCrop": ("crop_size", "cat_max_ratio", "ignore_index"),
    "RandomCutOut": ("prob", "n_holes", "cutout_shape", "cutout_ratio", "fill_in", "seg_fill_in"),
    "RandomFlip": ("prob", "direction", "swap_seg_labels"),
    "RandomMosaic": ("prob", "img_scale", "center_ratio_range", "pad_val", "seg_pad_val"),
    "RandomResize": ("scale", "ratio_range", "resize_type", "keep_ratio", "interpolation", "max_size"),
    "RandomRotate": ("prob", "degree", "pad_val", "seg_pad_val", "center", "auto_bound"),
    "Resize": ("scale", "scale_factor", "keep_ratio", "interpolation"), "ResizeShortestEdge": ("scale", "max_size"),
    "ResizeToMultiple": ("size_divisor", "interpolation")}
_FILES = (None, {"backend": "disk"}, {"backend": "local"})
_NEUTRAL = {"backend_args": _FILES, "file_client_args": _FILES, "backend": ("cv2",), "clip_object_border": (),
            "meta_keys": (), "ignore_empty": (False,), "with_bbox": (False,), "with_label": (False,)}
_USUAL = {"LoadImageFromFile": {"to_float32": False, "color_type": "color", "imdecode_backend": "cv2"},
          "LoadAnnotations": {"imdecode_backend": "pillow"}, "ResizeToMultiple": {"interpolation": None}}
_BUNDLING = ("DefaultFormatBundle", "Collect", "ImageToTensor", "ToTensor", "ToDataContainer", "WrapFieldsToLists")
# may as well come before Normalize
_ONLY_MOVES_PIXELS = ("Pad", "RandomFlip", "RandomCrop", "ResizeToMultiple", *_BUNDLING)


def _known_step(step: Any, where: str, notes: Notes) -> dict:
    """One step whose name and arguments are jseg's; an unknown one stays as it is, with a note."""
    step = notes.block(step, where)
    kind = step.get("type")
    if kind not in TRANSFORM_KEYS:
        notes.add(f"{where}.{kind}", f"jseg has no transform {kind!r}; it was kept, so that nothing is trained or "
                                     "predicted without it")
        return step
    kept = notes.take(step, TRANSFORM_KEYS[kind], f"{where}.{kind}", _NEUTRAL)
    usual = _USUAL.get(kind, {})
    return {key: value for key, value in kept.items() if key not in usual or value is not usual[key]
            and value != usual[key]}


def new_pipeline(steps: Any, where: str, notes: Notes) -> list[dict]:
    """A pipeline in 1.x words. GenerateEdge leaves it for `notes.edges`:
    heads draw edges on the labels of the batch.
    """
    kept = []
    for step in as_list(steps):
        if isinstance(step, dict) and step.get("type") == "GenerateEdge":
            notes.edges = notes.take(step, ("edge_width", "ignore_index"), f"{where}.GenerateEdge")
        else:
            kept.append(_known_step(step, where, notes))
    return kept


def test_time_augmentation(pipeline: Any, notes: Notes) -> dict | None:
    """1.x's tta_pipeline as `{scales, flip}`; None where there is none."""
    steps = [step for step in as_list(pipeline) if isinstance(step, dict) and step.get("type") == "TestTimeAug"]
    if not steps:
        if pipeline:
            notes.add("tta_pipeline", "has no TestTimeAug; left out")
        return None
    scales, flip = [], False
    options = [option for group in as_list(steps[0].get("transforms")) for option in as_list(group)]
    for option in options:
        option = notes.block(option, "tta_pipeline")
        kind = option.get("type")
        if kind == "Resize" and isinstance(option.get("scale_factor"), (int, float)):
            scales.append(option["scale_factor"])
            notes.take(option, ("scale_factor",), "tta_pipeline.Resize", {**_NEUTRAL, "keep_ratio": (True,)})
        elif kind == "RandomFlip" and option.get("direction", "horizontal") == "horizontal":
            flip = flip or option.get("prob") == 1
        elif kind not in ("LoadAnnotations", "PackSegInputs", "LoadImageFromFile"):
            notes.add("tta_pipeline", f"{brief(option)} has no counterpart and was left out; jseg's views are factors "
                                      "on the picture's own size, each also mirrored")
    return {"scales": scales or [1.0], "flip": bool(flip)}


@dataclasses.dataclass
class Pictures:
    """What an old pipeline did to every picture and data_preprocessor does here; `tta` where it made several views."""

    normalize: dict | None = None
    pad: dict | None = None
    resize_divisor: int | None = None
    tta: dict | None = None


def old_pipeline(steps: Any, where: str, notes: Notes, pictures: Pictures, *, training: bool) -> list[dict]:
    """A pipeline of 0.x or original JSeg in 1.x words; normalising and padding go to `pictures`."""
    out: list[dict] = []
    for step in _flattened(as_list(steps), where, notes, pictures):
        kind = step.get("type")
        if pictures.normalize is not None and kind not in _ONLY_MOVES_PIXELS:
            notes.add(f"{where}.{kind}", "comes after Normalize in the source; jseg normalises last, so it sees values "
                                         "from 0 to 255")
        if kind == "Normalize":
            pictures.normalize = notes.take(step, ("mean", "std", "to_rgb"), f"{where}.Normalize")
            pictures.normalize.pop("type")
        elif kind == "Pad":
            pictures.pad = notes.take(step, ("size", "size_divisor", "pad_val", "seg_pad_val"), f"{where}.Pad")
        elif kind == "ResizeToMultiple" and not training and isinstance(step.get("size_divisor", 32), int):
            pictures.resize_divisor = step.get("size_divisor", 32)
            notes.take(step, ("size_divisor",), f"{where}.ResizeToMultiple", {"interpolation": (None, "bilinear")})
        elif kind == "Resize":
            out += _old_resize(step, where, notes)
        elif kind == "RandomFlip":
            out += _old_flip(step, where, notes, training)
        elif kind not in _BUNDLING:
            out.append(_known_step(step, where, notes))
    if not out:
        return out
    if not any(step.get("type") == "LoadAnnotations" for step in out):
        # 0.x reads the masks of val and test elsewhere; after Resize they keep their own size
        out.append({"type": "LoadAnnotations"})
    return [*out, {"type": "PackSegInputs"}]


def _flattened(steps: list, where: str, notes: Notes, pictures: Pictures) -> list[dict]:
    """Put the steps inside MultiScaleFlipAug in its place, with its scale; note several views as `tta`."""
    flat: list[dict] = []
    for step in steps:
        step = notes.block(step, where)
        if step.get("type") != "MultiScaleFlipAug":
            flat.append(step)
            continue
        place = f"{where}.MultiScaleFlipAug"
        notes.take(step, ("img_scale", "img_ratios", "flip", "flip_direction", "transforms"), place)
        scale, ratios = step.get("img_scale"), as_list(step.get("img_ratios"))
        if isinstance(scale, list) and scale and isinstance(scale[0], list):
            notes.add(f"{place}.img_scale", f"several scales {brief(scale)} have no counterpart; the first was taken")
            scale = scale[0]
        if ratios or step.get("flip"):
            pictures.tta = {"scales": [float(ratio) for ratio in ratios] or [1.0], "flip": bool(step.get("flip"))}
            notes.add(place, "always makes several views; here they are made on request (tta)"
                             + (f", by factors on the picture's own size instead of on {scale}" if scale else ""))
            if as_list(step.get("flip_direction") or "horizontal") != ["horizontal"]:
                notes.add(f"{place}.flip_direction",
                          f"{brief(step['flip_direction'])}: jseg's views are mirrored left to right only")
        for inner in as_list(step.get("transforms")):
            inner = notes.block(inner, place)
            if inner.get("type") == "Resize" and scale is not None:
                flat.append({**inner, "img_scale": scale})
            elif inner.get("type") != "Resize":
                flat.append(inner)
    return flat


def _old_flip(step: dict, where: str, notes: Notes, training: bool) -> list[dict]:
    """RandomFlip; in testing it only carries out what MultiScaleFlipAug decides."""
    prob = step.get("prob", step.get("flip_ratio"))
    if not training or prob is None:
        return []
    rest = {key: value for key, value in step.items() if key != "flip_ratio"}
    return [_known_step({**rest, "prob": prob}, where, notes)]


def _old_resize(step: dict, where: str, notes: Notes) -> list[dict]:
    """0.x's one Resize is 1.x's Resize, RandomResize or RandomChoiceResize."""
    place = f"{where}.Resize"
    notes.take(step, ("img_scale", "multiscale_mode", "ratio_range", "keep_ratio", "interpolation"), place,
               {"min_size": (None,), **_NEUTRAL})
    scale, ratios, mode = step.get("img_scale"), step.get("ratio_range"), step.get("multiscale_mode", "range")
    common: dict[str, Any] = {"keep_ratio": step.get("keep_ratio", True)}
    if "interpolation" in step:
        common["interpolation"] = step["interpolation"]
    scales = [as_pair(s) for s in scale] if isinstance(scale, list) and scale and isinstance(scale[0], list) else [
        as_pair(scale)]
    if scale is None:
        notes.add(place, f"{brief(step)} scales by the picture's own size, which has no counterpart; it was left out")
        return []
    if ratios is not None:
        return [{"type": "RandomResize", "scale": scales[0], "ratio_range": ratios, **common}]
    if len(scales) == 1:
        return [{"type": "Resize", "scale": scales[0], **common}]
    if mode == "value":
        return [{"type": "RandomChoiceResize", "scales": scales, **common}]
    # upstream draws the long and the short side, each for itself
    bounds = [[max(pair), min(pair)] for pair in scales[:2]]
    return [{"type": "RandomResize", "scale": bounds, **common}]
