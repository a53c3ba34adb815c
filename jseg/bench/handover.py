"""What jseg's side of a comparison writes so that others run the same model: files for MMSegmentation, an ONNX file."""

from __future__ import annotations

import os
import pathlib
from typing import Any, Mapping, Sequence

import numpy as np

from jseg.engine.limits import without_files
from jseg.engine.model_file import ModelFile
from jseg.export.mmseg_file import upstream_key, upstream_state
from jseg.export.mmseg_settings import config_text, mmseg_settings
from jseg.export.onnx_model import OnnxOptions
from jseg.export.write_onnx import write_onnx

__all__ = ["arrays_of", "upstream_key", "write_labels_file", "write_upstream"]


def arrays_of(model) -> dict[str, np.ndarray]:
    """A model's state by name."""
    return {key: value.numpy() for key, value in model.state_dict().items()}


def write_upstream(model, config: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Write upstream.py and upstream.npz: the model and its state in MMSegmentation's words, all that it builds from.
    """
    np.savez(folder / "upstream.npz", **upstream_state(model, arrays_of(model)))
    settings = mmseg_settings({**config, "model": without_files(config["model"])})
    chosen = {key: settings[key] for key in ("default_scope", "custom_imports", "model") if key in settings}
    (folder / "upstream.py").write_text(config_text(chosen), encoding="utf-8")


def write_labels_file(model, config: dict, out: str | os.PathLike, size: Sequence[int] | None) -> None:
    """Write an ONNX file: label maps from normalised pictures, one of `size` at a time, or any where it is None.

    Raises:
        ExportError: it cannot be written.
    """
    names = [f"class {i}" for i in range(model.num_classes)]
    file = ModelFile(pathlib.Path("model"), arrays_of(model), config, names, np.zeros((len(names), 3), np.uint8), {})
    for _ in write_onnx(file, out, OnnxOptions(size=tuple(size) if size else None), verify=False):
        pass  # compared with jseg's results by who asked for it
