"""A complete, commented config for a user's own pictures, as text (`jseg init` writes it)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

from jseg.config import find_base, last_head, load_config, merge
from jseg.data.own.gather import OwnData
from jseg.data.own.recipe import Sizes, class_weights, length_of_run
from jseg.engine.own_model import OwnModel, changes, with_classes
from jseg.yaml_reader import parse_yaml

__all__ = ["OwnRun", "own_config_text"]

_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # ImageNet's, RGB, 0 to 255
_PLAIN = re.compile(r"[A-Za-z_](?:[\w /.()-]*[\w.)])?$")


@dataclass
class OwnRun:
    """What to train and how.

    Attributes:
        model: as it is published; its classes are changed here.
        weights: a file to start from; "" for none.
        sizes: of pictures and crops.
        batch_size: a number, or "auto".
        iters: length; None for one that fits the pictures.
        balance: whether the loss is weighted by class.
        seed: of the run.
        normalise: mean and std of the weights, where they are not ImageNet's.
        command: that wrote it.
        path: of the config, as the user types it.
        stretch: whether 16-bit pictures are stretched to their largest sample.
    """

    model: OwnModel
    weights: str
    sizes: Sizes
    batch_size: int | str
    iters: int | None
    balance: bool
    seed: int
    command: str
    path: str
    stretch: bool = False
    normalise: Mapping[str, Any] = field(default_factory=dict)


def own_config_text(data: OwnData, run: OwnRun) -> str:
    """The whole file."""
    count = len(data.labels.names)
    name = re.sub(r"\.ya?ml$", "", run.path.rpartition("/")[2])
    head = [f"# {run.model.title} on {data.count[0]} pictures, {count} classes.  jseg train {run.path}",
            f"# Written by: {run.command}",
            f"# Every line may be changed: `jseg check {run.path}` names each mistake with the nearest valid word,",
            f"# `jseg config {run.path}` prints all that is inherited, `jseg browse {run.path}` draws what the model "
            "is shown.", ""]
    parts = (head, _model_lines(data, run), _preprocessor_lines(run), _train_lines(data, run),
             _val_lines(data, run), _schedule_lines(data, run), [f"work_dir: runs/{name}", ""])
    return "\n".join(line for part in parts for line in part)


# --- YAML of single values -------------------------------------------------------------------------------------------
def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.match(value) and parse_yaml(value, "name") == value else json.dumps(
            value, ensure_ascii=False)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _block(value: Mapping, indent: int, width: int = 118) -> list[str]:
    """A block on lines of its own; what fits stays on one line."""
    lines = []
    for key, item in value.items():
        flat = " " * indent + f"{_flow(key)}: {_flow(item)}"
        if len(flat) <= width or not isinstance(item, (Mapping, list)):
            lines.append(flat)
        elif isinstance(item, Mapping):
            lines += [" " * indent + f"{_flow(key)}:", *_block(item, indent + 2)]
        else:
            lines += [" " * indent + f"{_flow(key)}:", *_items(item, indent + 2, width)]
    return lines


def _items(values: Sequence, indent: int, width: int) -> list[str]:
    if not all(isinstance(value, Mapping) for value in values):
        lines, line = [], ""
        for i, value in enumerate(values):  # a long list of numbers over several lines
            word = _flow(value) + ("," if i < len(values) - 1 else "]")
            if line and indent + len(line) + len(word) > width - 2:
                lines.append(line)
                line = ""
            line += ("" if not line else " ") + word
        lines.append(line)
        return [" " * indent + ("[" if i == 0 else " ") + line for i, line in enumerate(lines)]
    lines = []
    for value in values:
        inner = _block(value, indent + 2, width)
        lines += [" " * indent + "- " + inner[0].lstrip(), *inner[1:]]
    return lines


# --- parts of the file -----------------------------------------------------------------------------------------------
def _model_lines(data: OwnData, run: OwnRun) -> list[str]:
    count = len(data.labels.names)
    model = with_classes(run.model.block, count)
    weights = class_weights(data.pixels)
    loss = last_head(model).get("loss_decode")
    balanced = isinstance(model.get("decode_head"), Mapping) and isinstance(loss, Mapping) and loss.get(
        "type") == "CrossEntropyLoss" and "kernel_generate_head" not in model["decode_head"]
    note = []
    if run.balance and balanced:
        model = merge(model, {"decode_head": {"loss_decode": {"class_weight": weights, "avg_non_ignore": True}}})
    elif balanced:
        note = ["  # Some classes are rare? This line lets them count for more (jseg init --balance writes it):",
                f"  # decode_head: {{num_classes: {count}, loss_decode: {{class_weight: {_flow(weights)}}}}}"]
        note = note if len(note[1]) <= 120 else [note[0], f"  # decode_head: {{num_classes: {count}, loss_decode:",
                                                 *_comment_list("  #   {class_weight: ", weights, "}}")]
    if run.model.base:
        lines = [f"_base_: {run.model.base}   # jseg's own block of this name, from any folder", "model:",
                 *_block(changes(load_config(find_base(run.model.base, run.path))["model"], model), 2)]
    else:
        lines = [f"model:   # {run.model.title}", *_block(model, 2)]
    return [*lines, *note]


def _comment_list(begin: str, values: Sequence[float], end: str) -> list[str]:
    lines, line = [], begin + "["
    for i, value in enumerate(values):
        word = f"{value}" + (", " if i < len(values) - 1 else "]" + end)
        if len(line) + len(word) > 118:
            lines.append(line.rstrip())
            line = "  #     "
        line += word
    return [*lines, line]


def _preprocessor_lines(run: OwnRun) -> list[str]:
    source = "those the weights were trained with" if run.normalise else "ImageNet's, RGB, of 0 to 255"
    return ["data_preprocessor:", "  type: SegDataPreProcessor",
            f"  mean: {_flow(list(run.normalise.get('mean', _MEAN)))}   # {source}",
            f"  std: {_flow(list(run.normalise.get('std', _STD)))}",
            f"  bgr_to_rgb: {_flow(run.normalise.get('bgr_to_rgb', True))}",
            f"  size: {_flow(list(run.sizes.crop))}   # height, width of a training crop, in pixels",
            "  pad_val: 0", "  seg_pad_val: 255", "  test_cfg: {size_divisor: 32}"]


def _load_step(run: OwnRun) -> str:
    return "{type: LoadImageFromFile, scale: max}   # 16-bit samples stretched" if run.stretch else (
        "{type: LoadImageFromFile}")


def _train_lines(data: OwnData, run: OwnRun) -> list[str]:
    return ["train_dataloader:",
            f"  batch_size: {run.batch_size}   # pictures per step; auto: as many as memory allows, measured",
            "  num_workers: 2", "  dataset: &pictures", "    type: FolderDataset",
            *_block({**data.block, **data.train}, 4),
            *_class_lines(data),
            *([f"    # {data.comment}"] if data.comment else []),
            "    pipeline:",
            f"      - {_load_step(run)}",
            "      - {type: LoadAnnotations}",
            f"      - {{type: RandomResize, scale: {_flow(list(run.sizes.scale))}, ratio_range: [0.75, 1.5], "
            "keep_ratio: true}",
            f"      - {{type: RandomCrop, crop_size: {_flow(list(run.sizes.crop))}, cat_max_ratio: 0.75}}",
            "      - {type: RandomFlip, prob: 0.5}   # take it out where left and right differ (text, organs)",
            "      - {type: PhotoMetricDistortion}",
            "      - {type: PackSegInputs}"]


def _class_lines(data: OwnData) -> list[str]:
    labels, total = data.labels, max(sum(data.pixels), 1)
    made = "; made-up names: write your own here" if labels.made_up else f"; names from {labels.source}"
    lines = ["    metainfo:", f"      classes:   # share of the labelled pixels, pictures that hold it{made}"]
    names = [f"        - {_flow(name)}" for name in labels.names]
    width = max(map(len, names)) + 3
    lines += [f"{name:<{width}}# {100 * pixels / total:6.2f} %, {pictures} pictures"
              for name, pixels, pictures in zip(names, data.pixels, data.pictures)]
    colours = [list(colour) for colour in labels.colours]
    return [*lines, *_block({"palette": colours}, 6)]


def _val_lines(data: OwnData, run: OwnRun) -> list[str]:
    resize = [f"      - {{type: Resize, scale: {_flow(list(run.sizes.scale))}, keep_ratio: true}}   # masks keep their "
              "size"] if run.sizes.resized else []
    return ["val_dataloader:", "  batch_size: 1", "  num_workers: 2", "  dataset:", "    <<: *pictures",
            *_block(data.val, 4), "    pipeline:", f"      - {_load_step(run)}", *resize,
            "      - {type: LoadAnnotations}", "      - {type: PackSegInputs}"]


def _schedule_lines(data: OwnData, run: OwnRun) -> list[str]:
    pictures = data.count[1]
    batch = run.batch_size if isinstance(run.batch_size, int) else min(8, pictures)
    iters, interval = length_of_run(pictures, batch)
    if run.iters is not None:
        iters, interval = run.iters, max(1, -(-run.iters // 6))
    warm = min(100, max(1, iters // 10))
    start = (f"load_from: {_flow(run.weights)}" if run.weights else
             "load_from: null   # weights to start from: jseg train ... --weights NAME_OR_FILE")
    return ["optimizer: {type: AdamW, lr: 2.0e-4, betas: [0.9, 0.999], weight_decay: 0.01}",
            "paramwise_cfg:", "  custom_keys:", "    norm: {decay_mult: 0.0}",
            "    head: {lr_mult: 5.0}   # the head is new, the backbone is not",
            "param_scheduler:",
            f"  - {{type: LinearLR, start_factor: 0.01, by_epoch: false, begin: 0, end: {warm}}}",
            f"  - {{type: PolyLR, power: 0.9, eta_min: 1.0e-6, by_epoch: false, begin: {warm}}}",
            "train_cfg:", f"  max_iters: {iters}   # {iters * batch / max(pictures, 1):.0f} passes over {pictures} "
            "pictures", f"  val_interval: {interval}", f"  ckpt_interval: {max(1, min(interval, 250))}",
            "  log_interval: 10", "  save_best: mIoU",
            "  # early_stop: {patience: 3}   # end after 3 evaluations without a better score",
            "evaluator: {metrics: [mIoU, mDice, mFscore]}",
            "tta: {scales: [0.75, 1.0, 1.25], flip: true}",
            f"seed: {run.seed}", start]
