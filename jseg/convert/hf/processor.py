"""An image processor of transformers as jseg's test pipeline and preprocessor.

Source: transformers 5.24, `image_processing_pil_*.py` of the families below (Apache-2.0), and the words that 4.x wrote
(`feature_extractor_type`, a number for `size`, `max_size`, `reduce_labels`). Pictures are resized by Pillow there and
by `PillowResize` here; with torchvision installed transformers resizes by that instead, which differs by rounding.
"""

from __future__ import annotations

import re
from typing import Any

from jseg.convert.hf.facts import Facts
from jseg.convert.pickle_data import brief
from jseg.errors import ConvertError

__all__ = ["inference_of", "pipeline_of"]

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2}
_STANDARD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Segformer": {**_IMAGENET, "size": 512}, "ViT": {**_STANDARD, "resample": 2, "size": 224},
    "Beit": {**_STANDARD, "resample": 3, "size": 224}, "DPT": {**_STANDARD, "resample": 3, "size": 384},
    "MaskFormer": {**_IMAGENET, "size": 800}, "Mask2Former": {**_IMAGENET, "size": 800},
    "Eomt": {**_IMAGENET, "size": {"shortest_edge": 640, "longest_edge": 640}}}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def pipeline_of(found: Facts | None, kind: str, notes: list[str]) -> tuple[list[dict], dict]:
    """(test pipeline, data preprocessor).

    Args:
        found: preprocessor_config.json, or None where the folder has none.
        kind: the family's processor, for a file that names none.
        notes: gets a line where defaults were taken.
    Raises:
        ConvertError: a processor that jseg does not know, or one that crops or pads.
    """
    if found is None:
        notes.append(f"no preprocessor_config.json: pictures go through the defaults of transformers' "
                     f"{kind}ImageProcessor, which may not be what the model was trained with")
        found = Facts({}, "preprocessor_config.json")
    name, facts = _completed(found, kind)
    steps = [{"type": "LoadImageFromFile"}]
    if facts.flag("do_resize", True):
        steps.append({"type": "PillowResize", **_size(facts, name),
                      "interpolation": _RESAMPLE[facts.choice("resample", 2, list(_RESAMPLE))]})
    _refuse_crop(facts)
    reduced = facts.flag("do_reduce_labels", facts.flag("reduce_labels", name == "Eomt" and "ignore_index" in facts))
    steps += [{"type": "LoadAnnotations", "reduce_zero_label": reduced}, {"type": "PackSegInputs"}]
    preprocessor = _preprocessor(facts)
    if name == "Eomt" and facts.flag("do_pad", False):
        size = facts.block("size")
        edge = size.integer("shortest_edge")
        preprocessor["test_cfg"] = {"size": [edge, size.integer("longest_edge", edge)]}
        notes.append("pictures are padded with the mean colour (transformers: with black), and the padding is cut off "
                     "the scores")
    return steps, preprocessor


def inference_of(found: Facts | None, kind: str) -> dict[str, Any]:
    """What a processor changes of `model.test_cfg`: EoMT's may cut pictures into windows.

    Args:
        found, kind: see `pipeline_of`.
    Raises:
        ConvertError: windows that the resized pictures do not fill.
    """
    if found is None:
        return {}
    name, facts = _completed(found, kind)
    if name != "Eomt" or not facts.flag("do_split_image", False):
        return {}
    size = facts.block("size")
    if "longest_edge" in size:
        raise facts.fault("size", "shortest_edge alone, where do_split_image is true")
    side = [size.integer("shortest_edge")] * 2
    return {"mode": "slide", "crop_size": side, "stride": side, "even": True}


def _completed(found: Facts, kind: str) -> tuple[str, Facts]:
    """(kind of the processor, its words with the defaults of that kind)."""
    said = found.values.get("image_processor_type") or found.values.get("feature_extractor_type") or kind
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", said) if isinstance(said, str) else ""
    if name not in _DEFAULTS:
        raise ConvertError(f"{found.where}: image_processor_type is {brief(said)}; known are those of "
                           f"{', '.join(_DEFAULTS)}")
    return name, Facts({**_DEFAULTS[name], **{k: v for k, v in found.values.items() if v is not None}}, found.where)


def _size(facts: Facts, name: str) -> dict[str, Any]:
    """What `PillowResize` is told."""
    value = facts.values["size"]
    masks = name in ("MaskFormer", "Mask2Former")
    words: dict[str, Any] = {}
    if isinstance(value, dict):
        size = facts.block("size")
        if "height" in size and "width" in size:
            words["size"] = [size.integer("height"), size.integer("width")]
        elif "shortest_edge" in size:
            words["shortest_edge"] = size.integer("shortest_edge")
            if "longest_edge" in size:
                words["longest_edge"] = size.integer("longest_edge")
        else:
            raise facts.fault("size", "height and width, or shortest_edge with or without longest_edge")
    elif masks:
        words = {"shortest_edge": facts.integer("size"), "longest_edge": facts.integer("max_size", 1333)}
    else:
        words["size"] = [facts.integer("size")] * 2
    if masks and "longest_edge" not in words and "shortest_edge" in words:
        words["longest_edge"] = facts.integer("max_size", 1333)
    divisor = facts.integer("size_divisor", facts.integer("size_divisibility", 32, low=0), low=0) if masks else 0
    if divisor:
        words["size_divisor"] = divisor
    if name == "DPT":
        words.update(keep_ratio=facts.flag("keep_aspect_ratio", False),
                     multiple_of=facts.integer("ensure_multiple_of", 1))
    return words


def _refuse_crop(facts: Facts) -> None:
    """Cropping loses the picture's border, for which there would be no label;
    a crop of what the resize makes does nothing.
    """
    if facts.flag("do_center_crop", False) and facts.values.get("crop_size") != facts.values.get("size"):
        raise facts.fault("do_center_crop", "false, since a label map covers the whole picture")
    if "pad_size" in facts or (facts.flag("do_pad", False) and "size_divisor" in facts
                               and not str(facts.values.get("image_processor_type", "Mask")).startswith("Mask")):
        raise facts.fault("do_pad", "false")


def _preprocessor(facts: Facts) -> dict[str, Any]:
    """Rescaling and normalisation as one mean and deviation on the scale of 0 to 255."""
    factor = facts.number("rescale_factor", 1 / 255) if facts.flag("do_rescale", True) else 1.0
    mean, std = ([0.0] * 3, [1.0] * 3)
    if facts.flag("do_normalize", True):
        mean, std = (_three(facts, key) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise facts.fault("image_std", "three numbers above 0")
    return {"type": "SegDataPreProcessor", "mean": [value / factor for value in mean],
            "std": [value / factor for value in std], "bgr_to_rgb": True, "pad_val": 0, "seg_pad_val": 255}


def _three(facts: Facts, key: str) -> list[float]:
    value = facts.values[key]
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6
                                   for v in values):
        raise facts.fault(key, "a number, or three")
    return [float(v) for v in values]
