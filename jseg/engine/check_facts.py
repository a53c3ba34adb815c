"""Facts that several blocks of a config state: the value that means "ignore", and the channels of a picture. They must
agree.

A label that one block ignores and another trains on costs a run without a word, so every place that names one is
compared here.
"""

from __future__ import annotations

from typing import Any, Iterator, Mapping

from jseg.config import plain_datasets, stating_block
from jseg.engine.channels import COLOURS, model_channels, picture_channels
from jseg.rules import is_integer

__all__ = ["heads_of", "ignore_faults", "channel_faults"]

DEFAULT = 255  # of every block that names no value
# transform -> its label for pixels it makes up
_PADDING = {"RandomRotate": "seg_pad_val", "RandomMosaic": "seg_pad_val"}


def heads_of(model: Mapping) -> list[tuple[str, Any]]:
    """Every head block with its place: decode_head, then auxiliary_head; each a list, or a head around another, too."""
    heads = []
    for name in ("decode_head", "auxiliary_head"):
        block = model.get(name)
        if isinstance(block, (list, tuple)):
            heads += [(f"model.{name}.{i}", head) for i, head in enumerate(block)]
        elif block is not None:
            heads.append((f"model.{name}", block))
    blocks = []
    for place, head in heads:
        below, head = stating_block(head) if isinstance(head, Mapping) else ("", head)
        blocks.append((f"{place}{below}", head))
    return blocks


def ignore_faults(cfg: Mapping) -> list[str]:
    """Compare every value that means "ignore" with the decode head's.

    Compared are all heads, losses that name a label, the padding of data_preprocessor, datasets inside wrappers, and
    the transforms that make pixels up or count classes. A transform may name a class (black corners that are
    background); a value that is neither a class nor ignored is a fault, and so is a default that happens to be a class.
    """
    heads = [(place, head) for place, head in heads_of(cfg.get("model") or {}) if isinstance(head, Mapping)]
    if not heads:
        return []
    ignored, classes = heads[0][1].get("ignore_index", DEFAULT), heads[0][1].get("num_classes")
    classes = classes if is_integer(classes) else 0
    if not is_integer(ignored):
        return []  # said of its block
    said = f"{heads[0][0]}.ignore_index is {ignored}"
    faults = []
    if "ignore_index" not in heads[0][1] and classes > DEFAULT:
        faults.append(f"{heads[0][0]}.ignore_index: the default {DEFAULT} is one of the {classes} classes and would "
                      f"not be trained; set a "
                      f"value from {classes} on here, on the datasets and as data_preprocessor.seg_pad_val")
    for place, value, trained in _stated(cfg, heads):
        if is_integer(value) and value != ignored and not (trained == "class allowed" and 0 <= value < classes):
            faults.append(f"{place}: got {value}, but {said}: "
                          f"{trained if trained != 'class allowed' else 'these pixels'} would be trained on"
                          "; make them equal" + (f", or map the label away with label_map: {{{value}: {ignored}}} on "
                                                 f"the dataset"
                                                 if place.endswith("dataset.ignore_index") else ""))
    return faults


def _stated(cfg: Mapping, heads: list[tuple[str, Mapping]]) -> Iterator[tuple[str, Any, str]]:
    """(place, value, what is lost) of each statement; "class allowed" where a class may be meant."""
    for place, head in heads:
        yield f"{place}.ignore_index", head.get("ignore_index", DEFAULT), "its ignored pixels"
        losses = head.get("loss_decode")
        for i, loss in enumerate(losses if isinstance(losses, (list, tuple)) else [losses]):
            inner = f".{i}" if isinstance(losses, (list, tuple)) else ""
            for word in ("ignore_index", "ignore_label"):
                if isinstance(loss, Mapping) and loss.get(word) is not None:
                    yield f"{place}.loss_decode{inner}.{word}", loss[word], "class allowed"
    if isinstance(cfg.get("data_preprocessor"), Mapping):
        yield "data_preprocessor.seg_pad_val", cfg["data_preprocessor"].get("seg_pad_val", DEFAULT), "padding"
    for where, dataset in plain_datasets(cfg):
        yield from _stated_by_dataset(dataset, where)


def _stated_by_dataset(dataset: Mapping, where: str) -> Iterator[tuple[str, Any, str]]:
    yield f"{where}.ignore_index", dataset.get("ignore_index", DEFAULT), "ignored pixels"
    pipeline = dataset.get("pipeline")
    for i, step in enumerate(pipeline if isinstance(pipeline, (list, tuple)) else ()):
        kind, place = str(step.get("type")) if isinstance(step, Mapping) else "", f"{where}.pipeline.{i}"
        if kind in _PADDING:
            yield f"{place}.{_PADDING[kind]}", step.get(_PADDING[kind], DEFAULT), "class allowed"
        elif kind == "RandomCutOut" and step.get("seg_fill_in") is not None:
            yield f"{place}.seg_fill_in", step["seg_fill_in"], "class allowed"
        elif kind == "RandomCrop" and step.get("cat_max_ratio", 1.0) != 1.0:
            yield f"{place}.ignore_index", step.get("ignore_index", DEFAULT), "pixels it counts as a class"
        elif kind == "Pad":
            given = step.get("pad_val")
            named = given.get("seg", DEFAULT) if isinstance(given, Mapping) else DEFAULT
            yield f"{place}.pad_val.seg", named, "class allowed"


def channel_faults(cfg: Mapping) -> list[str]:
    """Pictures of other channels than the backbone takes, or than mean and std are given for."""
    model, preprocessor = cfg.get("model"), cfg.get("data_preprocessor")
    given = picture_channels(cfg)
    wanted = model_channels(model) if isinstance(model, Mapping) else None
    faults = []
    for place, count in given.items() or {"LoadImageFromFile": COLOURS}.items():
        if wanted is not None and count != wanted:
            cure = (f"set it to {count}" if place.endswith("channels") else
                    f"set {count} or leave it out (grey pictures are read three times, of more bands the first three), "
                    "or read all bands with LoadBands")
            faults.append(f"model.backbone.in_channels: got {wanted}, but {place} gives {count} channels; {cure}")
            break
    mean = preprocessor.get("mean") if isinstance(preprocessor, Mapping) else None
    odd = {place: count for place, count in given.items() if isinstance(mean, list) and count != len(mean)}
    for place, count in list(odd.items())[:1]:
        faults.append(f"data_preprocessor.mean: got {len(mean)} values, but {place} gives {count} channels; 'jseg data "
                      "stats CONFIG' computes mean and std")
    return faults
