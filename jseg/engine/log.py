"""What a run says: one JSON line per logged step in `log.jsonl`, a progress bar, and `engine.loggers` where asked for.

    {"iter": 50, "epoch": 0, "loss": 2.1, "lr": 6e-05, "grad_norm": 1.3, "decode.loss_ce": 2.1, "decode.acc_seg": 31.0,
     "images_per_s": 9.8, "data_wait": 0.004, "data_wait_share": 0.01, "memory_mb": 812, "eta_s": 4000}
    {"iter": 500, "val": {"mIoU": 0.41, ...}}

`iter` counts finished steps. Losses, grad_norm and accuracies are means over the steps since the line before, `lr` is
that of the last step, `data_wait` is seconds per step. A resumed run drops the lines after its state, so that the file
reads as if the run had never been broken; only speeds, memory and ETA tell the difference.

Every evaluation leaves a line on standard error, on a terminal above the bar: the loss is the mean since the evaluation
before, scores are in percent, and the time is that of the whole run so far.

    iter 500/3000  loss 0.4120  mIoU 54.31  aAcc 88.20  best 55.02 at 400  0:03:12
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

from jseg import runtime_signals
from jseg.engine.loggers import LoggedRun, LoggerGroup
from jseg.errors import WriteError
from jseg.files import write_atomically

__all__ = ["RunLog", "memory_mb"]


def memory_mb() -> int:
    """Memory in use in MiB: the accelerator's where there is one, else this process's resident set."""
    import jittor as jt
    if jt.flags.use_cuda:
        return int(jt.get_mem_info().total_cuda_used) >> 20
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:  # not Linux
        return 0


class RunLog:
    """The log of one run; `state()` and `restore()` carry the open means over a restart.

    Args:
        work_dir: existing folder.
        max_iters: length of the run, for the ETA.
        batch_size: pictures per step over all ranks.
        start_iter: steps already done.
        keep_val: keep the evaluation line of `start_iter` itself (its evaluation was finished).
        seconds: of training before this start.
        loggers: blocks of `train_cfg.loggers`.
        config: the run's, for the loggers.
    Raises:
        ConfigError: a logger cannot begin. WriteError, also from the methods that write: the disk is full or writing
        is not allowed; no part of a line is left.
    """

    def __init__(self, work_dir: str | os.PathLike, *, max_iters: int, batch_size: int, start_iter: int = 0,
                 keep_val: bool = True, seconds: float = 0.0, loggers: Sequence[Mapping[str, Any]] = (),
                 config: Mapping[str, Any] | None = None):
        self.path = Path(work_dir) / "log.jsonl"
        self.max_iters, self.batch_size, self.done = max_iters, batch_size, start_iter
        self._sums: dict[str, tuple[float, int]] = {}
        self._since_val = (0.0, 0)  # sum of the losses and steps since the last evaluation
        self._final: dict[str, float] | None = None
        self._drop_after(start_iter, keep_val)
        try:
            self._file = open(self.path, "ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from error
        self._bar = _bar(max_iters, start_iter)
        try:
            self._loggers = LoggerGroup(loggers, LoggedRun(Path(work_dir), config or {}, start_iter), self.say)
        except BaseException:
            self._bar.close()
            self._file.close()
            raise
        self._before = seconds
        self._started = self._since = time.perf_counter()
        self._started_iter, self._clocked, self._waited, self._wait_share = start_iter, 0, 0.0, 0.0

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, kind, error, trace) -> None:
        status = "failed" if isinstance(error, Exception) else "stopped" if self._final is None else "finished"
        self._loggers.close(self._final or {}, status)
        with runtime_signals.unheard():
            self._bar.close()
        self._file.close()

    def _drop_after(self, last: int, keep_val: bool) -> None:
        """Remove lines of steps that the resumed run will do again, and a line that a kill cut short."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("iter", math.inf) < last or (entry.get("iter") == last and ("val" not in entry or keep_val)):
                kept.append(line + "\n")
        write_atomically(self.path, "".join(kept).encode())

    def add(self, scalars: dict[str, float], wait_s: float) -> None:
        """Take one finished step: its scalars (with "loss") and the seconds it waited for data."""
        for name, value in scalars.items():  # grad_norm comes only from the last micro-batch of a step: count each name
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)
        self._since_val = (self._since_val[0] + scalars["loss"], self._since_val[1] + 1)
        self._clocked += 1
        self._waited += wait_s
        self.done += 1
        with runtime_signals.unheard():
            self._bar.update(1)
        self._bar.set_postfix_str(f"loss {scalars['loss']:.4g}, waits for data {self._wait_share:.0%}", refresh=False)

    def write(self, *, epoch: int, lr: float) -> dict[str, Any]:
        """Write the line of the steps since the last one and start new means."""
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, self._clocked)
        self._wait_share = self._waited / max(1e-9, now - self._since)
        means = {name: total / count for name, (total, count) in self._sums.items()}
        speed = (self.done - self._started_iter) / max(1e-9, now - self._started)
        entry = {"iter": self.done, "epoch": epoch, "loss": means.pop("loss"), "lr": lr, **means,
                 "images_per_s": round(self.batch_size / max(1e-9, seconds), 3),
                 "data_wait": round(self._waited / max(1, self._clocked), 6),
                 "data_wait_share": round(self._wait_share, 4),
                 "memory_mb": memory_mb(), "eta_s": round((self.max_iters - self.done) / max(1e-9, speed), 1)}
        self._put(entry)
        if self._bar.disable:
            self.say(f"iter {self.done}/{self.max_iters}  loss {entry['loss']:.4f}  lr {lr:.3g}  "
                     f"{entry['images_per_s']} img/s  data wait {self._wait_share:.1%}  {entry['memory_mb']} MB  ETA "
                     f"{_clock(entry['eta_s'])}")
        self._sums = {}
        self.restart_clock()
        return entry

    def restart_clock(self) -> None:
        """Leave what happened since the last line (an evaluation, a save) out of the next line's speed."""
        self._since, self._clocked, self._waited = time.perf_counter(), 0, 0.0

    def write_val(self, scores: dict[str, Any]) -> None:
        """Write an evaluation line."""
        self._put({"iter": self.done, "val": scores})

    def say_val(self, scores: Mapping[str, float | None], save_best: str, best: Mapping[str, Any]) -> None:
        """Print the line of an evaluation.

        Args:
            scores: in 0..1; None where no class occurred.
            save_best: the score that decides.
            best: {"iter", "score"} of the best evaluation so far, which this one may be.
        """
        total, steps = self._since_val
        self._since_val = (0.0, 0)
        shown = [name for name in dict.fromkeys((save_best, "mIoU", "aAcc", "top1", "top5")) if name in scores]
        self.say("  ".join([f"iter {self.done}/{self.max_iters}", *([f"loss {total / steps:.4f}"] if steps else []),
                            *(f"{name} {_percent(scores[name])}" for name in shown),
                            "best so far" if best["iter"] == self.done
                            else f"best {_percent(best['score'])} at {best['iter']}",
                            _clock(self._before + time.perf_counter() - self._started)]))

    def write_final(self, scores: Mapping[str, Any]) -> None:
        """Take the scores of the finished run, for the loggers; without this call the run counts as not finished."""
        self._final = _named_scalars("final", scores)

    def _put(self, entry: dict[str, Any]) -> None:
        line, before = (json.dumps(entry) + "\n").encode(), os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line):]  # a disk that is nearly full takes a part
        except OSError as error:
            os.ftruncate(self._file.fileno(), before)
            raise self._refused(error) from error
        scalars = {name: value for name, value in entry.items() if name != "iter"}
        self._loggers.log_scalars(_named_scalars("val", entry["val"]) if "val" in entry
                                  else _named_scalars("train", scalars), entry["iter"])

    def sync(self) -> None:
        """Make sure that all lines so far are on the disk: called before a state that counts on them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> WriteError:
        return WriteError(f"{self.path}: cannot be written ({error.strerror}); the last saved state is whole. Free "
                          "disk space or allow writing there, then go on with --resume")

    def say(self, text: str) -> None:
        """Print without disturbing the bar; a reader who left, or a closed terminal, does not end a run."""
        with runtime_signals.unheard():
            self._bar.write(text, file=sys.stderr)

    def state(self) -> dict[str, Any]:
        """The open means, JSON-able and exact."""
        return {"sums": {name: list(pair) for name, pair in self._sums.items()}, "since_val": list(self._since_val)}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the means of `state`."""
        self._sums = {name: tuple(pair) for name, pair in state["sums"].items()}
        self._since_val = tuple(state.get("since_val", self._since_val))


def _bar(total: int, done: int):
    from tqdm import tqdm
    bar = tqdm(total=total, initial=done, unit="it", dynamic_ncols=True, smoothing=0.05,
               disable=not sys.stderr.isatty())
    if hasattr(bar, "_time"):  # its own clock is the date, which may jump
        bar._time = time.monotonic
        bar.start_t = bar.last_print_t = time.monotonic()
    return bar


def _named_scalars(group: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the values, named as loggers show them."""
    return {f"{group}/{name}": float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _percent(score: float | None) -> str:
    return "-" if score is None or score < 0 else f"{100 * score:.2f}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
