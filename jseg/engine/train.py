"""Train a model: one loop with named steps, from a config to `best.safetensors`.

    next batch -> seed the step -> loss -> gradients -> new weights -> checks -> log -> evaluate -> save

A run lives in its work_dir: `config.yaml`, `run.json` (command, device, seconds), `log.jsonl`, the training state
`last/` (older ones `iter_<n>/`), `best/`, the deliverable `best.safetensors`, and at the end `metrics.json`.

A run can be killed at any moment. With `resume` it goes on from its last saved state. On one process its final weights
are then the same, bit for bit, as without the interruption: random numbers depend on (seed, iteration), data on (seed,
position), rates on the iteration, and every step starts from plain arrays (`jt.sync_all`), so that the same kernels run
in the same order. What is saved, and how a run goes on from it, is in `engine.run_state`.

Under `mpirun` each rank runs this loop on its part of every batch; what the ranks tell each other is in
`engine.distributed`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shlex
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import jittor as jt
import numpy as np

from jseg import runtime, runtime_signals
from jseg.config import dump_config, load_config
from jseg.data.build import build_loader
from jseg.data.check import quick_check
from jseg.engine import checkpoint, distributed
from jseg.engine.check import check_config
from jseg.engine.dry_step import first_step
from jseg.engine.auto_batch import with_batch_size
from jseg.engine.evaluate import EvaluationStopped, evaluate, save_result
from jseg.engine.channels import FIRST_CONV
from jseg.engine.fine_tune import start_from
from jseg.engine.log import RunLog
from jseg.engine.memory import fix_heap, give_back
from jseg.engine.model_file import meta_of
from jseg.engine.optim import EMA, build_optimizer
from jseg.engine.plan import Patience, Plan
from jseg.engine.run_folder import locked, refuse_to_overwrite
from jseg.engine.run_state import Run, Step, find_state, restore, state_of
from jseg.engine.schedules import LearningRate, build_schedules
from jseg.engine.start import starting_state
from jseg.engine.train_cfg import TrainCfg, seed_of
from jseg.errors import ConfigError, DataError, JsegError
from jseg.files import write_atomically
from jseg.layers.freeze import hold
from jseg.models import build_model
from jseg.ops import cuda_library
from jseg.registry import nearest

__all__ = ["train", "steps", "NonFiniteError"]


class NonFiniteError(JsegError):
    """The loss or the gradient is not a finite number any more."""


def train(config: dict | str | os.PathLike, *, resume: bool = False, work_dir: str | os.PathLike | None = None) -> dict:
    """Train what a config describes and leave the results in its work_dir.

    Args:
        config: from `load_config`, or what that reads: a file, or the name of a config that comes with jseg.
        resume: go on from the newest whole state in work_dir; start from the beginning when there is none.
        work_dir: default: the config's own, else runs/<name of the file>, or runs/train for a dict.
    Returns:
        {"iter", "best" ({"iter", "score"} or None), "metrics", "work_dir", "signal" (None, or the signal that ended
        it)}.
    Raises:
        ConfigError: mistakes in the config, all of them. RunFolderError: work_dir is in use or holds a run and `resume`
        is off. NonFiniteError: the loss or gradient is inf or nan. DataError, CheckpointError: see their messages.
    """
    run = steps(config, resume=resume, work_dir=work_dir)
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def steps(config: dict | str | os.PathLike, *, resume: bool = False,
          work_dir: str | os.PathLike | None = None) -> Iterator[Step]:
    """Train as `train` does, and hand over after every step: callbacks are what a caller's loop does.

        for step in jseg.steps("mine.yaml"):
            if step.metrics:
                print(step.iter, step.losses["loss"], step.metrics["mIoU"])

    Evaluations, saved states and the log come as in `train`, before the step is handed over. A caller that leaves the
    loop (break, or an error of its own) ends the run: its state is saved, and `resume` goes on from there. The
    generator's return value is what `train` returns.

    Args, raises: as `train`, from the first step on.
    """
    config, folder = _given(config, work_dir)
    faults = next(filter(None, distributed.gather_objects(check_config(config))), [])  # the first rank's that finds any
    if faults:
        raise distributed.raised_everywhere(ConfigError("\n".join(faults)))
    began = time.perf_counter()
    fix_heap()
    cfg = TrainCfg.of(config)
    stall = cfg.stall_seconds or distributed.DEFAULT_STALL_SECONDS
    main = distributed.is_main()
    with locked(folder) if main else contextlib.nullcontext(), distributed.JobStop() as stop, distributed.watched(
        stall):
        stop.at_once = True
        if main and not resume:
            refuse_to_overwrite(folder)
        config = with_batch_size(config, folder if resume else None)
        run = _build(config, cfg, folder, resume)
        _write_about(folder)
        unbroken = run.done == 0
        with run.log:
            finished = yield from _run_to_the_end(run, stop)
        if finished and unbroken:  # after a resume, the report adds up the logged steps instead
            _write_about(folder, seconds=round(time.perf_counter() - began, 1))
        if not finished:
            distributed.tell(f"stopped after {run.done} of {run.plan.max_iters} iterations; " + (
                f"saved in {folder}/last: go on with --resume" if run.saved_at == run.done
                else "nothing new to save: go on with --resume"))
        return {"iter": run.done, "best": run.best, "metrics": run.metrics, "work_dir": str(folder),
                "signal": None if finished else stop.signal}


def _given(config: dict | str | os.PathLike, work_dir: str | os.PathLike | None) -> tuple[dict, Path]:
    """The config and the run's folder that a caller means."""
    name = "train"
    if isinstance(config, (str, os.PathLike)):
        name, config = Path(config).stem, load_config(config)
    return config, Path(work_dir or config.get("work_dir") or Path("runs") / name)


