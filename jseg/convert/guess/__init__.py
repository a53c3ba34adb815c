"""Which model a file without a config holds, told by its keys and shapes; one file per release that people hold.

A guesser is a module of this folder with
    NEAREST: what it reads, for messages;
    recognise(shapes, meta) -> bool: whether these keys are its own;
    guess(shapes, *, numpy_values, meta, where) -> Guess;
    complete(settings, found, *, origin, where, notes) -> dict: a stated config, checked against the weights, with the
        rules that its release leaves unsaid; guessers of backbones alone have none.
A new file is found by itself. Releases whose keys are not ours give a `translate` with the guess, made of the tables of
`jseg.convert.layout`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from types import ModuleType
from typing import Any, Callable, Mapping

from jseg.convert.layout import Moved, Shapes
from jseg.errors import ConvertError

__all__ = ["Guess", "Shapes", "find_guesser", "looks_like", "read_block", "rgb_note", "usual_scale", "whole_config"]

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, RGB, 0 to 255


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a guesser found.

    Args:
        release: name for reports.
        config: a jseg config: model, preprocessing, test pipeline; the `model.backbone` block alone for a backbone's
            weights.
        backbone_only: the file holds a backbone (an ImageNet classifier) and no segmentation model.
        targets: types of backbones that these weights fit, where a config is given; the guessed one alone if empty.
        translate: (shapes, model block) -> `layout.Moved`: where each key goes, for a release with keys of its own;
            our keys are without `backbone.` where `backbone_only`.
        notes: what the weights expect and no shape tells.
    """

    release: str
    config: dict[str, Any]
    backbone_only: bool = False
    targets: tuple[str, ...] = ()
    translate: Callable[[Shapes, Mapping[str, Any]], Moved] | None = None
    notes: tuple[str, ...] = ()


def read_block(make: Callable[[Shapes], Any], shapes: Shapes, where: str, release: str,
               accepted: str | None = None) -> Any:
    """What `make` reads off the shapes of a file's keys: a backbone block, mostly.

    Args:
        accepted: which of the release are here, where not all are.
    Raises:
        ConvertError: keys that it asks for are missing or of other shapes, or a network that is not here.
    """
    try:
        return make(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        if accepted is not None:
            raise ConvertError(f"{where}: an incomplete or other {release}: {error} is missing or not supported; "
                               f"accepted: {accepted}") from error
        raise ConvertError(f"{where}: an incomplete {release}: {error} is missing or has an odd shape") from error


def rgb_note(mean: tuple = _MEAN, std: tuple = _STD) -> str:
    """What pictures a backbone was trained on, as a note."""
    return f"trained on RGB pictures (data_preprocessor: bgr_to_rgb: true, mean: {list(mean)}, std: {list(std)})"


def whole_config(backbone: Mapping[str, Any], head: Mapping[str, Any], scale: tuple[int, int] = (2048, 512), *,
                 size_divisor: int | None = None) -> dict[str, Any]:
    """A config for inference and fine-tuning of a release: ImageNet's mean and std, RGB, test pictures of `scale`.

    Args:
        scale: the longest and the shortest side of test pictures, in pixels.
        size_divisor: test pictures are padded to multiples of it, if given.
    """
    preprocessor = {"type": "SegDataPreProcessor", "mean": list(_MEAN), "std": list(_STD), "bgr_to_rgb": True,
                    "size": [512, 512], "pad_val": 0, "seg_pad_val": 255}
    preprocessor.update({"test_cfg": {"size_divisor": size_divisor}} if size_divisor else {})
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "Resize", "scale": list(scale), "keep_ratio": True},
                {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    return {"model": {"type": "EncoderDecoder", "backbone": dict(backbone), "neck": None, "decode_head": dict(head),
                      "auxiliary_head": None, "test_cfg": {"mode": "whole"}},
            "data_preprocessor": preprocessor, "test_dataloader": {"batch_size": 1, "dataset": {"pipeline": pipeline}},
            "tta": {"scales": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], "flip": True}}


def usual_scale(classes: int) -> tuple[int, int]:
    """Longest and shortest side of test pictures of the data set with so many classes, in pixels: Cityscapes' 19,
    CamVid's 11, else ADE20K's.
    """
    return {19: (2048, 1024), 11: (960, 720)}.get(classes, (2048, 512))


_LOOKS = (  # (pattern of a key, name); the first that matches is what the message says
    (r"block\d\.\d+\.attn\.(q|kv)\.|layers\.\d\.1\.\d+\.attn\.attn\.in_proj", "SegFormer (MiT backbone)"),
    (r"relative_position_bias_table", "Swin Transformer"),
    (r"cls_token|pos_embed.*encoder|backbone\.pos_embed", "a vision transformer (ViT, BEiT, DeiT)"),
    (r"downsample_layers\.\d", "ConvNeXt"), (r"transition\d\.\d", "HRNet"),
    (r"layer\d\.\d+\.conv\d\.weight", "a ResNet (PSPNet, DeepLabV3+, UPerNet...)"),
    (r"features\.\d+\.conv\.|inverted_res", "MobileNet"), (r"blocks\.\d\.\d\.conv_dw", "an EfficientNet of timm"),
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
