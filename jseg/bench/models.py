"""Whole models: check that every side computes the same, then time jseg against each other side in turn;
peak memory of each.

A measurement is one model, picture size, batch, mode and number of threads. A process of jseg's own writes what the
sides need: weights, the model in MMSegmentation's words, an ONNX file. Then jseg runs against one other side at a time,
so that at most two models are in memory; each side is a process of its own, also for its peak memory and its first run.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
import time
from typing import Any, Callable

import numpy as np

from jseg.bench.opponents import Rival
from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import Side, SideError, jseg_command, thread_count
from jseg.config import last_head

__all__ = ["Measurement", "measure_model", "write_inputs", "compare", "LIMITS"]

# Largest accepted difference: values as a share of the largest one, label maps as a share of their pixels.
LIMITS = {"logits": 1e-3, "label_maps": 5e-3, "loss": 1e-4, "gradients": 2e-2}
TF32_LIMITS = {"logits": 1e-2, "label_maps": 2e-2, "loss": 1e-3, "gradients": 0.1}  # of products in TF32
MIXED_LIMITS = {"logits": 5e-2, "label_maps": 5e-2, "loss": 2e-2, "gradients": 0.5}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What is measured.

    `mode` is "infer" or "train"; `size` (H, W) in pixels; `threads` None leaves them to the environment.
    """

    config: dict
    name: str
    mode: str
    size: tuple[int, int]
    batch: int
    threads: int | None = None

    @property
    def title(self) -> str:
        """One line that names it."""
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return (f"{self.name}, {'inference' if self.mode == 'infer' else 'training step'}, {self.batch} x "
                f"{self.size[0]}x{self.size[1]}{threads}")