def _write_about(folder: Path, **facts) -> None:
    """Leave `run.json` for the report: what ran, on what."""
    about = {"command": " ".join(map(shlex.quote, sys.argv)), "device": runtime.describe(),
             "ranks": distributed.world_size(), **facts}
    if distributed.is_main():
        write_atomically(folder / "run.json", json.dumps(about, indent=1).encode())


# --- before the loop -------------------------------------------------------------------------------------------------
def _build(config: dict, cfg: TrainCfg, folder: Path, resume: bool) -> Run:
    """Make or restore every part of the run."""
    distributed.tell(f"training on {runtime.describe()}"
                     + (f"; {distributed.hosts()}" if distributed.world_size() > 1 else ""))
    _set_precision(cfg.amp, cfg.allow_tf32)
    found, weights, state, record = distributed.from_main(lambda: find_state(folder)) if resume else (None, {}, {}, {})
    done, seed = record.get("iter", 0), seed_of(config)
    _seed_step(seed, -1)
    share = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = build_loader(config, "train", start_iter=done, **share)
    val_loader = build_loader(config, "val", **share) if config.get("val_dataloader") else None
    if distributed.is_main():  # seconds now against a wrong label after hours
        datasets = {"train": loader.dataset, **({"val": val_loader.dataset} if val_loader else {})}
        for note in quick_check(config, datasets=datasets):
            distributed.tell(note)
    plan = Plan.of(cfg, math.ceil(len(loader.dataset) / loader.batch_size), evaluates=val_loader is not None)
    model = build_model(config)
    if found:
        checkpoint.load_into(model, weights, source=str(found))
    elif config.get("load_from"):
        given, names, told = distributed.from_main(lambda: starting_state(config))
        for note in told:
            distributed.tell(note)
        distributed.tell(start_from(model, config["model"], loader.dataset.classes, given, names,
                                    source=config["load_from"],
                                    first_conv=config.get("load_first_conv") or FIRST_CONV[0]))
        model.derive()
    distributed.same_start(model)
    _freeze(model, cfg.freeze)
    schedules = build_schedules(config.get("param_scheduler"))
    optimizer = build_optimizer(model, config["optimizer"], config.get("paramwise_cfg"),
                                by_part=any(schedule.part for schedule in schedules))
    ema = EMA.of(cfg.ema, optimizer, model) if cfg.ema is not None else None
    base_lr = config["optimizer"].get("lr", max(optimizer.lrs))
    rates = LearningRate(schedules, [*optimizer.lrs, base_lr], plan.max_iters, plan.epoch_length, optimizer.parts)
    run = Run(config, folder, seed, plan, model, optimizer, ema, rates, loader, val_loader,
              patience=Patience(plan.early_stop, plan.save_best))
    if found:
        restore(run, state, record)
    if not distributed.is_main():
        run.log = distributed.Silent()
        return run
    if not (folder / "config.yaml").exists():
        write_atomically(folder / "config.yaml", dump_config(config).encode())
    run.log = RunLog(folder, max_iters=plan.max_iters, batch_size=loader.batch_size, start_iter=run.done,
                     keep_val=run.evaluated, seconds=run.seconds, loggers=cfg.loggers, config=config)
    if found:
        run.log.restore(record["log"])
    return run


