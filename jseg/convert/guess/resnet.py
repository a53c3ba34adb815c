"""ResNet and ResNeXt of torchvision, timm and OpenMMLab (ImageNet), which carry no config.

    part                torchvision, timm          timm's C and D (deep stem)   OpenMMLab's V1c, V1d
    stem                conv1, bn1                 conv1.0 to .6, bn1           stem.0 to .7
    shortcut            downsample.0, .1           D: downsample.1, .2          the same
    classifier          fc                         fc                           fc

Sources: torchvision 0.28 torchvision/models/resnet.py (BSD-3-Clause), timm 1.0 timm/models/resnet.py (Apache-2.0), MMCV
2.1 mmcv/cnn/resnet.py. All other keys are ours as they stand. Refused: wide ResNets, and blocks with squeeze and
excitation or blur, which ResNet here has not.

No shape tells where a bottleneck's stride is: it is taken to be in the 3x3 convolution, as in these libraries. Releases
of Caffe's form (`style: caffe`) need a config that says so, and pictures in BGR without a standard deviation; these
releases were trained on RGB.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, count_indices, without_prefix

__all__ = ["NEAREST", "guess", "recognise", "resnet_block"]

NEAREST = "ResNet or ResNeXt backbone, ImageNet (torchvision, timm, OpenMMLab)"
_OURS = rf"layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[012])\.{LEAF}"
LAYOUT = Layout("a ResNet", (
    (_OURS, r"\g<0>"), (rf"(conv1|bn1|stem\.[0-7])\.{LEAF}", r"\g<0>")), ((r"(head\.)?fc\..*", CLASSIFIER),))
DEEP = Layout("a ResNet with a deep stem", (
    (_OURS, r"\g<0>"), (rf"conv1\.([0-6])\.{LEAF}", r"stem.\1.\2"), (rf"bn1\.{LEAF}", r"stem.7.\1")), LAYOUT.drops)
_OTHERS = ("transition1.", "layer3_.", "seghead", "features.")  # of networks that share the names of the first stages


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a ResNet stands alone."""
    keys = without_prefix(shapes)
    return ("layer1.0.conv1.weight" in keys and "layer4.0.conv1.weight" in keys
            and any(key in keys for key in ("conv1.weight", "conv1.0.weight", "stem.0.weight"))
            and not any(key.startswith(("decode_head.", "spp.", *_OTHERS)) for key in keys))


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing, or a network that is not here.
    """
    shapes = without_prefix(shapes)
    block = read_block(resnet_block, shapes, where, "ResNet", "depths 18, 34, 50, 101 and 152")
    layout = DEEP if "conv1.0.weight" in shapes else LAYOUT
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True,
                 targets=("ResNet", "ResNetV1c", "ResNetV1d", "ResNeXt"), notes=(rgb_note(),),
                 translate=lambda found, model: layout.apply(found))


def resnet_block(shapes: Shapes) -> dict[str, Any]:
    """Constructor arguments that shapes tell."""
    from jseg.models.backbones.resnet import Bottleneck, ResNet
    counts = tuple(count_indices(shapes, rf"layer{i}\.(\d+)\.conv1\.") for i in range(1, 5))
    thick = "layer1.0.conv3.weight" in shapes
    depth = next((depth for depth, (kind, blocks) in ResNet.DEPTHS.items() if blocks == counts
                  and (kind is Bottleneck) == thick), None)
    if depth is None:
        raise ValueError(f"a depth with stages of {counts} {'bottlenecks' if thick else 'basic blocks'}")
    stem = next(shapes[key] for key in ("bn1.weight", "stem.7.weight") if key in shapes)[0]
    out, inner = shapes[f"layer1.0.conv{3 if thick else 2}.weight"][0], shapes["layer1.0.conv2.weight"]
    base, groups = out // (4 if thick else 1), inner[0] // inner[1]
    if groups == 1 and inner[0] != base:
        raise ValueError(f"a wide ResNet (3x3 convolutions of {inner[0]} channels for {base})")
    deep = any(re.match(r"(conv1|stem)\.0\.", key) for key in shapes)
    averages = len(shapes.get("layer2.0.downsample.1.weight", ())) == 4
    block: dict[str, Any] = {"type": "ResNet", "depth": depth, "out_indices": [0, 1, 2, 3]}
    if groups > 1:
        block.update(type="ResNeXt", groups=groups, base_width=64 * inner[1] // base)
    if deep and groups == 1:
        block["type"] = "ResNetV1d" if averages else "ResNetV1c"
    else:
        block.update({word: True for word, said in (("deep_stem", deep), ("avg_down", averages)) if said})
    first = shapes[next(key for key in ("conv1.weight", "conv1.0.weight", "stem.0.weight") if key in shapes)][1]
    usual = {"stem_channels": (stem, 64), "base_channels": (base, 64), "in_channels": (first, 3)}
    return {**block, **{word: value for word, (value, default) in usual.items() if value != default}}
