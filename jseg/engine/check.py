"""Find every mistake in a config before anything is built:
names, arguments, values, and blocks that do not fit together.

Each `type:` block is bound to the signature of the class it names and then built (all but the optimizer), so that the
class's own value checks speak. Numbers that nobody can mean are told first and alone; last, where the model's blocks
are right, one batch is put through model and losses without computing (`engine.dry_step`). All of it takes a fraction
of a second and compiles nothing; NumPy's generator is left as it was and no file of a dataset is touched.
"""

from __future__ import annotations

import importlib
from typing import Any, Mapping

import numpy as np

from jseg.config import inner_datasets, is_classifier, last_head, stating_block
from jseg.engine.check_classifier import class_faults, head_faults, score_faults
from jseg.engine.check_facts import channel_faults, heads_of, ignore_faults
from jseg.engine.check_rules import DATA_PREFIX, LOADER, OPTIMIZER, PREPROCESSOR, TOP_LEVEL, TRAIN_LOADER, TTA
from jseg.engine.dry_step import dry_step
from jseg.engine.evaluate import evaluator_faults
from jseg.engine.limits import absurd
from jseg.engine.optim import paramwise_faults
from jseg.engine.schedules import part_of
from jseg.engine.train_cfg import TrainCfg, train_cfg_faults
from jseg.errors import ConfigError, JsegError
from jseg.layers.init import without_values
from jseg.metrics import CLASSIFIER_SCORES, METRICS, SCORES
from jseg.models.segmentor import faults_of_test_cfg
from jseg.registry import DATASETS, LOSSES, MODELS, OPTIMIZERS, SAMPLERS, SCHEDULES, TRANSFORMS, Registry
from jseg.rules import fields, is_integer, is_pair, known_fields, wrong_types

__all__ = ["check_config", "summary", "class_names"]

_FILL = ("jseg.models", "jseg.losses", "jseg.data.datasets", "jseg.data.transforms", "jseg.engine.optim",
         "jseg.engine.schedules")


_NEEDED = ("model", "data_preprocessor", "train_dataloader", "optimizer", "train_cfg")


def check_config(cfg: Mapping, *, where: str = "") -> list[str]:
    """List every mistake in a loaded config; an empty list means that it can be trained.

    Args:
        cfg: what `config.load_config` returns.
        where: put before each line, usually the file's path.
    """
    for module in _FILL:
        importlib.import_module(module)
    faults = absurd(cfg)
    if faults:  # building from such numbers could take the machine's memory
        return [f"{where}: {fault}" if where else fault for fault in faults]
    faults = [f"the config needs a {key!r} block" for key in _NEEDED if cfg.get(key) is None]
    faults += fields(cfg, TOP_LEVEL, "", "the top level of a config")
    block = {key: value for key, value in cfg.items() if isinstance(value, Mapping)}  # anything else is reported above
    of_model = _check_model(block["model"]) + channel_faults(block) if "model" in block else []
    faults += of_model + ignore_faults(block)
    faults += _check_preprocessor(block) if "data_preprocessor" in block else []
    for split in ("train", "val", "test"):
        faults += _check_loader(block, split) if f"{split}_dataloader" in block else []
    faults += _check_optimizer(block)
    faults += _check_schedules(cfg.get("param_scheduler"))
    faults += train_cfg_faults(block) if "train_cfg" in block else []
    faults += _check_evaluation(block)
    if "model" in block and not of_model:
        faults += dry_step(block)
    return [f"{where}: {fault}" if where else fault for fault in faults]


def summary(cfg: Mapping) -> str:
    """Say in one line what a valid config trains."""
    model, train, loader = cfg["model"], TrainCfg.of(cfg), cfg["train_dataloader"]
    head = {"type": "LinearClsHead", **model["head"]} if is_classifier(cfg) else model["decode_head"]
    heads = head if isinstance(head, (list, tuple)) else [head]
    parts = [f"{b['type']} {b['variant']}" if "variant" in b else b["type"]
             for b in (model["backbone"], None if is_classifier(cfg) else model.get("neck"), *heads)
             if isinstance(b, Mapping)]
    length = f"{train.max_iters} iterations" if train.max_iters else f"{train.max_epochs} epochs"
    count = last_head(model)["num_classes"] if is_classifier(cfg) else len(class_names(loader["dataset"]) or ())
    known = f" ({count} classes)" if count else ""
    return (f"{' + '.join(parts)} on {loader['dataset']['type']}{known}, {length} of {loader.get('batch_size', 1)} "
            "pictures")


