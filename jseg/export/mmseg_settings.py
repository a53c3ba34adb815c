"""A jseg config in MMSegmentation 1.x's words: the way back of `jseg.convert.mmseg_config`.

Blocks and words are the same on both sides but for what jseg says otherwise: variants by name, words of single heads
that upstream reads from the model's `train_cfg` and `test_cfg`, `resize_divisor`, schedules. What only jseg reads
(`impl`, the gradient rule of Hamburger, `sync`) is left out.
"""

from __future__ import annotations

import copy
import pprint
from typing import Any, Mapping

from jseg.registry import MODELS

__all__ = ["config_text", "mmseg_settings"]

_LOADING = ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
_OF_MMPRETRAIN = ("ConvNeXt", "PoolFormer")  # backbones that mmseg takes from there
_WITH_TUPLES = ("CGNet", "JPU", "LRASPPHead", "MobileNetV3")  # classes that accept no lists
_CLASS_LOSS = {"MaskFormerHead": 1.0, "Mask2FormerHead": 2.0}  # weight where `loss_cls` is not said
_OURS = ("label_map", "split", "cache_file", "mask_format")  # words of datasets that mmseg has not


def mmseg_settings(config: Mapping) -> dict[str, Any]:
    """The settings that mmsegmentation 1.x's `init_model` and Runner read.

    Args:
        config: a jseg config with a model; it is not changed.
    """
    config = copy.deepcopy(dict(config))
    preprocessor = config.get("data_preprocessor") or {"type": "SegDataPreProcessor"}
    pipelines = {split: _steps(config, split) for split in ("train", "val", "test")}
    padding = preprocessor.get("test_cfg") or {}
    if "resize_divisor" in padding:
        preprocessor["test_cfg"] = None
        for split in ("val", "test"):
            at = _last_of_pictures(pipelines[split])
            pipelines[split].insert(at, {"type": "ResizeToMultiple", "size_divisor": padding["resize_divisor"]})
    imports = {"imports": ["mmpretrain.models"], "allow_failed_imports": False}
    found = {"default_scope": "mmseg", **({"custom_imports": imports} if _needs_mmpretrain(config["model"]) else {}),
             "data_preprocessor": preprocessor,
             "model": _model(config["model"], preprocessor), "test_pipeline": pipelines["test"]}
    for split in ("train", "val", "test"):
        found.update(_loader(config, split, pipelines[split]))
    return {**found, **_schedule(config)}


def _needs_mmpretrain(block: Any) -> bool:
    if isinstance(block, Mapping):
        return block.get("type") in _OF_MMPRETRAIN or any(map(_needs_mmpretrain, block.values()))
    return isinstance(block, list) and any(map(_needs_mmpretrain, block))


def config_text(settings: Mapping) -> str:
    """Settings as a Python file, which `mmengine.Config.fromstring(text, ".py")` reads."""
    return "".join(f"{key} = {pprint.pformat(value, width=110, sort_dicts=False)}\n" for key, value in settings.items())


def _model(model: Mapping, preprocessor: Mapping) -> dict[str, Any]:
    words = {key: value for key, value in model.items() if key not in ("impl", "test_cfg", "train_cfg")}
    kept = {"type": words.pop("type", "EncoderDecoder"), "data_preprocessor": copy.deepcopy(preprocessor)}
    spoken: dict[str, dict] = {"train_cfg": {}, "test_cfg": {}}
    names = getattr(MODELS.get(kept["type"]), "UPSTREAM_NAMES", {}) if kept["type"] in MODELS else {}
    for key, value in words.items():
        if value is not None:
            kept[names.get(key, key)] = _block(value, spoken)
    test = {key: _as_tuple(value) for key, value in (model.get("test_cfg") or {}).items()}
    kept["train_cfg"] = {**(model.get("train_cfg") or {}), **spoken["train_cfg"]}
    kept["test_cfg"] = {"mode": "whole", **test, **spoken["test_cfg"]}
    return kept


