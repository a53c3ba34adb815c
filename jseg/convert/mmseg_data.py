"""Datasets, loaders, pipelines and test-time augmentation of foreign configs in jseg's words.

In 0.x and original JSeg the pipeline itself normalises and pads, which is `data_preprocessor`'s task here; there the
test pipeline's ResizeToMultiple (the rule of SegNeXt's authors) becomes `test_cfg: {resize_divisor: 32}`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

from jseg.convert.mmseg_notes import Notes, as_list, as_pair, brief
from jseg.convert.mmseg_pipeline import Pictures, new_pipeline, old_pipeline, test_time_augmentation
from jseg.data.datasets import SegDataset
from jseg.registry import DATASETS

__all__ = ["translate_new_data", "translate_old_data", "DATASET_KEYS", "DATASETS_HERE"]

DATASETS_HERE = tuple(name for name in DATASETS.names() if issubclass(DATASETS.get(name), SegDataset))
DATASET_KEYS = ("data_root", "data_prefix", "ann_file", "img_suffix", "seg_map_suffix", "reduce_zero_label", "metainfo",
                "ignore_index", "indices", "pipeline")
# upstream's defaults, too
_REDUCES_ZERO = tuple(name for name in DATASETS_HERE if DATASETS.get(name).REDUCE_ZERO_LABEL)
# upstream's, for what becomes a FolderDataset
_SUFFIXES = {"BaseSegDataset": (".jpg", ".png"), "CustomDataset": (".jpg", ".png")}
_EVERYWHERE = {"test_mode": (), "backend_args": (None, {"backend": "disk"}, {"backend": "local"}),
               "lazy_init": (False,), "serialize_data": (), "filter_cfg": (None,), "max_refetch": (),
               "file_client_args": (None, {"backend": "disk"})}


@dataclasses.dataclass
class _Reader:
    """What both styles need while they go through datasets."""

    notes: Notes
    metainfo: Mapping | None


def _known_dataset(block: dict, where: str, reader: _Reader) -> dict:
    """A dataset block in 1.x words: the type checked, reduce_zero_label written out, keys in order."""
    kind, notes = block.get("type"), reader.notes
    meta = notes.block(block.get("metainfo"), f"{where}.metainfo")
    if meta:
        block = {**block, "metainfo": notes.take(meta, ("classes", "palette"), f"{where}.metainfo")}
    steps = [step for step in block["pipeline"] if step.get("type") == "LoadAnnotations"]
    flags = {step["reduce_zero_label"] for step in steps if step.get("reduce_zero_label") is not None}
    for step in steps:
        step.pop("reduce_zero_label", None)
    own = block.get("reduce_zero_label")
    flag = own if own is not None else next(iter(flags), kind in _REDUCES_ZERO)
    if flags - {flag}:
        notes.add(f"{where}.reduce_zero_label", f"the dataset says {flag}, its LoadAnnotations {not flag}; the "
                                                "dataset's counts")
    block = {key: value for key, value in block.items() if key != "reduce_zero_label"} | (
        {"reduce_zero_label": True} if flag else {})
    if not flag and kind in _REDUCES_ZERO:
        block["reduce_zero_label"] = False  # its class has true
    if kind not in DATASETS_HERE:
        block = _as_folder(block, where, reader)
    if block["type"] not in DATASETS_HERE:
        return block
    return notes.take(block, DATASET_KEYS, where, _EVERYWHERE)


def _as_folder(block: dict, where: str, reader: _Reader) -> dict:
    """A dataset without a class in jseg: a FolderDataset, if its class names are known."""
    kind, notes = block.get("type"), reader.notes
    meta = block.get("metainfo") or reader.metainfo
    if kind not in _SUFFIXES or not meta or not meta.get("classes"):
        notes.add(f"{where}.type", f"jseg has no {kind}; the block was kept for you to change, for example to a "
                                   f"FolderDataset with metainfo: {{classes: [...]}}")
        return block
    notes.add(f"{where}.type", f"jseg has no {kind}; it became a FolderDataset with the class names of the source")
    image, mask = _SUFFIXES[kind]
    return {"img_suffix": image, "seg_map_suffix": mask, **block, "type": "FolderDataset", "metainfo": dict(meta)}


def _wrapped(block: Any, where: str, reader: _Reader, inner) -> dict:
    """Go through RepeatDataset, ConcatDataset and lists of datasets down to plain ones, which `inner` translates."""
    notes = reader.notes
    if isinstance(block, list):
        parts = [_wrapped(part, f"{where}.datasets.{i}", reader, inner) for i, part in enumerate(block)]
        return parts[0] if len(parts) == 1 else {"type": "ConcatDataset", "datasets": parts}
    block = notes.block(block, where)
    if block.get("type") == "RepeatDataset":
        kept = notes.take(block, ("times", "dataset"), where, _EVERYWHERE)
        return {**kept, "dataset": _wrapped(kept.get("dataset"), f"{where}.dataset", reader, inner)}
    if block.get("type") == "ConcatDataset":
        notes.take(block, ("datasets",), where, {**_EVERYWHERE, "ignore_keys": (), "separate_eval": ()})
        return {"type": "ConcatDataset", "datasets": [_wrapped(part, f"{where}.datasets.{i}", reader, inner)
                                                      for i, part in enumerate(as_list(block.get("datasets")))]}
    if "dataset" in block or "datasets" in block:
        notes.add(f"{where}.type", f"jseg has no wrapper {block.get('type')}; the block was kept for you to change")
        return block
    return inner(block, where)


# ---- mmseg 1.x -------------------------------------------------------------------------------------------------------


def translate_new_data(cfg: dict, notes: Notes, metainfo: Mapping | None) -> tuple[dict, set[str]]:
    """1.x: the three loaders and tta_pipeline."""
    reader = _Reader(notes, metainfo)
    found: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        if cfg.get(f"{split}_dataloader"):
            found[f"{split}_dataloader"] = _new_loader(cfg[f"{split}_dataloader"], split, reader)
    if "val_dataloader" not in found and "test_dataloader" in found:
        found["val_dataloader"] = found.pop("test_dataloader")
        notes.add("val_dataloader", "the source has none; its test_dataloader was taken")
    if found.get("test_dataloader") == found.get("val_dataloader"):
        found.pop("test_dataloader", None)
    tta = test_time_augmentation(cfg.get("tta_pipeline"), notes)
    if tta is not None:
        found["tta"] = tta
    if notes.block(cfg.get("tta_model"), "tta_model").get("type", "SegTTAModel") != "SegTTAModel":
        notes.add("tta_model", f"jseg has no {cfg['tta_model']['type']}; views are averaged as in SegTTAModel")
    return found, {"train_dataloader", "val_dataloader", "test_dataloader", "tta_pipeline", "tta_model"}


def _new_loader(block: Any, split: str, reader: _Reader) -> dict:
    where, notes = f"{split}_dataloader", reader.notes
    block = notes.block(block, where)
    kept = notes.take(block, ("batch_size", "num_workers", "dataset"), where,
                      {"persistent_workers": (), "pin_memory": (), "prefetch_factor": (), "drop_last": (False,),
                       "sampler": (), "collate_fn": ({"type": "default_collate"}, {"type": "pseudo_collate"}, None)})
    sampler = notes.block(block.get("sampler"), f"{where}.sampler")
    if (sampler.get("type", "InfiniteSampler") not in ("InfiniteSampler", "DefaultSampler")
        or sampler.get("shuffle", True) is not (
                split == "train") and sampler):
        notes.add(f"{where}.sampler", f"{brief(sampler)}: jseg shuffles for training and only then")
    if split == "train" and isinstance(kept.get("batch_size"), int):
        notes.add(f"{where}.batch_size", f"{kept['batch_size']} pictures on each device; mmsegmentation's file names "
                                         "tell on how many the source trained")
    def plain(dataset: dict, place: str) -> dict:
        pipeline = new_pipeline(dataset.get("pipeline"), f"{place}.pipeline", notes)
        return _known_dataset({**dataset, "pipeline": pipeline}, place, reader)

    return {"batch_size": kept.get("batch_size", 1), "num_workers": kept.get("num_workers", 0),
            "dataset": _wrapped(kept.get("dataset"), f"{where}.dataset", reader, plain)}


# ---- mmseg 0.x and original JSeg -------------------------------------------------------------------------------------


def translate_old_data(cfg: dict, notes: Notes, metainfo: Mapping | None) -> tuple[dict, set[str]]:
    """0.x `data` and JSeg's `dataset`: loaders, and the data_preprocessor that their pipelines amount to."""
    reader = _Reader(notes, metainfo)
    old_jseg = notes.style == "original JSeg"
    name = "dataset" if old_jseg else "data"
    data = notes.block(cfg.get(name), name)
    found: dict[str, Any] = {}
    seen: dict[str, Pictures] = {}
    for split in ("train", "val", "test"):
        if data.get(split):
            seen[split] = Pictures()
            found[f"{split}_dataloader"] = _old_loader(data, split, f"{name}.{split}", seen[split], reader, old_jseg)
    if "val_dataloader" not in found and "test_dataloader" in found:
        found["val_dataloader"], seen["val"] = found.pop("test_dataloader"), seen["test"]
        notes.add("val_dataloader", f"the source has no {name}.val; its {name}.test was taken")
    if found.get("test_dataloader") == found.get("val_dataloader"):
        found.pop("test_dataloader", None)
    rest = {key: value for key, value in data.items() if key not in ("train", "val", "test")}
    notes.take(rest, ("samples_per_gpu", "workers_per_gpu", "train_dataloader", "val_dataloader", "test_dataloader"),
               name)
    found["data_preprocessor"] = _old_preprocessor(seen.get("train") or Pictures(), seen.get("val")
                                                   or Pictures(), notes)
    tested = seen.get("test") or seen.get("val")
    if tested is not None and tested.tta is not None:
        found["tta"] = tested.tta
    return found, {name}


