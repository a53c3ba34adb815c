"""Optimizer, learning-rate schedules, loop, evaluator of foreign configs in jseg's words.

0.x and original JSeg multiply the warm-up onto a poly schedule that runs from iteration 0 (MMCV 1.x,
runner/hooks/lr_updater.py; JSeg, optims/lr_scheduler.py). Rates that fall to 0 change by factors only, so [LinearLR(0,
W + 1), PolyLR(0, N + 1)], both active, give those numbers exactly; the 1 is there because MMEngine's schedules arrive
one step before their `end`. Where the lowest rate is above 0 the sequence of MMSegmentation's own 1.x configs is taken,
[LinearLR(0, W), PolyLR(W, N)].
"""

from __future__ import annotations

from typing import Any

from jseg.convert.mmseg_notes import Notes, as_list, brief
from jseg.registry import nearest

__all__ = ["translate_new_schedule", "translate_old_schedule", "translate_jseg_schedule", "OPTIMIZER_KEYS",
           "SCHEDULE_KEYS"]

OPTIMIZER_KEYS = {"Adam": ("lr", "betas", "eps", "weight_decay"), "AdamW": ("lr", "betas", "eps", "weight_decay"),
                  "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov")}
_RANGE = ("begin", "end", "by_epoch", "convert_to_iter_based")
SCHEDULE_KEYS = {"LinearLR": ("start_factor", "end_factor", *_RANGE), "ConstantLR": ("factor", *_RANGE),
                 "PolyLR": ("power", "eta_min", *_RANGE),
                 "CosineAnnealingLR": ("T_max", "eta_min", "eta_min_ratio", *_RANGE),
                 "StepLR": ("step_size", "gamma", *_RANGE), "MultiStepLR": ("milestones", "gamma", *_RANGE)}
PARAMWISE_KEYS = ("num_layers", "decay_rate", "decay_type", "custom_keys", "bias_lr_mult", "bias_decay_mult",
                  "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult")
_CONSTRUCTORS = ("DefaultOptimWrapperConstructor", "LearningRateDecayOptimizerConstructor",
                 "LayerDecayOptimizerConstructor")
METRICS = ("mIoU", "mDice", "mFscore")
# hooks that jseg's loop needs no word for
_IN_THE_LOOP = {"timer": (), "param_scheduler": (), "sampler_seed": (), "visualization": ()}


def _optimizer(block: dict, notes: Notes) -> dict:
    """The optimizer block; an unknown one stays, with a note."""
    kind = {"CustomAdamW": "AdamW"}.get(block.get("type"), block.get("type"))
    if kind not in OPTIMIZER_KEYS:
        notes.add("optimizer.type", f"jseg has no optimizer {kind!r}{nearest(str(kind), OPTIMIZER_KEYS)}; the block "
                                    "was kept for you to change")
        return block
    return notes.take({**block, "type": kind}, OPTIMIZER_KEYS[kind], "optimizer",
                      {"amsgrad": (False,), "foreach": (), "fused": (), "capturable": (False,)})


def _paramwise(block: dict, notes: Notes) -> dict:
    if "layer_decay_rate" in block:  # the older name, which BEiT's and MAE's configs use
        block = {**{key: value for key, value in block.items() if key != "layer_decay_rate"},
                 "decay_rate": block["layer_decay_rate"]}
    if isinstance(block.get("decay_type"), str) and block["decay_type"].startswith("layer_wise"):  # layer_wise_vit
        block = {**block, "decay_type": "layer_wise"}
    kept = notes.take(block, PARAMWISE_KEYS, "paramwise_cfg", {"bypass_duplicate": (False,)})
    if "custom_keys" in kept:
        kept["custom_keys"] = {name: notes.take(notes.block(rule, f"paramwise_cfg.custom_keys.{name}"),
                                                ("lr_mult", "decay_mult"), f"paramwise_cfg.custom_keys.{name}")
                               for name, rule in notes.block(kept["custom_keys"], "paramwise_cfg.custom_keys").items()}
    return kept


def _clip(block: Any, notes: Notes, where: str) -> dict | None:
    return notes.take(notes.block(block, where), ("max_norm", "norm_type"), where) if block else None


def _ema(hook: dict, notes: Notes) -> dict:
    """MMEngine's EMAHook; its momentum is the share of the newest weights."""
    notes.take(hook, ("momentum",), "custom_hooks.EMAHook",
               {"ema_type": ("ExponentialMovingAverage",), "priority": (), "strict_load": (),
                "begin_iter": (0,), "begin_epoch": (0,)})
    return {"decay": 1.0 - float(hook.get("momentum", 0.0002))}


