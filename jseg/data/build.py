"""A config's data blocks become a loader."""

from __future__ import annotations

from typing import Any, Mapping

from jseg.config import is_classifier, last_head
from jseg.data.loader import Loader
from jseg.data.preprocess import PREPROCESSORS, SegDataPreProcessor
from jseg.errors import ConfigError
from jseg.registry import DATASETS, nearest

__all__ = ["build_dataset", "build_loader", "build_preprocessor", "loader_block", "with_first_pictures"]

SPLITS = ("train", "val", "test")
LOADER_KEYS = ("batch_size", "num_workers", "dataset")


def loader_block(cfg: Mapping, split: str) -> tuple[str, Mapping]:
    """Return (name, block) of a split's loader in a config; `test` falls back to `val_dataloader`.

    Raises:
        ConfigError: unknown split, no such block, or a key that a loader does not take.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}{nearest(split, SPLITS)} (known: {', '.join(SPLITS)})")
    name = f"{split}_dataloader"
    if split == "test" and cfg.get(name) is None:
        name = "val_dataloader"
    block = cfg.get(name)
    if not isinstance(block, Mapping):
        raise ConfigError(f"{name}: the config has no such block; give {name}: {{batch_size: 1, num_workers: 2, "
                          f"dataset: {{...}}}}")
    for key in block:
        if key not in LOADER_KEYS:
            raise ConfigError(f"{name}: unknown key {key!r}{nearest(key, LOADER_KEYS)}; it takes "
                              f"{', '.join(LOADER_KEYS)}")
    if "dataset" not in block:
        raise ConfigError(f"{name}: needs 'dataset'")
    return name, block


def with_first_pictures(cfg: Mapping, split: str, count: int) -> dict:
    """The config with the first `count` pictures of a split's dataset, of those that its `indices` leave."""
    name, block = loader_block(cfg, split)
    chosen = block["dataset"].get("indices")
    indices = list(chosen)[:count] if isinstance(chosen, (list, tuple)) else min(count, chosen or count)
    return {**cfg, name: {**block, "dataset": {**block["dataset"], "indices": indices}}}


def build_dataset(cfg: Mapping, split: str) -> Any:
    """Build the dataset of a split; `test_mode` is set for val and test unless the config says otherwise.

    Raises:
        ConfigError: see `loader_block`, the dataset's own, or a class count that differs from
        `model.decode_head.num_classes`.
    """
    name, block = loader_block(cfg, split)
    if not isinstance(block["dataset"], Mapping):
        raise ConfigError(f"{name}.dataset: expected a block with a 'type:' naming a dataset, got {block['dataset']!r}")
    dataset = DATASETS.build({"test_mode": split != "train", **block["dataset"]}, f"{name}.dataset")
    wanted = last_head(cfg.get("model") or {}).get("num_classes")
    if wanted is not None and wanted != len(dataset.classes):
        head = "head" if is_classifier(cfg) else "decode_head"
        raise ConfigError(f"model.{head}.num_classes is {wanted}, but {block['dataset']['type']} of {name} has "
                          f"{len(dataset.classes)} classes ({', '.join(dataset.classes[:5])}, ...); set num_classes to "
                          f"{len(dataset.classes)} or choose classes with dataset."
                          f"{'classes' if is_classifier(cfg) else 'metainfo.classes'}")
    return dataset


def build_preprocessor(cfg: Mapping) -> SegDataPreProcessor:
    """Build the config's `data_preprocessor`.

    Raises:
        ConfigError: the block is missing or wrong.
    """
    if cfg.get("data_preprocessor") is None:
        raise ConfigError("data_preprocessor: the config has no such block; give {type: SegDataPreProcessor, mean: "
                          "[...], std: [...], ...}")
    return PREPROCESSORS.build(cfg["data_preprocessor"], "data_preprocessor")


def build_loader(cfg: Mapping, split: str, *, start_iter: int = 0, rank: int = 0, world_size: int = 1) -> Loader:
    """Build the loader of a split.

    Args:
        cfg: a whole config.
        split: train, val or test (test falls back to val).
        start_iter: number of the first training batch, for resuming.
        rank, world_size: this process's share.
    Raises:
        ConfigError: something in the config is missing, unknown or contradictory.
    """
    name, block = loader_block(cfg, split)
    if block.get("batch_size") == "auto":
        raise ConfigError(f"{name}.batch_size: auto is measured when training begins; give a number here, for example "
                          f"--set {name}.batch_size=4")
    try:
        return Loader(build_dataset(cfg, split), build_preprocessor(cfg), batch_size=block.get("batch_size", 1),
                      num_workers=block.get("num_workers", 2), seed=cfg.get("seed") or 0, training=split == "train",
                      start_iter=start_iter, rank=rank, world_size=world_size, split=name.partition("_")[0])
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
