"""Configs of MMSegmentation 0.x and 1.x and of original JSeg become jseg configs of the same meaning.

Upstream vocabulary: MMSegmentation 1.2.2 (configs/, mmseg/), 0.30 (mmseg/datasets/pipelines, MMCV 1.x's lr_updater),
the SegNeXt authors' configs (Visual-Attention-Network/SegNeXt, local_configs/) and original JSeg (Jittor/JSeg,
project/). What jseg has no counterpart for is listed in the notes. A `type` that jseg does not know stays in the
config, so that `jseg check` names it and nothing wrong is trained or predicted with the rest.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from jseg.convert.mmseg_data import translate_new_data, translate_old_data
from jseg.convert.mmseg_model import translate_model, translate_preprocessor
from jseg.convert.mmseg_notes import Notes, brief, cleaned
from jseg.convert.mmseg_schedule import translate_jseg_schedule, translate_new_schedule, translate_old_schedule
from jseg.errors import ConvertError

__all__ = ["Translation", "translate_config", "config_style"]


@dataclasses.dataclass(frozen=True)
class Translation:
    """A jseg config (plain dicts and lists, for `jseg.config.dump_config`) and what a reader of it must know."""

    config: dict
    notes: list[str]


_ORDER = ("model", "data_preprocessor", "train_dataloader", "val_dataloader", "test_dataloader", "optimizer",
          "paramwise_cfg", "param_scheduler", "train_cfg", "evaluator", "tta", "seed")
_RUNTIME = (  # how and where the source ran, not what it computed
    "default_scope", "env_cfg", "vis_backends", "visualizer", "log_processor", "log_level", "resume",
    "resume_from", "launcher", "custom_imports", "auto_scale_lr", "find_unused_parameters", "model_wrapper_cfg",
    "compile", "sync_bn", "cudnn_benchmark", "dist_params", "workflow", "gpu_ids", "device", "opencv_num_threads",
    "mp_start_method", "work_dir", "name", "logger", "deterministic", "auto_resume", "experiment_name", "efficient_val",
    "strategy", "runner_type", "cfg", "hooks_for_visualization")


def config_style(cfg: Mapping) -> str:
    """Tell "mmseg 1.x", "mmseg 0.x" and "original JSeg" apart by the top-level names; a bare model counts as 1.x."""
    if any(key in cfg for key in ("train_dataloader", "test_dataloader", "val_dataloader", "optim_wrapper",
                                  "param_scheduler")):
        return "mmseg 1.x"
    if any(key in cfg for key in ("scheduler", "parameter_groups_generator", "max_iter", "max_epoch")) \
            or isinstance(cfg.get("dataset"), Mapping) and "data" not in cfg:
        return "original JSeg"
    if any(key in cfg for key in ("data", "lr_config", "optimizer_config", "checkpoint_config", "runner",
                                  "log_config")):
        return "mmseg 0.x"
    return "mmseg 1.x"


def translate_config(cfg: Mapping, *, source: str, metainfo: Mapping | None = None) -> Translation:
    """Translate a config that `py_config` read or that a checkpoint holds.

    Args:
        cfg: the whole config, bases merged in; it is not changed.
        source: its file or description, for messages.
        metainfo: `{classes: [...], palette: [...]}` as stored in the checkpoint; needed for datasets that jseg does not
            know by name.
    Raises:
        ConvertError: no model in it, or a block that is not one.
    """
    try:
        return _translation(cfg, source, metainfo)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConvertError(f"{source}: a value in it is of another kind than MMSegmentation and JSeg write ({text}); "
                           f"give the config it was trained with by --config") from error


def _translation(cfg: Mapping, source: str, metainfo: Mapping | None) -> Translation:
    """See `translate_config`."""
    cfg = cleaned(cfg, source)
    notes = Notes(source, config_style(cfg))
    model = notes.block(cfg.get("model"), "model")
    if "decode_head" not in model and "backbone" not in model:
        raise ConvertError(f"{source}: no model with a backbone and a decode head in it; a segmentation config of "
                           "MMSegmentation or JSeg is expected (its top-level names: "
                           f"{', '.join(map(str, list(cfg)[:12])) or 'none'})")
    if metainfo is not None:
        metainfo = {key: value for key, value in cleaned(metainfo, f"{source}: metainfo").items()
                    if key in ("classes", "palette") and value}
    translated: dict[str, Any] = {"model": translate_model(model, notes)}
    used = {"model"}
    if notes.style == "mmseg 1.x":
        parts = (translate_preprocessor(cfg, notes), translate_new_data(cfg, notes, metainfo),
                 translate_new_schedule(cfg, notes))
    else:
        schedule = translate_old_schedule if notes.style == "mmseg 0.x" else translate_jseg_schedule
        parts = (translate_old_data(cfg, notes, metainfo), schedule(cfg, notes))
    for blocks, names in parts:
        translated.update(blocks)
        used.update(names)
    _hand_edges_over(translated["model"], notes)
    _evaluate_what_is_best(translated)
    _say_what_is_missing(translated, notes)
    _say_what_is_left(cfg, used, notes)
    return Translation({key: translated[key] for key in _ORDER if key in translated}, notes.lines)


def _hand_edges_over(model: dict, notes: Notes) -> None:
    """The width of GenerateEdge's edges goes to the head that learns them."""
    if notes.edges is None:
        return
    head = model.get("decode_head")
    if not isinstance(head, dict) or head.get("type") != "PIDHead":
        notes.add("GenerateEdge", "no head of this model learns edges; left out")
        return
    head["edge_width"] = notes.edges.get("edge_width", 3)
    if notes.edges.get("ignore_index", 255) != head.get("ignore_index", 255):
        notes.add("GenerateEdge.ignore_index", f"{brief(notes.edges['ignore_index'])} was left out: edges leave the "
                                               "head's ignore_index out")


def _evaluate_what_is_best(config: dict) -> None:
    """The score that picks the best checkpoint must be among the computed ones;
    without validation there is no interval.
    """
    train_cfg = config.get("train_cfg")
    if train_cfg is None:
        return
    metrics = config.get("evaluator", {}).get("metrics", ["mIoU"])
    computed = {"mIoU": ("mIoU", "mAcc"), "mDice": ("mDice", "mAcc"), "mFscore": ("mFscore", "mPrecision", "mRecall")}
    if train_cfg["save_best"] not in ("aAcc", *(name for metric in metrics for name in computed.get(metric, ()))):
        train_cfg["save_best"] = metrics[0]
    if "val_dataloader" not in config:
        train_cfg.pop("val_interval", None)


def _say_what_is_missing(config: dict, notes: Notes) -> None:
    for key, need in (("train_dataloader", "train"), ("val_dataloader", "evaluate"), ("optimizer", "train"),
                      ("train_cfg", "train")):
        if key not in config:
            notes.add(key, f"the source has none; add one to {need}")


def _say_what_is_left(cfg: dict, used: set[str], notes: Notes) -> None:
    """Name every top-level entry that was not looked at."""
    rest = [str(key) for key in cfg if key not in used]
    if cfg.get("load_from") is not None:
        notes.add("load_from",
                  f"training started from {cfg['load_from']}; convert that file and name the result in load_from")
    runtime = sorted(key for key in rest if key in _RUNTIME)
    if runtime:
        notes.add("run environment", f"left out, jseg has its own: {', '.join(runtime)}")
    others = sorted(key for key in rest if key not in _RUNTIME and key != "load_from")
    if others:
        notes.add("other names", "left out; they are taken for helper variables whose values the blocks already hold: "
                                 f"{', '.join(others)}")