def _train_cfg(values: dict) -> dict:
    """A train_cfg with every key, in one order."""
    usual = {"log_interval": 50, "save_best": "mIoU", "accumulative_counts": 1, "clip_grad": None,
             "ema": None, "amp": False, "tensorboard": False}
    order = ("max_iters", "max_epochs", "val_interval", "ckpt_interval", "log_interval", "keep", "save_best",
             "accumulative_counts", "clip_grad", "ema", "amp", "tensorboard")
    merged = {**usual, **{key: value for key, value in values.items() if value is not None}}
    return {key: merged[key] for key in order if key in merged}


def _keep(count: Any, notes: Notes, where: str) -> int | None:
    """How many training states stay; -1 and None mean all of them upstream."""
    if isinstance(count, int) and count > 0:
        return count
    notes.add(where, "the source keeps every checkpoint; jseg keeps train_cfg.keep of them (1 unless it is set) and "
                     "the best")
    return None


def _best(name: Any, notes: Notes, where: str) -> str | None:
    if name in (None, False):
        return None
    if name in ("auto", True):
        return "mIoU"
    if name in ("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall"):
        return name
    notes.add(where, f"{brief(name)} is no score of jseg's; mIoU picks the best checkpoint")
    return None


def _metrics(names: Any, notes: Notes, where: str) -> list[str]:
    known = [name for name in as_list(names) if name in METRICS]
    for name in as_list(names):
        if name not in METRICS:
            notes.add(where, f"jseg has no metric {brief(name)} (known: {', '.join(METRICS)}); left out")
    return known or ["mIoU"]


# ---- mmseg 1.x -------------------------------------------------------------------------------------------------------


def translate_new_schedule(cfg: dict, notes: Notes) -> tuple[dict, set[str]]:
    """1.x: optim_wrapper, param_scheduler, train_cfg with default_hooks and custom_hooks, val_evaluator, randomness."""
    found: dict[str, Any] = {}
    wrapper = notes.block(cfg.get("optim_wrapper"), "optim_wrapper")
    optimizer = wrapper.get("optimizer") or (cfg.get("optimizer") if not wrapper else None)
    if optimizer:
        found["optimizer"] = _optimizer(notes.block(optimizer, "optim_wrapper.optimizer"), notes)
    if wrapper.get("paramwise_cfg"):
        found["paramwise_cfg"] = _paramwise(notes.block(wrapper["paramwise_cfg"], "paramwise_cfg"), notes)
    mixed = wrapper.get("type") == "AmpOptimWrapper"
    notes.take({key: value
                for key, value in wrapper.items() if key not in ("type", "optimizer", "paramwise_cfg", "clip_grad",
                                                                 "accumulative_counts")},
               (), "optim_wrapper", {"loss_scale": ("dynamic",), "constructor": _CONSTRUCTORS})
    schedules = [_schedule(notes.block(block, f"param_scheduler.{i}"), f"param_scheduler.{i}", notes)
                 for i, block in enumerate(as_list(cfg.get("param_scheduler")))]
    if schedules:
        found["param_scheduler"] = schedules
    if cfg.get("train_cfg"):
        steps = {"accumulative_counts": wrapper.get("accumulative_counts"), "amp": mixed,
                 "clip_grad": _clip(wrapper.get("clip_grad"), notes, "optim_wrapper.clip_grad")}
        found["train_cfg"] = _train_cfg(_new_loop(cfg, notes) | steps)
    found.update(_new_evaluator(cfg, notes))
    randomness = notes.block(cfg.get("randomness"), "randomness")
    if randomness.get("seed") is not None:
        found["seed"] = randomness["seed"]
    notes.take({key: value for key, value in randomness.items() if key != "seed"}, (), "randomness",
               {"deterministic": (False,)})
    return found, {"optim_wrapper", "optimizer", "param_scheduler", "train_cfg", "val_cfg", "test_cfg", "default_hooks",
                   "custom_hooks", "val_evaluator", "test_evaluator", "randomness"}


def _schedule(block: dict, where: str, notes: Notes) -> dict:
    kind = block.get("type")
    if kind not in SCHEDULE_KEYS:
        notes.add(f"{where}.type", f"jseg has no schedule {kind!r}{nearest(str(kind), SCHEDULE_KEYS)}; the block was "
                                   "kept for you to change")
        return block
    kept = notes.take(block, SCHEDULE_KEYS[kind], where, {"verbose": (), "last_step": (-1,)})
    if isinstance(kept.get("end"), (int, float)) and kept["end"] >= 10 ** 9:  # MMEngine's "to the end"
        del kept["end"]
    return kept


