"""Weights files and training-state folders: written so that a kill at any moment leaves something loadable.

A weights file is `.safetensors` whose metadata hold, as JSON, the keys of `META_KEYS` and the sha256 of the tensors. It
can be opened by any tool of that ecosystem, and reading it runs no code. Training state is a folder:

    last/  weights.safetensors   what the model holds (parameters and running statistics)
           state.safetensors     optimizer moments, moving average, open gradient sums: exact float32
           state.json            iteration, best score, running sums of the log, sha256 of both files and of itself

A new state is written beside the old one, read back, and put in place by renames; the old one stays as `iter_<n>/` (the
newest `keep - 1` of them). `best/` is such a state too. `find_state` returns the newest folder that is whole, whatever
was interrupted or damaged: every bit of a state is under a sha256, and its age is its iteration, never a file's date.
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

import jseg
from jseg.errors import CheckpointError, WriteError
from jseg.files import drop_drafts, sync_folder, write_atomically
from jseg.text import cleaned_text, printable
from jseg.weights_file import content_hash, nonfinite_text, read_weights_file, write_weights_file

__all__ = ["META_KEYS", "LoadReport", "save_weights", "load_weights", "weights_path", "load_into", "model_state",
           "save_state", "find_state", "read_record", "read_state", "publish_copy", "tidy"]

META_KEYS = ("config", "classes", "palette", "metrics", "origin", "jseg_version")
_KEEP_FLOAT32 = ("running_mean", "running_var")  # half precision would round small variances to zero
_HARMLESS = ("num_batches_tracked",)  # PyTorch counts batches in its norms; nothing here needs the count


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
    return write_weights_file(path, arrays, arrays.__getitem__, {**meta, "jseg_version": jseg.__version__})


def _halve(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float32 or name.endswith(_KEEP_FLOAT32):
        return array
    if array.size and np.abs(array).max() > np.finfo(np.float16).max:
        return array
    return array.astype(np.float16)


def weights_path(path: str | os.PathLike) -> Path:
    """The weights file that a user means: the file itself, or that of a run's folder.

    A state folder (`best/`, `last/`) holds `weights.safetensors`, a work dir `best.safetensors`, before its first
    evaluation `last/` alone.

    Raises:
        CheckpointError: a folder without either.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("weights.safetensors", "best.safetensors", "best/weights.safetensors", "last/weights.safetensors"):
        if (path / name).is_file():
            return path / name
    if (path / "config.json").is_file():
        raise CheckpointError(f"{path}: a model folder of Hugging Face, it seems; translate it once with 'jseg convert "
                              f"{path} OUT.safetensors' and give OUT.safetensors")
    raise CheckpointError(f"{path}: a folder without weights (looked for weights.safetensors and best.safetensors in "
                          f"it); give a .safetensors file, or a run's best/")


