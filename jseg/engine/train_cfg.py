"""`train_cfg`: every key with its rule and its default, in one place;
`jseg check` and the training loop read it here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Mapping

from jseg.config import is_classifier
from jseg.engine.loggers import logger_blocks, logger_faults
from jseg.metrics import CLASSIFIER_SCORES, SCORES
from jseg.rules import COUNT, FACTOR, FLAG, FRACTION, MAPPING, NEEDED_COUNT, POSITIVE, Rule, fields, list_of

__all__ = ["AT_THE_END", "ClipGrad", "EarlyStop", "MovingAverage", "TrainCfg", "seed_of", "train_cfg_faults"]

AT_THE_END = "at the end"  # the `val_interval` of a config that names none
_PARTS = Rule(lambda v: isinstance(v, str) or list_of(lambda name: isinstance(name, str))(v),
              "the name of a part of the model, such as backbone, or a list of names")
_LOGGERS = Rule(lambda v: isinstance(v, (str, Mapping)) or isinstance(v, (list, tuple))
                and all(isinstance(item, (str, Mapping)) for item in v),
                "a list of names (tensorboard, wandb, mlflow) and of blocks such as {type: wandb, project: NAME}")
_SCORES = tuple(dict.fromkeys((*SCORES, *CLASSIFIER_SCORES)))
_SCORE = Rule(lambda v: v in _SCORES, f"one of {', '.join(_SCORES)}")


def _key(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"rule": rule})


def _rules(block: type) -> dict[str, Rule]:
    return {field.name: field.metadata["rule"] for field in dataclasses.fields(block)}


@dataclass(frozen=True)
class EarlyStop:
    """`train_cfg.early_stop`.

    Args:
        patience: evaluations in a row without a better score after which the run ends.
        min_delta: a score is better when it is larger than the best one by more than this.
        monitor: the score; None for `save_best`.
    """

    patience: int = _key(NEEDED_COUNT)
    min_delta: float = _key(FACTOR, 0.0)
    monitor: str | None = _key(_SCORE, None)


@dataclass(frozen=True)
class ClipGrad:
    """`train_cfg.clip_grad`: the largest norm of all gradients together; None clips nothing."""

    max_norm: float | None = _key(POSITIVE, None)
    norm_type: int = _key(Rule(lambda v: v == 2, "2 (the only norm)", optional=False), 2)


@dataclass(frozen=True)
class MovingAverage:
    """`train_cfg.ema`: the share of itself that the average keeps at every iteration, and whether running statistics of
    norms are averaged too."""

    decay: float = _key(FRACTION, 0.9998)
    update_buffers: bool = _key(FLAG, False)


@dataclass(frozen=True)
class TrainCfg:
    """`train_cfg`, defaults filled in; null stands for the default.

    Args:
        max_iters, max_epochs: the length of the run; exactly one of them. With `max_epochs`, `val_interval` and
            `ckpt_interval` count epochs, otherwise iterations.
        val_interval: between evaluations; null never evaluates; without the key there is one at the end.
        ckpt_interval: between saved states; default 1 epoch or 1000 iterations.
        log_interval: iterations between lines of the log.
        keep: how many saved states stay on the disk.
        save_best: the score that decides which weights are the best; top1 of a classifier.
        accumulative_counts: batches per step of the optimizer.
        clip_grad, ema, early_stop: blocks of their own; None is off.
        amp: mixed precision, on a GPU.
        allow_tf32: on a GPU with tensor cores, round the factors of float32 products to TF32; false computes in full.
        tensorboard: short for a logger of this name.
        loggers: where the numbers go beside log.jsonl: blocks of `engine.loggers`, names or a list of both.
        max_seconds: of training, after which the run is evaluated and ends as at its last iteration; None for no limit.
        freeze: parts of the model that are not trained, `backbone` or `backbone.block1`: no gradient, norms and their
            statistics stand still; one name or a list.
        stall_seconds: of silence after which a rank counts as stalled; None for the default of `engine.distributed`.
    """

    max_iters: int | None = _key(COUNT, None)
    max_epochs: int | None = _key(COUNT, None)
    val_interval: int | str | None = _key(COUNT, AT_THE_END)
    ckpt_interval: int | None = _key(COUNT, None)
    log_interval: int = _key(COUNT, 50)
    keep: int = _key(COUNT, 1)
    save_best: str = _key(_SCORE, "mIoU")
    accumulative_counts: int = _key(NEEDED_COUNT, 1)
    clip_grad: ClipGrad = _key(MAPPING, ClipGrad())
    ema: MovingAverage | None = _key(MAPPING, None)
    amp: bool = _key(FLAG, False)
    allow_tf32: bool = _key(FLAG, True)
    tensorboard: bool = _key(FLAG, False)
    loggers: tuple[dict[str, Any], ...] = _key(_LOGGERS, ())
    stall_seconds: float | None = _key(POSITIVE, None)
    early_stop: EarlyStop | None = _key(MAPPING, None)
    max_seconds: float | None = _key(POSITIVE, None)
    freeze: str | tuple[str, ...] = _key(_PARTS, ())

    @classmethod
    def of(cls, config: Mapping) -> "TrainCfg":
        """Read the block of a whole config."""
        start = {"save_best": "top1"} if is_classifier(config) else {}
        return cls.read({**start, **{key: value for key, value in config["train_cfg"].items() if key not in start
                                     or value is not None}})

    @classmethod
    def read(cls, block: Mapping[str, Any] | None) -> "TrainCfg":
        """Read a block that `train_cfg_faults` has nothing against; None stands for an empty one."""
        given = {key: value for key, value in (block or {}).items() if value is not None or key == "val_interval"}
        for key, kind in _BLOCKS.items():
            if key in given:
                given[key] = kind(**given[key])
        if "freeze" in given:
            given["freeze"] = (given["freeze"],) if isinstance(given["freeze"], str) else tuple(given["freeze"])
        loggers = logger_blocks(given.get("loggers"))
        if given.get("tensorboard") and not any(logger["type"] == "tensorboard" for logger in loggers):
            loggers += ({"type": "tensorboard"},)
        return cls(**{**given, "loggers": loggers})


_BLOCKS = {"clip_grad": ClipGrad, "ema": MovingAverage, "early_stop": EarlyStop}


def seed_of(config: Mapping) -> int:
    """The seed of a run; 0 where the config names none."""
    return config.get("seed", 0)


def train_cfg_faults(config: Mapping) -> list[str]:
    """List what is wrong with the `train_cfg` of a config, and with its need for evaluations."""
    block, where = config["train_cfg"], "train_cfg"
    faults = fields(block, _rules(TrainCfg), where, "train_cfg")
    lengths = [key for key in ("max_iters", "max_epochs") if block.get(key) is not None]
    if len(lengths) != 1:
        faults.append(f"{where}: got {' and '.join(lengths) or 'neither max_iters nor max_epochs'}, expected exactly "
                      "one of max_iters and max_epochs")
    inner = {key: block[key] for key in _BLOCKS if isinstance(block.get(key), Mapping)}
    for key, value in inner.items():
        faults += fields(value, _rules(_BLOCKS[key]), f"{where}.{key}", key)
    if _LOGGERS.accepts(block.get("loggers") or []):
        faults += logger_faults(block.get("loggers"), f"{where}.loggers")
    if "early_stop" in inner:
        if "patience" not in inner["early_stop"]:
            faults.append(f"{where}.early_stop needs 'patience', a number of evaluations")
        if "val_dataloader" not in config:
            faults.append(f"{where}.early_stop waits for evaluations, but there is no val_dataloader")
    if block.get("val_interval") is not None and "val_dataloader" not in config:
        faults.append(f"{where}.val_interval is set, but there is no val_dataloader; add one or set val_interval to "
                      "null")
    return faults