def _new_loop(cfg: dict, notes: Notes) -> dict:
    loop = notes.block(cfg["train_cfg"], "train_cfg")
    by_epoch = "max_epochs" in loop or loop.get("type") == "EpochBasedTrainLoop" or loop.get("by_epoch") is True
    values = notes.take(loop, ("max_iters", "max_epochs", "val_interval"), "train_cfg",
                        {"val_begin": (1,), "dynamic_intervals": (None,), "by_epoch": ()})
    values.pop("type", None)
    values.setdefault("val_interval", 1 if by_epoch else 1000)
    hooks = notes.block(cfg.get("default_hooks"), "default_hooks")
    saver = notes.block(hooks.get("checkpoint"), "default_hooks.checkpoint")
    if saver.get("by_epoch", True) == by_epoch:
        values["ckpt_interval"] = saver.get("interval") if (saver.get("interval") or 0) > 0 else None
    elif saver:
        notes.add("default_hooks.checkpoint.interval",
                  f"{brief(saver.get('interval'))} counts in another unit than train_cfg; left out")
    if saver:
        values["keep"] = _keep(saver.get("max_keep_ckpts"), notes, "default_hooks.checkpoint.max_keep_ckpts")
    values["save_best"] = _best(saver.get("save_best"), notes, "default_hooks.checkpoint.save_best")
    notes.take(saver, ("interval", "by_epoch", "max_keep_ckpts", "save_best"), "default_hooks.checkpoint",
               {"save_optimizer": (), "save_last": (), "out_dir": (None,), "published_keys": (),
                "save_param_scheduler": ()})
    logger = notes.block(hooks.get("logger"), "default_hooks.logger")
    values["log_interval"] = logger.get("interval")
    notes.take(logger, ("interval",), "default_hooks.logger",
               {"log_metric_by_epoch": (), "ignore_last": (), "out_dir": (None,)})
    notes.take({key: value for key, value in hooks.items() if key not in ("checkpoint", "logger")}, (),
               "default_hooks", _IN_THE_LOOP)
    backends = as_list(notes.block(cfg.get("visualizer"), "visualizer").get("vis_backends"))
    values["tensorboard"] = any(isinstance(backend, dict) and backend.get("type") == "TensorboardVisBackend"
                                for backend in backends)
    for i, hook in enumerate(as_list(cfg.get("custom_hooks"))):
        if isinstance(hook, dict) and hook.get("type") == "EMAHook":
            values["ema"] = _ema(hook, notes)
        else:
            notes.add(f"custom_hooks.{i}", f"{brief(hook)} has no counterpart and was left out")
    return values


def _new_evaluator(cfg: dict, notes: Notes) -> dict:
    evaluator = None
    for i, block in enumerate(as_list(cfg.get("val_evaluator") or cfg.get("test_evaluator"))):
        block = notes.block(block, f"val_evaluator.{i}")
        if block.get("type") != "IoUMetric":
            notes.add("val_evaluator", f"jseg has no {block.get('type')}; left out")
            continue
        notes.take(block, ("iou_metrics", "beta"), "val_evaluator",
                   {"nan_to_num": (None,), "ignore_index": (255,), "prefix": (None,),
                    "format_only": (False,), "output_dir": (None,), "collect_device": ()})
        evaluator = {"metrics": _metrics(block.get("iou_metrics", "mIoU"), notes, "val_evaluator.iou_metrics")}
        if block.get("beta", 1) != 1:
            evaluator["beta"] = block["beta"]
    if cfg.get("test_evaluator") not in (None, cfg.get("val_evaluator")) and cfg.get("val_evaluator"):
        notes.add("test_evaluator", f"{brief(cfg['test_evaluator'])} differs from val_evaluator; jseg has one "
                                    "evaluator, val's was taken")
    return {} if evaluator is None else {"evaluator": evaluator}


# ---- mmseg 0.x and original JSeg -------------------------------------------------------------------------------------


