"""Read what a run left in its folder: log, result, config, kept pictures. Missing parts are noted, not fatal."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

from jseg.errors import ConfigError, DataError
from jseg.text import read_text
from jseg.yaml_reader import parse_yaml

__all__ = ["RunRecord", "read_run"]


@dataclass
class RunRecord:
    """The contents of a run folder.

    Attributes:
        folder: the run's folder.
        steps: lines of `log.jsonl` with a loss, in order of "iter".
        evaluations: lines with "val", as {"iter": n, "val": {scores}}.
        result: `metrics.json` as `engine.evaluate.evaluate` returned it, or None.
        config_text: `config.yaml`, or None.
        about: facts for the summary: `run.json` (command, device, seconds, ...) if there is one; else the device from
            `last/state.json`, and "seconds" from the logged speeds and the config's batch size, evaluations not
            counted.
        notes: what was missing or unreadable, in words.
    """

    folder: pathlib.Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    config_text: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(folder: str | pathlib.Path) -> RunRecord:
    """Collect a run folder.

    Raises:
        DataError: the folder is missing, or holds neither a log nor metrics.
    """
    run = RunRecord(pathlib.Path(folder))
    if not run.folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the work_dir of a training run")
    _read_log(run)
    run.result = _read_json(run, "metrics.json")
    if run.result is not None and not {"metrics", "per_class", "confusion", "classes"} <= set(run.result):
        run.notes.append("metrics.json is not a result of `jseg val` or of training; it is left out")
        run.result = None
    if not run.steps and not run.evaluations and run.result is None:
        raise DataError(f"{folder}: neither log.jsonl nor metrics.json holds anything to report; is it the work_dir of "
                        f"a run? `jseg val ... --out {run.folder / 'metrics.json'}` writes the second")
    config = run.folder / "config.yaml"
    try:
        run.config_text = read_text(config, what="config") if config.is_file() else None
    except DataError as error:
        run.notes.append(str(error))
    run.about = _facts(run)
    return run


def _facts(run: RunRecord) -> dict[str, Any]:
    """Device and training time, as far as the folder tells them; what `run.json` says wins."""
    facts: dict[str, Any] = {}
    machine = _read_json(run, "last/state.json", wanted=False)
    if machine and machine.get("machine"):
        facts["device"] = machine["machine"]
    seconds = _stepping_seconds(run)
    if seconds is not None:
        facts["seconds"] = seconds
    return {**facts, **(_read_json(run, "run.json", wanted=False) or {})}


def _stepping_seconds(run: RunRecord) -> float | None:
    """Seconds spent in training steps: pictures between two lines divided by the logged speed; None where unknown."""
    try:
        batch_size = int(parse_yaml(run.config_text or "", "config.yaml")["train_dataloader"]["batch_size"])
        places = [0, *(step["iter"] for step in run.steps)]
        return sum((b - a) * batch_size / step["images_per_s"] for a, b, step in zip(places, places[1:], run.steps))
    except (ConfigError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _read_log(run: RunRecord) -> None:
    path = run.folder / "log.jsonl"
    if not path.is_file():
        run.notes.append("no log.jsonl: there are no curves")
        return
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            place = entry["iter"]
        except (ValueError, KeyError, TypeError):
            broken += bool(line.strip())
            continue
        if isinstance(entry.get("val"), dict):
            run.evaluations.append({"iter": place, "val": entry["val"]})
        elif "loss" in entry:
            run.steps.append(entry)
    run.steps.sort(key=lambda entry: entry["iter"])
    run.evaluations.sort(key=lambda entry: entry["iter"])
    if broken:
        run.notes.append(f"log.jsonl: {broken} unreadable lines are left out")


def _read_json(run: RunRecord, name: str, *, wanted: bool = True) -> dict[str, Any] | None:
    path = run.folder / name
    if not path.is_file():
        if wanted:
            run.notes.append(f"no {name}: there is no table, matrix or picture")
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        run.notes.append(f"{name} cannot be read ({error})")
        return None
    return content if isinstance(content, dict) else None
