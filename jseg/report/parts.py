"""What the pages share: the frame of a page, tables that a reader can sort, numbers as text, and writing the file."""

from __future__ import annotations

import html
import os
import pathlib
import re
from typing import Any, Mapping, NamedTuple, Sequence

from jseg.errors import DataError
from jseg.files import regular_file, write_atomically
from jseg.metrics import score_number
from jseg.report.style import CSS, SCRIPT

__all__ = ["ScoredData", "breakable_text", "chart_cards", "class_swatch", "clock_text", "data_text", "finite_number",
           "page_html", "percent_text", "plain_table", "safe_text", "score_text", "scored_data", "sortable_table",
           "when_text", "write_page"]

MARK = '<meta name="generator" content="jseg report">'
OLD_MARK = "jseg report</title>"  # of pages written before the mark
LEFT, TEXT = ' class="left"', ' data-text=""'
TALL_ROWS = 40  # tables with more rows scroll in a box of their own


def page_html(title: str, body: Sequence[str]) -> str:
    """A whole page that needs no other file; without scripts only the sorting of tables is missing."""
    return ("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" "
            f"content=\"light dark\">{MARK}<title>{safe_text(title)} · jseg report</title><style>{CSS}</style></head>"
            f"<body><main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n")


def write_page(target: str | os.PathLike, page: str) -> pathlib.Path:
    """Write a page, over an older one at most.

    Raises:
        DataError: the file is there and is no page of this kind, or no regular file. WriteError: the disk refuses.
    """
    target = pathlib.Path(target)
    if os.path.lexists(target) and not _is_ours(target):
        raise DataError(f"{target}: is there already and is no page of jseg report, so it is left alone; give another "
                        "file with --out, or remove it")
    write_atomically(target, page.encode("utf-8"))
    return target


def _is_ours(path: pathlib.Path) -> bool:
    try:
        if regular_file(path, what="page").st_size == 0:
            return True  # nothing to lose
        with open(path, "rb") as file:
            head = file.read(20_000).decode("utf-8", errors="replace")
    except OSError:
        return False
    return head.startswith("<!doctype html>") and (MARK in head or OLD_MARK in head)


def sortable_table(head: Sequence[str], rows: Sequence[str], foot: str = "", *,
                   text_columns: Sequence[int] = (0,)) -> str:
    """A table in a card, whose header cells become buttons that sort it; `rows` are `<tr>` elements, `foot` one that
    stays below.

    Args:
        head: HTML of the header cells.
        text_columns: places of columns that sort as text; the others sort by the number that a cell begins with.
    """
    cells = "".join(f'<th scope="col"{TEXT if i in text_columns else ""}>{cell}</th>'
                    for i, cell in enumerate(head))
    below = f"<tfoot>{foot}</tfoot>" if foot else ""
    tall = " tall" if len(rows) > TALL_ROWS else ""
    return (f'<div class="card wide{tall}"><table class="sortable"><thead><tr>{cells}</tr></thead><tbody>'
            f'{"".join(rows)}</tbody>{below}</table></div>')


def plain_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = (),
                below: str = "") -> str:
    """A table in a card, all of it HTML, and what stands below the card; columns but the first and those in `left` are
    flush right.
    """
    lines = ["".join(f'<{tag}{LEFT if i in left else ""}>{cell}</{tag}>' for i, cell in enumerate(cells))
             for tag, cells in [("th", head), *(("td", row) for row in rows)]]
    body = "".join(f"<tr>{line}</tr>" for line in lines[1:])
    table = f"<table><thead><tr>{lines[0]}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card wide">{table}</div>{below}'


def chart_cards(charts: Sequence[tuple[str, str]]) -> str:
    """The section of the training's charts, (title, SVG) each; "" for none."""
    cards = "".join(f'<div class="card"><h3>{title}</h3>{chart}</div>' for title, chart in charts)
    return f'<h2>Training</h2><div class="charts">{cards}</div>' if charts else ""


def class_swatch(result: Mapping[str, Any], k: int) -> str:
    """The colour of class `k` as a small square."""
    red, green, blue = (int(c) for c in result["palette"][k])
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def finite_number(value: Any) -> float | None:
    """The value as a float where it is a finite number, else None."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < float("inf") else None


def percent_text(value: float | None, unit: str = "") -> str:
    """A ratio as percent with two digits; a dash for None."""
    return score_text("", value) + (f" {unit}" if unit and value is not None else "")


def score_text(name: str, value: float | None) -> str:
    """A score in its unit with two digits; a dash for None."""
    return "–" if value is None else f"{score_number(name, value):.2f}"


def clock_text(seconds: float) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    hours, rest = divmod(int(round(seconds)), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


class ScoredData(NamedTuple):
    """Type, split and folders of a data set as text; "" for what is not known."""

    type: str
    split: str
    folders: str


def scored_data(result: Mapping[str, Any]) -> ScoredData:
    """The data set that a result was scored on, as far as it says so; results of older versions do not."""
    data = result["data"] if isinstance(result.get("data"), Mapping) else {}
    return ScoredData(str(data.get("type") or ""), str(data.get("split") or result.get("split") or ""),
                      ", ".join(map(str, data.get("folders") or [])))


def data_text(result: Mapping[str, Any]) -> str:
    """What `scored_data` knows, in one line."""
    data = scored_data(result)
    return " ".join(filter(None, (data.type, f"({data.split})" if data.split else "",
                                  f"in {data.folders}" if data.folders else "")))


def when_text(result: Mapping[str, Any]) -> str:
    """The day and time of an evaluation, "" where the result does not say."""
    return str(result.get("date") or "")[:16].replace("T", " ")


def breakable_text(name: str) -> str:
    """A file's name for HTML, whose lines may break after its separators."""
    return re.sub(r"([_/-])(?=.)", r"\1<wbr/>", safe_text(name))


def safe_text(text: Any) -> str:
    """Text made fit for HTML."""
    return html.escape(str(text), quote=True)