def class_names(dataset: Mapping) -> list[str] | None:
    """The classes a dataset block stands for, or None where only its files could tell."""
    built = _build(DATASETS, dataset, "dataset")[0]
    return None if built is None else list(built.classes)


def _build(registry: Registry, block: Any, where: str) -> tuple[Any, list[str]]:
    """Bind a block to its class and build it: (the object, []) or (None, what is wrong)."""
    if isinstance(block, Mapping) and not isinstance(block.get("type", ""), str):
        return None, [f"{where}.type: got {block['type']!r}, expected the name of a {registry.kind}"]
    faults = registry.faults(block, where)
    if isinstance(block, Mapping) and block.get("type") in registry:
        faults += wrong_types(registry.get(block["type"]), block, where)
    if faults:
        return None, faults
    state = np.random.get_state()
    try:
        with without_values():
            return registry.build(block, where), []
    except JsegError as error:
        text = str(error)
        return None, (text if text.startswith(where) else f"{where}: {text}").splitlines()
    except Exception as error:  # a value no constructor thought of: still one line, with the others
        return None, [f"{where}: {block['type']} cannot be built from these values: {type(error).__name__}: {error}"]
    finally:
        np.random.set_state(state)


def _check_model(model: Mapping) -> list[str]:
    faults = _unknown(MODELS, model, "model")
    faults += [f"model.{key}: got null, expected a block with a 'type:'" for key in ("backbone", "decode_head")
               if key in model and model[key] is None]
    backbone = None
    if model.get("backbone") is not None:
        backbone, found = _build(MODELS, model["backbone"], "model.backbone")
        faults += found
    if is_classifier({"model": model}):
        return faults + head_faults(model, backbone)
    for name in ("neck", "text_encoder"):
        if model.get(name) is not None:
            faults += _build(MODELS, model[name], f"model.{name}")[1]
    for where, head in heads_of(model):
        faults += _check_head(head, where)
        if isinstance(head, Mapping) and backbone is not None and model.get("neck") is None:
            faults += _check_inputs(backbone, head, where)
    outer = model.get("decode_head")
    if isinstance(outer, Mapping) and stating_block(outer)[0] and not faults:
        faults += _build(MODELS, outer, "model.decode_head")[1]
    if isinstance(model.get("test_cfg"), Mapping):
        faults += faults_of_test_cfg(model["test_cfg"])
    return faults


def _unknown(registry: Registry, block: Mapping, where: str, given: tuple[str, ...] = ()) -> list[str]:
    """Bind a block to its class's signature without building it."""
    if not isinstance(block.get("type", ""), str):
        return [f"{where}.type: got {block['type']!r}, expected the name of a {registry.kind}"]
    faults = registry.faults(block, where, given)
    return faults + (wrong_types(registry.get(block["type"]), block, where) if block.get("type") in registry else [])


def _check_head(head: Any, where: str) -> list[str]:
    """Check the losses and the sampler first: a head is built only from parts that are right."""
    faults = []
    losses = head.get("loss_decode") if isinstance(head, Mapping) else None
    for i, loss in enumerate(losses if isinstance(losses, list) else [losses]):
        place = f"{where}.loss_decode" + (f".{i}" if isinstance(losses, list) else "")
        faults += _build(LOSSES, loss, place)[1] if loss is not None else []
    if isinstance(head, Mapping) and head.get("sampler") is not None:
        faults += _build(SAMPLERS, head["sampler"], f"{where}.sampler")[1]
    if faults and isinstance(head, Mapping):
        return faults + _unknown(MODELS, head, where)
    return faults + _build(MODELS, head, where)[1]


