"""Read what a run left in its folder, or one result file: log, result, config, kept pictures. Missing parts are noted,
not fatal.
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass, field
from typing import Any

from jseg.errors import ConfigError, DataError
from jseg.text import read_text
from jseg.yaml_reader import parse_yaml

__all__ = ["RunRecord", "counted_things", "is_classification", "read_run"]

MOST_BYTES = 256 << 20  # of one JSON file


@dataclass
class RunRecord:
    """The contents of a run folder.

    Attributes:
        folder: the run's folder.
        name: of the folder, or of the result file and its folder.
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
    name: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] | None = None
    config_text: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(folder: str | pathlib.Path) -> RunRecord:
    """Collect a run folder, or a result file of `jseg val --out`.

    Raises:
        DataError: the folder is missing, or holds neither a log nor metrics, or the file holds no result.
    """
    path = pathlib.Path(folder)
    if path.is_file():
        run = RunRecord(path.parent, f"{path.resolve().parent.name}/{path.name}")
        run.result = _read_result(run, path.name)
        if run.result is None:
            raise DataError(f"{folder}: {'; '.join(run.notes)}")
        return run
    run = RunRecord(path, path.resolve().name)
    if not path.is_dir():
        raise DataError(f"{folder}: no such folder; give the work_dir of a training run, or a file of `jseg val --out`")
    _read_log(run)
    run.result = _read_result(run, "metrics.json")
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


def is_classification(run: RunRecord) -> bool:
    """Whether a run is of a classifier of whole pictures."""
    scored = run.result["metrics"] if run.result is not None else run.evaluations[0]["val"] if run.evaluations else {}
    return "top1" in scored


def counted_things(result: dict[str, Any]) -> str:
    """What a result counts: "pictures" or "pixels"."""
    return "pictures" if result.get("task") == "classification" else "pixels"


def _read_result(run: RunRecord, name: str) -> dict[str, Any] | None:
    """The result of an evaluation, None with a note where the file is none."""
    result = _read_json(run, name)
    if result is not None and not _is_result(result):
        run.notes.append(f"{name} is not a result of `jseg val` or of training; it is left out")
        return None
    return result


def _is_result(result: dict[str, Any]) -> bool:
    """Whether the parts that a page needs are there and of one size."""
    try:
        count = len(result["classes"])
        return (count > 0 and isinstance(result["metrics"], dict) and all(isinstance(n, str) for n in result["classes"])
                and [row["name"] for row in result["per_class"]] == result["classes"]
                and [len(row) for row in result["confusion"]] == [count] * count
                and all(isinstance(n, int) and n >= 0 for row in result["confusion"] for n in row)
                and len(result["palette"]) == count and all(len([*map(int, c)]) == 3 for c in result["palette"])
                and isinstance(result["images"], int) and isinstance(result["seconds"], (int, float)))
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


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
            place = int(entry["iter"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            broken += bool(line.strip())
            continue
        if isinstance(entry.get("val"), dict):
            run.evaluations.append({"iter": place, "val": entry["val"]})
        elif "loss" in entry:
            run.steps.append({**entry, "iter": place})
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
        content = json.loads(read_text(path, what="result", most_bytes=MOST_BYTES))
    except (DataError, ValueError, RecursionError) as error:
        run.notes.append(f"{name} cannot be read ({error})")
        return None
    if not isinstance(content, dict):
        run.notes.append(f"{name} holds no block of keys; it is left out")
        return None
    return content
