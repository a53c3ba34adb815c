"""Weights files and training-state folders: written so that a kill at any moment leaves something loadable.

A weights file is `.safetensors` whose metadata hold, as JSON, the keys of `META_KEYS` and the sha256 of the tensors. It can be
opened by any tool of that ecosystem, and reading it runs no code. Training state is a folder:

    last/  weights.safetensors   what the model holds (parameters and running statistics)
           state.safetensors     optimizer moments, moving average, open gradient sums: exact float32
           state.json            iteration, best score, running sums of the log, sha256 of both files

A new state is written beside the old one, read back, and put in place by renames; the old one stays as `iter_<n>/` (the
newest `keep - 1` of them). `find_state` returns the newest folder that is whole, whatever was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as pack_safetensors

import jseg
from jseg.errors import CheckpointError, WriteError
from jseg.files import sync_folder, write_atomically

__all__ = ["META_KEYS", "LoadReport", "save_weights", "load_weights", "load_into", "model_state", "save_state", "find_state",
           "read_state", "publish_copy", "tidy"]

META_KEYS = ("config", "classes", "palette", "metrics", "origin", "jseg_version")
_KEEP_FLOAT32 = ("running_mean", "running_var")  # half precision would round small variances to zero
_HARMLESS = ("num_batches_tracked",)  # PyTorch counts batches in its norms; nothing here needs the count


# --- content ---------------------------------------------------------------------------------------------------------
def content_hash(state: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and values, in order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name], order="C")
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


# --- weights ---------------------------------------------------------------------------------------------------------
def save_weights(path: str | os.PathLike, state: Mapping[str, np.ndarray], meta: Mapping[str, Any], *,
                 half: bool = False) -> str:
    """Write a weights file atomically.

    Args:
        path: ends in .safetensors; its folder must exist.
        state: parameter name -> array.
        meta: any of `META_KEYS`, JSON-able; `jseg_version` is filled in.
        half: store float32 as float16, except running statistics and tensors with values beyond float16's range.
    Returns:
        the sha256 of the content.
    Raises:
        ValueError: an unknown meta key. WriteError: the file cannot be written.
    """
    unknown = set(meta) - set(META_KEYS)
    if unknown:
        raise ValueError(f"unknown meta keys {sorted(unknown)}; known: {', '.join(META_KEYS)}")
    arrays = {name: np.asarray(_halve(name, array) if half else array, order="C") for name, array in state.items()}
    digest = content_hash(arrays)
    metadata = {key: json.dumps(value) for key, value in {**meta, "jseg_version": jseg.__version__}.items()}
    write_atomically(path, pack_safetensors(arrays, {**metadata, "format": "jseg", "sha256": digest}))
    return digest


def _halve(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32 or name.endswith(_KEEP_FLOAT32):
        return array
    if array.size and np.abs(array).max() > np.finfo(np.float16).max:
        return array
    return array.astype(np.float16)


def load_weights(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a weights file: (parameter name -> array as stored, meta).

    Files of other tools load too; keys of `META_KEYS` that they lack are absent from meta.

    Raises:
        CheckpointError: no such file, truncated, damaged, or not a .safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the path of a .safetensors checkpoint")
    if path.suffix in (".pth", ".pt", ".pkl"):
        raise CheckpointError(f"{path}: a PyTorch or Jittor pickle, which can run code when read; translate it once with "
                              f"'jseg convert {path}'")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: truncated, damaged or not a .safetensors file ({error}); its size is "
                              f"{path.stat().st_size} bytes: copy or download it again, or use an older checkpoint") from error
    if "sha256" in metadata and metadata["sha256"] != content_hash(state):
        raise CheckpointError(f"{path}: the weights differ from the sha256 stored with them, so bits have changed since it was "
                              f"written; copy or download it again, or use an older checkpoint")
    meta = {}
    for key in META_KEYS:
        if key in metadata:
            try:
                meta[key] = json.loads(metadata[key])
            except ValueError:
                meta[key] = metadata[key]  # another tool's plain text under the same name
    return state, meta


@dataclass
class LoadReport:
    """Account of every key of a load: `mis_shaped` maps a name to (shape in the file, shape in the model)."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mis_shaped: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every key of model and file found its partner."""
        return not (self.missing or self.unexpected or self.mis_shaped)

    def text(self) -> str:
        """The account in words; keys are grouped by the module that holds them."""
        lines = [f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
                 f"{len(self.mis_shaped)} mis-shaped"]
        lines += _grouped("missing in the file", self.missing) + _grouped("unexpected in the file", self.unexpected)
        if self.mis_shaped:
            lines.append("  mis-shaped:")
            lines += [f"    {name}: file {a}, model {b}" for name, (a, b) in self.mis_shaped.items()]
        return "\n".join(lines)