def translate_old_schedule(cfg: dict, notes: Notes) -> tuple[dict, set[str]]:
    """0.x: optimizer with paramwise_cfg, optimizer_config, lr_config, runner,
    checkpoint_config, evaluation, log_config, fp16.
    """
    found: dict[str, Any] = {}
    optimizer = dict(notes.block(cfg.get("optimizer"), "optimizer"))
    rules = optimizer.pop("paramwise_cfg", None)
    if optimizer:
        optimizer.pop("constructor", None) if optimizer.get("constructor") == "DefaultOptimizerConstructor" else None
        found["optimizer"] = _optimizer(optimizer, notes)
    if rules:
        found["paramwise_cfg"] = _paramwise(notes.block(rules, "optimizer.paramwise_cfg"), notes)
    runner = notes.block(cfg.get("runner"), "runner")
    iters = runner.get("max_iters", cfg.get("total_iters"))
    epochs = None if iters else runner.get("max_epochs", cfg.get("total_epochs"))
    rate = notes.block(cfg.get("lr_config"), "lr_config")
    if rate and (iters or epochs):
        found["param_scheduler"] = _old_rate(rate, iters, epochs, notes)
    saver = notes.block(cfg.get("checkpoint_config"), "checkpoint_config")
    scores = notes.block(cfg.get("evaluation"), "evaluation")
    steps = notes.block(cfg.get("optimizer_config"), "optimizer_config")
    logger = notes.block(cfg.get("log_config"), "log_config")
    if iters or epochs:
        values = {"max_iters": iters, "max_epochs": epochs, "val_interval": scores.get("interval"),
                  "ckpt_interval": saver.get("interval"), "log_interval": logger.get("interval"),
                  "save_best": _best(scores.get("save_best"), notes, "evaluation.save_best"),
                  "accumulative_counts": steps.get("cumulative_iters"), "amp": bool(cfg.get("fp16"))
                  or steps.get("type") == "Fp16OptimizerHook",
                  "tensorboard": any(isinstance(hook, dict) and hook.get("type") == "TensorboardLoggerHook"
                                     for hook in as_list(logger.get("hooks")))}
        values["keep"] = _keep(saver.get("max_keep_ckpts"), notes, "checkpoint_config.max_keep_ckpts")
        for hook in as_list(cfg.get("custom_hooks")):
            if isinstance(hook, dict) and hook.get("type") == "EMAHook":
                values["ema"] = _ema(hook, notes)
            else:
                notes.add("custom_hooks", f"{brief(hook)} has no counterpart and was left out")
        values["clip_grad"] = _clip(steps.get("grad_clip"), notes, "optimizer_config.grad_clip")
        found["train_cfg"] = _train_cfg(values)
    found["evaluator"] = {"metrics": _metrics(scores.get("metric", "mIoU"), notes, "evaluation.metric")}
    notes.take(steps, ("grad_clip", "cumulative_iters"), "optimizer_config", {"loss_scale": ()})
    notes.take(scores, ("interval", "metric", "save_best"), "evaluation",
               {"pre_eval": (), "by_epoch": (bool(epochs),), "efficient_test": ()})
    if isinstance(cfg.get("seed"), int):
        found["seed"] = cfg["seed"]
    return found, {"optimizer", "optimizer_config", "lr_config", "runner", "total_iters", "total_epochs",
                   "checkpoint_config", "evaluation", "log_config", "fp16", "custom_hooks", "seed"}


def _old_rate(rate: dict, iters: int | None, epochs: int | None, notes: Notes) -> list[dict]:
    """MMCV 1.x's lr_config."""
    by_epoch = rate.get("by_epoch", True)
    length = epochs if by_epoch else iters
    policy = str(rate.get("policy", "fixed")).lower()
    low = rate.get("min_lr") or 0.0
    span = {"by_epoch": by_epoch, "begin": 0, **({"end": length} if length else {})}
    if policy == "poly":
        reach = {"end": length + 1} if length else {}
        main = [{"type": "PolyLR", "power": rate.get("power", 1.0), "eta_min": float(low), **span, **reach}]
    elif policy == "cosineannealing":
        ratio = rate.get("min_lr_ratio")
        lowest = {"eta_min": float(low)} if ratio is None else {"eta_min_ratio": ratio}
        main = [{"type": "CosineAnnealingLR", **({"T_max": length} if length else {}), **lowest, **span}]
        low = low or ratio
    elif policy == "step" and isinstance(rate.get("step"), int):
        main = [{"type": "StepLR", "step_size": rate["step"], "gamma": rate.get("gamma", 0.1), **span}]
    elif policy == "step":
        main = [{"type": "MultiStepLR", "milestones": as_list(rate.get("step")),
                 "gamma": rate.get("gamma", 0.1), **span}]
    else:
        main = []
        if policy != "fixed":
            notes.add("lr_config.policy",
                      f"{policy!r} has no counterpart and was left out: the rate would stay constant")
    if policy == "step" and low:
        notes.add("lr_config.min_lr", f"{low} has no counterpart with steps and was left out")
    notes.take(rate, ("policy", "by_epoch", "power", "min_lr", "min_lr_ratio", "step", "gamma", "warmup",
                      "warmup_iters", "warmup_ratio"),
               "lr_config", {"warmup_by_epoch": (False,)})
    return _warm_up(rate, main, bool(low), notes)


