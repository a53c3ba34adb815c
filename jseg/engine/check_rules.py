"""Rules for the blocks of a config that have no reader of their own: one table per block."""

from __future__ import annotations

from typing import Mapping

from jseg.data.bands import MAX_BANDS
from jseg.engine.channels import FIRST_CONV
from jseg.rules import (COUNT, COUNT_OR_0, FACTOR, FLAG, MAPPING, NEEDED_COUNT, POSITIVE, SIZE, TEXT, Rule, is_number,
                        list_of)

__all__ = ["AUTO", "TOP_LEVEL", "LOADER", "TRAIN_LOADER", "TTA", "PREPROCESSOR", "DATA_PREFIX", "OPTIMIZER"]

TOP_LEVEL = {
    "model": MAPPING, "data_preprocessor": MAPPING, "train_dataloader": MAPPING, "val_dataloader": MAPPING,
    "test_dataloader": MAPPING, "optimizer": MAPPING, "paramwise_cfg": MAPPING,
    "param_scheduler": Rule(lambda v: isinstance(v, (list, Mapping)), "a list of schedules"), "train_cfg": MAPPING,
    "evaluator": MAPPING, "tta": MAPPING, "seed": COUNT_OR_0, "work_dir": TEXT, "load_from": TEXT,
    "load_only": TEXT,
    "load_first_conv": Rule(lambda v: v in FIRST_CONV, ", ".join(FIRST_CONV)),
}
AUTO = "auto"  # a batch size that is measured when training begins
LOADER = {"batch_size": NEEDED_COUNT, "num_workers": COUNT_OR_0, "dataset": MAPPING._replace(optional=False)}
TRAIN_LOADER = {**LOADER, "batch_size": Rule(lambda v: v == AUTO or NEEDED_COUNT.accepts(v),
                                             f"{NEEDED_COUNT.text}, or auto", optional=False)}
TTA = {"scales": Rule(list_of(lambda v: is_number(v) and v > 0), "a list of numbers above 0", optional=False),
       "flip": FLAG}
_CHANNELS = Rule(lambda v: list_of(is_number)(v) and 1 <= len(v) <= MAX_BANDS, f"1 to {MAX_BANDS} numbers, one per "
                 "channel")
# the rest is its constructor's business
PREPROCESSOR = {"mean": _CHANNELS, "std": _CHANNELS, "size": SIZE, "size_divisor": COUNT}
DATA_PREFIX = {"img_path": TEXT, "seg_map_path": TEXT}
OPTIMIZER = {
    "lr": POSITIVE, "weight_decay": FACTOR, "momentum": FACTOR, "eps": POSITIVE,
    "betas": Rule(lambda v: list_of(is_number)(v) and len(v) == 2 and all(0 <= b < 1 for b in v),
                  "two numbers from 0 to below 1", False),
}