def load_weights(path: str | os.PathLike, *,
                 allow_nonfinite: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a weights file: (parameter name -> array as stored, meta).

    Files of other tools load too, bfloat16 as float32; keys of `META_KEYS` that they lack are absent from meta. Texts
    in meta are made fit to print: control characters in a class name stand as `\\x1b`.

    Args:
        path: a .safetensors file, or a folder as `weights_path` takes it.
        allow_nonfinite: accept tensors that hold NaN or inf.
    Raises:
        CheckpointError: no such file, truncated, damaged, not a .safetensors file, or values that are not finite.
    """
    path = weights_path(path)
    if not path.exists():
        raise CheckpointError(f"{printable(path)}: no such file; give the path of a .safetensors checkpoint")
    if path.suffix in (".pth", ".pt", ".pkl") and path.is_file():
        raise CheckpointError(f"{path}: a PyTorch or Jittor pickle, which can run code when read; translate it once "
                              f"with 'jseg convert {path}'")
    state, metadata = read_weights_file(path)
    _refuse_bad_values(state, str(path), allow_nonfinite)
    meta = {}
    for key in META_KEYS:
        if key in metadata:
            meta[key] = _meta_value(metadata[key], "" if key in ("config", "classes") else "\n\t", f"{path}: {key}")
    return state, meta


def _meta_value(text: str, keep: str, where: str) -> Any:
    """What a text of the metadata says, fit to print; `keep` are control characters that may stay."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text  # another tool's plain text under the same name
    try:
        return cleaned_text(value, keep=keep)
    except ValueError as error:
        raise CheckpointError(f"{where} in its metadata is {error}; no checkpoint's is") from error


def _refuse_bad_values(state: Mapping[str, np.ndarray], source: str, allowed: bool) -> None:
    bad = "" if allowed else nonfinite_text(state)
    if bad:
        raise CheckpointError(f"{source}: NaN or inf in {bad}; such weights give one class everywhere. Take an older "
                              "checkpoint of the run, or look at this one with predict, val or export "
                              "--allow-nonfinite (allow_nonfinite=True)")


@dataclass
class LoadReport:
    """Account of every key of a load: `mismatched` maps a name to (shape in the file, shape in the model)."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple, tuple]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """True when every key of model and file found its partner."""
        return not (self.missing or self.unexpected or self.mismatched)

    def text(self) -> str:
        """The account in words; keys are grouped by the module that holds them."""
        lines = [f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
                 f"{len(self.mismatched)} of another shape"]
        lines += _grouped("missing in the file", self.missing) + _grouped("unexpected in the file", self.unexpected)
        if self.mismatched:
            lines.append("  of another shape:")
            lines += [f"    {name}: file {a}, model {b}" for name, (a, b) in self.mismatched.items()]
        return printable("\n".join(lines), keep="\n")


def _grouped(title: str, names: list[str]) -> list[str]:
    modules: dict[str, list[str]] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, []).append(leaf)
    return ([f"  {title}:"] if names else []) + [f"    {m or '(top)'}: {', '.join(leaves)}"
                                                 for m, leaves in modules.items()]


def model_state(model) -> dict[str, np.ndarray]:
    """Copy a model's parameters and buffers out: state-dict name -> array."""
    return {name: np.array(var.numpy()) for name, var in model.state_dict().items()}


def load_into(model, state: Mapping[str, np.ndarray], *, strict: bool = True, source: str = "weights",
              allow_nonfinite: bool = False) -> LoadReport:
    """Copy arrays into a model's parameters and buffers by name; values are converted to each parameter's type.

    Args:
        model: a jt.nn.Module.
        state: name -> array, e.g. from `load_weights`.
        strict: every key of the model and of `state` must match; otherwise what matches is taken.
        source: what `state` came from, for messages.
        allow_nonfinite: accept NaN and inf.
    Returns:
        the full account.
    Raises:
        CheckpointError: strict and something does not match (nothing is loaded then), no key matches at all, or values
            that are not finite.
    """
    import jittor as jt
    _refuse_bad_values(state, source, allow_nonfinite)
    own, report = model.state_dict(), LoadReport()
    report.missing = [name for name in own if name not in state]
    for name, array in state.items():
        if name not in own:
            (report.ignored if name.endswith(_HARMLESS) else report.unexpected).append(name)
        elif tuple(array.shape) != tuple(own[name].shape):
            report.mismatched[name] = (tuple(array.shape), tuple(own[name].shape))
        else:
            report.loaded.append(name)
    if not report.loaded:
        raise CheckpointError(f"{source}: none of its {len(state)} keys fits the model's {len(own)}; is it for another "
                              f"model? {report.text()}")
    if strict and not report.complete:
        raise CheckpointError(f"{source}: does not fit the model: {report.text()}\n  check model: in the config "
                              f"(num_classes, variant), or load with strict=False to take what matches")
    for name in report.loaded:
        own[name].update(jt.array(np.asarray(state[name], order="C")).cast(str(own[name].dtype)))
    jt.sync_all(True)
    return report


# --- training state --------------------------------------------------------------------------------------------------
def save_state(work_dir: str | os.PathLike, weights: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray],
               record: Mapping[str, Any], meta: Mapping[str, Any], *, keep: int = 1, best: bool = False) -> Path:
    """Write `<work_dir>/last/`; the state it replaces becomes `iter_<n>/`, of which the newest `keep - 1` stay.

    Args:
        weights, state: name -> array, see the head of this file.
        record: JSON-able; must hold "iter".
        meta: for the weights file, see `save_weights`.
        keep: states to keep in all, >= 1.
        best: also make it `<work_dir>/best/`; a kill in between leaves that newer than `last/`, where `find_state`
            finds it.
    Raises:
        CheckpointError: it cannot be written, or holds inf or nan; what was there before is untouched.
    """
    work_dir = Path(work_dir)
    _refuse_nonfinite(work_dir, {**weights, **state})
    fresh = work_dir / f"last.tmp-{os.getpid()}"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        hashes = {"weights": save_weights(fresh / "weights.safetensors", weights, meta),
                  "state": save_weights(fresh / "state.safetensors", state, {})}
        write_atomically(fresh / "state.json", _sealed({**record, "sha256": hashes}))
        sync_folder(fresh)
        if read_state(fresh)[2]["sha256"] != hashes:
            raise CheckpointError(f"{fresh}: reads back differently from what was written; check the disk")
        if best:
            publish_copy(fresh, work_dir / "best")
        _put_in_place(work_dir, fresh, keep)
    except (OSError, WriteError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        reason = error.__cause__ if isinstance(error, WriteError) and error.__cause__ else error
        raise CheckpointError(f"{work_dir}: cannot write the training state of iteration {record['iter']} "
                              f"({getattr(reason, 'strerror', None) or reason}); the state before it is whole. Free "
                              "disk space or allow writing there, then go on with --resume") from error
    except CheckpointError:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return work_dir / "last"


def _refuse_nonfinite(work_dir: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """A run that resumed from inf or nan could never recover, so no such state replaces a good one."""
    bad = [name for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)
           and not np.isfinite(array).all()]
    if bad:
        raise CheckpointError(f"{work_dir}: {len(bad)} tensors hold inf or nan "
                              f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}), so this state is not saved "
                              "and the one before it stays. Lower optimizer.lr, lengthen the warm-up or set "
                              f"train_cfg.clip_grad={{max_norm: 1.0}}, then go on with --resume")