def _grouped(title: str, names: list[str]) -> list[str]:
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, []).append(leaf)
    return ([f"  {title}:"] if names else []) + [f"    {m or '(top)'}: {', '.join(leaves)}" for m, leaves in modules.items()]


def model_state(model) -> dict[str, np.ndarray]:
    """Copy a model's parameters and buffers out: state-dict name -> array."""
    return {name: np.array(var.numpy()) for name, var in model.state_dict().items()}


def load_into(model, state: Mapping[str, np.ndarray], *, strict: bool = True, source: str = "weights") -> LoadReport:
    """Copy arrays into a model's parameters and buffers by name; values are converted to each parameter's type.

    Args:
        model: a jt.nn.Module.
        state: name -> array, e.g. from `load_weights`.
        strict: every key of the model and of `state` must match; otherwise what matches is taken.
        source: what `state` came from, for messages.
    Returns:
        the full account.
    Raises:
        CheckpointError: strict and something does not match (nothing is loaded then), or no key matches at all.
    """
    import jittor as jt
    own, report = model.state_dict(), LoadReport()
    report.missing = [name for name in own if name not in state]
    for name, array in state.items():
        if name not in own:
            (report.ignored if name.endswith(_HARMLESS) else report.unexpected).append(name)
        elif tuple(array.shape) != tuple(own[name].shape):
            report.mis_shaped[name] = (tuple(array.shape), tuple(own[name].shape))
        else:
            report.loaded.append(name)
    if not report.loaded:
        raise CheckpointError(f"{source}: none of its {len(state)} keys fits the model's {len(own)}; is it for another model? "
                              f"{report.text()}")
    if strict and not report.complete:
        raise CheckpointError(f"{source}: does not fit the model: {report.text()}\n  check model: in the config "
                              f"(num_classes, variant), or load with strict=False to take what matches")
    for name in report.loaded:
        own[name].update(jt.array(np.asarray(state[name], order="C")).cast(str(own[name].dtype)))
    jt.sync_all(True)
    return report