def _warm_up(rate: dict, main: list[dict], has_low: bool, notes: Notes) -> list[dict]:
    """Put the warm-up in front; see the file's text for why it overlaps."""
    kind, count = rate.get("warmup"), rate.get("warmup_iters") or 0
    if kind is None or count < 1:
        return main
    ratio = rate.get("warmup_ratio", 0.1)
    if kind == "constant":
        return [{"type": "ConstantLR", "factor": ratio, "by_epoch": False, "begin": 0, "end": count + 1}, *main]
    if kind != "linear":
        notes.add("warmup", f"{brief(kind)} has no counterpart; a linear one was taken")
    follows = has_low and main and main[0]["type"] == "PolyLR" and not main[0]["by_epoch"]
    if has_low:
        notes.add("warmup", "with a lowest rate above 0 the source multiplies the warm-up onto the falling rate; here "
                            "the rate falls after it (as in mmsegmentation's 1.x configs), which differs by about "
                            "warmup_iters / max_iters at most")
    if follows:
        main[0] = {**main[0], "begin": count, **({"end": main[0]["end"] - 1} if "end" in main[0] else {})}
    return [{"type": "LinearLR", "start_factor": ratio, "by_epoch": False, "begin": 0,
             "end": count if follows else count + 1}, *main]


def translate_jseg_schedule(cfg: dict, notes: Notes) -> tuple[dict, set[str]]:
    """Original JSeg: optimizer, parameter_groups_generator, scheduler, max_iter or max_epoch, *_interval."""
    found: dict[str, Any] = {}
    optimizer = dict(notes.block(cfg.get("optimizer"), "optimizer"))
    clip = optimizer.pop("grad_clip", None)
    if optimizer:
        if optimizer.get("type") in ("AdamW", "CustomAdamW"):
            optimizer.setdefault("weight_decay", 0)  # JSeg's default
        found["optimizer"] = _optimizer(optimizer, notes)
    groups = notes.block(cfg.get("parameter_groups_generator"), "parameter_groups_generator")
    if groups.get("type") == "CustomPrameterGroupsGenerator":
        found["paramwise_cfg"] = _paramwise({"custom_keys": groups.get("custom_keys") or {}}, notes)
        if len(found["paramwise_cfg"]["custom_keys"]) > 1:
            notes.add("paramwise_cfg.custom_keys", "where several keys fit a parameter, JSeg takes the first in the "
                                                   "file, jseg the longest")
    elif groups:
        notes.add("parameter_groups_generator", f"{brief(groups)} has no counterpart and was left out")
    iters, epochs = cfg.get("max_iter"), cfg.get("max_epoch")
    rate = dict(notes.block(cfg.get("scheduler"), "scheduler"))
    if rate:
        policies = {"PolyLR": "poly", "CosineAnnealingLR": "CosineAnnealing", "StepLR": "step", "WarmUpLR": "fixed"}
        rate["policy"] = policies.get(rate.get("type"), rate.pop("type", None))
        rate.pop("type", None)
        rate["by_epoch"] = False
        if "milestones" in rate:
            rate["step"] = rate.pop("milestones")
        rate = {"warmup_ratio": 1.0 / 3, "warmup_iters": 500, **rate}  # JSeg's defaults
        schedules = _old_rate({key: value for key, value in rate.items() if key != "max_steps"}, rate.get("max_steps")
                              or iters, epochs, notes)
        if schedules:
            found["param_scheduler"] = schedules
    if iters or epochs:
        values = {"max_iters": iters, "max_epochs": None if iters else epochs, "log_interval": cfg.get("log_interval")}
        for key in ("eval", "checkpoint"):
            interval = cfg.get(f"{key}_interval")
            if iters:
                values["val_interval" if key == "eval" else "ckpt_interval"] = interval
            elif interval:
                notes.add(f"{key}_interval", f"{interval} counts iterations, but max_epoch counts epochs; left out")
        values["clip_grad"] = _clip(clip, notes, "optimizer.grad_clip")
        found["train_cfg"] = _train_cfg(values)
    found["evaluator"] = {"metrics": ["mIoU"]}
    return found, {"optimizer", "parameter_groups_generator", "scheduler", "max_iter", "max_epoch", "log_interval",
                   "eval_interval", "checkpoint_interval"}
