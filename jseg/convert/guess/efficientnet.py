"""EfficientNet of torchvision, timm and mmpretrain (ImageNet), which carry no config.

    ours (mmpretrain's)            torchvision                      timm
    layers.0.conv, .bn             features.0.0, .1                 conv_stem, bn1
    layers.<l>.<n>.                features.<s>.<b>.block.<i>       blocks.<s>.<b>.
      expand_conv, depthwise_conv    the first, the next              conv_pw, bn1; conv_dw, bn2
      se.conv1, se.conv2             fc1, fc2                         se.conv_reduce, se.conv_expand
      linear_conv                    the last                         conv_pwl, bn3
    layers.6.conv, .bn             features.8.0, .1                 conv_head, bn2

Stages 4 and 5 of torchvision and timm (counted from 1) are one layer here, and 6 and 7. Blocks of the first stage have
no expansion: there timm's names are conv_dw, bn1 and conv_pw, bn2. Sources: torchvision 0.29
torchvision/models/efficientnet.py (BSD-3-Clause), timm 1.0 timm/models/efficientnet.py (Apache-2.0), mmpretrain 1.2
mmpretrain/models/backbones/efficientnet.py.

What no key shows: torchvision pads evenly (`conv_cfg: null`), its B0 to B4 have norms with eps 1e-5, B5 to B7 with
1e-3; so do timm's, but its `tf_` releases, and every one beyond B5, pad as TensorFlow does and have eps 1e-3, as
mmpretrain's.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, without_prefix

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "EfficientNet backbone, ImageNet (torchvision, timm, mmpretrain)"
_DROPS = ((r"(classifier|head)\..*", CLASSIFIER),)
OURS = Layout("an EfficientNet of mmpretrain", ((rf"layers\.\d\..*\.{LEAF}", r"\g<0>"),), _DROPS)
_FIRSTS = {"mmpretrain": "layers.1.0.depthwise_conv.conv.weight", "torchvision": "features.1.0.block.0.0.weight",
           "timm": "blocks.0.0.conv_dw.weight"}
_LAYERS = (1, 2, 3, 4, 4, 5, 5)  # of the stages
_TF_NOTE = ("timm's tf_ releases pad as TensorFlow does: set conv_cfg: {type: Conv2dAdaptivePadding} and norm_cfg: "
            "{type: BN, eps: 0.001} for one")
_EVEN_NOTE = "taken for one of timm's tf_ releases; for one that pads evenly set conv_cfg: null"


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether an EfficientNet of these libraries stands alone."""
    keys = without_prefix(shapes)
    home = _home(keys)
    return home is not None and not any(key.startswith("decode_head.") for key in keys) and (
        home != "timm" or {"bn2.weight", "conv_head.weight", "blocks.0.0.se.conv_reduce.weight"} <= set(keys))