def write_inputs(folder: pathlib.Path, config: dict, size: tuple[int, int], batch: int) -> dict[str, str]:
    """Write the config, for whole pictures, and a random batch for all sides; the words of an `open` request that name
    them.
    """
    rng = np.random.default_rng(0)
    classes = last_head(config["model"])["num_classes"]
    labels = np.repeat(np.repeat(rng.integers(0, classes, (batch, -(-size[0] // 16), -(-size[1] // 16))), 16, 1), 16, 2)
    labels = labels[:, :size[0], :size[1]].astype(np.int32)
    ignored = rng.random(labels.shape) < 0.05
    if not weighs_classes(config["model"]):  # MMSegmentation's cross entropy then fails on ignored pixels
        labels[ignored] = 255
    words = {"config": str(folder / "config.json"), "inputs": str(folder / "inputs.npz")}
    model = {**config["model"], "test_cfg": {**(config["model"].get("test_cfg") or {}), "mode": "whole"}}
    pathlib.Path(words["config"]).write_text(json.dumps({**config, "model": model}), encoding="utf-8")
    np.savez(words["inputs"], images=rng.standard_normal((batch, 3, *size), np.float32), labels=labels)
    return words


def weighs_classes(block: Any) -> bool:
    """Whether a loss in a block of a config has class weights."""
    if isinstance(block, dict):
        return block.get("class_weight") is not None or any(map(weighs_classes, block.values()))
    return isinstance(block, list) and any(map(weighs_classes, block))


def compare(ours: dict, theirs: dict) -> dict[str, float]:
    """Differences by kind, as `LIMITS` names them.

    Args:
        ours, theirs: results of two sides' tasks. Their label maps may come without logits; a gradient that they have
            not has to be 0.
    Raises:
        SideError: one side lacks a result, or a shape differs.
    """
    if "label_maps" in theirs and "logits" not in theirs:
        ours = {key: value for key, value in ours.items() if key != "logits"}
    norms = [key for key in theirs if key.startswith("gradient/")]
    largest = max((float(theirs[key]) for key in norms), default=0.0)
    odd = {key for key in set(ours) ^ set(theirs)
           if not (key.startswith("gradient/") and key in ours and float(ours[key]) <= 1e-6 * largest)}
    odd = sorted(odd) or [k for k in theirs if np.shape(ours[k]) != np.shape(theirs[k])]
    if odd:
        raise SideError(f"the sides' results do not fit together: {', '.join(odd[:4])}")
    found = {}
    if norms:
        found["gradients"] = max(abs(float(ours[key]) - float(theirs[key])) / (float(theirs[key]) + 1e-3 * largest)
                                 for key in norms)
    for key in (key for key in theirs if key not in norms):
        if key == "label_maps":
            found[key] = float(np.mean(ours[key] != theirs[key]))
        else:
            found[key] = float(np.abs(ours[key].astype(np.float64) - theirs[key]).max()
                               / max(float(np.abs(theirs[key]).max()), 1e-30))
    return found


def measure_model(job: Measurement, others: list[Rival], *, repeat: int, say: Callable[[str], None] = print) -> dict:
    """Check and time one measurement.

    Args:
        job: what to measure.
        others: from `opponents.rivals`; may be empty, then jseg alone is timed.
        repeat: rounds of A B A B with each of them.
        say: takes lines that tell of progress.
    Returns:
        the row: "title" and its parts, "classes_seen" in jseg's label maps, "jseg" with times, first run and peak
        memory, "others" by name with the same, differences and "ratio" (how many times longer they take), or "failed"
        with the reason, and "absent" where a package was; "took_s" in all. A side whose results differ is not timed.
    Raises:
        SideError: jseg's own side fails.
    """
    say(job.title)
    asked = time.perf_counter()
    row = {"title": job.title, "model": job.name, "mode": job.mode, "size": list(job.size), "batch": job.batch,
           "threads": job.threads, "classes": last_head(job.config["model"])["num_classes"], "others": {}}
    with tempfile.TemporaryDirectory(prefix="jseg-bench-") as name:
        folder = pathlib.Path(name)
        words = {**write_inputs(folder, job.config, job.size, job.batch), "weights": str(folder / "weights.npz")}
        no_file = _write_files(job, others, words, folder)
        words["mode"] = job.mode
        began = time.perf_counter()
        with Side("jseg", jseg_command(), threads=job.threads) as ours:
            first = {"start_s": time.perf_counter() - began, **_first_run(ours, words, folder / "jseg.npz")}
            say(f"  jseg: ready after {first['first_s'] + sum(ours.run(1)):.1f} s of first runs")
            expected, visits = dict(np.load(folder / "jseg.npz")), []
            if "label_maps" in expected:
                row["classes_seen"] = len(np.unique(expected["label_maps"]))
            for rival in others:
                row["others"][rival.name] = found = (
                    _cannot(rival, job, no_file) or _against(rival, job, ours, expected, words, folder, repeat))
                visits += found.pop("our_visits", [])
                say(f"  {rival.name}: " + (found.get("failed") or f"{found['median_ms']:.1f} ms, "
                                                                  f"{found['ratio']['median']:.2f} times jseg's"))
            visits = visits or interleave({"jseg": ours.run}, repeat)["jseg"]
            row["jseg"] = {**summary(visits), **first, "peak_bytes": ours.ask("peak")["bytes"]}
            say(f"  jseg: {row['jseg']['median_ms']:.1f} ms, {row['jseg']['peak_bytes'] / 2**20:.0f} MiB at most")
    row["took_s"] = round(time.perf_counter() - asked, 1)
    say(f"  took {row['took_s']:.0f} s")
    return row


def _write_files(job: Measurement, others: list[Rival], words: dict, folder: pathlib.Path) -> str:
    """Write weights and, where a rival wants one, the ONNX file; why there is none, or ""."""
    with Side("jseg", jseg_command(), threads=job.threads) as side:
        given = {key: words[key] for key in ("config", "inputs")}
        side.ask("open", mode="infer", warm=0, save_weights=words["weights"], **given)
        if any(rival.file and not _cannot(rival, job, "") for rival in others):
            size = list(job.size) if job.batch == 1 else None
            try:
                side.ask("write_onnx", out=str(folder / "model.onnx"), size=size, config=words["config"])
            except SideError as error:
                return f"has no ONNX file: {str(error).partition(': ')[2]}"
    return ""


def _cannot(rival: Rival, job: Measurement, no_file: str) -> dict:
    """"failed" with the reason where a rival need not be tried, else nothing."""
    if job.mode not in rival.modes:
        return {"failed": "does not train"}
    if rival.absent:
        return {"failed": rival.absent, "absent": True}
    return {"failed": no_file} if rival.file and no_file else {}


def _first_run(side: Side, words: dict, out: pathlib.Path) -> dict:
    """Open a task, run it for the first time, write its results to `out`.

    Returns:
        "built_by", "built_s" (building or reading the model) and "first_s": of the first inference; in training, which
        changes the weights, of the step that is compared and of the first whole one.
    """
    opened = side.ask("open", **words, warm=int(words["mode"] == "infer"))
    began = time.perf_counter()
    side.ask("results", out=str(out))
    first_s = time.perf_counter() - began + sum(side.run(1)) if words["mode"] == "train" else sum(opened["seconds"])
    return {"built_by": opened.get("built_by", "jseg"), "built_s": opened.get("built_s", 0.0), "first_s": first_s}


def _against(rival: Rival, job: Measurement, ours: Side, expected: dict, words: dict, folder: pathlib.Path,
             repeat: int) -> dict:
    """Open a rival, compare its results, time it in turn with jseg; what went wrong is told under "failed"."""
    if rival.file:
        words = {**words, "file": str(folder / "model.onnx"), "threads": thread_count(job.threads)}
    limits, began = {**LIMITS, **rival.limits}, time.perf_counter()
    try:
        with Side(rival.name, list(rival.command), threads=job.threads, env=rival.env) as other:
            out = folder / "other.npz"
            found = {"start_s": time.perf_counter() - began, **_first_run(other, {**words, **rival.words}, out)}
            found["differences"] = differences = compare(expected, dict(np.load(out)))
            if set(differences) == {"label_maps"} and len(np.unique(expected["label_maps"])) == 1:
                return {**found, "failed": "cannot be compared: jseg's label maps have one class"}
            wrong = [f"{kind} differ by {value:.1e}, accepted {limits[kind]:.0e}" for kind, value in differences.items()
                     if not value <= limits[kind]]
            if wrong:
                return {**found, "failed": f"results differ from jseg's, not timed: {'; '.join(wrong)}"}
            other.run(1)
            visits = interleave({"jseg": ours.run, "other": other.run}, repeat)
            return {**found, **summary(visits["other"]), "ratio": ratio(visits["jseg"], visits["other"]),
                    "our_visits": visits["jseg"], "peak_bytes": other.ask("peak")["bytes"]}
    except SideError as error:
        return {"failed": str(error)}