def _check_inputs(backbone: Any, head: Mapping, where: str) -> list[str]:
    """Compare a head's in_channels and in_index with the maps that its backbone makes."""
    widths = getattr(backbone, "out_channels", None) or getattr(backbone, "embed_dims", None)
    channels, index = head.get("in_channels"), head.get("in_index")
    if not isinstance(widths, (list, tuple)) or channels is None or index is None:
        return []
    channels = list(channels) if isinstance(channels, (list, tuple)) else [channels]
    index = list(index) if isinstance(index, (list, tuple)) else [index]
    if not all(is_integer(i) and -len(widths) <= i < len(widths) for i in index):
        return [f"{where}.in_index: got {index}, but the backbone makes {len(widths)} maps (0 to {len(widths) - 1})"]
    fitting = [widths[i] for i in index]
    if channels == fitting:
        return []
    return [f"{where}.in_channels: got {channels}, but maps {index} of this {type(backbone).__name__} have {fitting} "
            "channels"]


def _check_preprocessor(block: Mapping) -> list[str]:
    from jseg.data.preprocess import PREPROCESSORS, padding_faults

    preprocessor = block["data_preprocessor"]
    faults = []
    if isinstance(preprocessor.get("test_cfg"), Mapping):
        faults = padding_faults(preprocessor["test_cfg"], "data_preprocessor.test_cfg")
    rest = {key: value for key, value in preprocessor.items() if not faults or key != "test_cfg"}
    return (faults + _build(PREPROCESSORS, rest, "data_preprocessor")[1]
            + known_fields(preprocessor, PREPROCESSOR, "data_preprocessor"))


def _check_loader(block: Mapping, split: str) -> list[str]:
    where = f"{split}_dataloader"
    loader = block[where]
    faults = fields(loader, TRAIN_LOADER if split == "train" else LOADER, where, "a dataloader")
    faults += [f"{where} needs {key!r}" for key in ("batch_size", "dataset") if key not in loader]
    dataset = loader.get("dataset")
    if isinstance(dataset, Mapping):
        faults += _check_dataset(block, dataset, f"{where}.dataset", split == "train")
    return faults


def _check_dataset(block: Mapping, dataset: Mapping, where: str, training: bool) -> list[str]:
    """Check a dataset with its pipeline, or a wrapper with each of its parts."""
    inner = inner_datasets(dataset, where)
    if inner:
        faults = [fault for place, part in inner if isinstance(part, Mapping)
                  for fault in _check_dataset(block, part, place, training)]
        return faults or _build(DATASETS, dataset, where)[1]
    faults = _build(DATASETS, _without_pipeline(dataset), where)[1]
    if isinstance(dataset.get("data_prefix"), Mapping):
        faults += known_fields(dataset["data_prefix"], DATA_PREFIX, f"{where}.data_prefix")
    faults += _check_pipeline(block, dataset.get("pipeline"), f"{where}.pipeline", training)
    if is_classifier(block):
        return faults + class_faults(block["model"], dataset, where)
    return faults + _check_classes(block.get("model", {}), dataset, where)


def _without_pipeline(dataset: Mapping) -> dict:
    return {key: value for key, value in dataset.items() if key != "pipeline"}


def _check_pipeline(block: Mapping, pipeline: Any, where: str, training: bool) -> list[str]:
    if not isinstance(pipeline, list):
        return [f"{where}: got {pipeline!r}, expected a list of transforms"]
    faults = [fault for i, transform in enumerate(pipeline)
              for fault in _build(TRANSFORMS, transform, f"{where}.{i}")[1]]
    steps = [t for t in pipeline if isinstance(t, Mapping)]
    names = [t.get("type") for t in steps]
    if "LoadImageFromFile" not in names and "LoadBands" not in names:
        faults.append(f"{where}: no LoadImageFromFile or LoadBands: no picture would be read")
    if training and "LoadAnnotations" not in names and not is_classifier(block):
        faults.append(f"{where}: no LoadAnnotations: there would be nothing to learn from")
    preprocessor = block.get("data_preprocessor", {})
    if "Normalize" in names and preprocessor.get("mean") is not None:
        faults.append(f"{where}: Normalize comes on top of data_preprocessor.mean: pictures would be normalised twice; "
                      "remove one")
    size = preprocessor.get("size")
    for step in steps if training and is_pair(size) else []:
        crop = step.get("crop_size") if step.get("type") == "RandomCrop" else None
        if is_pair(crop) and any(c > s for c, s in zip(crop, size)):
            faults.append(f"{where}: RandomCrop cuts {list(crop)}, larger than data_preprocessor.size {list(size)}")
    return faults


