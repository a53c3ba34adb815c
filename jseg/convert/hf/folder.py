"""A model folder of Hugging Face: its settings as data, its tensors by name, none of them read before it is asked for.

Known: `model.safetensors` and `pytorch_model.bin`, each whole or in shards that an index beside them lists. Names of
shards are plain file names of the same folder; anything else is refused. A `.bin` is read by `torch_file`, which runs
nothing of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
from typing import Any, Iterator

import numpy as np

from jseg.convert.hf.facts import Facts
from jseg.convert.pickle_data import brief
from jseg.convert.torch_file import Tensor, read_torch_file
from jseg.errors import CheckpointError, ConvertError
from jseg.files import read_regular
from jseg.weights_file import read_tensor
from jseg.weights_header import Entry, read_header

__all__ = ["BACKBONES", "ModelFolder", "StoredTensor", "backbone_file", "find_folder", "is_model_folder", "open_folder"]

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_JSON_BYTES, MAX_SHARDS = 16 << 20, 1000
BACKBONES = ("Dinov2", "Dinov2WithRegisters")  # classes of transformers, without what they are read out for


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a `.safetensors` file; `numpy()` reads it."""

    path: pathlib.Path
    entry: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.entry.end - self.entry.first

    def numpy(self) -> np.ndarray:
        """The values, bfloat16 widened to float32."""
        return read_tensor(self.path, self.entry)


@dataclasses.dataclass
class ModelFolder:
    """What a folder holds: `config` and `processor` (None without a file), `tensors` by key, `files` of weights."""

    path: pathlib.Path
    config: Facts
    processor: Facts | None
    tensors: dict[str, StoredTensor | Tensor | np.ndarray]
    files: list[pathlib.Path]

    @property
    def bytes(self) -> int:
        """Bytes of the weights files."""
        return sum(file.stat().st_size for file in self.files)


