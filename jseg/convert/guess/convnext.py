"""ConvNeXt's ImageNet weights, which carry no config: the authors', timm's, torchvision's, mmpretrain's.

    ours (mmpretrain's)            the authors             timm                         torchvision
    downsample_layers.0.0, .1      the same                stem.0, .1                   features.0.0, .1
    downsample_layers.<i>.0, .1    the same                stages.<i>.downsample.0, .1  features.<2i>.0, .1
    stages.<i>.<j>.                the same                stages.<i>.blocks.<j>.       features.<2i+1>.<j>.
      depthwise_conv, norm           dwconv, norm            conv_dw, norm                block.0, block.2
      pointwise_conv1, 2             pwconv1, pwconv2        mlp.fc1, mlp.fc2             block.3, block.5
      gamma                          gamma                   gamma                        layer_scale (C, 1, 1)
    norm3                          norm                    head.norm                    classifier.0

Sources: mmpretrain 1.2 mmpretrain/models/backbones/convnext.py (Apache-2.0), facebookresearch/ConvNeXt
models/convnext.py (MIT), timm 1.0 timm/models/convnext.py (Apache-2.0), torchvision 0.28
torchvision/models/convnext.py. As in mmpretrain the norm before the classifier becomes that of the last map, and the
norms of the other maps start at weight 1 and bias 0. ConvNeXt V2 (`grn`) is another network and is refused.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, rgb_note
from jseg.convert.layout import CLASSIFIER, Layout, Moved, count_indices, fill_norms, without_prefix
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "ConvNeXt backbone, ImageNet (the authors, timm, torchvision, mmpretrain)"
_WB = r"(weight|bias)"
_HEAD = ((r"head\.(fc\.|pre_logits\.|weight|bias).*|classifier\.2\..*", CLASSIFIER),)
_DOWN = (rf"downsample_layers\.(\d)\.([01])\.{_WB}", r"\g<0>")


def _inside(block: str, parts: tuple[str, ...]) -> tuple:
    """Rules for the modules of a block, in the order depthwise, norm, pointwise 1 and 2, scale."""
    names = ("depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2")
    rules = tuple((rf"{block}{part}\.{_WB}", rf"stages.\1.\2.{name}.\3") for part, name in zip(parts, names))
    return (*rules, (rf"{block}{parts[4]}", r"stages.\1.\2.gamma"))


def _odd(found: re.Match, rest: str) -> str:
    """torchvision counts mergings and stages in one list."""
    return f"stages.{int(found[1]) // 2}.{rest}"


_TORCH = {r"0": "depthwise_conv", r"2": "norm", r"3": "pointwise_conv1", r"5": "pointwise_conv2"}
LAYOUTS = {
    "depthwise_conv": Layout("a ConvNeXt of mmpretrain", (
        _DOWN, (rf"norm[0-3]\.{_WB}", r"\g<0>"), *_inside(r"stages\.(\d)\.(\d+)\.", (
            "depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2", "gamma"))), _HEAD),
    "dwconv": Layout("a ConvNeXt", (
        _DOWN, (rf"norm\.{_WB}", r"norm3.\1"), (rf"norm[0-3]\.{_WB}", r"\g<0>"), *_inside(
            r"stages\.(\d)\.(\d+)\.", ("dwconv", "norm", "pwconv1", "pwconv2", "gamma"))), _HEAD),
    "conv_dw": Layout("timm's ConvNeXt", (
        (rf"stem\.([01])\.{_WB}", r"downsample_layers.0.\1.\2"), (rf"(?:head\.norm|norm_pre)\.{_WB}", r"norm3.\1"),
        (rf"stages\.(\d)\.downsample\.([01])\.{_WB}", r"downsample_layers.\1.\2.\3"), *_inside(
            r"stages\.(\d)\.blocks\.(\d+)\.", ("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2", "gamma"))), _HEAD),
    "block.0": Layout("torchvision's ConvNeXt", (
        (rf"features\.([0246])\.([01])\.{_WB}", lambda found: f"downsample_layers.{int(found[1]) // 2}.{found[2]}."
                                                              f"{found[3]}"),
        (rf"features\.([1357])\.(\d+)\.block\.([0235])\.{_WB}",
         lambda found: _odd(found, f"{found[2]}.{_TORCH[found[3]]}.{found[4]}")),
        (r"features\.([1357])\.(\d+)\.layer_scale", lambda found: _odd(found, f"{found[2]}.gamma")),
        (rf"classifier\.0\.{_WB}", r"norm3.\1")), _HEAD)}


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a ConvNeXt stands alone."""
    return _name(without_prefix(shapes)) is not None and not any(key.startswith("decode_head.") for key in shapes)