def _check_classes(model: Mapping, dataset: Mapping, where: str) -> list[str]:
    names = class_names(_without_pipeline(dataset))
    return [f"{place}.num_classes: got {head['num_classes']}, but {where} ({dataset.get('type')}) has {len(names)} "
            "classes"
            for place, head in heads_of(model) if names and isinstance(head, Mapping) and not _makes_targets(head)
            and head.get("num_classes") is not None and head["num_classes"] != len(names)]


def _makes_targets(head: Mapping) -> bool:
    """Whether a head's classes are not the dataset's."""
    from jseg.models.heads.base import Head

    entry = MODELS.get(head["type"]) if head.get("type") in MODELS else None
    return isinstance(entry, type) and issubclass(entry, Head) and entry.own_targets


def _check_optimizer(block: Mapping) -> list[str]:
    faults = []
    if "optimizer" in block:
        faults += _unknown(OPTIMIZERS, block["optimizer"], "optimizer", ("groups",))
        faults += known_fields(block["optimizer"], OPTIMIZER, "optimizer")
    if "paramwise_cfg" in block:
        faults += paramwise_faults(block["paramwise_cfg"])
    return faults


def _check_schedules(schedules: Any) -> list[str]:
    blocks = schedules if isinstance(schedules, list) else [schedules] if isinstance(schedules, Mapping) else []
    faults = []
    for i, block in enumerate(blocks):
        where = f"param_scheduler.{i}"
        try:
            block = part_of(block, where)[0] if isinstance(block, Mapping) else block
        except ConfigError as error:
            faults.append(str(error))
        else:
            faults += _build(SCHEDULES, block, where)[1]
    return faults


def _check_evaluation(block: Mapping) -> list[str]:
    if is_classifier(block):
        return score_faults(block)
    faults = _check_save_best(block)
    if "evaluator" in block:
        faults += evaluator_faults(block["evaluator"])
        faults += _check_background(block["evaluator"].get("small_targets"), last_head(block.get("model", {})))
    return faults + (fields(block["tta"], TTA, "tta", "tta") if "tta" in block else [])


def _check_background(targets: Any, head: Mapping) -> list[str]:
    background, count = targets.get("background") if isinstance(targets, Mapping) else None, head.get("num_classes")
    wrong = is_integer(background) and is_integer(count) and background >= count
    return [f"evaluator.small_targets.background: got {background}, expected a class of the model, 0..{count - 1}"
            ] if wrong else []


def _check_save_best(block: Mapping) -> list[str]:
    """The scores that decide which checkpoint is best and when to stop must be such as the evaluator computes."""
    train_cfg, evaluator = block.get("train_cfg", {}), block.get("evaluator", {})
    early = train_cfg.get("early_stop") if isinstance(train_cfg.get("early_stop"), Mapping) else {}
    wanted = {"save_best": train_cfg.get("save_best") or TrainCfg.save_best, "early_stop.monitor": early.get("monitor")}
    metrics = evaluator.get("metrics", list(METRICS))
    if "val_dataloader" not in block or not isinstance(metrics, (list, tuple)):
        return []
    computed = {"aAcc"} | {f"m{part}" for name in metrics for part in METRICS.get(str(name), ())}
    computed |= {"mBoundaryIoU"} if evaluator.get("boundary") is not None else set()
    computed |= {"Pd"} if evaluator.get("small_targets") is not None else set()
    return [f"train_cfg.{key}: got {score!r}, but the evaluator computes {', '.join(sorted(computed))}"
            for key, score in wanted.items() if score in (*SCORES, *CLASSIFIER_SCORES) and score not in computed]
