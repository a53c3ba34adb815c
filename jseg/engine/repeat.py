"""Several runs of one config with different seeds: how much of a score is chance."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from jseg.engine.train_cfg import seed_of
from jseg.errors import DataError
from jseg.files import write_atomically
from jseg.metrics import MILLIONTHS, score_title

__all__ = ["finished", "seeds_of", "spread", "summarise"]

RESULT = "metrics.json"  # what a finished run leaves


def seeds_of(config: Mapping, count: int) -> list[int]:
    """The config's seed and those after it."""
    return [seed_of(config) + i for i in range(count)]


def finished(folder: Path) -> bool:
    """Whether a run was ended and scored."""
    return (folder / RESULT).is_file()


def spread(values: Sequence[float]) -> dict[str, float]:
    """mean, sd (of a sample; 0 for a single value), min and max."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
            "min": min(values), "max": max(values)}


def summarise(folders: Sequence[Path], out: Path) -> str:
    """Write the scores of runs with mean and spread as JSON, and return them as a table.

    Raises:
        DataError: a run left no scores; it had nothing to evaluate on.
    """
    results = []
    for folder in folders:
        if not finished(folder):
            raise DataError(f"{folder}: has no {RESULT}; --repeat compares scores: give the config a val_dataloader")
        results.append(json.loads((folder / RESULT).read_text()))
    metrics = _spreads([result["metrics"] for result in results])
    classes = _spreads([{row["name"]: row.get("IoU") for row in result["per_class"]} for result in results])
    write_atomically(out, json.dumps({"runs": [str(folder) for folder in folders], "metrics": metrics,
                                      "classes": classes}, indent=1).encode())
    lines = [f"{len(folders)} runs: {', '.join(map(str, folders))}",
             f"{'score':<24}{'mean':>8}{'sd':>8}{'lowest':>9}{'highest':>9}"]
    for name, values in [*metrics.items(), *((f"  IoU {name}", values) for name, values in classes.items())]:
        mean, sd, low, high = (values[key] * (1e6 if name in MILLIONTHS else 1) for key in ("mean", "sd", "min", "max"))
        lines.append(f"{score_title(name):<24}{mean:>8.4f}{sd:>8.4f}{low:>9.4f}{high:>9.4f}")
    return "\n".join([*lines, f"written: {out}"])


def _spreads(scores: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """Spread of each score that all runs have."""
    names = [name for name, value in scores[0].items() if _is_score(value)]
    return {name: spread([score[name] for score in scores]) for name in names
            if all(_is_score(score.get(name)) for score in scores)}


def _is_score(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