def _old_loader(data: dict, split: str, where: str, pictures: Pictures, reader: _Reader, old_jseg: bool) -> dict:
    notes = reader.notes
    block = data[split]
    if old_jseg:
        block = notes.block(block, where)
        batch, workers = block.get("batch_size", 1), block.get("num_workers", 0)
        rest = {key: value
                for key, value in block.items() if key not in ("batch_size", "num_workers", "shuffle", "drop_last")}
        if block.get("shuffle", split == "train") is not (split == "train"):
            notes.add(f"{where}.shuffle", "jseg shuffles for training and only then")
        block = rest
    else:
        own = notes.block(data.get(f"{split}_dataloader"), f"data.{split}_dataloader")
        batch = own.get("samples_per_gpu", data.get("samples_per_gpu", 1) if split == "train" else 1)
        workers = own.get("workers_per_gpu", data.get("workers_per_gpu", 0))
    if split == "train":
        notes.add(f"{where}.{'batch_size' if old_jseg else 'samples_per_gpu'}",
                  f"{batch} pictures "
                  f"{'in all' if old_jseg else 'on each device; the source may have trained on several'}")

    def plain(dataset: dict, place: str) -> dict:
        return _old_dataset(dataset, place, pictures, split, reader)

    return {"batch_size": batch, "num_workers": workers, "dataset": _wrapped(block, where, reader, plain)}


