"""How long a run is and what happens when: `train_cfg` in iterations, and when to stop before its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping

from jseg.engine.train_cfg import AT_THE_END, EarlyStop, TrainCfg

__all__ = ["Patience", "Plan"]


@dataclass
class Patience:
    """What early stopping remembers; `record` goes into the training state."""

    rule: EarlyStop | None
    save_best: str
    record: dict[str, Any] = field(default_factory=lambda: {"score": None, "waited": 0})

    @property
    def is_over(self) -> bool:
        """Whether as many evaluations as allowed went by without a better score."""
        return self.rule is not None and self.record["waited"] >= self.rule.patience

    def see(self, metrics: Mapping[str, float | None]) -> None:
        """Take the scores of one evaluation; a score that is None (no class occurred) is no better than any."""
        if self.rule is None:
            return
        score, best = metrics.get(self.rule.monitor or self.save_best), self.record["score"]
        better = score is not None and (best is None or score > best + self.rule.min_delta)
        self.record = {"score": score, "waited": 0} if better else {"score": best, "waited": self.record["waited"] + 1}


@dataclass(frozen=True)
class Plan:
    """`train_cfg` in iterations, defaults filled in; an interval of None means never."""

    max_iters: int
    epoch_length: int
    val_interval: int | None
    ckpt_interval: int
    log_interval: int
    keep: int
    save_best: str
    accumulative_counts: int
    max_norm: float | None
    early_stop: EarlyStop | None
    max_seconds: float | None

    @classmethod
    def of(cls, cfg: TrainCfg, epoch_length: int, *, evaluates: bool) -> "Plan":
        """Read the plan; with max_epochs, val_interval and ckpt_interval count epochs, as MMEngine's epoch loop
        does. `evaluates`: whether there is anything to evaluate on."""
        in_epochs = cfg.max_epochs is not None
        unit = epoch_length if in_epochs else 1
        max_iters = cfg.max_epochs * unit if in_epochs else cfg.max_iters
        wanted = max_iters // unit if cfg.val_interval == AT_THE_END else cfg.val_interval
        return cls(max_iters=max_iters, epoch_length=epoch_length,
                   val_interval=wanted * unit if evaluates and wanted else None,
                   ckpt_interval=(cfg.ckpt_interval or (1 if in_epochs else 1000)) * unit,
                   log_interval=cfg.log_interval, keep=cfg.keep, save_best=cfg.save_best,
                   accumulative_counts=cfg.accumulative_counts, max_norm=cfg.clip_grad.max_norm,
                   early_stop=cfg.early_stop, max_seconds=cfg.max_seconds)

    def evaluates_after(self, done: int) -> bool:
        """Whether an evaluation follows when `done` steps are finished."""
        return self.val_interval is not None and (done % self.val_interval == 0 or done == self.max_iters)

    def accumulation(self, done: int) -> tuple[int, bool]:
        """(micro-batches of the sum that step `done` belongs to, whether it closes the sum); the last sum may be
        shorter."""
        count = self.accumulative_counts
        rest = self.max_iters % count if done >= self.max_iters // count * count else count
        return rest, (done + 1) % count == 0 or done + 1 == self.max_iters
