"""Start from trained weights of other classes: what belongs to a class goes to the class of the same name.

Which parameters belong to classes is not a list of names: the model is built once more with one class more, without
values, and the tensors that grow are those with one row per class (`class_axes`). So it holds for every model, for its
auxiliary heads and for heads with a row beyond the classes ("no object").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jseg.config import last_head
from jseg.engine.channels import FIRST_CONV, adapted, grown_axes, input_axes
from jseg.engine.checkpoint import load_into
from jseg.engine.own_model import with_classes

__all__ = ["Axis", "class_axes", "match_classes", "start_from"]


class Axis(NamedTuple):
    """Where the rows of classes lie: the axis, and how many further rows follow them."""

    axis: int
    further: int


def class_axes(model_cfg: Mapping) -> dict[str, Axis]:
    """The tensors of a model that have one row per class: name -> where.

    Args:
        model_cfg: the model block of a config. A model that cannot be built with another number of classes has none.
    """
    count = last_head(model_cfg).get("num_classes")
    grown = grown_axes(*(with_classes(model_cfg, n) for n in (count, count + 1)))
    return {name: Axis(axis, length - count) for name, (axis, length) in grown.items()}


def match_classes(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """New class -> old class of the same name; case, spaces, hyphens and underscores do not count where no name is
    exactly the same."""
    loose = {_plain(name): number for number, name in reversed(list(enumerate(old)))}
    exact = {name: number for number, name in reversed(list(enumerate(old)))}
    found = {number: exact.get(name, loose.get(_plain(name))) for number, name in enumerate(new)}
    return {number: partner for number, partner in found.items() if partner is not None}


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char not in " -_")


def start_from(model, model_cfg: Mapping, classes: Sequence[str], state: Mapping[str, np.ndarray],
               old_classes: Sequence[str] | None, *, source: str, first_conv: str = FIRST_CONV[0]) -> str:
    """Load what fits, row by row where classes differ; first convolutions are made to fit the pictures' channels.

    Args:
        model: its own values stay where the file has none.
        model_cfg: its block.
        classes: of the run.
        state: name -> array of the file.
        old_classes: names of the file's classes; None where it names none: equal numbers are then taken in order.
        source: the file, for messages.
        first_conv: how, see `channels.adapted`.
    Returns:
        the account: classes, each tensor with rows of classes, and every key without a partner.
    Raises:
        CheckpointError: nothing fits.
    """
    own, taken, lines = model.state_dict(), dict(state), []
    axes = {name: axis for name, axis in class_axes(model_cfg).items() if name in state}
    same = old_classes is not None and list(old_classes) == list(classes)
    pairs = match_classes(old_classes, classes) if old_classes else {}
    for name, (axis, further) in axes.items() if not same else ():
        array, shape = np.asarray(state[name]), tuple(own[name].shape)
        count = array.shape[axis] - further if array.ndim == len(shape) else -1
        rest = all(a == b for i, (a, b) in enumerate(zip(array.shape, shape)) if i != axis)
        if not rest or (count != len(old_classes) if old_classes else count != len(classes)):
            continue  # told as a tensor of another shape
        rows = pairs if old_classes else {number: number for number in range(count)}
        taken[name] = _rows(array, own[name].numpy(), axis, rows, count, len(classes), further)
        lines.append(f"  {name} {array.shape} -> {shape}: {len(rows)} rows taken, {len(classes) - len(rows)} new")
    lines += _fit_pictures(taken, own, model_cfg, first_conv)
    report = load_into(model, taken, strict=False, source=source)
    return "\n".join([f"{source}: {_about_classes(classes, old_classes, pairs, same, bool(axes))}", *lines,
                      f"  keys: {report.text()}"])


def _fit_pictures(taken: dict, own: Mapping, model_cfg: Mapping, first_conv: str) -> list[str]:
    """Change the weights in `taken` that were trained on another number of channels; a line for each."""
    differ = [name for name in taken if name in own and tuple(np.shape(taken[name])) != tuple(own[name].shape)]
    lines = []
    for name, axis in (input_axes(model_cfg) if differ else {}).items():
        old, shape = np.shape(taken.get(name, ())), tuple(own[name].shape)
        if name in differ and len(old) == len(shape) and all(a == b for i, (a, b) in enumerate(zip(old, shape))
                                                             if i != axis):
            taken[name] = adapted(taken[name], axis, shape[axis], first_conv)
            lines.append(f"  {name} {old} -> {shape}: {old[axis]} channels for {shape[axis]}, load_first_conv: "
                         f"{first_conv}")
    return lines


def _rows(old: np.ndarray, new: np.ndarray, axis: int, rows: Mapping[int, int], old_count: int, count: int,
          further: int) -> np.ndarray:
    """The new tensor with the rows of the old one that `rows` names, and those beyond the classes."""
    old, result = np.moveaxis(old.astype(np.float32), axis, 0), np.moveaxis(np.array(new, np.float32), axis, 0)
    for target, origin in rows.items():
        result[target] = old[origin]
    result[count:count + further] = old[old_count:old_count + further]
    return np.moveaxis(result, 0, axis)


def _about_classes(classes: Sequence[str], old: Sequence[str] | None, pairs: Mapping[int, int], same: bool,
                   has_heads: bool) -> str:
    if same:
        return f"weights of the same {len(classes)} classes"
    if not has_heads:
        return "weights without rows of classes; the head starts new"
    if not old:
        return "weights that name no classes; where their number is the same, they are taken in order"
    new = [name for number, name in enumerate(classes) if number not in pairs]
    left = [name for number, name in enumerate(old) if number not in pairs.values()]
    words = [f"weights of {len(old)} classes for {len(classes)}"]
    words += [f"by name: {_listed([classes[number] for number in pairs])}"] if pairs else ["no name agrees"]
    words += [f"new: {_listed(new)}"] if new else []
    words += [f"not used: {_listed(left)}"] if left else []
    return "; ".join(words)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
