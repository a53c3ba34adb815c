"""Whole models: check that every side computes the same, then time jseg against each other side in turn;
peak memory of each.

A measurement is one model, picture size, batch, mode and number of threads. jseg runs against one other side at a time,
so that at most two models are in memory; each side is a process of its own, also for its peak memory.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from typing import Callable

import numpy as np

from jseg.bench.pairing import interleave, ratio, summary
from jseg.bench.side import TUNED, Side, SideError, jseg_command, torch_command
from jseg.config import last_head

__all__ = ["Measurement", "Rival", "rivals", "measure_model", "write_inputs", "compare", "LIMITS"]

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


@dataclasses.dataclass(frozen=True)
class Rival:
    """Another side: its name in tables, how it starts, variables of its process, words of its `open` request."""

    name: str
    command: tuple[str, ...]
    env: dict = dataclasses.field(default_factory=dict)
    words: dict = dataclasses.field(default_factory=dict)


def rivals(*, torch: str | None, jittor: bool) -> list[Rival]:
    """The sides that jseg is compared with.

    Args:
        torch: a Python that has PyTorch, or None.
        jittor: the plain layer-by-layer path.
    """
    found = []
    if torch:
        command = tuple(torch_command(torch))
        found += [Rival("PyTorch", command), Rival("PyTorch, tuned", command, TUNED, {"channels_last": True})]
    if jittor:
        found.append(Rival("plain Jittor", tuple(jseg_command()), {"JSEG_IMPL": "jittor"}))
    return found


def write_inputs(folder: pathlib.Path, config: dict, size: tuple[int, int], batch: int) -> dict[str, str]:
    """Write the config and a random batch for all sides; the words of an `open` request that name them."""
    rng = np.random.default_rng(0)
    classes = last_head(config["model"])["num_classes"]
    labels = np.repeat(np.repeat(rng.integers(0, classes, (batch, -(-size[0] // 16), -(-size[1] // 16))), 16, 1), 16, 2)
    labels = labels[:, :size[0], :size[1]].astype(np.int32)
    labels[rng.random(labels.shape) < 0.05] = 255
    words = {"config": str(folder / "config.json"), "inputs": str(folder / "inputs.npz")}
    pathlib.Path(words["config"]).write_text(json.dumps(config), encoding="utf-8")
    np.savez(words["inputs"], images=rng.standard_normal((batch, 3, *size), np.float32), labels=labels)
    return words


def compare(ours: dict, theirs: dict) -> dict[str, float]:
    """Differences by kind, as `LIMITS` names them.

    Args:
        ours, theirs: results of two sides' tasks.
    Raises:
        SideError: one side lacks a result, or a shape differs.
    """
    odd = sorted(set(ours) ^ set(theirs)) or [k for k in ours if np.shape(ours[k]) != np.shape(theirs[k])]
    if odd:
        raise SideError(f"the sides' results do not fit together: {', '.join(odd[:4])}")
    found = {}
    norms = [key for key in ours if key.startswith("gradient/")]
    if norms:
        largest = max(float(theirs[key]) for key in norms)
        found["gradients"] = max(abs(float(ours[key]) - float(theirs[key])) / (float(theirs[key]) + 1e-3 * largest)
                                 for key in norms)
    for key in ours:
        if key == "label_maps":
            found[key] = float(np.mean(ours[key] != theirs[key]))
        elif key not in norms:
            found[key] = float(np.abs(ours[key].astype(np.float64) - theirs[key]).max()
                               / max(float(np.abs(theirs[key]).max()), 1e-30))
    return found


def measure_model(job: Measurement, others: list[Rival], *, repeat: int, say: Callable[[str], None] = print) -> dict:
    """Check and time one measurement.

    Args:
        job: what to measure.
        others: from `rivals`; may be empty, then jseg alone is timed.
        repeat: rounds of A B A B with each of them.
        say: takes lines that tell of progress.
    Returns:
        the row: "title" and its parts, "jseg" with times and peak memory, "others" by name with times, peak memory,
        differences and "ratio" (how many times longer they take), or "failed" with the reason. A side whose results
        differ is not timed.
    Raises:
        SideError: jseg's own side fails.
    """
    say(job.title)
    row = {"title": job.title, "model": job.name, "mode": job.mode, "size": list(job.size), "batch": job.batch,
           "threads": job.threads, "classes": last_head(job.config["model"])["num_classes"], "others": {}}
    with tempfile.TemporaryDirectory(prefix="jseg-bench-") as name:
        folder = pathlib.Path(name)
        words = {**write_inputs(folder, job.config, job.size, job.batch), "mode": job.mode, "warm": 0}
        with Side("jseg", jseg_command(), threads=job.threads) as ours:
            ours.ask("open", save_weights=str(folder / "weights.npz"), **words)
            ours.ask("results", out=str(folder / "jseg.npz"))
            say(f"  jseg: ready after {sum(ours.run(2)):.1f} s of first runs")
            expected, visits = dict(np.load(folder / "jseg.npz")), []
            words["weights"] = str(folder / "weights.npz")
            for rival in others:
                row["others"][rival.name] = found = _against(rival, job, ours, expected, words, folder, repeat)
                visits += found.pop("our_visits", [])
                say(f"  {rival.name}: " + (found.get("failed") or f"{found['median_ms']:.1f} ms, "
                                                                  f"{found['ratio']['median']:.2f} times jseg's"))
            visits = visits or interleave({"jseg": ours.run}, repeat)["jseg"]
            row["jseg"] = {**summary(visits), "peak_bytes": ours.ask("peak")["bytes"]}
            say(f"  jseg: {row['jseg']['median_ms']:.1f} ms, {row['jseg']['peak_bytes'] / 2**20:.0f} MiB at most")
    return row


def _against(rival: Rival, job: Measurement, ours: Side, expected: dict, words: dict, folder: pathlib.Path,
             repeat: int) -> dict:
    """Open a rival, compare its results, time it in turn with jseg; what went wrong is told under "failed"."""
    try:
        with Side(rival.name, list(rival.command), threads=job.threads, env=rival.env) as other:
            opened = other.ask("open", **words, **rival.words)
            out = folder / "other.npz"
            other.ask("results", out=str(out))
            differences = compare(expected, dict(np.load(out)))
            found = {"built_by": opened.get("built_by", "jseg"), "differences": differences}
            wrong = [f"{kind} differ by {value:.1e}, accepted {LIMITS[kind]:.0e}" for kind, value in differences.items()
                     if not value <= LIMITS[kind]]
            if wrong:
                return {**found, "failed": f"results differ from jseg's, not timed: {'; '.join(wrong)}"}
            other.run(2)
            visits = interleave({"jseg": ours.run, "other": other.run}, repeat)
            return {**found, **summary(visits["other"]), "ratio": ratio(visits["jseg"], visits["other"]),
                    "our_visits": visits["jseg"], "peak_bytes": other.ask("peak")["bytes"]}
    except SideError as error:
        return {"failed": str(error)}
