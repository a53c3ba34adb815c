"""MobileNetV2 and MobileNetV3 of torchvision and timm (ImageNet), which carry no config.

    ours                        torchvision V2, V3             timm V2, V3
    stem                        features.0.0, .1               conv_stem, bn1
    V2 layer<s>.<b>.conv.<i>    features.<n>.conv.<i>.0, .1;   blocks.<s>.<b>.conv_pw, conv_dw, conv_pwl, each with
                                the last: .<i>, .<i + 1>       bn1, bn2, bn3; the first block: conv_dw, conv_pw
    V3 layer<n>.expand_conv...  features.<n>.block.<i>.0, .1   the same; se.conv_reduce, se.conv_expand
    V3 se.conv1, conv2          block.<i>.fc1, fc2
    V3 last layer               features.<last>                blocks.<last>.0.conv, bn1

Sources: torchvision 0.28 torchvision/models/mobilenetv2.py, mobilenetv3.py (BSD-3-Clause); timm 1.0
timm/models/mobilenetv3.py, efficientnet.py (Apache-2.0). Left out with the classifier: V2's last 1x1 convolution, which
MobileNetV2 here (as in MMSegmentation) does not have, and timm's `conv_head` of V3.

What no key shows: torchvision's V3 has norms with eps 0.001 (said in the block). MobileNetV3 here, as in
MMSegmentation, pads strided convolutions as TensorFlow does and dilates its last blocks, where both libraries pad
evenly and stride: the same weights see maps that lie half a pixel aside, which training soon makes up for.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, rgb_note
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, without_prefix
from jseg.errors import ConvertError

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "MobileNetV2 or V3 backbone, ImageNet (torchvision, timm)"
_V2_STARTS = (1, 2, 4, 7, 11, 14, 17)  # torchvision's number of each stage's first block; 18 is the last convolution
_V2_LAST = "the last convolution, which only classifies"
_FACTORS = (1.0, 0.75, 0.5, 0.35, 0.25, 0.1, 1.1, 1.2, 1.3, 1.4, 2.0)
_PARTS = ("expand_conv", "depthwise_conv", "linear_conv")


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a MobileNet of these libraries stands alone."""
    keys = without_prefix(shapes)
    blocks = "features.1.conv.0.0.weight" in keys or "features.1.block.0.0.weight" in keys
    return len(keys.get("features.0.0.weight", ())) == 4 and blocks or (
        "conv_stem.weight" in keys and "blocks.0.0.conv_dw.weight" in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing, or a network that is not here.
    """
    keys = without_prefix(shapes)
    timm, third = "conv_stem.weight" in keys, any(".se." in key or ".block." in key for key in keys)
    try:
        block = _third(keys, timm) if third else _second(keys, timm)
        rules = _rules(keys, timm, third)
    except (KeyError, IndexError, ValueError, StopIteration) as error:
        raise ConvertError(f"{where}: an incomplete or other MobileNet: {error} is missing or not supported; accepted: "
                           "MobileNetV2, MobileNetV3 small and large") from error
    drops = [(r"(classifier|head)\..*", CLASSIFIER), (r"(conv_head|bn2)\..*", _V2_LAST)]
    drops += [] if third else [(r"features\.18\..*", _V2_LAST)]
    layout = Layout(block["type"], rules, drops)
    notes = ("MobileNetV3 pads strided convolutions as TensorFlow does; these releases pad evenly",) if third else ()
    return Guess(f"{block['type']} backbone, ImageNet, keys of {'timm' if timm else 'torchvision'}",
                 {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(), *notes),
                 translate=lambda found, model: layout.apply(found))


def _second(keys: Shapes, timm: bool) -> dict[str, Any]:
    """MobileNetV2's block: the factor on its widths."""
    from jseg.layers import make_divisible
    from jseg.models.backbones.mobilenet_v2 import _STAGES
    wanted = [int(keys[name][0]) for name in (
        [f"blocks.{i}.0.conv_pw{'l' if i else ''}.weight" for i in range(7)] if timm else
        [f"features.{first}.conv.{2 if i else 1}.weight" for i, first in enumerate(_V2_STARTS)])]
    factor = next((f for f in _FACTORS if [make_divisible(width * f, 8) for _, width, _ in _STAGES] == wanted), None)
    if factor is None:
        raise ValueError(f"a MobileNetV2 with stages of {wanted} channels")
    return {"type": "MobileNetV2", **({"widen_factor": factor} if factor != 1.0 else {})}


def _third(keys: Shapes, timm: bool) -> dict[str, Any]:
    """MobileNetV3's block: small or large, by the number of its blocks."""
    blocks = len(_blocks(keys, timm))
    arch = {11: "small", 15: "large"}.get(blocks)
    if arch is None:
        raise ValueError(f"a MobileNetV3 of {blocks} blocks")
    last = blocks + 1
    return {"type": "MobileNetV3", "arch": arch, "out_indices": [0, 1, 12] if arch == "small" else [1, 3, last],
            **({} if timm else {"norm_cfg": {"type": "BN", "eps": 0.001}})}


def _blocks(keys: Shapes, timm: bool) -> list[str]:
    """Prefixes of the inverted residual blocks, in order."""
    pattern = r"(blocks\.(\d+)\.(\d+))\.conv_dw\." if timm else r"(features\.(\d+))\.(?:block|conv)\.0\."
    found = {match[1]: tuple(int(n) for n in match.groups()[1:]) for key in keys if (match := re.match(pattern, key))}
    return sorted(found, key=found.get)


def _rules(keys: Shapes, timm: bool, third: bool) -> list[tuple[str, str]]:
    """From every module of the release to ours."""
    pairs = {"conv_stem": "conv", "bn1": "bn"} if timm else {"features.0.0": "conv", "features.0.1": "bn"}
    stem = "layer0" if third else "conv1"
    moves = {name: f"{stem}.{part}" for name, part in pairs.items()}
    blocks = _blocks(keys, timm)
    for i, prefix in enumerate(blocks):
        names = [f"layer{i + 1}.{part}" for part in _PARTS] if third else _second_names(i)
        moves.update(_timm_block(keys, prefix, names) if timm else _torchvision_block(keys, prefix, names))
        if third:
            squeeze = next((m[1] for key in keys if (m := re.match(rf"({re.escape(prefix)}\.(?:block\.\d+|se))\.(?:fc1"
                                                                   r"|conv_reduce)\.", key))), None)
            first, second = ("conv_reduce", "conv_expand") if timm else ("fc1", "fc2")
            moves.update({f"{squeeze}.{first}": f"layer{i + 1}.se.conv1.conv",
                          f"{squeeze}.{second}": f"layer{i + 1}.se.conv2.conv"} if squeeze else {})
    if third:
        last = f"blocks.{int(blocks[-1].split('.')[1]) + 1}.0" if timm else f"features.{len(blocks) + 1}"
        for name, part in zip(("conv", "bn1") if timm else ("0", "1"), ("conv", "bn")):
            moves[f"{last}.{name}"] = f"layer{len(blocks) + 1}.{part}"
    return [(rf"{re.escape(old)}\.{LEAF}", rf"{new}.\1") for old, new in moves.items()]


def _second_names(index: int) -> list[str]:
    """MobileNetV2's modules of the block at `index`: expansion (not in the first), depthwise, projection."""
    stage = max(i for i, first in enumerate(_V2_STARTS) if first <= index + 1)
    place = f"layer{stage + 1}.{index + 1 - _V2_STARTS[stage]}"
    return ["", *(f"{place}.conv.{i}" for i in (0, 1))] if index == 0 else [f"{place}.conv.{i}" for i in (0, 1, 2)]


def _torchvision_block(keys: Shapes, prefix: str, names: list[str]) -> dict[str, str]:
    """Modules of one block: pairs of convolution and norm, V2's last one in its sequence."""
    inner = f"{prefix}.{'block' if f'{prefix}.block.0.0.weight' in keys else 'conv'}"
    convs = sorted({found[1] for key in keys if (found := re.match(rf"({re.escape(inner)}\.\d+)(?:\.0)?\.weight$", key))
                    and len(keys[key]) == 4}, key=lambda name: int(name.rpartition(".")[2]))
    moves = {}
    for conv, name in zip(convs, names[-len(convs):]):
        if f"{conv}.0.weight" in keys:
            moves.update({f"{conv}.0": f"{name}.conv", f"{conv}.1": f"{name}.bn"})
        else:
            norm = f"{inner}.{int(conv.rpartition('.')[2]) + 1}"
            moves.update({conv: f"{name}.conv", norm: f"{name}.bn"})
    return moves


def _timm_block(keys: Shapes, prefix: str, names: list[str]) -> dict[str, str]:
    """Modules of one block: three convolutions, or a depthwise and a pointwise one."""
    whole = f"{prefix}.conv_pwl.weight" in keys
    convs = ("conv_pw", "conv_dw", "conv_pwl") if whole else ("conv_dw", "conv_pw")
    moves = {}
    for i, (conv, name) in enumerate(zip(convs, names[-len(convs):]), 1):
        moves.update({f"{prefix}.{conv}": f"{name}.conv", f"{prefix}.bn{i}": f"{name}.bn"})
    return moves