def _name(keys: Shapes) -> str | None:
    """Whose keys these are, by the name of the depthwise convolution."""
    firsts = {"depthwise_conv": "stages.0.0.depthwise_conv.weight", "dwconv": "stages.0.0.dwconv.weight",
              "conv_dw": "stages.0.blocks.0.conv_dw.weight", "block.0": "features.1.0.block.0.weight"}
    return next((name for name, key in firsts.items() if len(keys.get(key, ())) == 4 and keys[key][1] == 1
                 and keys[key][2] == 7), None)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing.
    """
    layout = LAYOUTS[_name(without_prefix(shapes))]
    moved, shape_of = layout.apply(shapes), shapes.__getitem__
    try:
        block = _block({key: made.shape(shape_of) for key, made in moved.made.items()})
    except (KeyError, IndexError, ValueError) as error:
        raise ConvertError(f"{where}: an incomplete ConvNeXt: {error} is missing or has an odd shape") from error
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(),),
                 translate=lambda found, model: _translate(layout, found, model["backbone"]))


def _block(keys: Shapes) -> dict[str, Any]:
    """Constructor arguments that shapes tell, from our keys."""
    from jseg.models.backbones.convnext import VARIANTS
    widths = [keys[f"downsample_layers.{i}.{0 if i == 0 else 1}.weight"][0] for i in range(4)]
    depths = [count_indices(keys, rf"stages\.{i}\.(\d+)\.") for i in range(4)]
    arch = next((name for name, sizes in VARIANTS.items() if sizes == (depths, widths)),
                {"depths": depths, "channels": widths})
    stem = keys["downsample_layers.0.0.weight"]
    return {"type": "ConvNeXt", "arch": arch, "in_channels": stem[1], "stem_patch_size": stem[-1],
            "out_indices": [0, 1, 2, 3], "gap_before_final_norm": False, "drop_path_rate": 0.4,
            "linear_pw_conv": len(keys["stages.0.0.pointwise_conv1.weight"]) == 2,
            "layer_scale_init_value": 1.0 if "stages.0.0.gamma" in keys else 0.0}


def _translate(layout: Layout, shapes: Shapes, block: Mapping[str, Any]) -> Moved:
    """Where each key goes in a backbone of that block; weights become a linear layer's or a 1x1 convolution's."""
    moved, linear = layout.apply(shapes), bool(block.get("linear_pw_conv", True))
    made, indices = moved.made, block.get("out_indices", -1)
    wanted = [i % 4 for i in ([indices] if isinstance(indices, int) else indices)]
    for key in list(made):
        shape = shapes[made[key].parts[0]]
        if key.endswith(".gamma") and len(shape) == 3:
            made[key] = Made(made[key].parts, change=lambda x: x.reshape(-1), size=shape[:1])
        elif re.search(r"pointwise_conv[12]\.weight$", key) and (len(shape) == 2) != linear:
            size = shape[:2] if linear else (*shape, 1, 1)
            made[key] = Made(made[key].parts, change=lambda x, size=size: x.reshape(size), size=size)
        elif (found := re.match(r"norm(\d)\.", key)) and int(found[1]) not in wanted:
            moved.dropped[made.pop(key).parts[0]] = "the norm of a map that the config does not take"
    fill_norms(made, {f"norm{i}": made[f"downsample_layers.{i}.{0 if i == 0 else 1}.weight"].shape(
        shapes.__getitem__)[0] for i in wanted})
    return moved