def _block(value: Any, spoken: dict[str, dict]) -> Any:
    """A block of the model, and those inside it, in upstream's words."""
    if isinstance(value, list):
        return [_block(item, spoken) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get("type")
    block = {key: _block(item, spoken) for key, item in value.items() if not (key == "impl" or item is None
                                                                              and key in ("sampler", "neck"))}
    if kind == "MSCAN":
        from jseg.models.backbones.mscan import SIZES, VARIANTS
        variant = block.pop("variant", None)
        block = {"type": kind, **{key: list(item) for key, item in VARIANTS.get(variant, SIZES).items()},
                 "norm_cfg": {"type": "BN"}, **{key: item for key, item in block.items() if item is not None}}
    elif kind == "LightHamHead":
        from jseg.models.heads.ham_head import ham_options
        block["ham_kwargs"] = {key: item for key, item in ham_options(block.get("ham_kwargs")).items() if key != "grad"}
    elif kind == "PIDHead":
        block.pop("edge_width", None)
    elif kind in ("BN", "SyncBN"):
        block.pop("sync", None)
    elif kind in _OF_MMPRETRAIN:
        block["type"] = f"mmpretrain.{kind}"
    elif kind in _WITH_TUPLES:
        block = {key: _as_tuple(item) for key, item in block.items()}
    elif kind in _CLASS_LOSS:
        _name_mmdet(block)
    for part, words in (getattr(MODELS.get(kind), "MODEL_WORDS", {}) if kind in MODELS else {}).items():
        spoken[part].update({word: block.pop(word) for word in words if word in block})
    return block


def _name_mmdet(head: dict) -> None:
    """Say of a head that classifies masks which classes are mmdet's, and what jseg leaves unsaid."""
    from jseg.models.heads.mask_head import default_class_loss
    head.setdefault("loss_cls", default_class_loss(head["num_classes"], _CLASS_LOSS[head["type"]]))
    assigner = (head.get("train_cfg") or {}).get("assigner") or {}
    for block in (head["pixel_decoder"], *(head.get(f"loss_{part}", {}) for part in ("cls", "mask", "dice")), assigner,
                  *assigner.get("match_costs", [])):
        if "type" in block:
            block["type"] = f"mmdet.{block['type']}"
    if assigner:
        head["train_cfg"].setdefault("sampler", {"type": "mmdet.MaskPseudoSampler"})


def _source(config: Mapping, split: str) -> Mapping:
    """The loader's block; val and test stand for each other where one is missing."""
    names = {"train": ("train",), "val": ("val", "test"), "test": ("test", "val")}[split]
    return next((config[f"{name}_dataloader"] for name in names if config.get(f"{name}_dataloader")), {})


def _steps(config: Mapping, split: str) -> list[dict]:
    dataset = _source(config, split).get("dataset") or {}
    steps = dataset.get("pipeline") if isinstance(dataset, Mapping) else None
    usual = [{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}, {"type": "PackSegInputs"}]
    found = [{key: _as_tuple(item) for key, item in step.items()} for step in steps or usual]
    return [step for step in found if split != "test" or step["type"] != "LoadAnnotations"]


def _last_of_pictures(steps: list[dict]) -> int:
    """Where a step on pictures alone fits: behind the others, before labels are loaded."""
    return next((i for i, step in enumerate(steps) if step["type"] in _LOADING[1:]), len(steps))


def _as_tuple(value: Any) -> Any:
    """mmcv takes sizes and ranges as tuples."""
    if isinstance(value, list) and all(isinstance(item, (int, float, list)) for item in value):
        return tuple(value) if not any(isinstance(item, list) for item in value) else [tuple(item) for item in value]
    return value


def _loader(config: Mapping, split: str, pipeline: list[dict]) -> dict[str, Any]:
    block = _source(config, split)
    if not isinstance(block.get("dataset"), Mapping):
        return {}
    dataset = {key: value for key, value in block["dataset"].items() if key not in _OURS}
    kept = {"batch_size": block.get("batch_size", 1), "num_workers": block.get("num_workers", 2),
            "sampler": {"type": "InfiniteSampler" if split == "train" else "DefaultSampler",
                        "shuffle": split == "train"},
            "dataset": {**dataset, "pipeline": pipeline}}
    if split == "train":
        return {"train_dataloader": kept}
    metrics = (config.get("evaluator") or {}).get("metrics") or ["mIoU"]
    return {f"{split}_dataloader": kept, f"{split}_evaluator": {"type": "IoUMetric", "iou_metrics": list(metrics)},
            f"{split}_cfg": {"type": "ValLoop" if split == "val" else "TestLoop"}}


def _schedule(config: Mapping) -> dict[str, Any]:
    """Optimizer, rates and loop, where the config has them."""
    found: dict[str, Any] = {}
    if config.get("optimizer"):
        clip = {key: value for key, value in config["optimizer"].items() if key == "clip_grad"}
        optimizer = {key: value for key, value in config["optimizer"].items() if key not in clip}
        found["optim_wrapper"] = {"type": "OptimWrapper", "optimizer": optimizer, **clip}
        if config.get("paramwise_cfg"):
            found["optim_wrapper"]["paramwise_cfg"] = config["paramwise_cfg"]
    if config.get("param_scheduler"):
        blocks = config["param_scheduler"]
        found["param_scheduler"] = [{key: value for key, value in block.items() if key != "part"} for block in (
            blocks if isinstance(blocks, (list, tuple)) else [blocks])]
    train = config.get("train_cfg") or {}
    if train.get("max_iters") and "train_dataloader" in config:
        interval = {"val_interval": train["val_interval"]} if train.get("val_interval") else {}
        found["train_cfg"] = {"type": "IterBasedTrainLoop", "max_iters": train["max_iters"], **interval}
    return found
