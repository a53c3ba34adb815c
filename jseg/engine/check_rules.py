"""What the plain values of a config may be: one table a block, and the types that constructors ask for."""

from __future__ import annotations

import inspect
import math
from typing import Any, Callable, Mapping, NamedTuple

from jseg.metrics import METRICS
from jseg.registry import accepted, nearest

__all__ = ["Rule", "fields", "known_fields", "wrong_types", "is_integer", "is_number", "is_pair", "SCORES",
           "TOP_LEVEL", "TRAIN_CFG", "CLIP", "EARLY_STOP", "EMA", "TEST_CFG", "PADDING", "PREPROCESSOR", "LOADER",
           "DATA_PREFIX", "OPTIMIZER", "PARAMWISE", "MULTIPLIERS",
           "EVALUATOR", "BOUNDARY", "TTA"]


class Rule(NamedTuple):
    """One value's test and the words for what it accepts."""

    accepts: Callable[[Any], bool]
    text: str
    optional: bool = True  # null is allowed


def is_integer(value: Any) -> bool:
    """A whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """A finite number."""
    return is_integer(value) or isinstance(value, float) and math.isfinite(value)


def is_pair(value: Any) -> bool:
    """Two whole numbers above 0."""
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_integer(v) and v > 0 for v in value)


def _list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and len(value) > 0 and all(test(v) for v in value)


_MAPPING = Rule(lambda v: isinstance(v, Mapping), "a block of keys")
_COUNT = Rule(lambda v: is_integer(v) and v > 0, "a whole number above 0 (written without a point or exponent)")
_COUNT_OR_0 = Rule(lambda v: is_integer(v) and v >= 0, "a whole number, 0 or more", optional=False)
_NEEDED_COUNT = _COUNT._replace(optional=False)
_FLAG = Rule(lambda v: isinstance(v, bool), "true or false", optional=False)
_TEXT = Rule(lambda v: isinstance(v, str), "text")
_FACTOR = Rule(lambda v: is_number(v) and v >= 0, "a number, 0 or more", optional=False)
_POSITIVE = Rule(lambda v: is_number(v) and v > 0, "a number above 0", optional=False)
_FRACTION = Rule(lambda v: is_number(v) and 0 < v < 1, "a number between 0 and 1", optional=False)
_SIZE = Rule(is_pair, "two whole numbers above 0: [height, width] in pixels")
SCORES = ("aAcc", *dict.fromkeys(f"m{part}" for parts in METRICS.values() for part in parts), "mBoundaryIoU")

TOP_LEVEL = {
    "model": _MAPPING, "data_preprocessor": _MAPPING, "train_dataloader": _MAPPING, "val_dataloader": _MAPPING,
    "test_dataloader": _MAPPING, "optimizer": _MAPPING, "paramwise_cfg": _MAPPING,
    "param_scheduler": Rule(lambda v: isinstance(v, (list, Mapping)), "a list of schedules"), "train_cfg": _MAPPING,
    "evaluator": _MAPPING, "tta": _MAPPING, "seed": _COUNT_OR_0, "work_dir": _TEXT, "load_from": _TEXT,
}
TRAIN_CFG = {
    "max_iters": _COUNT, "max_epochs": _COUNT, "val_interval": _COUNT, "ckpt_interval": _COUNT, "log_interval": _COUNT,
    "keep": _COUNT, "save_best": Rule(lambda v: v in SCORES, f"one of {', '.join(SCORES)}"),
    "accumulative_counts": _NEEDED_COUNT, "clip_grad": _MAPPING, "ema": _MAPPING, "amp": _FLAG, "tensorboard": _FLAG,
    "stall_seconds": _POSITIVE, "early_stop": _MAPPING,
}
EARLY_STOP = {"patience": _NEEDED_COUNT, "min_delta": _FACTOR,
              "monitor": Rule(lambda v: v in SCORES, f"one of {', '.join(SCORES)}")}
TEST_CFG = {"mode": Rule(lambda v: v in ("whole", "slide"), "whole or slide", optional=False), "crop_size": _SIZE,
            "stride": _SIZE}
LOADER = {"batch_size": _NEEDED_COUNT, "num_workers": _COUNT_OR_0, "dataset": _MAPPING._replace(optional=False)}
EVALUATOR = {
    "metrics": Rule(_list_of(lambda v: v in list(METRICS)), f"a list out of {', '.join(METRICS)}", optional=False),
    "beta": _POSITIVE, "boundary": _MAPPING,
}
TTA = {"scales": Rule(_list_of(lambda v: is_number(v) and v > 0), "a list of numbers above 0", optional=False),
       "flip": _FLAG}
MULTIPLIERS = {"lr_mult": _FACTOR, "decay_mult": _FACTOR}
PARAMWISE = {"custom_keys": _MAPPING, "bias_lr_mult": _FACTOR, "bias_decay_mult": _FACTOR, "norm_decay_mult": _FACTOR,
             "dwconv_decay_mult": _FACTOR, "flat_decay_mult": _FACTOR}
CLIP = {"max_norm": _POSITIVE, "norm_type": Rule(lambda v: v == 2, "2 (the only norm)", optional=False)}
EMA = {"decay": _FRACTION}
BOUNDARY = {"dilation_ratio": _FRACTION}
PADDING = {"size": _SIZE, "size_divisor": _COUNT, "resize_divisor": _COUNT}
_CHANNELS = Rule(lambda v: _list_of(is_number)(v) and len(v) == 3, "three numbers, one a channel")
# the rest is its constructor's business
PREPROCESSOR = {"mean": _CHANNELS, "std": _CHANNELS, "size": _SIZE, "size_divisor": _COUNT}
DATA_PREFIX = {"img_path": _TEXT, "seg_map_path": _TEXT}
OPTIMIZER = {
    "lr": _POSITIVE, "weight_decay": _FACTOR, "momentum": _FACTOR, "eps": _POSITIVE,
    "betas": Rule(lambda v: _list_of(is_number)(v) and len(v) == 2 and all(0 <= b < 1 for b in v),
                  "two numbers from 0 to below 1", False),
}
_PLAIN = {  # annotations of constructors that are simple enough to compare a value with
    "bool": _FLAG, "int": Rule(is_integer, "a whole number"), "float": Rule(is_number, "a number"), "str": _TEXT,
    "dict": _MAPPING, "None": Rule(lambda v: v is None, "null"),
}



def fields(block: Mapping, rules: Mapping[str, Rule], where: str, owner: str) -> list[str]:
    """Unknown keys with the nearest known one, and values that break their rule."""
    faults = []
    for key, value in block.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in rules:
            faults.append(f"{place}: unknown key {key!r:.200} in {owner}{nearest(key, rules)} (known: "
                          f"{', '.join(rules)})")
        elif value is None and rules[key].optional:
            continue
        elif not rules[key].accepts(value):
            faults.append(f"{place}: got {value!r:.200}, expected "
                          f"{rules[key].text}{' or null' if rules[key].optional else ''}")
    return faults


def wrong_types(entry: Callable, block: Mapping, where: str) -> list[str]:
    """Compare values with a constructor's annotations, where those are plain (`bool`, `int | None`, ...)."""
    faults = []
    for key, parameter in accepted(entry).items():
        kinds = [kind.strip() for kind in inspect.formatannotation(parameter.annotation).strip("'").split("|")]
        if key in block and set(kinds) <= set(_PLAIN) and not any(_PLAIN[kind].accepts(block[key]) for kind in kinds):
            faults.append(f"{where}.{key}: got {block[key]!r:.200}, expected "
                          f"{' or '.join(_PLAIN[kind].text for kind in kinds)}")
    return faults


def known_fields(block: Mapping, rules: Mapping[str, Rule], where: str) -> list[str]:
    """Values that break their rule; keys without a rule are somebody else's business."""
    return fields({key: value for key, value in block.items() if key in rules}, rules, where, "")
