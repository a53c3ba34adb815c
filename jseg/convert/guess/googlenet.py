"""GoogLeNet of torchvision (ImageNet), which carries no config.

Source: torchvision 0.29 torchvision/models/googlenet.py (BSD-3-Clause). All keys are ours as they stand; left out are
the classifier `fc` and the auxiliary ones `aux1` and `aux2`.

What no key shows: its pictures are scaled to -1 to 1 for each channel, which torchvision's network does itself
(`transform_input`).
"""

from __future__ import annotations

from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes, rgb_note
from jseg.convert.layout import CLASSIFIER, LEAF, Layout, without_prefix

__all__ = ["NEAREST", "guess", "recognise"]

NEAREST = "GoogLeNet backbone, ImageNet (torchvision)"
LAYOUT = Layout("a GoogLeNet", (
    (rf"(conv[123]|inception[345][a-e]\.branch[1-4](\.[01])?)\.(conv|bn)\.{LEAF}", r"\g<0>"),), (
    (r"fc\..*", CLASSIFIER), (r"aux[12]\..*", "an auxiliary ImageNet classifier, used in training only")))


def recognise(shapes: Shapes, meta: Mapping[str, Any]) -> bool:
    """Whether a GoogLeNet stands alone."""
    keys = without_prefix(shapes)
    return "inception3a.branch1.conv.weight" in keys and "inception5b.branch4.1.conv.weight" in keys and not any(
        key.startswith("decode_head.") for key in keys)


def guess(shapes: Shapes, *, numpy_values: bool, meta: Mapping[str, Any], where: str) -> Guess:
    """The backbone block of weights that `recognise` accepts."""
    return Guess(NEAREST, {"model": {"backbone": {"type": "GoogLeNet"}}}, backbone_only=True,
                 notes=(rgb_note((127.5,) * 3, (127.5,) * 3),), translate=lambda found, model: LAYOUT.apply(found))