def _home(keys: Shapes) -> str | None:
    return next((home for home, key in _FIRSTS.items() if len(keys.get(key, ())) == 4), None)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing, or a network that is not here.
    """
    keys = {key: shape for key, shape in without_prefix(shapes).items() if not key.endswith("num_batches_tracked")}
    home = _home(keys)
    layout = OURS if home == "mmpretrain" else Layout(f"{home}'s EfficientNet", _rules(keys, home), _DROPS)
    moved = layout.apply(keys)
    block, notes = read_block(
        lambda found: _block({key: made.shape(found.__getitem__) for key, made in moved.made.items()}, home), keys,
        where, "EfficientNet", "B0 to B8 and L2")
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(), *notes),
                 translate=lambda found, model: layout.apply(found))


def _block(keys: Shapes, home: str) -> tuple[dict[str, Any], list[str]]:
    """Constructor arguments that shapes of our keys tell, and notes."""
    from jseg.models.backbones.efficientnet import VARIANTS, layer_sizes

    def found(layer: int) -> list[int]:
        blocks = sum(re.match(rf"layers\.{layer}\.\d+\.linear_conv\.conv", key) is not None for key in keys)
        return [keys[f"layers.{layer}.{i}.linear_conv.conv.weight"][0] for i in range(blocks)]

    def sizes(name: str) -> tuple:
        stem, layers, _ = layer_sizes(name)
        return stem, [[block[1] for block in layer] for layer in layers]

    wanted = keys["layers.0.conv.weight"][0], [found(layer) for layer in range(1, 6)]
    arch = next((name for name in VARIANTS if sizes(name) == wanted), None)
    if arch is None:
        raise ValueError(f"an EfficientNet with layers of {wanted[1]} channels")
    block: dict[str, Any] = {"type": "EfficientNet", "arch": arch, "out_indices": [2, 3, 4, 5]}
    large = arch in ("b5", "b6", "b7", "b8", "l2")
    if home == "mmpretrain":
        return block, []
    if home == "timm" and large and arch != "b5":
        return block, [_EVEN_NOTE]
    eps = 0.001 if home == "torchvision" and large else 1e-5
    return {**block, "conv_cfg": None, "norm_cfg": {"type": "BN", "eps": eps}}, [_TF_NOTE] if home == "timm" else []


def _rules(keys: Shapes, home: str) -> list[tuple[str, str]]:
    """From every module of the release to ours."""
    timm = home == "timm"
    moves = dict(zip(("conv_stem", "bn1", "conv_head", "bn2") if timm else
                     ("features.0.0", "features.0.1", "features.8.0", "features.8.1"),
                     ("layers.0.conv", "layers.0.bn", "layers.6.conv", "layers.6.bn")))
    pattern = r"(blocks\.(\d+)\.(\d+))\.conv_dw\." if timm else r"(features\.(\d+)\.(\d+))\.block\.0\.0\."
    blocks = sorted({(int(found[2]) - (not timm), int(found[3]), found[1]) for key in keys
                     if (found := re.match(pattern, key))})
    counts = [0] * 6
    for stage, _, prefix in blocks:
        if stage >= len(_LAYERS):
            continue  # `Layout` names what has no rule
        layer = _LAYERS[stage]
        name = f"layers.{layer}.{counts[layer]}"
        counts[layer] += 1
        moves.update(_timm_block(keys, prefix, name) if timm else _torchvision_block(keys, prefix, name))
    return [(rf"{re.escape(old)}\.{LEAF}", rf"{new}.\1") for old, new in moves.items()]


def _torchvision_block(keys: Shapes, prefix: str, name: str) -> dict[str, str]:
    """Modules of one block, in the order in which they run."""
    last = max(int(found[1]) for key in keys if (found := re.match(rf"{re.escape(prefix)}\.block\.(\d)\.", key)))
    parts = ("expand_conv", "depthwise_conv", "se", "linear_conv")[3 - last:]
    moves = {}
    for i, part in enumerate(parts):
        for theirs, ours in (("fc1", "conv1.conv"), ("fc2", "conv2.conv")) if part == "se" else (("0", "conv"),
                                                                                               ("1", "bn")):
            moves[f"{prefix}.block.{i}.{theirs}"] = f"{name}.{part}.{ours}"
    return moves


def _timm_block(keys: Shapes, prefix: str, name: str) -> dict[str, str]:
    """Modules of one block."""
    whole = f"{prefix}.conv_pwl.weight" in keys
    pairs = (("conv_pw", "expand_conv"), ("conv_dw", "depthwise_conv"), ("conv_pwl", "linear_conv")) if whole else (
        ("conv_dw", "depthwise_conv"), ("conv_pw", "linear_conv"))
    moves = {f"{prefix}.se.conv_reduce": f"{name}.se.conv1.conv", f"{prefix}.se.conv_expand": f"{name}.se.conv2.conv"}
    for i, (theirs, ours) in enumerate(pairs, 1):
        moves.update({f"{prefix}.{theirs}": f"{name}.{ours}.conv", f"{prefix}.bn{i}": f"{name}.{ours}.bn"})
    return moves
