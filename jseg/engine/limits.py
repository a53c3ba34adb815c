"""Numbers that no config means: one table of what each key may be, far beyond use and far below harm.

A number here is refused before anything is built from it: a thousand million classes, a window that moves by one pixel,
a hundred thousand worker processes would take a machine's memory or days without a word. `jseg check` says so of a
config file, and every reader of a checkpoint of the config inside it, which opens no file either (`without_files`).
What is wrong in other ways (a type, a name, two blocks that do not fit) is for `engine.check`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Range", "RANGES", "absurd", "model_values", "without_files"]


class Range(NamedTuple):
    """What a number may be, both ends included, and why not more."""

    low: float
    high: float
    reason: str


_SIDE = "a side in pixels; 65536 is beyond any picture that is decoded"
_BOUND = "a side in pixels, or a bound on one"
_WIDTH = "channels; published networks stay below 4096"
_STEPS = "steps; at a millisecond each that is eleven days"
_RATE = "a rate or factor of training; the largest in use are near 1"
_LABEL = "a label; labels are stored in 16 bits, and -100 and 255 are the usual marks to ignore"
_DIVISOR = "a multiple in pixels; networks need 32 or 64"

# section of the config -> key -> range; "" is every other number of the section. Values of lists are judged one by one.
RANGES: dict[str, dict[str, Range]] = {
    "model": {
        "num_classes": Range(1, 65_535, "label maps hold 16 bits"),
        "embed_dims": Range(1, 8192, _WIDTH), "channels": Range(1, 16_384, _WIDTH),
        "ham_channels": Range(1, 16_384, _WIDTH),
        "in_channels": Range(1, 65_536, _WIDTH),
        "depths": Range(0, 1000, "blocks of a stage; SegNeXt-L has 27"),
        "num_stages": Range(1, 64, "stages; SegNeXt has 4"),
        "mlp_ratios": Range(0, 64, "width over width; SegNeXt has 8"),
        "in_index": Range(-64, 63, "a map of the backbone, which has one per stage"),
        "attention_kernel_sizes": Range(1, 255, "a kernel's side; SegNeXt's longest is 21"),
        "attention_kernel_paddings": Range(0, 127, "half a kernel's side"),
        "MD_R": Range(1, 4096, "bases; SegNeXt has 16 or 64"),
        "MD_S": Range(1, 1024, "parts of the channels; SegNeXt has 1"),
        "MD_D": Range(1, 65_536, _WIDTH),
        "train_steps": Range(1, 1000, "steps of the factorisation; SegNeXt has 6"),
        "eval_steps": Range(1, 1000, "steps of the factorisation; SegNeXt has 7"),
        "num_groups": Range(1, 16_384, "groups of channels"),
        "ignore_index": Range(-(1 << 31), (1 << 31) - 1, _LABEL),
        "crop_size": Range(1, 65_536, _SIDE), "stride": Range(1, 65_536, _SIDE),
        "": Range(-1e9, 1e9, "no number of a model is larger"),
    },
    "data_preprocessor": {
        "size": Range(1, 65_536, _SIDE), "size_divisor": Range(1, 8192, _DIVISOR),
        "resize_divisor": Range(1, 8192, _DIVISOR),
        "": Range(-1e9, 1e9, "pictures hold values from 0 to 255"),
    },
    "dataloader": {
        "batch_size": Range(1, 65_536, "pictures per step and process"),
        "num_workers": Range(0, 512, "processes; more than a machine's cores gain nothing"),
        "workers": Range(0, 512, "processes; more than a machine's cores gain nothing"),
        "times": Range(1, 1_000_000, "repetitions of a data set"),
        "crop_size": Range(1, 65_536, _SIDE), "size": Range(1, 65_536, _SIDE), "img_scale": Range(1, 65_536, _SIDE),
        "scale": Range(-1, 1 << 31, _BOUND), "scales": Range(1, 1 << 31, _BOUND), "max_size": Range(1, 1 << 31, _BOUND),
        "shortest_edge": Range(1, 65_536, _SIDE), "longest_edge": Range(1, 1 << 31, _BOUND),
        "multiple_of": Range(1, 8192, _DIVISOR),
        "cutout_shape": Range(1, 65_536, _SIDE), "size_divisor": Range(1, 8192, _DIVISOR),
        "ratio_range": Range(0, 64, "a scale of pictures"), "scale_factor": Range(0, 64, "a scale of pictures"),
        "n_holes": Range(0, 10_000, "holes in one picture"), "tile_grid_size": Range(1, 1024, "tiles of a side"),
        "": Range(-1e12, 1e12, "no number of a data set or transform is larger"),
    },
    "optimizer": {"": Range(-1e6, 1e6, _RATE)},
    "paramwise_cfg": {"": Range(-1e6, 1e6, _RATE)},
    "param_scheduler": {"": Range(-1e9, 1e9, _STEPS)},
    "train_cfg": {
        "max_epochs": Range(1, 1_000_000, "passes over the data"),
        "accumulative_counts": Range(1, 65_536, "batches per step"),
        "keep": Range(1, 1_000_000, "states on the disk"), "max_norm": Range(0, 1e30, "a norm of gradients"),
        "stall_seconds": Range(0, 1e8, "seconds; that is three years"),
        "": Range(-1e9, 1e9, _STEPS),
    },
    "tta": {"scales": Range(1 / 64, 16, "a scale of pictures; usual are 0.5 to 1.75")},
    "evaluator": {"": Range(0, 1e6, "a weight of a score")},
    "seed": {"": Range(0, (1 << 64) - 1, "seeds have 64 bits")},
    "": {"": Range(-1e30, 1e30, "no setting is larger")},
}
MAX_OVERLAP = 16            # windows over one pixel along an axis: usual are 1.5 to 3
MIN_STRIDE_PX = 8           # a picture of 2 million pixels then has 30 thousand windows
MAX_SCALES = 64             # of test-time augmentation: each is two passes over the picture
MAX_STEP_PIXELS = 1 << 33   # of one batch: the input alone is 96 GiB
MAX_BLOCKS = 2000           # of a backbone: SegNeXt-L has 38
MAX_MODEL_VALUES = 4 << 30  # parameters: 16 GiB, 80 times SegNeXt-L
MAX_NODES, MAX_DEPTH, MAX_TEXT, MAX_ITEMS = 200_000, 64, 100_000, 65_536  # of a whole config, one text, one list


def absurd(config: Mapping) -> list[str]:
    """List the values of a config that nobody can mean: key, value, accepted range, reason.

    Args:
        config: a whole config, or what a checkpoint carries as one. Values of wrong types are passed over.
    Returns:
        one line each, at most 20; an empty list when every number can be meant.
    """
    faults: list[str] = []
    for place, section, key, value in _leaves(config, faults):
        rules = RANGES.get(section, RANGES[""])
        rule = rules.get(key) or rules.get("") or RANGES[""][""]
        if _beyond(value, rule, section):
            faults.append(f"{place}: got {_shown(value)}, accepted {_shown(rule.low)} to {_shown(rule.high)} "
                          f"({rule.reason})")
        if len(faults) >= 20:
            break
    if not faults:  # the products are of numbers that are sound by themselves
        faults += _windows(config) + _views(config) + _batches(config) + _size(config)
    return faults[:20]


def _beyond(value: float, rule: Range, section: str) -> bool:
    """Whether nobody can mean a number: too large, or endless where none may be. One a little too small is a mistake
    for `engine.check` to tell."""
    if isinstance(value, float) and not math.isfinite(value):
        return section != "dataloader"  # a resize may be bounded by infinity along one side
    return value > rule.high or value < min(rule.low, -rule.high)


def _leaves(config: Mapping, faults: list[str]) -> Iterator[tuple[str, str, str, float]]:
    """(place, section, key, value) of each number; a config that is too large or too deep is told in `faults`."""
    todo = [(name, _section(str(name)), str(name), value, 1) for name, value in reversed(list(config.items()))]
    left = MAX_NODES - len(todo)
    while todo:
        place, section, key, value, depth = todo.pop()
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield str(place), section, key, value
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            faults.append(f"{place}: got a text of {len(value)} characters, accepted are {MAX_TEXT}")
        elif isinstance(value, (Mapping, list, tuple)):
            left -= len(value)
            if len(value) > MAX_ITEMS or left < 0 or depth >= MAX_DEPTH:
                faults.append(f"{place}: the config grows too large here: accepted are {MAX_ITEMS} values in a block "
                              f"or list, {MAX_NODES} in all, {MAX_DEPTH} levels")
                return
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            named = isinstance(value, Mapping)
            todo += [(f"{place}.{name}"[:300], section, str(name) if named else key, item, depth + 1)
                     for name, item in reversed(list(inner))]


def _section(name: str) -> str:
    return "dataloader" if name in ("train_dataloader", "val_dataloader", "test_dataloader") else name


def _shown(value: float) -> str:
    """A number in a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e9 else f"{value:g}"


