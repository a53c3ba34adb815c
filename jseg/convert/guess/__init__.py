"""Which model a file without a config holds, told by its keys and shapes; one file per release that people hold.

A guesser is a module of this folder with
    NEAREST: what it reads, for messages;
    recognise(shapes, meta) -> bool: whether these keys are its own;
    guess(shapes, *, numpy_values, meta, where) -> Guess;
    complete(settings, found, *, origin, where, notes) -> dict: a stated config, checked against the weights, with the
    rules that its
        release leaves unsaid.
A new file is found by itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any, Mapping

__all__ = ["Guess", "Shapes", "find_guesser", "looks_like"]

Shapes = Mapping[str, tuple]


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a guesser found.

    Args:
        release: name for reports.
        config: a jseg config: model, preprocessing, test pipeline; the `model.backbone` block alone for a backbone's
            weights.
        backbone_only: the file holds a backbone (an ImageNet classifier) and no segmentation model.
    """

    release: str
    config: dict[str, Any]
    backbone_only: bool = False


_LOOKS = (  # (pattern of a key, name); the first that matches is what the message says
    (r"block\d\.\d+\.attn\.(q|kv)\.|layers\.\d\.1\.\d+\.attn\.attn\.in_proj", "SegFormer (MiT backbone)"),
    (r"relative_position_bias_table", "Swin Transformer"),
    (r"cls_token|pos_embed.*encoder|backbone\.pos_embed", "a vision transformer (ViT, BEiT, DeiT)"),
    (r"downsample_layers\.\d", "ConvNeXt"), (r"transition\d\.\d", "HRNet"),
    (r"layer\d\.\d+\.conv\d\.weight", "a ResNet (PSPNet, DeepLabV3+, UPerNet...)"),
    (r"features\.\d+\.conv\.|inverted_res", "MobileNet"),
    (r"query_embed|query_feat|transformer_decoder", "MaskFormer or Mask2Former"),
    (r"mask_decoder|image_encoder", "Segment Anything"), (r"text_model|visual\.", "CLIP"),
    (r"bbox_head|rpn_head", "a detector"))


def guessers() -> list[ModuleType]:
    """Every guesser, by file name."""
    return [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]


def find_guesser(shapes: Shapes, meta: Mapping[str, Any]) -> ModuleType | None:
    """The guesser whose release these keys are of; None where nobody knows them."""
    return next((module for module in guessers() if module.recognise(shapes, meta)), None)


def looks_like(shapes: Shapes) -> str:
    """What keys that nobody recognises are like, and what could be read instead, as a sentence."""
    for pattern, name in _LOOKS:
        if any(re.search(pattern, key) for key in shapes):
            found = f"its keys are those of {name}"
            break
    else:
        found = (f"its {len(shapes)} keys ({', '.join(key[:60] for key in list(shapes)[:3])}...) are of no family jseg "
                 "knows")
    return f"{found}; without a config jseg converts {'; '.join(module.NEAREST for module in guessers())}"
