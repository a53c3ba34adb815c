"""The table of `jseg benchmark`: Markdown whose columns stand below each other on a terminal, too."""

from __future__ import annotations

from jseg.text import printable

__all__ = ["runtimes_table"]

HEAD = ("runtime", "file MB", "import s", "open s", "first run s", "ms", "times jseg", "peak MiB", "equal pixels",
        "mIoU")


def runtimes_table(rows: list[dict]) -> list[str]:
    """Lines of the table.

    Args:
        rows: from `runtimes.compare_runtimes`. One that has "failed" shows the reason instead of its time.
    """
    cells = [list(HEAD), *map(_cells, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    lines = ["| " + " | ".join(cell.rjust(width) if i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                                     for i, width in enumerate(widths)) + "|", *lines[1:]]


def _cells(row: dict) -> list[str]:
    def number(key: str, form: str, factor: float = 1.0) -> str:
        return form.format(row[key] * factor) if row.get(key) is not None else "-"

    if "failed" in row:
        time, miou = printable(" ".join(row["failed"].replace("|", "/").split())), "-"
    else:
        digits = 0 if row["median_ms"] >= 100 else 1
        time = f"{row['median_ms']:.{digits}f} ({row['q1_ms']:.{digits}f}-{row['q3_ms']:.{digits}f})"
        miou = ("not known" if "miou_failed" in row else "not measured" if "miou" not in row
                else number("miou", "{:.2f} %", 100))
    times = f"{row['ratio']['median']:.2f}" if "ratio" in row and "failed" not in row else "-"
    return [f"{row['runtime']} {row['precision']}", number("file_bytes", "{:.1f}", 1e-6),
            number("import_s", "{:.1f}"), number("open_s", "{:.2f}"), number("first_s", "{:.2f}"), time, times,
            number("peak_bytes", "{:.0f}", 2**-20), number("equal", "{:.3f} %", 100), miou]
