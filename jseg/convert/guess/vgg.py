"""VGG of torchvision and mmpretrain (ImageNet), which carry no config.

    ours (mmpretrain's)        torchvision                    torchvision, with batch norm
    features.<n>.conv          features.<i>                   features.<i>
    features.<n>.bn                                           features.<i + 1>

Sources: torchvision 0.29 torchvision/models/vgg.py (BSD-3-Clause), mmpretrain 1.2 mmpretrain/models/backbones/vgg.py
(Apache-2.0). torchvision counts norms and activations too: its convolutions are taken in their order, a wider gap is a
pooling. The classifier is left out.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, read_block, rgb_note
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, without_prefix

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "VGG backbone, ImageNet (torchvision, mmpretrain)"
_DROPS = ((r"(classifier|head)\..*", CLASSIFIER),)
OURS = Layout("a VGG of mmpretrain", ((rf"features\.\d+\.(conv|bn)\.{LEAF}", r"\g<0>"),), _DROPS)


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a VGG stands alone."""
    keys = without_prefix(shapes)
    kernels = [shape for key, shape in keys.items() if re.fullmatch(r"features\.\d+(\.conv)?\.weight", key)
               and len(shape) == 4]
    return len(kernels) in (8, 10, 13, 16) and all(shape[2:] == (3, 3) for shape in kernels) and not any(
        key.startswith("decode_head.") for key in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts.

    Raises:
        ConvertError: keys are missing, or a network that is not here.
    """
    keys = without_prefix(shapes)
    moves = _moves(keys)
    block = read_block(lambda found: _block(found, moves), keys, where, "VGG", "depths 11, 13, 16 and 19")
    layout = OURS if "features.0.conv.weight" in keys else Layout("torchvision's VGG", [
        (rf"{re.escape(old)}\.{LEAF}", rf"{new}.\1") for old, new in moves.items()], _DROPS)
    return Guess(NEAREST, {"model": {"backbone": block}}, backbone_only=True, notes=(rgb_note(),),
                 translate=lambda found, model: layout.apply(found))


def _moves(keys: Shapes) -> dict[str, str]:
    """From every module of torchvision to ours."""
    places = sorted(int(found[1]) for key, shape in keys.items()
                    if (found := re.fullmatch(r"features\.(\d+)\.weight", key)) and len(shape) == 4)
    normed = f"features.{places[0] + 1}.running_mean" in keys if places else False
    moves, number, before = {}, 0, None
    for place in places:
        number += 0 if before is None else 1 if place - before == (3 if normed else 2) else 2
        moves[f"features.{place}"] = f"features.{number}.conv"
        moves.update({f"features.{place + 1}": f"features.{number}.bn"} if normed else {})
        before = place
    return moves


def _block(keys: Shapes, moves: Mapping[str, str]) -> dict[str, Any]:
    """Constructor arguments that keys tell."""
    from jseg.models.backbones.vgg import VGG
    names = moves.values() or [key[:-len(".weight")] for key in keys if key.endswith(".conv.weight")]
    places = sorted(int(name.split(".")[1]) for name in names if name.endswith(".conv"))
    counts, before = [], -2
    for place in places:
        counts = [*counts, 1] if place > before + 1 else [*counts[:-1], counts[-1] + 1]
        before = place
    depth = next((depth for depth, stages in VGG.DEPTHS.items() if stages == tuple(counts)), None)
    if depth is None:
        raise ValueError(f"a VGG with stages of {counts} convolutions")
    normed = any(key.endswith("running_mean") for key in keys)
    return {"type": "VGG", "depth": depth, "out_indices": [1, 2, 3, 4],
            **({"norm_cfg": {"type": "BN"}} if normed else {})}
