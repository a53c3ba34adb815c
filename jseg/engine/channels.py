"""Channels of pictures: how many the data give and the model takes, and first convolutions for another number of them.

Which parameters see the picture is not a list of names: the model is built once more with one channel more, without
values, and the tensors that grow are those (`input_axes`), as for classes in `fine_tune`.
"""

from __future__ import annotations

import inspect
from typing import Any, Mapping

import numpy as np

from jseg.config import plain_datasets
from jseg.errors import JsegError
from jseg.layers.init import without_values
from jseg.models import build_model
from jseg.registry import MODELS
from jseg.rules import is_integer

__all__ = ["COLOURS", "FIRST_CONV", "adapted", "grown_axes", "input_axes", "model_channels", "picture_channels",
           "with_channels"]

FIRST_CONV = ("zero", "mean", "repeat")  # the words of `load_first_conv`; the first is the default
COLOURS = 3  # channels of what LoadImageFromFile gives


def picture_channels(cfg: Mapping) -> dict[str, int]:
    """Place of each step that reads pictures -> channels that it gives."""
    found = {}
    for where, dataset in plain_datasets(cfg):
        steps = dataset.get("pipeline")
        for i, step in enumerate(steps if isinstance(steps, list) else ()):
            kind, place = step.get("type") if isinstance(step, Mapping) else None, f"{where}.pipeline.{i}"
            if kind == "LoadBands" and is_integer(step.get("channels")):
                found[f"{place}.channels"] = step["channels"]
            elif kind == "LoadImageFromFile":
                found[place] = COLOURS
    return found


def model_channels(model: Mapping) -> int:
    """Channels of the pictures that a model block takes."""
    block = model.get("backbone")
    for part in (block, block.get("backbone_cfg")) if isinstance(block, Mapping) else ():
        if isinstance(part, Mapping) and is_integer(part.get("in_channels")):
            return part["in_channels"]
    return COLOURS


def with_channels(model: Mapping, count: int) -> dict:
    """A copy of a model block for pictures of `count` channels; as it is where its backbone takes no `in_channels`."""
    def changed(block: Any) -> Any:
        if not isinstance(block, Mapping) or block.get("type") not in MODELS:
            return block
        inner = {"backbone_cfg": changed(block["backbone_cfg"])} if "backbone_cfg" in block else {}
        takes = "in_channels" in inspect.signature(MODELS.get(block["type"]).__init__).parameters
        return {**block, **inner, **({"in_channels": count} if takes else {})}
    return {**model, "backbone": changed(model.get("backbone"))}


def grown_axes(first: Mapping, second: Mapping) -> dict[str, tuple[int, int]]:
    """Tensors that are one longer in the second of two model blocks, along one axis: name -> (axis, length in the
    first).

    None where one of them cannot be built.
    """
    state = np.random.get_state()
    try:
        with without_values():
            shapes = [{name: tuple(var.shape) for name, var in build_model(block).state_dict().items()}
                      for block in (first, second)]
    except (JsegError, TypeError):
        return {}
    finally:
        np.random.set_state(state)
    found = {}
    for name, shape in shapes[0].items():
        larger = shapes[1].get(name, shape)
        grown = [i for i, (a, b) in enumerate(zip(shape, larger)) if a != b]
        if len(shape) == len(larger) and len(grown) == 1 and larger[grown[0]] == shape[grown[0]] + 1:
            found[name] = (grown[0], shape[grown[0]])
    return found


def input_axes(model: Mapping) -> dict[str, int]:
    """The tensors that see the picture, name -> axis of its channels; those that see other maps too are left out."""
    count = model_channels(model)
    grown = grown_axes(with_channels(model, count), with_channels(model, count + 1))
    return {name: axis for name, (axis, length) in grown.items() if length == count}


def adapted(array: np.ndarray, axis: int, count: int, how: str) -> np.ndarray:
    """A convolution's weight for `count` channels of pictures.

    Args:
        array: trained with another number of channels, which lie along `axis`.
        how: "zero" keeps the channels that there are and begins further ones at zero, so that nothing changes at first;
            "repeat" takes them in turn, "mean" their mean for all; these two are scaled by old / new number, so that
            equal channels give what they gave.
    """
    old = np.moveaxis(np.asarray(array, np.float32), axis, 0)
    if how == "zero":
        new = np.zeros((count, *old.shape[1:]), np.float32)
        new[:len(old)] = old[:count]
    else:
        new = old[np.arange(count) % len(old)] if how == "repeat" else np.repeat(old.mean(0, keepdims=True), count, 0)
        new = new * np.float32(len(old) / count)
    return np.ascontiguousarray(np.moveaxis(new, 0, axis))
