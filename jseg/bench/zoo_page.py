"""The tables of `jseg bench --zoo`: one model of each family beside every opponent, and where jseg is behind.

`zoo_tables` gives Markdown; `write_tables` puts it into a page between two marks, so that the rest of the page stays.
"""

from __future__ import annotations

import math
import os
from typing import Iterable

from jseg.bench.page import dated_rows, other_versions, table
from jseg.bench.zoo import ZOO
from jseg.errors import DataError
from jseg.files import write_atomically
from jseg.text import fill_prose, printable, read_text

__all__ = ["MARKS", "check_marks", "write_tables", "zoo_tables"]

MARKS = ("<!-- zoo -->\n", "<!-- end of zoo -->")
NARROW = ("OpenVINO bf16",)  # opponents that compute with fewer bits: no match for float32
TITLES = {"infer": "Inference", "train": "Training step"}


def check_marks(path: str | os.PathLike) -> tuple[str, str]:
    """What stands before and behind the tables of a page, with the marks.

    Raises:
        DataError: it has no marks, or cannot be read.
    """
    before, start, rest = read_text(path).partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not (start and end):
        raise DataError(f"{path}: has no place for the tables; put the lines {MARKS[0].strip()} and {MARKS[1]} where "
                        "they belong")
    return before + start, end + after


def write_tables(path: str | os.PathLike, results: dict) -> None:
    """Replace what stands between the marks of a Markdown page.

    Raises:
        DataError: see `check_marks`. WriteError: it cannot be written.
    """
    before, after = check_marks(path)
    write_atomically(path, f"{before}{zoo_tables(results)}{after}".encode())


def zoo_tables(results: dict) -> str:
    """The tables of each mode and number of threads, with the commands and machines that measured them.

    Args:
        results: what `jseg bench --zoo` writes as JSON.
    """
    places = {one.name: i for i, one in enumerate(ZOO)}
    rows = sorted(dated_rows(results, "zoo"), key=lambda row: places.get(row["name"], len(places)))
    origins = dict.fromkeys((row["origin"]["date"], row["origin"]["device"]) for row in rows)
    commands = [f"    {command}" for command in results.get("commands") or [results["machine"]["command"]]]
    lines = ["", f"Measured {_origins(origins)}, by", "", *commands, ""]
    groups = dict.fromkeys((row["mode"], row.get("threads"), row["batch"]) for row in rows)
    for mode, threads, batch in groups:
        chosen = [row for row in rows if (row["mode"], row.get("threads"), row["batch"]) == (mode, threads, batch)]
        said = f", {threads} thread{'s' * (threads != 1)}" if threads else ""
        lines += [f"### {TITLES[mode]}, {batch} picture{'s' * (batch != 1)}{said}", "", *_group(chosen)]
    return fill_prose("\n".join([*lines, *other_versions(rows)]).rstrip() + "\n")


def _origins(origins: Iterable[tuple[str, str]]) -> str:
    """Days on machines."""
    devices: dict[str, list[str]] = {}
    for date, device in origins:
        devices.setdefault(device, []).append(date[:10])
    return "; ".join(f"{', '.join(dict.fromkeys(days))} on {device}" for device, days in devices.items())


def _group(rows: list[dict]) -> list[str]:
    """Time, memory and first run of the rows of one mode; what could not be measured, and why."""
    names = list(dict.fromkeys(name for row in rows for name in row["others"]))
    notes: dict[str, int] = {}

    def cell(row: dict, name: str, shown) -> str:
        found = row["others"].get(name)
        if found is None:
            return ""
        if "median_ms" in found:
            return shown(found)
        reason = printable(" ".join(found["failed"].replace("|", "/").split()))
        return f"[{notes.setdefault(f'{name}: {reason}', len(notes) + 1)}]"

    done = [row for row in rows if "jseg" in row]
    times, memory, first = [], [], []
    for row in done:
        best = best_ratio(row)
        times.append([row["name"], "x".join(map(str, row["size"])), _ms(row["jseg"]),
                      *(cell(row, name, lambda f: f"{_ms(f)} ({f['ratio']['median']:.2f})") for name in names),
                      "-" if best is None else f"**{best:.2f}**"])
        memory.append([row["name"], _mib(row["jseg"]), *(cell(row, name, _mib) for name in names)])
        first.append([row["name"], _first(row["jseg"]), *(cell(row, name, _first) for name in names)])
    lines = ["Milliseconds, in brackets how many times jseg's; \"best\": how many times longer than jseg the fastest "
             "opponent in float32 takes, below 1 where jseg is behind.", "",
             *table(["model", "pixels", "jseg", *names, "best"], times), *_verdict(done, names),
             "Peak memory of the process, MiB.", "", *table(["model", "jseg", *names], memory),
             "First run: seconds from the start of the process to its first result (packages, model, first run; in "
             "training the step that is compared and the first whole one; what jseg compiled once is on the disk).", "",
             *table(["model", "jseg", *names], first)]
    lines += [f"- [{number}] {text}" for text, number in notes.items()]
    lines += [f"- {row['name']}: {row['failed']}" for row in rows if "failed" in row]
    return [*lines, ""] if lines[-1] else lines


def best_ratio(row: dict) -> float | None:
    """How many times jseg's time the fastest opponent in float32 takes; None where none could be timed."""
    return min((found["ratio"]["median"] for name, found in row["others"].items()
                if "ratio" in found and name not in NARROW), default=None)


def _verdict(rows: list[dict], names: list[str]) -> list[str]:
    """Geometric means of the ratios, and the models where jseg is behind."""
    means = []
    for name in names:
        ratios = [row["others"][name]["ratio"]["median"] for row in rows if "ratio" in row["others"].get(name, {})]
        if ratios:
            means.append(f"{name} {_mean(ratios):.2f} ({len(ratios)} model{'s' * (len(ratios) != 1)})")
    best = {row["name"]: ratio for row in rows if (ratio := best_ratio(row)) is not None}
    if not best:
        return []
    behind = [f"{name} ({ratio:.2f})" for name, ratio in best.items() if ratio < 1]
    return [f"Geometric means: {', '.join(means)}; the fastest in float32 {_mean(best.values()):.2f}. jseg is behind: "
            f"{', '.join(behind) or 'nowhere'}.", ""]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def _ms(found: dict) -> str:
    return f"{found['median_ms']:.{0 if found['median_ms'] >= 100 else 1}f}"


def _mib(found: dict) -> str:
    return f"{found['peak_bytes'] / 2**20:.0f}"


def _first(found: dict) -> str:
    return f"{found['start_s'] + found['built_s'] + found['first_s']:.1f}"
