"""What `jseg check` says of a classifier's config where it differs from a segmentor's: the model, the classes, the
scores."""

from __future__ import annotations

from typing import Any, Mapping

from jseg.errors import ConfigError
from jseg.metrics import CLASSIFIER_SCORES
from jseg.models.image_classifier import LinearClsHead, augment_faults
from jseg.registry import construct
from jseg.rules import is_integer

__all__ = ["class_faults", "head_faults", "score_faults"]


def head_faults(model: Mapping, backbone: Any) -> list[str]:
    """Compare the head with the maps of the backbone, and look at the mixing.

    Args:
        model: the model block.
        backbone: built from it, or None where it cannot be built.
    """
    train_cfg = model.get("train_cfg")
    faults = augment_faults(train_cfg["augments"]) if isinstance(train_cfg, Mapping) and train_cfg.get(
        "augments") is not None else []
    head = model.get("head")
    if not isinstance(head, Mapping):
        return faults
    try:
        built = construct(LinearClsHead, head, "model.head")
    except ConfigError as error:
        return faults + str(error).splitlines()
    widths = getattr(backbone, "out_channels", None) or getattr(backbone, "embed_dims", None)
    if not isinstance(widths, (list, tuple)):
        return faults
    index = built.in_index
    if not all(is_integer(i) and -len(widths) <= i < len(widths) for i in index):
        return [*faults, f"model.head.in_index: got {index}, but the backbone makes {len(widths)} maps (0 to "
                f"{len(widths) - 1})"]
    wanted = sum(widths[i] for i in index)
    if built.in_channels != wanted:
        faults.append(f"model.head.in_channels: got {built.in_channels}, but maps {index} of this "
                      f"{type(backbone).__name__} have {wanted} channels in all")
    return faults


def class_faults(model: Mapping, dataset: Mapping, where: str) -> list[str]:
    """Compare the head's classes with those that the dataset's block names; its folders are not looked at."""
    count, names = (model.get("head") or {}).get("num_classes"), dataset.get("classes")
    if not is_integer(count) or not isinstance(names, list) or len(names) == count:
        return []
    return [f"model.head.num_classes: got {count}, but {where} ({dataset.get('type')}) has {len(names)} classes"]


def score_faults(cfg: Mapping) -> list[str]:
    """Blocks that have no meaning for a classifier, and scores that it has not."""
    faults = [f"{key}: got {cfg[key]!r:.200}; a classifier has none: its scores are {', '.join(CLASSIFIER_SCORES)}"
              for key in ("evaluator", "tta") if cfg.get(key)]
    train_cfg = cfg.get("train_cfg") if isinstance(cfg.get("train_cfg"), Mapping) else {}
    early = train_cfg.get("early_stop") if isinstance(train_cfg.get("early_stop"), Mapping) else {}
    given = {"save_best": train_cfg.get("save_best"), "early_stop.monitor": early.get("monitor")}
    faults += [f"train_cfg.{key}: got {score!r}, but a classifier has {', '.join(CLASSIFIER_SCORES)}"
               for key, score in given.items() if isinstance(score, str) and score not in CLASSIFIER_SCORES]
    kind = (cfg.get("data_preprocessor") or {}).get("type")
    if isinstance(kind, str) and kind != "ClsDataPreprocessor":
        faults.append(f"data_preprocessor.type: got {kind!r}; a classifier takes ClsDataPreprocessor")
    return faults
