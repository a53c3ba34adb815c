"""The report of a run: one HTML file that needs nothing else, with curves,
class table, confusion matrix and pictures.
"""

from __future__ import annotations

import base64
import html
import os
import pathlib
from typing import Any, Mapping, Sequence

import cv2

from jseg.data.io import read_image, read_mask
from jseg.data.overlay import fit, overlay
from jseg.errors import DataError
from jseg.files import write_atomically
from jseg.report.curves import Series, line_chart
from jseg.report.matrix import heat_map, top_mistakes
from jseg.report.run import RunRecord, read_run
from jseg.report.style import CSS

__all__ = ["write_report"]

PICTURE_PX = 520   # longest side of embedded pictures
OPACITY = 0.55


def write_report(run_dir: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Write the report of a run folder.

    Args:
        run_dir: holds `log.jsonl` and, from the last evaluation, `metrics.json` and the pictures it kept (see
            `engine.evaluate`); also read if present: `config.yaml`, `run.json`, `last/state.json`.
        out: the file to write; default `<run_dir>/report.html`.
    Returns:
        the path written.
    Raises:
        DataError: the folder holds nothing to report.
    """
    run = read_run(run_dir)
    target = pathlib.Path(out) if out is not None else run.folder / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, _page(run).encode("utf-8"))
    return target


def _page(run: RunRecord) -> str:
    name = run.folder.resolve().name
    body = [f"<h1>{_safe(name)}</h1>", _subtitle(run), _tiles(run), _curves(run)]
    if run.result is not None:
        body += [_class_table(run.result), _confusion(run.result), _pictures(run)]
    body += [_about(run),
             "<footer>Written by <code>jseg report</code>. Scores are percent; a dash marks a class that never occurs."
             "</footer>"]
    return ("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" "
            f"content=\"light dark\"><title>{_safe(name)} · jseg "
            f"report</title><style>{CSS}</style></head><body><main>{''.join(body)}</main></body></html>\n")


def _subtitle(run: RunRecord) -> str:
    parts = [str(run.about[key]) for key in ("config", "device", "finished") if run.about.get(key)]
    return f'<p class="soft">{_safe(" · ".join(parts))}</p>' if parts else ""


# --- key figures ------------------------------------------------------------------------------------------------------
def _tiles(run: RunRecord) -> str:
    tiles: list[tuple[str, str]] = []
    if run.result is not None:
        scores = run.result["metrics"]
        tiles += [(_percent(scores.get(key), "%"), label) for key, label in
                  (("mIoU", "mean IoU"), ("aAcc", "pixel accuracy"), ("mAcc", "mean class accuracy"),
                   ("mBoundaryIoU", "mean boundary IoU")) if scores.get(key) is not None]
    best = [(e["val"]["mIoU"], e["iter"]) for e in run.evaluations if isinstance(e["val"].get("mIoU"), (int, float))]
    if best:
        score, place = max(best)
        tiles.append((_percent(score, "%"), f"best in training, at {place}"))
    if run.steps:
        last = run.steps[-1]
        tiles.append((f"{last['iter']:,}", "iterations"))
    if isinstance(run.about.get("seconds"), (int, float)):
        tiles.append((_clock(run.about["seconds"]), "training time"))
    lead = ' lead"' if run.result is not None else '"'
    cells = [f'<div class="tile{lead if i == 0 else chr(34)}><b>{_safe(value)}</b><span>{_safe(label)}</span></div>'
             for i, (value, label) in enumerate(tiles)]
    return f'<div class="tiles">{"".join(cells)}</div>'


# --- curves -----------------------------------------------------------------------------------------------------------
def _curves(run: RunRecord) -> str:
    charts = []
    if run.steps:
        at = [step["iter"] for step in run.steps]
        parts = sorted({key for step in run.steps for key in step if ".loss" in key})
        losses = [Series("loss", at, _column(run.steps, "loss"), smoothed=True)]
        if len(parts) > 1:
            losses += [Series(key, at, _column(run.steps, key), smoothed=True) for key in parts[:3]]
        charts.append(("Loss", line_chart(losses, y_label="loss", from_zero=True)))
    if run.evaluations:
        at = [entry["iter"] for entry in run.evaluations]
        scores = [entry["val"] for entry in run.evaluations]
        lines = [Series(key, at, _column(scores, key), dots=True) for key in ("mIoU", "mAcc", "aAcc", "mBoundaryIoU")
                 if any(_number(score.get(key)) is not None for score in scores)]
        charts.append(("Evaluation", line_chart(lines, y_label="score", percent=True)))
    if run.steps:
        at = [step["iter"] for step in run.steps]
        charts.append(("Learning rate", line_chart([Series("lr", at, _column(run.steps, "lr"))],
                                                   y_label="learning rate", from_zero=True)))
        charts.append(("Speed", line_chart([Series("images/s", at, _column(run.steps, "images_per_s"), smoothed=True)],
                                           y_label="images per second", from_zero=True)))
    if not charts:
        return ""
    cards = "".join(f'<div class="card"><h3>{title}</h3>{chart}</div>' for title, chart in charts)
    return f'<h2>Training</h2><div class="charts">{cards}</div>'


def _column(entries: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [_number(entry.get(key)) for entry in entries]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# --- tables -----------------------------------------------------------------------------------------------------------
def _class_table(result: Mapping[str, Any]) -> str:
    columns = [key for key in result["per_class"][0] if key != "name"]
    shares = _pixel_shares(result["confusion"])
    rows = []
    for k, row in enumerate(result["per_class"]):
        cells = [f"<td>{_percent(row[key])}{_bar(row[key]) if key == columns[0] else ''}</td>" for key in columns]
        rows.append(
            f"<tr><td>{_swatch(result, k)}{_safe(row['name'])}</td>{''.join(cells)}<td>{_percent(shares[k])}</td></tr>")
    averages = [(key, result["metrics"].get("m" + key)) for key in columns]
    means = "".join(f"<td>{_percent(value)}{_bar(value) if key == columns[0] else ''}</td>" for key, value in averages)
    views = "" if result.get("tta") is None else " with test-time augmentation"
    head = "".join(f"<th>{_safe(key)}</th>" for key in columns)
    return (f'<h2>Classes</h2><p class="note">{result["images"]:,} pictures{views}, {result["seconds"]:.0f} s.</p>'
            f'<div class="card wide"><table><thead><tr><th>class</th>{head}<th>of '
            f'pixels</th></tr></thead><tbody>{"".join(rows)}<tr '
            f'class="mean"><td>mean</td>{means}<td></td></tr></tbody></table></div>')


def _pixel_shares(confusion: Sequence[Sequence[int]]) -> list[float]:
    sums = [sum(row) for row in confusion]
    return [value / max(sum(sums), 1) for value in sums]


def _confusion(result: Mapping[str, Any]) -> str:
    rows = "".join(f'<tr><td>{_safe(truth)}</td><td class="left">{_safe(guess)}</td><td>{_percent(share)}</td>'
                   f"<td>{_percent(of_all)}</td></tr>"
                   for truth, guess, share, of_all in top_mistakes(result["confusion"], result["classes"]))
    return ('<h2>Confusion</h2><div class="split">'
            f'<div class="card wide">{heat_map(result["confusion"], result["classes"])}</div>'
            '<div class="card wide"><h3>Largest mistakes</h3><table><thead><tr><th>truth</th><th class="left">taken '
            f'for</th><th>of class</th><th>of all</th></tr></thead><tbody>{rows}</tbody></table></div></div>')


# --- pictures ---------------------------------------------------------------------------------------------------------
def _pictures(run: RunRecord) -> str:
    groups = []
    for key, title in (("worst", "Worst pictures"), ("best", "Best pictures")):
        shots = [_shot(run, record) for record in run.result.get(key) or [] if record.get("files")]
        if any(shots):
            groups.append(f"<h2>{title}</h2>{_legend(run.result)}{''.join(shots)}")
    if not groups:
        run.notes.append("no kept pictures: `jseg val ... --keep RUN/eval --out RUN/metrics.json` saves the worst and "
                         "best ones")
    return "".join(groups)


def _shot(run: RunRecord, record: Mapping[str, Any]) -> str:
    folder, files = run.folder / (run.result.get("kept_in") or "eval"), record["files"]
    try:
        picture = read_image(folder / files["picture"])
        maps = [read_mask(folder / files[key]) for key in ("truth", "prediction")]
        views = [fit(picture, PICTURE_PX)]
        views += [overlay(views[0], fit(labels, PICTURE_PX, labels=True), run.result["palette"], OPACITY)
                  for labels in maps]
    except (DataError, ValueError) as error:
        run.notes.append(f"a picture is left out: {error}")
        return ""
    name = pathlib.PurePath(record["img_path"]).name
    figures = "".join(f'<figure><img alt="{_safe(kind)} of {_safe(name)}" '
                      f'src="{_embedded(view)}"><figcaption>{kind}</figcaption></figure>'
                      for kind, view in zip(("picture", "truth", "prediction"), views))
    return (f'<div class="card shot"><h3>{_safe(name)} <span class="soft">· mIoU {_percent(record["mIoU"])} %, '
            f'accuracy {_percent(record["aAcc"])} %</span></h3><div>{figures}</div></div>')


def _legend(result: Mapping[str, Any]) -> str:
    return '<div class="legend">' + "".join(f"<span>{_swatch(result, k)}{_safe(name)}</span>"
                                            for k, name in enumerate(result["classes"])) + "</div>"


def _embedded(image) -> str:
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 86])
    assert ok, "OpenCV encodes 8-bit pictures as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


# --- about ------------------------------------------------------------------------------------------------------------
def _about(run: RunRecord) -> str:
    facts = [(key, str(value)) for key, value in run.about.items() if isinstance(value, (str, int, float))
             and key != "seconds"]
    if isinstance(run.about.get("seconds"), (int, float)):
        facts.append(("training time", _clock(run.about["seconds"])))
    if run.steps:
        facts += _log_facts(run.steps)
    if run.result is not None and run.result.get("checkpoint"):
        facts.append(("checkpoint", str(run.result["checkpoint"])))
    rows = "".join(f"<dt>{_safe(key)}</dt><dd>{_safe(value)}</dd>" for key, value in facts)
    notes = "".join(f'<p class="note">{_safe(note)}</p>' for note in run.notes)
    config = (f"<details><summary>config.yaml</summary><pre>{_safe(run.config_text)}</pre></details>"
              if run.config_text else "")
    return f'<h2>Run</h2><div class="card"><dl>{rows}</dl>{notes}{config}</div>'


def _log_facts(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    facts = []
    speeds = sorted(v for v in _column(steps, "images_per_s") if v is not None)
    if speeds:
        facts.append(("median speed", f"{speeds[len(speeds) // 2]:.3g} images/s"))
    waits = [v for v in _column(steps, "data_wait_share") if v is not None]
    if waits:
        facts.append(("waiting for data", f"{100 * sum(waits) / len(waits):.1f} % of the time"))
    memory = [v for v in _column(steps, "memory_mb") if v is not None]
    if memory:
        facts.append(("peak memory", f"{max(memory):,.0f} MiB"))
    return facts


def _swatch(result: Mapping[str, Any], k: int) -> str:
    red, green, blue = (int(c) for c in result["palette"][k])
    return f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>'


def _bar(value: float | None) -> str:
    return f'<span class="bar"><i style="width:{100 * (value or 0):.1f}%"></i></span>'


def _percent(value: float | None, unit: str = "") -> str:
    return "–" if value is None else f"{100 * value:.2f}" + (f" {unit}" if unit else "")


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(round(seconds)), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def _safe(text: Any) -> str:
    return html.escape(str(text), quote=True)