def is_model_folder(folder: pathlib.Path) -> bool:
    """Whether a folder has a config.json that looks like one of transformers, whatever else is in it."""
    try:
        values = json.loads(read_regular(folder / CONFIG, error=ConvertError, most_bytes=MAX_JSON_BYTES))
    except (ConvertError, OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and bool({"model_type", "architectures"} & set(values))


def find_folder(source: str | os.PathLike) -> tuple[pathlib.Path, str | None] | None:
    """(folder, name of the weights file that was pointed at) where `source` is a model of Hugging Face; None otherwise.

    `source` is the folder, its config.json, or a weights file (or index) with config.json beside it. A jseg weights
    file is none, wherever it lies.

    Raises:
        ConvertError: a folder that is none of Hugging Face.
    """
    source = pathlib.Path(source)
    if source.is_dir():
        if not (source / CONFIG).exists():
            raise ConvertError(f"{source}: a folder without {CONFIG}; a model folder of Hugging Face has {CONFIG} and "
                               f"{WEIGHTS[0]} (or {WEIGHTS[2]}) in it. Of other releases give the file itself")
        return source, None
    if source.name == CONFIG:
        return source.parent, None
    if not source.name.endswith((".safetensors", ".bin", ".index.json")) or not is_model_folder(source.parent):
        return None
    if source.suffix == ".safetensors" and _header_of(source).metadata.get("format", "").startswith("jseg"):
        return None
    return source.parent, source.name


def backbone_file(folder: pathlib.Path, weights: str | None = None) -> pathlib.Path | None:
    """The weights file of a folder of `find_folder` that holds one of `BACKBONES`, whole; None of other models.

    Raises:
        ConvertError: its config.json or its weights are missing or damaged.
    """
    said = _read_json(folder / CONFIG).values.get("architectures")
    name = said[0] if isinstance(said, list) and len(said) == 1 and isinstance(said[0], str) else ""
    if re.sub("(Model|Backbone|ForImageClassification)$", "", name) not in BACKBONES:
        return None
    found = weights or next((name for name in WEIGHTS if (folder / name).exists()), WEIGHTS[0])
    if found.endswith(".json"):
        raise ConvertError(f"{folder}: {name} in several files; accepted: the whole of it in {WEIGHTS[0]}")
    return folder / found


def open_folder(folder: pathlib.Path, weights: str | None = None) -> ModelFolder:
    """Read the settings of a folder and the headers of its weights.

    Args:
        weights: name of the file to take; default: the first of `WEIGHTS` that is there.
    Raises:
        ConvertError: a file is missing, damaged or hostile, or shards do not hold what their index says.
    """
    config = _read_json(folder / CONFIG)
    processor = _read_json(folder / PROCESSOR) if (folder / PROCESSOR).exists() else None
    name = weights or next((name for name in WEIGHTS if (folder / name).exists()), None)
    if name is None:
        raise ConvertError(f"{folder}: no weights in it (looked for {', '.join(WEIGHTS)}); fetch the model whole, "
                           "large files too")
    tensors: dict[str, Any] = {}
    files = []
    for file, listed in _shards(folder, name):
        found = _tensors(file)
        if listed is not None and set(found) != listed:
            odd = sorted(listed ^ set(found))
            raise ConvertError(f"{folder / name}: lists {len(listed)} tensors in {file.name}, which holds "
                               f"{len(found)}; they differ in {', '.join(map(brief, odd[:3]))}. Fetch the folder "
                               "again, all files of one version")
        tensors.update(found)
        files.append(file)
    return ModelFolder(folder, config, processor, tensors, files)


def _shards(folder: pathlib.Path, name: str) -> Iterator[tuple[pathlib.Path, set[str] | None]]:
    """Each weights file with the keys that the index says it holds (None without an index)."""
    if not name.endswith(".index.json"):
        yield folder / name, None
        return
    listed: dict[str, set[str]] = {}
    for key, shard in _read_json(folder / name).block("weight_map").values.items():
        if not isinstance(shard, str) or not re.fullmatch(r"\w[\w.-]{0,200}\.(safetensors|bin)", shard, re.ASCII):
            raise ConvertError(f"{folder / name}: {brief(key)} is said to be in {brief(shard)}; accepted are names "
                               "of .safetensors and .bin files of the same folder")
        listed.setdefault(shard, set()).add(key)
    if not 1 <= len(listed) <= MAX_SHARDS:
        raise ConvertError(f"{folder / name}: lists {len(listed)} files; accepted: 1 to {MAX_SHARDS}")
    for shard in sorted(listed):
        if not (folder / shard).exists():
            raise ConvertError(f"{folder / name}: {shard} is not there; fetch all {len(listed)} files of the model")
        yield folder / shard, listed[shard]


def _tensors(path: pathlib.Path) -> dict[str, Any]:
    """The tensors of one weights file by key."""
    if path.suffix == ".safetensors":
        return {key: StoredTensor(path, entry) for key, entry in _header_of(path).entries.items()}
    found = read_torch_file(path)
    if not isinstance(found, dict) or not found or not all(
        isinstance(key, str) and isinstance(value, (Tensor, np.ndarray)) for key, value in found.items()):
        raise ConvertError(f"{path}: holds {brief(found)}, not tensors by name; expected what save_pretrained writes")
    return found


def _header_of(path: pathlib.Path):
    try:
        return read_header(path)
    except CheckpointError as error:
        raise ConvertError(str(error)) from error


def _read_json(path: pathlib.Path) -> Facts:
    """A JSON file that holds a block of settings."""
    try:
        content = read_regular(path, what="settings file", error=ConvertError, most_bytes=MAX_JSON_BYTES)
        values = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ConvertError(f"{path}: cannot be read: {error.strerror or error}; a model folder of Hugging Face has it "
                           "beside its weights") from error
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: is no JSON ({str(error)[:100] or 'nested too deeply'}); fetch it again") from error
    if not isinstance(values, dict):
        raise ConvertError(f"{path}: holds {brief(values)}, not settings by name")
    return Facts(values, str(path))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it has the value {name}")
