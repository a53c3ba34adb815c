"""Time two sides in turn (A B A B), so that both meet the same moods of the machine, and say how sure the result is."""

from __future__ import annotations

import statistics
from typing import Callable, Sequence

__all__ = ["interleave", "summary", "ratio", "quartiles", "visit_length"]

VISIT_S = 0.5     # a visit runs a side for about this long
MOST_RUNS = 50    # and at most so often


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile, interpolated between the values.

    Raises:
        ValueError: no value.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("quartiles of no value")
    found = []
    for share in (0.25, 0.5, 0.75):
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        found.append(ordered[low] + (ordered[high] - ordered[low]) * (place - low))
    return found[0], found[1], found[2]


def visit_length(one_s: float) -> int:
    """How many runs of `one_s` seconds make a visit."""
    return max(1, min(MOST_RUNS, round(VISIT_S / max(one_s, 1e-6))))


def interleave(runs: dict[str, Callable[[int], list[float]]], rounds: int) -> dict[str, list[list[float]]]:
    """Visit each side in turn, `rounds` times.

    A first run of each says how many a visit has and is thrown away; where a visit has several runs, one more is thrown
    away at its start, because the others have emptied the caches since.

    Args:
        runs: name -> function that runs its side so often and returns the wall seconds of each run.
        rounds: at least 1.
    Returns:
        name -> for each round the seconds of its runs.
    """
    counts = {name: visit_length(run(1)[0]) for name, run in runs.items()}
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            extra = 1 if counts[name] > 1 else 0
            seconds[name].append(run(counts[name] + extra)[extra:])
    return seconds


def summary(visits: list[list[float]]) -> dict:
    """Median and quartiles over all runs, in milliseconds, the fastest run and the number of runs."""
    flat = [s * 1e3 for visit in visits for s in visit]
    low, middle, high = quartiles(flat)
    return {"median_ms": middle, "q1_ms": low, "q3_ms": high, "min_ms": min(flat), "runs": len(flat),
            "rounds": len(visits)}


def ratio(ours: list[list[float]], theirs: list[list[float]]) -> dict:
    """How many times longer the others take: the median and quartiles of theirs / ours, round by round."""
    low, middle, high = quartiles([statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs)])
    return {"median": middle, "q1": low, "q3": high}