def _sealed(record: Mapping[str, Any]) -> bytes:
    """JSON whose last entry is the sha256 of all bytes before it."""
    return _with_seal(json.dumps(record, indent=1).encode()[:-2] + b",")


def _with_seal(body: bytes) -> bytes:
    return body + f'\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}'.encode()


def read_record(folder: Path) -> dict[str, Any]:
    """Read and check `state.json` of a state folder: what is known of the run beside its arrays.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        content = (folder / "state.json").read_bytes()
        record = json.loads(content)
        record.pop("seal"), record["iter"], record["sha256"]["weights"]  # they are there
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: no readable state.json ({error or type(error).__name__}); use an older state") from error
    if content != _with_seal(content.rpartition(b'\n "seal"')[0]):
        raise CheckpointError(f"{folder}: state.json differs from the sha256 stored with it, so bits have changed "
                              "since it was written; use an older state")
    return record


def _put_in_place(work_dir: Path, fresh: Path, keep: int) -> None:
    last, now = work_dir / "last", _iteration_of(fresh)
    if last.exists():
        before = _iteration_of(last)
        if before is None or before > now:  # damaged, and passed over when this run was resumed from an older one
            _discard(last)
        else:
            older = work_dir / f"iter_{before}"
            _discard(older)
            os.rename(last, older)  # killed after this line: find_state takes the newest whole folder
    os.rename(fresh, last)
    sync_folder(work_dir)
    tidy(work_dir, keep)


def _discard(folder: Path) -> None:
    """Remove a state folder under another name first,
    so that a kill half-way leaves nothing that looks like a state.
    """
    if folder.exists():
        gone = folder.with_name(f"gone.tmp-{folder.name}")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _iteration_of(folder: Path) -> int | None:
    """The iteration that a state folder holds, or None where that cannot be read."""
    try:
        return int(read_record(folder)["iter"])
    except CheckpointError:
        return None


def tidy(work_dir: str | os.PathLike, keep: int) -> None:
    """Remove temporary leftovers of killed writers and all but the newest
    `keep - 1` `iter_<n>/` folders before `last/`.

    Call it only while holding the run's lock and when `last/` is whole.
    """
    work_dir = Path(work_dir)
    for old in work_dir.glob("*.old-*"):  # a kill fell between the two renames of publish_copy
        target = work_dir / old.name.partition(".old-")[0]
        if not target.exists():
            os.rename(old, target)
    now = _iteration_of(work_dir / "last")
    folders = {int(p.name[5:]): p for p in work_dir.glob("iter_*") if p.is_dir() and p.name[5:].isdigit()}
    # the others were passed over, or are this moment saved before
    older = sorted(n for n in folders if now is None or n < now)
    kept = older[len(older) - (keep - 1):] if keep > 1 else []
    for number in set(folders) - set(kept):
        _discard(folders[number])
    for folder in [*work_dir.glob("*.tmp-*"), *work_dir.glob("*.old-*")]:
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    drop_drafts(work_dir)


def read_state(folder: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, Any]]:
    """Read and check a state folder: (weights, state, record).

    Raises:
        CheckpointError: a file is missing, damaged, or from another moment than the others.
    """
    folder = Path(folder)
    record = read_record(folder)
    weights, _ = load_weights(folder / "weights.safetensors")
    state, _ = load_weights(folder / "state.safetensors")
    for name, arrays in (("weights", weights), ("state", state)):
        if content_hash(arrays) != record["sha256"].get(name):
            raise CheckpointError(f"{folder / name}.safetensors: not the file that state.json was written with; use an "
                                  "older state")
    return weights, state, record


def find_state(work_dir: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest whole state of a run and a line for each damaged one that was passed over;
    (None, []) when there is none.

    Raises:
        CheckpointError: there are states, and all are damaged: to begin again is for the user to decide.
    """
    work_dir, notes, best = Path(work_dir), [], (None, -1, False)
    for folder in [work_dir / "last", *work_dir.glob("last.tmp-*"), *work_dir.glob("iter_*"), work_dir / "best",
                   *work_dir.glob("best.old-*")]:
        if not folder.is_dir():
            continue
        try:
            record = read_state(folder)[2]
        except CheckpointError as error:
            replaced = ".old-" in folder.name and (work_dir / "best").is_dir()  # it was being removed
            if ".tmp-" not in folder.name and not replaced:  # a killed writer's leftover is no news
                notes.append(str(error))
            continue
        rank = (record["iter"], bool(record.get("evaluated")))
        if best[0] is None or rank > best[1:]:
            best = (folder, *rank)
    if best[0] is None and notes:
        raise CheckpointError("\n".join(
            [f"{work_dir}: every saved state is damaged; to begin again from iteration 0 give another --work-dir "
             f"(load_from={work_dir}/best.safetensors keeps its weights, where that file is whole)", *notes]))
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
