"""What a converted file says beside its weights: class names, colours, where it came from."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any, Iterable, Mapping

import numpy as np

from jseg.config import is_classifier, last_head
from jseg.convert.guess import Guess
from jseg.convert.state import Contents
from jseg.errors import ConvertError

__all__ = ["class_list", "files_hash", "origin_of", "test_size"]


def class_list(settings: Mapping, contents: Contents, asked: str | None, where: str, notes: list[str]) -> tuple[
    list[str], list, str]:
    """(names, palette, where they came from), as many as the head has classes.

    Args:
        settings, contents: the config, and the weights whose meta may name classes.
        asked: name of a dataset type to take them from instead.
        where, notes: the file's name for messages, and a list that gets what the user should know.
    Raises:
        ConvertError: the dataset asked for has another number of classes.
    """
    from jseg.registry import DATASETS
    count = last_head(settings["model"])["num_classes"]
    meta = contents.meta
    inside = meta.get("dataset_meta") if isinstance(meta.get("dataset_meta"), dict) else {}
    candidates = [] if asked else [("the file's dataset_meta", inside.get("classes") or inside.get("CLASSES"),
                                    inside.get("palette") or inside.get("PALETTE")),
                                   ("the file's meta", meta.get("CLASSES"), meta.get("PALETTE"))]
    types = [asked] if asked else [((settings.get(f"{split}_dataloader") or {}).get("dataset") or {}).get("type")
                                   for split in ("test", "val", "train")]
    for kind in types:
        if isinstance(kind, str) and (asked or kind in DATASETS):
            known = getattr(DATASETS.get(kind, "--classes"), "METAINFO", {})  # wrappers have none
            candidates.append((kind, known.get("classes"), known.get("palette")))
    for origin, names, palette in candidates:
        names = _names(names)
        if names and len(names) == count:
            return names, _palette(palette, count), origin
        if names and asked:
            raise ConvertError(f"{where}: {asked} has {len(names)} classes, the weights have {count}")
        if names:
            notes.append(f"{origin} names {len(names)} classes, the head has {count}; not used")
    fitting = [name for name in DATASETS.names() if not is_classifier(settings)
               and len(getattr(DATASETS.get(name), "METAINFO", {}).get("classes", ())) == count]
    if len(fitting) == 1:
        known = DATASETS.get(fitting[0]).METAINFO
        notes.append(f"no class names in the file: those of {fitting[0]} are taken, the one known dataset of {count} "
                     "classes (--classes changes it)")
        return _names(known["classes"]), _palette(known["palette"], count), f"{fitting[0]}, by their number"
    notes.append(f"no class names in the file and no single dataset of {count} classes: they are numbered (--classes "
                 "names a dataset)")
    return [f"class {i}" for i in range(count)], _palette(None, count), "numbers"


def _names(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)) and 0 < len(value) <= 10_000 and all(isinstance(v, str) and len(v) <= 200
                                                                             for v in value):
        return list(value)
    return []


def _palette(value: Any, count: int) -> list[list[int]]:
    """Colours as the file gives them, or `count` distinct ones made by PASCAL VOC's rule of bits."""
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == count:
        rows = [list(row) for row in value if isinstance(row, (list, tuple, np.ndarray)) and len(row) == 3]
        if len(rows) == count and all(isinstance(v, (int, np.integer)) and 0 <= v <= 255 for row in rows for v in row):
            return [[int(v) for v in row] for row in rows]
    return [[sum((k >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(6)) for channel in range(3)]
            for k in range(1, count + 1)]


def origin_of(source: pathlib.Path, contents: Contents, found: Guess, settings: dict, config_from: str,
              classes_from: str) -> dict:
    """What the weights file says of where it came from; nothing that differs between two runs."""
    meta = contents.meta
    origin: dict[str, Any] = {"file": source.name, "sha256": files_hash([source]), "bytes": source.stat().st_size,
                              "family": found.release, "weights": contents.place, "config_from": config_from}
    for key in ("mmengine_version", "mmcv_version", "mmseg_version", "jseg_version", "pytorch_version"):
        if isinstance(meta.get(key), str) and meta[key].isprintable():
            origin[key] = meta[key][:100]
    for key in ("iter", "epoch"):
        if isinstance(meta.get(key), int) and 0 <= meta[key] < 1 << 53:
            origin[key] = meta[key]
    if found.backbone_only:
        return origin
    head = last_head(settings["model"])
    origin.update(test_size=test_size(settings), classes_from=classes_from, num_classes=head["num_classes"])
    if head.get("type") == "LightHamHead":
        from jseg.models.heads.ham_head import ham_options
        options = ham_options(head.get("ham_kwargs"))
        origin.update(md_r=options["MD_R"],
                      gradient={"full": "through all steps", "one_step": "through the last step"}[options["grad"]])
    return origin


def files_hash(paths: Iterable[pathlib.Path]) -> str:
    """sha256 over the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def test_size(settings: Mapping) -> str:
    """How the config brings test pictures to the network's stride, in words."""
    block = settings.get("test_dataloader") or settings.get("val_dataloader") or {}
    pipeline = (block.get("dataset") or {}).get("pipeline") or []
    if any(step.get("type") == "ResizeToMultiple" for step in pipeline if isinstance(step, dict)):
        return "resized to a multiple of 32"
    test = (settings.get("data_preprocessor") or {}).get("test_cfg") or {}
    for key, word in (("resize_divisor", "resized"), ("size_divisor", "padded")):
        if test.get(key):
            return f"{word} to a multiple of {test[key]}"
    return "kept as they are"
