"""What a training run holds, what of it is saved, and how a run goes on from a saved state.

Everything that a step depends on is in the state or follows from (seed, iteration), so a resumed run ends with the
weights of one that was never stopped, bit for bit on one process.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jseg import runtime
from jseg.engine import checkpoint, distributed
from jseg.engine.optim import EMA, Optimizer
from jseg.engine.plan import Patience, Plan
from jseg.engine.schedules import LearningRate

__all__ = ["Run", "Step", "find_state", "restore", "state_of"]


@dataclass
class Run:
    """Everything that a run holds; `done` counts finished steps."""

    config: dict
    work_dir: Path
    seed: int
    plan: Plan
    model: Any
    optimizer: Optimizer
    ema: EMA | None
    rates: LearningRate
    loader: Any
    val_loader: Any
    done: int = 0
    saved_at: int = -1
    seconds: float = 0.0  # of training, those before a restart included
    evaluated_at: int = -1
    evaluated: bool = True  # the evaluation due after `done` steps is finished
    best: dict | None = None  # {"iter", "score"}
    metrics: dict = field(default_factory=dict)  # of the last evaluation
    patience: Patience | None = None
    log: Any = None  # a RunLog, or what takes its calls on ranks that do not log


class Step(NamedTuple):
    """What a caller of `jseg.steps` learns after a training step.

    Attributes:
        iter: finished steps, from 1.
        max_iters: length of the run.
        losses: "loss", its parts and accuracies (percent) by name; "grad_norm" where an accumulation closes.
        lr: rate of the step.
        metrics: scores of the evaluation that followed the step, 0 to 1; None where there was none.
        best: {"iter", "score"} of the best evaluation so far, or None.
        model: the segmentor in training mode; its weights are those after the step.
        work_dir: the run's folder.
    """

    iter: int
    max_iters: int
    losses: dict[str, float]
    lr: float
    metrics: dict[str, float | None] | None
    best: dict | None
    model: Any
    work_dir: Path


def find_state(folder: Path) -> tuple:
    """Read the newest whole state: (its folder or None, weights, state, record); say what was passed over."""
    found, notes = checkpoint.find_state(folder)
    for note in notes:
        print(f"passed over: {note}", file=sys.stderr)
    if found is None:
        print(f"{folder}: no saved state to resume; starting from iteration 0", file=sys.stderr)
        return None, {}, {}, {}
    return (found, *checkpoint.read_state(found))


def state_of(run: Run) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a saved state holds beside the model: arrays of optimizer and average, and the record."""
    state = run.optimizer.state_dict()
    if run.ema is not None:
        state.update(run.ema.state_dict())
    record = {"iter": run.done, "evaluated": run.evaluated, "evaluated_at": run.evaluated_at,
              "seconds": run.seconds, "best": run.best, "metrics": run.metrics,
              "config": run.config, "early_stop": run.patience.record, "optimizer_steps": run.optimizer.steps,
              "ema_updates": run.ema.updates if run.ema else 0,
              "log": run.log.state(), "machine": runtime.describe()}
    return state, record


def restore(run: Run, state: dict[str, np.ndarray], record: dict) -> None:
    """Go on from what `state_of` gave; say what differs from the run that saved it.

    Raises:
        CheckpointError: the state lacks an array that this config's optimizer or average needs.
    """
    try:
        run.optimizer.load_state_dict(state, record["optimizer_steps"])
        if run.ema is not None:
            run.ema.load_state_dict(state, record["ema_updates"])
    except KeyError as error:
        raise checkpoint.CheckpointError(
            f"{run.work_dir}: the saved state has no {error.args[0]!r}; optimizer:, train_cfg.ema and model: must stay "
            "as they were when the run began, or start another run with "
            f"load_from={run.work_dir}/best.safetensors") from error
    run.done = run.saved_at = record["iter"]
    run.evaluated, run.best, run.metrics = record["evaluated"], record["best"], record["metrics"]
    run.evaluated_at, run.seconds = record.get("evaluated_at", -1), record.get("seconds", 0.0)
    run.patience.record = record.get("early_stop") or run.patience.record
    for line in _differences(record["config"], json.loads(json.dumps(run.config))):
        distributed.tell(f"differs from the config this run was saved with: {line}")
    if record["machine"] != runtime.describe():
        distributed.tell(f"saved on {record['machine']}: results may differ in the last bits on this machine")
    distributed.tell(f"resuming after iteration {run.done}")


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [k for k in {**old, **new} if where or k not in ("work_dir", "load_from", "load_only")]
        return [line for k in keys for line in _differences(old.get(k), new.get(k), f"{where}.{k}" if where else k)]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]