def _block(value: Any, *keys: str) -> Mapping:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _integers(value: Any) -> list[int]:
    """The whole numbers of a value, which may be one or a list."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _windows(config: Mapping) -> list[str]:
    test = _block(config, "model", "test_cfg")
    crop, stride = _integers(test.get("crop_size")), _integers(test.get("stride"))
    if test.get("mode") != "slide" and not (crop and stride):
        return []
    faults = []
    for side, step in zip(crop, stride):
        least = max(-(-side // MAX_OVERLAP), MIN_STRIDE_PX)
        if 0 < step < least:
            faults.append(f"model.test_cfg.stride: got {step} with a crop_size of {side}, accepted {least} to "
                          f"{max(side, least)} (so many windows would take days; usual is two thirds of the crop)")
    return faults[:1]


def _views(config: Mapping) -> list[str]:
    scales = _block(config, "tta").get("scales")
    count = len(scales) if isinstance(scales, (list, tuple)) else 0
    if count <= MAX_SCALES:
        return []
    return [f"tta.scales: got {count} scales, accepted 1 to {MAX_SCALES} (each is a pass or two over every picture)"]


def _batches(config: Mapping) -> list[str]:
    size = _integers(_block(config, "data_preprocessor").get("size"))
    faults = []
    for name in ("train_dataloader", "val_dataloader", "test_dataloader") if len(size) == 2 else ():
        count = _integers(_block(config, name).get("batch_size"))
        if count and count[0] * math.prod(size) > MAX_STEP_PIXELS:
            faults.append(f"{name}.batch_size: got {count[0]} pictures of {size[0]} x {size[1]} pixels, accepted are "
                          f"{MAX_STEP_PIXELS} pixels per step (96 GiB of input)")
    return faults


def _size(config: Mapping) -> list[str]:
    depths = sum(_integers(_block(config, "model", "backbone").get("depths")))
    if depths > MAX_BLOCKS:
        return [f"model.backbone.depths: got {depths} blocks in all, accepted are {MAX_BLOCKS} (SegNeXt-L has 38)"]
    count = model_values(config)
    if count > MAX_MODEL_VALUES:
        return [f"model: its widths and depths make about {count:.2g} parameters, accepted are {MAX_MODEL_VALUES:.2g} "
                "(16 GiB; SegNeXt-L has 4.9e+07)"]
    return []


def model_values(config: Mapping) -> int:
    """About how many parameters the model of a config has, from its numbers alone; 0 for parts of unknown kinds.

    MSCAN and LightHamHead are known: their large matrices are counted, nine tenths of their parameters or more.
    """
    backbone, head = _block(config, "model", "backbone"), _block(config, "model", "decode_head")
    widths, depths = _integers(backbone.get("embed_dims")), _integers(backbone.get("depths"))
    ratios = backbone.get("mlp_ratios")
    ratios = [v for v in ratios if isinstance(v, (int, float))] if isinstance(ratios, (list, tuple)) else []
    count, before = 0, 3
    for stage, width in enumerate(widths):
        blocks = depths[stage] if stage < len(depths) else 1
        ratio = ratios[stage] if stage < len(ratios) else 4
        count += 9 * before * width + int(blocks * (3 + 2 * ratio) * width * width)
        before = width
    sides = [(_integers(head.get(key)) or [0])[0] for key in ("ham_channels", "channels", "num_classes")]
    return count + sides[0] * (sum(_integers(head.get("in_channels"))) + 2 * sides[0] + sides[1]) + sides[1] * sides[2]


def without_files(block: Any) -> Any:
    """A copy of a model block in which no constructor finds a file to open.

    Losses take `class_weight` as the name of a .npy or .json file; inference computes no loss, so the name is dropped.
    A run that was trained with such a file keeps its name, and may have moved to another machine.
    """
    if isinstance(block, dict):
        return {key: None if key == "class_weight" and isinstance(value, str) else without_files(value)
                for key, value in block.items()}
    return [without_files(item) for item in block] if isinstance(block, list) else block