# --- training state --------------------------------------------------------------------------------------------------
def save_state(work_dir: str | os.PathLike, weights: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray],
               record: Mapping[str, Any], meta: Mapping[str, Any], *, keep: int = 1) -> Path:
    """Write `<work_dir>/last/`; the state it replaces becomes `iter_<n>/`, of which the newest `keep - 1` stay.

    Args:
        weights, state: name -> array, see the head of this file.
        record: JSON-able; must hold "iter".
        meta: for the weights file, see `save_weights`.
        keep: states to keep in all, >= 1.
    Raises:
        CheckpointError, WriteError: it cannot be written; what was there before is untouched.
    """
    work_dir = Path(work_dir)
    fresh = work_dir / f"last.tmp-{os.getpid()}"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        hashes = {"weights": save_weights(fresh / "weights.safetensors", weights, meta),
                  "state": save_weights(fresh / "state.safetensors", state, {})}
        write_atomically(fresh / "state.json", json.dumps({**record, "sha256": hashes}, indent=1).encode())
        sync_folder(fresh)
        if read_state(fresh)[2]["sha256"] != hashes:
            raise CheckpointError(f"{fresh}: reads back differently from what was written; check the disk")
        _put_in_place(work_dir, fresh, keep)
    except (OSError, CheckpointError, WriteError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise CheckpointError(f"{work_dir}: cannot write the training state ({error.strerror}); free disk space or allow "
                              f"writing there, then run again with --resume") from error
    return work_dir / "last"


def _put_in_place(work_dir: Path, fresh: Path, keep: int) -> None:
    last = work_dir / "last"
    if last.exists():
        older = work_dir / f"iter_{_saved_iteration(last)}"
        _discard(older)
        os.rename(last, older)  # killed after this line: find_state takes the newest whole folder
        os.rename(fresh, last)
        if older.name == f"iter_{_saved_iteration(last)}":  # the same moment saved again, after its evaluation
            _discard(older)
    else:
        os.rename(fresh, last)
    sync_folder(work_dir)
    tidy(work_dir, keep)


def _discard(folder: Path) -> None:
    """Remove a state folder under another name first, so that a kill half-way leaves nothing that looks like a state."""
    if folder.exists():
        gone = folder.with_name(f"gone.tmp-{folder.name}")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _saved_iteration(folder: Path) -> int | str:
    try:
        return json.loads((folder / "state.json").read_bytes())["iter"]
    except (OSError, ValueError, KeyError, TypeError):
        return "damaged"


def tidy(work_dir: str | os.PathLike, keep: int) -> None:
    """Remove temporary leftovers of killed writers and all but the newest `keep - 1` `iter_<n>/` folders.

    Call it only while holding the run's lock and when `last/` is whole.
    """
    work_dir = Path(work_dir)
    for old in work_dir.glob("*.old-*"):  # a kill fell between the two renames of publish_copy
        target = work_dir / old.name.partition(".old-")[0]
        if not target.exists():
            os.rename(old, target)
    older = sorted((p for p in work_dir.glob("iter_*") if p.is_dir()), key=_iteration)
    for folder in older[:max(0, len(older) - (keep - 1))]:
        _discard(folder)
    for folder in [*work_dir.glob("*.tmp-*"), *work_dir.glob("*.old-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    for file in work_dir.glob(".*.tmp"):
        file.unlink(missing_ok=True)


def _iteration(folder: Path) -> int:
    tail = folder.name.rpartition("_")[2]
    return int(tail) if tail.isdigit() else -1


def read_state(folder: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Read and check a state folder: (weights, state, record).

    Raises:
        CheckpointError: a file is missing, damaged, or from another moment than the others.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / "state.json").read_bytes())
        hashes = record["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: no readable state.json ({error}); use an older state") from error
    weights, _ = load_weights(folder / "weights.safetensors")
    state, _ = load_weights(folder / "state.safetensors")
    for name, arrays in (("weights", weights), ("state", state)):
        if content_hash(arrays) != hashes.get(name):
            raise CheckpointError(f"{folder / name}.safetensors: not the file that state.json was written with; use an older state")
    return weights, state, record


def find_state(work_dir: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest whole state of a run and a line for each damaged one that was passed over; (None, ...) when there is none."""
    work_dir, notes, best = Path(work_dir), [], (None, -1, False)
    for folder in [*work_dir.glob("last"), *work_dir.glob("last.tmp-*"), *work_dir.glob("iter_*")]:
        try:
            record = read_state(folder)[2]
        except CheckpointError as error:
            if ".tmp-" not in folder.name:  # a killed writer's leftover is no news
                notes.append(str(error))
            continue
        rank = (record["iter"], bool(record.get("evaluated")))
        if best[0] is None or rank > best[1:]:
            best = (folder, *rank)
    return best[0], notes


def publish_copy(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Make `target` a copy of the state folder `source` (hard links where the disk allows), replacing an older one.

    A kill in between leaves `<target>.old-*` or the new folder; `tidy` removes what is left over.
    """
    source, target = Path(source), Path(target)
    fresh, old = (target.with_name(f"{target.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, copy_function=_link)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    os.rename(fresh, target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