def _freeze(model, names: tuple[str, ...]) -> None:
    """Take the named parts of a model out of training."""
    parts = dict(model.named_modules())
    for name in names:
        if name not in parts or not name:
            known = ", ".join(part for part in parts if part and "." not in part)
            raise ConfigError(f"train_cfg.freeze: the model has no part {name!r}{nearest(name, parts)}; parts are "
                              f"{known} and what is inside them")
        hold(parts[name])
        count = sum(value.numel() for value in parts[name].state_dict().values())
        distributed.tell(f"{name}: not trained ({count:,} values)")


def _set_precision(wanted: bool, tf32: bool) -> None:
    """Switch mixed precision and TF32 on or off for the whole process."""
    if wanted and not jt.flags.use_cuda:
        raise ConfigError("train_cfg.amp: true needs a CUDA device and this process computes on the CPU, where half "
                          "precision gains nothing; set train_cfg.amp=false")
    jt.flags.auto_mixed_precision_level = 3 if wanted else 0  # 3: float16 where it is safe, float32 elsewhere
    cuda_library.allow_tf32(tf32)


# --- the loop --------------------------------------------------------------------------------------------------------
def _run_to_the_end(run: Run, stop: distributed.JobStop) -> Generator[Step, None, bool]:
    """Train and score; False when a signal ended it. A terminal's Ctrl-C also ends a compiler that a step waits for:
    that step is lost.
    """
    alone = distributed.world_size() == 1
    try:
        yield from _loop(run, stop)
        return stop.signal is None and _finish(run, stop)
    except DataError as error:
        _keep_progress(run, error)
        if stop.wish is None or not alone:
            raise
    except runtime_signals.Stopped as asked:  # before the first step
        if not alone:
            raise
        stop.signal = asked.number
    except Exception:
        if stop.wish is None or not alone:
            raise
    return False


