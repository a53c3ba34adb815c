"""The performance page: what a benchmark's JSON says, as Markdown."""

from __future__ import annotations

from jseg.text import fill_prose

__all__ = ["page", "table", "add_results", "dated_rows", "other_versions"]

MIB = 2**20


def add_results(results: dict, earlier: dict) -> None:
    """Put an earlier run's rows before these results' own;
    each row keeps the date and the machine it was measured on.
    """
    for key in ("models", "kernels", "cold", "zoo"):
        results[key] = dated_rows(earlier, key) + dated_rows(results, key)


def dated_rows(results: dict, key: str) -> list[dict]:
    """Rows of one kind; those without an origin get the date and the machine of these results."""
    origin = {"date": results["machine"]["date"], "device": results["machine"]["device"]}
    return [{**row, "origin": row.get("origin") or origin} for row in results.get(key) or []]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; every column but the first is aligned right."""
    return ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|",
            *("| " + " | ".join(row) + " |" for row in rows), ""]


def page(results: dict) -> str:
    """The whole page.

    Args:
        results: what `jseg bench` writes as JSON; "commands" names those of several runs, where the rows come from
            such.
    """
    machine = results["machine"]
    commands = [f"    {command}" for command in results.get("commands") or [machine["command"]]]
    lines = ["# Performance", "", f"Measured {machine['date']} on {machine['device']}, by", "", *commands, "",
             f"Versions: {', '.join(f'{name} {version}' for name, version in machine['versions'].items() if version)}. "
             "Results were compared before anything was timed; a row whose results differ is not timed. Sides run in "
             "turn (A B A B), each in a process of its own: median, in brackets the quartiles. \"times\" is how many "
             "times longer the other side takes: the median of the rounds' ratios, in brackets their quartiles. Memory "
             "is the process's largest resident set.", ""]
    lines += _models(results.get("models") or [])
    lines += _cold(results.get("cold") or [])
    lines += _gpu(results.get("gpu") or {})
    lines += _kernels(results.get("kernels") or [])
    return fill_prose("\n".join(lines).rstrip() + "\n")


def _ms(found: dict) -> str:
    digits = 0 if found["median_ms"] >= 100 else 1 if found["median_ms"] >= 10 else 2
    return f"{found['median_ms']:.{digits}f} ({found['q1_ms']:.{digits}f}-{found['q3_ms']:.{digits}f})"


def _times(found: dict) -> str:
    r = found["ratio"]
    return f"**{r['median']:.1f}** ({r['q1']:.1f}-{r['q3']:.1f})"


def _memory(found: dict) -> str:
    return f"{found['peak_bytes'] / MIB:.0f}" if "peak_bytes" in found else "-"


def _models(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    lines = ["## Whole models", "",
             "Inference: pictures in memory to label maps in memory, resize to the picture's size and argmax included. "
             "Training step: loss, gradients, optimizer. \"PyTorch\" is the model with default settings; \"tuned\" is "
             "the same with glibc keeping freed memory (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`) and "
             "channels-last tensors; \"torch.compile\" has frozen weights at inference; ONNX Runtime and OpenVINO get "
             "jseg's own file; \"plain Jittor\" is jseg's own layer-by-layer path.", ""]
    names = list(dict.fromkeys(name for row in rows for name in row["others"]))
    head = ["what", "jseg ms", "jseg MiB"]
    for name in names:
        head += [f"{name} ms", "times", "MiB"]
    body, notes = [], [f"- {row['title']}: {row['failed']}" for row in rows if "failed" in row]
    for row in (row for row in rows if "jseg" in row):
        cells = [row["title"], _ms(row["jseg"]), _memory(row["jseg"])]
        for name in names:
            found = row["others"].get(name)
            if found is None or "failed" in found:
                cells += ["-"] * 3
                notes += [f"- {row['title']}, {name}: {found['failed']}"] if found else []
            else:
                cells += [_ms(found), _times(found), _memory(found)]
        body.append(cells)
    lines += table(head, body) + notes + [""] * bool(notes)
    return lines + other_versions(rows) + _origins(rows)


def other_versions(rows: list[dict]) -> list[str]:
    """A line that names the versions of what jseg was compared with in these rows."""
    built = sorted({found["built_by"] for row in rows for found in row["others"].values()
                    if found.get("built_by", "jseg") != "jseg"})
    return [f"Compared with {'; '.join(built)}.", ""] if built else []


def _cold(rows: list[dict]) -> list[str]:
    if not rows:
        return []
    body = [[row["title"], *(f"{row[key]:.1f}" for key in ("import_s", "built_s", "first_s")),
             f"**{row['total_s']:.1f}**", f"{row['second_s']:.2f}"]
            for row in rows]
    return ["## First run", "", "Jittor's core built (with the headers that jseg precompiles after it), no operation "
                                "and no kernel compiled. Seconds.", "",
            *table(["what", "import", "build the model", "first run", "build + first run", "second run"], body),
            *_origins(rows)]


def _gpu(found: dict) -> list[str]:
    if not found:
        return []
    lines = ["## On the GPU", ""]
    lines += [f"- {name}: {part.get('failed', 'done')} ({part['took_s']:.0f} s)"
              for name, part in found["parts"].items()] + [""]
    rows = [row for row in found.get("times", []) if "jseg" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["others"]))
    body = []
    for row in rows:
        cells = [f"SegNeXt {row['variant']}, {row['mode']}, {row['batch']} x {row['size'][0]}x{row['size'][1]}, "
                 f"{row['dtype']}", _ms(row["jseg"])]
        for name in names:
            other = row["others"].get(name, {})
            cells += [_ms(other), _times(other)] if "ratio" in other else ["-", "-"]
        body.append(cells)
    return lines + (table(["what", "jseg ms", *(word for name in names for word in (f"{name} ms", "times"))], body)
                    if body else [])


def _kernels(parts: list[dict]) -> list[str]:
    lines = ["## Kernels", ""] if parts else []
    for part in parts:
        limits = part["limits"]
        threads = f", {part['threads']} thread{'s' * (part['threads'] != 1)}" if part.get("threads") else ""
        clock = ", processor time of all threads" if part.get("clock") == "processor" else ""
        lines += [f"Device {part['device']}{threads}{clock}: copy {limits['copy_gb_s']:.1f} GB/s (bytes read and "
                  f"written), float32 matrix product {limits['sgemm_gflop_s']:.0f} GFLOP/s. \"Share\" is of the limit "
                  "that binds; above 100% the tensors fit in cache.", ""]
        names = list(dict.fromkeys(name for row in part["rows"] for name in row["others"]))
        head = ["kernel", "jseg ms", "GB/s", "GFLOP/s", "share"] + [word for name in names
                                                                    for word in (f"{name} ms", "times")]
        lines += table(head, [_kernel_cells(row, names) for row in part["rows"] if "jseg" in row])
        lines += [f"- {row['kernel']} {row['case']}: {row['failed']}" for row in part["rows"] if "failed" in row]
        body = [[kernel, str(found["cases"]), f"{found['error']:.1e}", f"{found['plain_error']:.1e}",
                 "wrong" if found["failures"] else "ok"]
                for kernel, found in part["checks"].items() if "failed" not in found]
        lines += ["Largest error against the float64 reference over the small cases, forward and gradients, as a share "
                  "of the largest value:", "",
                  *table(["kernel", "cases", "kernel's error", "plain path's", "verdict"], body), *_origins([part])]
    return lines


def _kernel_cells(row: dict, names: list[str]) -> list[str]:
    limit = row.get("limit")
    cells = [f"{row['kernel']} {row['case']}" + (", with gradients" if row["grad"] else ""), _ms(row["jseg"])]
    cells += ["", "", ""] if limit is None else [f"{limit['gb_s']:.1f}", f"{limit['gflop_s']:.0f}"
                                                 if limit["gflop_s"] else "-",
                                                 f"{100 * limit['share']:.0f}% {limit['bound']}"]
    for name in names:
        found = row["others"].get(name, {"failed": ""})
        cells += ["-", "-"] if "failed" in found else [_ms(found), _times(found)]
    return cells


def _origins(rows: list[dict]) -> list[str]:
    """Where rows come from other runs: when and on what they were measured."""
    found = list(dict.fromkeys(f"{row['origin']['date']} on {row['origin']['device']}"
                               for row in rows if "origin" in row))
    return [f"Rows of several runs: {'; '.join(found)}.", ""] if len(found) > 1 else []
