"""`train_dataloader.batch_size: auto`: the largest batch whose training steps fit the memory that is free, measured.

Two batches of two sizes go through a whole step of the config's own model on random crops; what Jittor then holds (it
keeps its blocks, so this is the peak) grows in proportion to the pictures. The batch takes at most 60 % of what is
free, so that pictures of other sizes, evaluation and saving have room, and no more than a quarter of the data, so that
there are several steps per pass. It is at most 16: the learning rates of configs are made for 4 to 16.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from pathlib import Path

import jittor as jt
import numpy as np

from jseg.config import merge
from jseg.data.build import build_dataset
from jseg.engine import checkpoint, distributed
from jseg.engine.channels import model_channels
from jseg.engine.check_rules import AUTO
from jseg.engine.dry_step import training_size
from jseg.engine.memory import give_back
from jseg.engine.optim import build_optimizer
from jseg.errors import CheckpointError, ConfigError
from jseg.models import build_model

__all__ = ["MOST", "SHARE", "fitting_batch", "free_memory", "with_batch_size"]

MOST, SHARE, TRIED = 16, 0.6, (1, 3)


def with_batch_size(config: dict, folder: Path | None) -> dict:
    """The config with a number for `auto`.

    Args:
        config: a whole config.
        folder: of a run that goes on, which keeps the number it began with; None for a new run.
    Raises:
        ConfigError: on several ranks, or not even one picture fits.
    """
    if (config.get("train_dataloader") or {}).get("batch_size") != AUTO:
        return config
    if distributed.world_size() > 1:
        raise distributed.raised_everywhere(ConfigError(
            "train_dataloader.batch_size: auto is measured on one process; give the number of pictures of all ranks"))
    kept = _kept(folder) if folder is not None else None
    if kept is None:
        pictures = len(build_dataset(config, "train"))
        free = free_memory()
        base, each = _measured(config)
        kept = fitting_batch(base, each, free, pictures)
        distributed.tell(f"batch_size: auto: {kept} (a step takes {base >> 20} MiB + {each >> 20} MiB per picture, "
                         f"{free >> 20} MiB are free)")
    return merge(config, {"train_dataloader": {"batch_size": kept}})


def _kept(folder: Path) -> int | None:
    try:
        found = checkpoint.find_state(folder)[0]
        return None if found is None else checkpoint.read_record(found)["config"]["train_dataloader"]["batch_size"]
    except CheckpointError:
        return None  # told when the run is restored


def fitting_batch(base: int, each: int, free: int, pictures: int) -> int:
    """The batch for `base` bytes, `each` bytes per picture, `free` bytes and a number of pictures; even above 2.

    Raises:
        ConfigError: one picture does not fit.
    """
    fits = int((SHARE * free - base) // max(each, 1))
    if fits < 1:
        raise ConfigError(f"train_dataloader.batch_size: auto: one picture takes about {(base + each) >> 20} MiB and "
                          f"{int(SHARE * free) >> 20} of {free >> 20} MiB may be used; make data_preprocessor.size and "
                          "the crop smaller, or take a smaller model")
    count = min(fits, MOST, max(pictures // 4, 2))
    return count if count < 3 else count // 2 * 2


def free_memory() -> int:
    """Bytes that this process may still take: of the GPU where there is one, else of the machine and of its control
    group."""
    if jt.flags.use_cuda:
        info = jt.get_mem_info()
        return int(info.total_cuda_ram) - int(info.total_cuda_used)
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = [int(line.split()[1]) << 10]
    except OSError:
        pass  # not Linux
    for limit, used in (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
                        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")):
        try:
            free.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return max(min(free), 0)


def _held() -> int:
    info = jt.get_mem_info()
    return int(info.total_cuda_used if jt.flags.use_cuda else info.total_cpu_used)


def _measured(config: Mapping) -> tuple[int, int]:
    """(bytes of a step beside its pictures, bytes per picture)."""
    size, state = training_size(config), np.random.get_state()
    gc.collect()
    give_back()  # blocks that are held and free would take a part of the step unseen
    before = _held()
    model = build_model(config)
    model.train()
    optimizer = build_optimizer(model, config["optimizer"], config.get("paramwise_cfg"))
    held = []
    for count in TRIED:
        rng = np.random.default_rng(0)
        images = jt.array(rng.standard_normal((count, model_channels(config["model"]), *size), dtype=np.float32))
        labels = jt.array(rng.integers(0, model.num_classes, model.blank_labels(count, size).shape).astype(np.int32))
        optimizer.accumulate(model.loss(images, labels)["loss"])
        optimizer.step(optimizer.lrs)
        jt.sync_all(True)
        held.append(_held() - before)
    np.random.set_state(state)
    del model, optimizer, images, labels
    give_back()
    each = max((held[1] - held[0]) // (TRIED[1] - TRIED[0]), 1)
    return max(held[0] - TRIED[0] * each, 0), each
