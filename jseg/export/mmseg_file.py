"""A checkpoint as MMSegmentation 1.x writes it, so that nobody is locked in: state_dict, meta and dataset_meta.

Keys are MMSegmentation's already. Upstream's state has a few things more, which are put back: counts of batches beside
running statistics, index tables as whole numbers, learned factors as scalars, and second names of shared weights
(`upstream_copies` of the modules). Weights are float32. The config in the file is the checkpoint's, translated
(`mmseg_settings`).
"""

from __future__ import annotations

import os
import pathlib
from collections import OrderedDict
from typing import Iterator

import numpy as np

from jseg import __version__
from jseg.engine.model_file import ModelFile
from jseg.errors import ExportError
from jseg.export.mmseg_settings import config_text, mmseg_settings
from jseg.export.torch_pickle import torch_archive
from jseg.files import write_atomically
from jseg.layers import BatchNorm2d, Scale

__all__ = ["upstream_key", "upstream_state", "write_mmseg_file"]

_VERSIONS = {"mmengine_version": "0.10.7", "mmseg_version": "1.2.2"}  # whose format this is


def upstream_state(model, state: dict[str, np.ndarray]) -> "OrderedDict[str, np.ndarray]":
    """A model's state dict as upstream's class of the same config has it.

    Args:
        model: built from the config.
        state: name to array of any float type.
    """
    found = OrderedDict((key, np.asarray(value, np.float32)) for key, value in state.items())
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, BatchNorm2d):
            found[f"{prefix}num_batches_tracked"] = np.zeros((), np.int64)
        if isinstance(module, Scale):
            found[f"{prefix}scale"] = found[f"{prefix}scale"].reshape(())
        for buffer in getattr(module, "BUFFERS", ()):
            if buffer.endswith("_index"):
                found[f"{prefix}{buffer}"] = np.rint(found[f"{prefix}{buffer}"]).astype(np.int64)
        for key in getattr(module, "DERIVED", ()):
            found.pop(f"{prefix}{key}", None)
        for ours, theirs in getattr(module, "upstream_copies", {}).items():
            for key in [key for key in found if key.startswith(f"{prefix}{ours}.")]:
                found[f"{prefix}{theirs}.{key[len(prefix) + len(ours) + 1:]}"] = found[key]
    return OrderedDict((upstream_key(model, key), value) for key, value in found.items())


def upstream_key(model, key: str) -> str:
    """The name that upstream has for a state-dict entry of a model."""
    first, dot, rest = key.partition(".")
    return getattr(model, "UPSTREAM_NAMES", {}).get(first, first) + dot + rest


def write_mmseg_file(file: ModelFile, out: str | os.PathLike) -> Iterator[str]:
    """Write a `.pth`; yields lines for the screen.

    Raises:
        ExportError: the weights do not fit in the format. CheckpointError: they do not fit their config.
        WriteError: the file cannot be written.
    """
    out = pathlib.Path(out)
    model, _, _ = file.build()
    state = upstream_state(model, file.state)
    settings = mmseg_settings(file.config)
    text = config_text(settings)
    palette = np.asarray(file.palette).tolist()
    meta = {"cfg": text, **_VERSIONS, "experiment_name": file.path.stem, "time": "19800101_000000", "epoch": 0,
            "iter": _iterations(file.config), "seed": file.config.get("seed"), "jseg_version": __version__,
            "dataset_meta": {"classes": list(file.classes), "palette": palette}}
    try:
        pieces = torch_archive({"meta": meta, "state_dict": state, "message_hub": {}})
        write_atomically(out, pieces)
    except ValueError as error:
        raise ExportError(f"{out}: {error}; the checkpoint cannot be written in PyTorch's format") from error
    yield (f"{out}: MMSegmentation 1.x checkpoint, {len(state)} tensors, {len(file.classes)} classes, "
           f"{out.stat().st_size / 1e6:.1f} MB")
    yield "  in mmsegmentation: init_model(mmengine.Config.fromstring(checkpoint['meta']['cfg'], '.py'), '" + \
        out.name + "')"


def _iterations(config: dict) -> int:
    value = (config.get("train_cfg") or {}).get("max_iters", 0)
    return value if isinstance(value, int) else 0
