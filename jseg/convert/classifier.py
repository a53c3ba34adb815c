"""Classifiers of other libraries for `ImageClassifier`: the backbone as its guesser moves it, and the layer to classes.

    ours              mmpretrain        torchvision, timm                    the authors
    head.fc           head.fc           fc, head.fc, classifier.2            head
    backbone.norm<i>  backbone.norm<i>  norm, head.norm, classifier.0        norm      the norm before the mean (Swin)
                                                                                       or behind it (ConvNeXt)

What a guesser leaves out as the classifier's, a config with `model.type: ImageClassifier` gets. A layer for another
number of classes is left out, and the head starts new.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Mapping

from jseg.convert.guess import Guess, Shapes
from jseg.convert.layout import Moved
from jseg.convert.pickle_data import brief
from jseg.errors import ConvertError
from jseg.models.made import Made

__all__ = ["classifier_guess", "classifier_model"]

_HEAD = re.compile(r"(?:fc|head|head\.fc|head\.layers\.head|classifier\.2)\.(weight|bias)")
_NORM = re.compile(r"norm\.(weight|bias)")


def classifier_model(found: Guess, model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The model block of a classifier that these weights are of.

    Raises:
        ConvertError: its backbone is of another kind.
    """
    targets = found.targets or (found.config["model"]["backbone"]["type"],)
    kind = (model.get("backbone") or {}).get("type")
    if kind not in targets:
        raise ConvertError(f"{where}: weights of {found.release}, which fit {' or '.join(targets)}; the config's "
                           f"backbone is {brief(kind)}. Give the right weights or config")
    return dict(model)


def classifier_guess(found: Guess) -> Guess:
    """The guess of a backbone's weights, for the whole classifier."""
    return dataclasses.replace(found, backbone_only=False,
                               translate=lambda shapes, model: _moved_keys(found, shapes, model))


def _moved_keys(found: Guess, shapes: Shapes, model: Mapping[str, Any]) -> Moved:
    """Where each key goes in a classifier."""
    heads = {match[1]: key for key in shapes if (match := _HEAD.fullmatch(key))}
    norms = {match[1]: key for key in shapes if model["backbone"]["type"] == "SwinTransformer"
             and (match := _NORM.fullmatch(key))}
    taken = {*heads.values(), *norms.values()}
    rest = {key: shape for key, shape in shapes.items() if key not in taken}
    moved = found.translate(rest, model) if found.translate is not None else _named_keys(rest, model)
    made = {f"backbone.{key}": value for key, value in moved.made.items()}
    absent = {f"backbone.{start}": why for start, why in moved.absent.items()}
    last = max(model["backbone"].get("out_indices") or [3]) if norms else None
    made.update({f"backbone.norm{last}.{leaf}": Made((key,)) for leaf, key in norms.items()})
    dropped = dict(moved.dropped)
    wanted = (model["head"]["num_classes"], model["head"]["in_channels"])
    shape = tuple(shapes[heads["weight"]]) if "weight" in heads else None
    if shape == wanted:
        made.update({f"head.fc.{leaf}": Made((key,)) for leaf, key in heads.items()})
    else:
        why = ("the file has no layer to classes" if shape is None
               else f"a layer of {shape[0]} classes and {shape[-1]} channels; the config's has {wanted[0]} and "
                    f"{wanted[1]}")
        dropped.update(dict.fromkeys(heads.values(), why))
        absent["head."] = why
    return Moved(made, dropped, absent)


def _named_keys(shapes: Shapes, model: Mapping[str, Any]) -> Moved:
    """Keys that are ours but for what the backbone's class renames; without `backbone.`."""
    from jseg.models import remap_keys
    names = {f"backbone.{key.removeprefix('backbone.')}": key for key in shapes}
    renamed = remap_keys(names, {"model": model})
    return Moved({key.removeprefix("backbone."): Made.of(value) for key, value in renamed.items()}, {})