def _loop(run: Run, stop: distributed.JobStop) -> Iterator[Step]:
    """Run steps until the plan is fulfilled or a signal asks to stop; the state is saved either way."""
    plan, log = run.plan, run.log
    stop.at_once = False
    if not run.evaluated:
        _evaluate(run, stop)
    run.model.train()
    with contextlib.closing(iter(run.loader)) as batches:
        began, first, before = time.perf_counter(), run.done, run.seconds
        while run.done < plan.max_iters and stop.signal is None and not run.patience.is_over:
            run.seconds = before + time.perf_counter() - began
            if _out_of_time(run):
                break
            stop.at_once = run.done == first  # nothing to save, and kernels may be compiled for minutes
            if stop.at_once:
                log.say("the first step compiles kernels: minutes on a new machine, seconds later on")
            batch, wait_s = _next_batch(run, batches, stop)
            if stop.signal is not None:
                break
            _seed_step(run.seed, run.done)
            run.model.begin_step(run.done)
            scalars, culprit = _step(run, batch)
            _check_finite(run, scalars, batch, culprit)
            run.done += 1
            stop.at_once = False
            log.add(scalars, wait_s)
            if run.done == first + 1:
                log.say(f"first step: {time.perf_counter() - began:.1f} s")
            if run.done % plan.log_interval == 0 or run.done == plan.max_iters:
                log.write(epoch=(run.done - 1) // plan.epoch_length, lr=run.rates.at(run.done - 1)[-1])
            if plan.evaluates_after(run.done):
                run.evaluated = False
                _save(run)
                _evaluate(run, stop)
            elif run.done % plan.ckpt_interval == 0 or run.done == plan.max_iters:
                _save(run)
            del batch  # its memory is the loader's to use again
            yield from _handed_over(run, scalars)
    if _out_of_time(run) and stop.signal is None and run.done < plan.max_iters:
        log.say(f"time limit: {run.seconds:.0f} s after {run.done} of {plan.max_iters} iterations")
        if plan.val_interval and run.evaluated_at != run.done:
            run.evaluated = False
            _save(run)
            _evaluate(run, stop)
    if run.saved_at != run.done:
        _save(run)


def _out_of_time(run: Run) -> bool:
    """Whether the time that training may take is over, by the clock of the first rank."""
    limit = run.plan.max_seconds
    return limit is not None and distributed.from_main(lambda: run.seconds >= limit)


def _next_batch(run: Run, batches: Iterator, stop: distributed.JobStop) -> tuple[Any, float]:
    """This rank's part of the next batch and the seconds it waited for it;
    all ranks go on to the step, or all stop, or all raise.
    """
    distributed.beat("waits for data", run.done)
    asked, batch, failure = time.perf_counter(), None, None
    try:
        batch = next(batches)
    except DataError as error:
        failure = error
    wait_s = time.perf_counter() - asked
    distributed.agree(stop, failure)
    distributed.beat("computes")
    return batch, wait_s


def _handed_over(run: Run, scalars: dict[str, float]) -> Iterator[Step]:
    """Let the caller look at the step; one that leaves has its run saved."""
    try:
        yield Step(run.done, run.plan.max_iters, scalars, run.rates.at(run.done - 1)[-1],
                   dict(run.metrics) if run.plan.evaluates_after(run.done) and run.evaluated else None, run.best,
                   run.model, run.work_dir)
    except GeneratorExit:
        if run.saved_at != run.done:
            _save(run)
        distributed.tell(f"ended by its caller after {run.done} of {run.plan.max_iters} iterations; saved in "
                         f"{run.work_dir}/last: resume goes on")
        raise
    distributed.beat("computes")


def _seed_step(seed: int, iteration: int) -> None:
    """Make every random number of a step a function of (seed, iteration), the same on all ranks (see `ops.ranks.rand`);
    -1 is the model's initialisation."""
    number = int(np.random.SeedSequence([seed, iteration + 1, 0]).generate_state(1)[0]) & 0x7FFFFFFF
    random.seed(number)
    np.random.seed(number)
    jt.set_seed(number)


def _step(run: Run, batch) -> tuple[dict[str, float], int | None]:
    """Forward, backward and, at the end of an accumulation, the new weights.

    Returns:
        the numbers of the step, and the rank whose loss or gradient is not finite (None: no rank's, or there is only
        one).
    """
    micro_batches, closes = run.plan.accumulation(run.done)
    with distributed.step(run.loader.batch_size):
        losses = first_step(run.model, jt.array(batch.images), jt.array(batch.labels))
    run.optimizer.accumulate(losses["loss"] / micro_batches if micro_batches > 1 else losses["loss"])
    numbers, culprit = dict(losses), None
    if distributed.world_size() > 1:
        numbers, culprit = distributed.share_numbers(run.optimizer, losses, batch.labels,
                                                     run.model.ignore_index, closes=closes)
    if closes:
        numbers["grad_norm"] = run.optimizer.step(run.rates.at(run.done)[:-1], max_norm=run.plan.max_norm)
    if run.ema is not None:
        run.ema.update()
    # nothing of this step's graph outlives it: flat memory, and the next step starts from plain arrays
    jt.sync_all(True)
    return {name: value if isinstance(value, float) else float(value.item())
            for name, value in numbers.items()}, culprit


def _check_finite(run: Run, scalars: dict[str, float], batch, culprit: int | None) -> None:
    """Stop at the first loss or gradient that is inf or nan; what is on the disk is from before it."""
    if math.isfinite(scalars["loss"]) and math.isfinite(scalars.get("grad_norm", 0.0)):
        return
    path = run.work_dir / f"nonfinite_iter_{run.done + 1}.json"
    parts = distributed.gather_objects([{k: str(meta[k]) for k in ("img_path", "seg_map_path") if k in meta}
                                        for meta in batch.metas])
    files = parts[culprit] if culprit is not None else [file for part in parts for file in part]
    report = {"iter": run.done + 1, "scalars": {k: str(v) for k, v in scalars.items()},
              "lr": run.rates.at(run.done)[-1], "rank": culprit, "files": files}
    if distributed.is_main():
        write_atomically(path, json.dumps(report, indent=1).encode())
    what = "loss" if not math.isfinite(scalars["loss"]) else "gradient"
    what += f" of {distributed.name(culprit)}" if culprit is not None else ""
    raise distributed.raised_everywhere(NonFiniteError(
        f"iteration {run.done + 1}: the {what} is not finite ({scalars}); the batch's files are in {path} and no "
        f"saved state was overwritten. Look at those files' labels, lower optimizer.lr, lengthen the warm-up or "
        f"set train_cfg.clip_grad={{max_norm: 1.0}}, then --resume"))


# --- evaluation and saving -------------------------------------------------------------------------------------------
def _evaluate(run: Run, stop: distributed.JobStop) -> None:
    """Score the present weights (their average where there is one), keep them when they are the best so far, save."""
    distributed.same_statistics(run.model)
    try:
        with _deliverable_weights(run):
            run.metrics = evaluate(run.model, run.val_loader, run.config.get("evaluator"),
                                   stop=lambda: stop.wish)["metrics"]
            score = _score(run)
            better = run.best is None or score > run.best["score"]
            if better:
                run.best = {"iter": run.done, "score": score}
                _export(run)
    except EvaluationStopped:
        distributed.agree(stop)
        return  # the state saved before remembers that this evaluation is due
    run.evaluated, run.evaluated_at = True, run.done
    run.patience.see(run.metrics)
    run.log.write_val(run.metrics)
    run.log.say_val(run.metrics, run.plan.save_best, run.best)
    if run.patience.is_over and run.done < run.plan.max_iters:
        run.log.say(f"early stop: {run.patience.rule.patience} evaluations without a better "
                    f"{run.patience.rule.monitor or run.plan.save_best} than {run.patience.record['score']}")
    _save(run, best=better)
    run.log.restart_clock()


def _score(run: Run) -> float:
    score = run.metrics.get(run.plan.save_best)
    return -1.0 if score is None else score  # None: no class occurred in any label


@contextlib.contextmanager
def _deliverable_weights(run: Run) -> Iterator[None]:
    """Within it the model holds the averaged weights, where the run keeps an average."""
    with run.ema.in_place() if run.ema is not None else contextlib.nullcontext():
        yield


def _meta(run: Run) -> dict:
    origin = {"made_by": "jseg train", "iter": run.done, "ema": run.ema is not None}
    return {**meta_of(run.config, run.loader.dataset, origin), "metrics": run.metrics}


def _export(run: Run) -> None:
    """Write the deliverable: the weights the model holds now, with all that prediction needs."""
    if not distributed.is_main():
        return
    checkpoint.save_weights(run.work_dir / "best.safetensors", checkpoint.model_state(run.model), _meta(run))


def _save(run: Run, *, best: bool = False) -> Path:
    """Write the training state `last/`, and `best/` too where asked."""
    distributed.beat("saves")
    if not distributed.is_main():
        if run.optimizer.is_open:
            run.optimizer.state_dict()  # the sum over all ranks needs every rank
        run.saved_at = run.done
        give_back()
        return run.work_dir / "last"
    run.log.sync()
    state, record = state_of(run)
    path = checkpoint.save_state(run.work_dir, checkpoint.model_state(run.model), state, record, _meta(run),
                                 keep=run.plan.keep, best=best)
    run.saved_at = run.done
    give_back()
    return path


def _keep_progress(run: Run, error: DataError) -> None:
    """Save the finished steps before an error of the data, which does not concern them, ends the run."""
    if distributed.world_size() > 1 and not getattr(error, "on_every_rank", False):
        return  # one rank alone cannot save
    try:
        if run.done > 0 and run.saved_at != run.done:
            _save(run)
    except JsegError as failure:
        distributed.tell(str(failure))
        return
    if run.done > 0:
        distributed.tell(f"{run.done} of {run.plan.max_iters} iterations are saved in {run.work_dir}/last; when the "
              "following is mended, go on with --resume")


def _finish(run: Run, stop: distributed.JobStop) -> bool:
    """Score the deliverable once more with pictures kept for the report, and write metrics.json;
    False when cut short.
    """
    deliverable = run.work_dir / "best.safetensors"
    if run.best is None:  # no evaluation: the last weights are what there is
        with _deliverable_weights(run):
            _export(run)
    if run.val_loader is None:
        run.log.say(f"done: {deliverable}")
        run.log.write_final({})
        return True
    weights = distributed.from_main(lambda: checkpoint.load_weights(deliverable)[0])
    checkpoint.load_into(run.model, weights, source=str(deliverable))
    try:
        result = evaluate(run.model, run.val_loader, run.config.get("evaluator"), keep=run.work_dir / "eval",
                          stop=lambda: stop.wish)
    except EvaluationStopped:
        distributed.agree(stop)
        return False
    if distributed.is_main():
        save_result({**result, "checkpoint": deliverable.name}, run.work_dir / "metrics.json")
    run.metrics = result["metrics"]
    run.log.write_final(run.metrics)
    run.log.say(f"done: {run.plan.save_best} {_score(run):.4f}, weights in {deliverable}")
    return True