def _old_dataset(block: dict, where: str, pictures: Pictures, split: str, reader: _Reader) -> dict:
    """img_dir, ann_dir and split, each one or a list, become one dataset or a ConcatDataset."""
    notes = reader.notes
    block = dict(block)
    pipeline = old_pipeline(block.pop("pipeline", None), f"{where}.pipeline", notes, pictures,
                            training=split == "train")
    if "classes" in block or "palette" in block:
        given = {key: block.pop(key) for key in ("classes", "palette") if block.get(key) is not None}
        if isinstance(given.get("classes"), str):
            notes.add(f"{where}.classes", f"names the file {given.pop('classes')!r}; write the names into "
                                          "metainfo.classes")
        block["metainfo"] = given
        block = {key: value for key, value in block.items() if key not in ("classes", "palette")}
    block.pop("gt_seg_map_loader_cfg", None) if block.get("gt_seg_map_loader_cfg") in (None, {}) else None
    places = {key: as_list(block.pop(old, None))
              for old, key in (("img_dir", "img_path"), ("ann_dir", "seg_map_path"), ("split", "ann_file"))}
    count = max(1, *map(len, places.values()))
    if any(len(values) not in (0, 1, count) for values in places.values()):
        notes.add(where, "img_dir, ann_dir and split have different lengths "
                         f"({', '.join(str(len(v)) for v in places.values())}); extra ones were left out")
    parts = []
    for i in range(count):
        chosen = {key: values[min(i, len(values) - 1)] for key, values in places.items() if values}
        part = {**block, "data_prefix": {key: chosen[key] for key in ("img_path", "seg_map_path") if key in chosen},
                "pipeline": [dict(step) for step in pipeline]}
        if "ann_file" in chosen:
            part["ann_file"] = chosen["ann_file"]
        parts.append(_known_dataset(part, where, reader))
    return parts[0] if count == 1 else {"type": "ConcatDataset", "datasets": parts}


def _old_preprocessor(training: Pictures, testing: Pictures, notes: Notes) -> dict:
    """Normalisation and padding that the two pipelines did."""
    where = "data_preprocessor"
    block: dict[str, Any] = {"type": "SegDataPreProcessor"}
    normalised = testing.normalize or training.normalize
    if training.normalize and testing.normalize and training.normalize != testing.normalize:
        notes.add(where, "training and testing normalise differently; the test pipeline's values were taken")
    if normalised is None:
        notes.add(where, "no Normalize in the pipelines: pictures are not normalised")
    else:
        block.update(mean=normalised.get("mean"), std=normalised.get("std"),
                     bgr_to_rgb=bool(normalised.get("to_rgb", True)))
    pad = training.pad or {}
    for key in ("size", "size_divisor"):
        if pad.get(key) is not None:
            block[key] = as_pair(pad[key]) if key == "size" else pad[key]
    block.update(pad_val=pad.get("pad_val", 0), seg_pad_val=pad.get("seg_pad_val", 255))
    if testing.resize_divisor is not None:
        block["test_cfg"] = {"resize_divisor": testing.resize_divisor}
    elif testing.pad:
        block["test_cfg"] = {key: as_pair(testing.pad[key]) if key == "size" else testing.pad[key]
                             for key in ("size", "size_divisor") if testing.pad.get(key) is not None}
    return block
