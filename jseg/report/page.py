"""The report of a run: one HTML file that needs nothing else, with curves,
class table, confusion matrix and pictures.
"""

from __future__ import annotations

import base64
import os
import pathlib
from typing import Any, Mapping, Sequence

import cv2

from jseg.data.io import read_image, read_mask
from jseg.data.overlay import fit, overlay
from jseg.errors import DataError
from jseg.metrics import score_number, score_title
from jseg.report.curves import Series, line_chart
from jseg.report.matrix import NUMBERS_UP_TO, heat_map, top_mistakes
from jseg.report.parts import (chart_cards, class_swatch, clock_text, data_text, finite_number, page_html, percent_text,
                               safe_text, score_text, sortable_table, when_text, write_page)
from jseg.report.run import RunRecord, counted_things, is_classification, read_run

__all__ = ["write_report"]

PICTURE_PX = 520   # longest side of embedded pictures
OPACITY = 0.55
TILES = (("top1", "top-1", "%"), ("top5", "top-5", "%"), ("mIoU", "mean IoU", "%"),
         ("aAcc", "pixel accuracy", "%"), ("mAcc", "mean class accuracy", "%"),
         ("mBoundaryIoU", "mean boundary IoU", "%"), ("Pd", "targets detected (Pd)", "%"),
         ("Fa", "false alarm pixels (Fa)", "ppm"))
LEGEND_UP_TO = 30  # classes; with more, the legend is folded


def write_report(run_dir: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Write the report of a run's folder or of one result.

    Args:
        run_dir: holds `log.jsonl` and, from the last evaluation, `metrics.json` and the pictures it kept (see
            `engine.evaluate`); also read if present: `config.yaml`, `run.json`, `last/state.json`. Or the JSON file of
            `jseg val --out`.
        out: the file to write; default `<run_dir>/report.html`, and beside a JSON file its name with `.html`. An older
            page there is replaced, any other file is not.
    Returns:
        the path written.
    Raises:
        DataError: the folder holds nothing to report, or `out` is another kind of file.
    """
    run = read_run(run_dir)
    beside = pathlib.Path(run_dir)
    target = out if out is not None else beside / "report.html" if beside.is_dir() else beside.with_suffix(".html")
    return write_page(target, _page(run))


def _page(run: RunRecord) -> str:
    body = [f"<h1>{safe_text(run.name)}</h1>", _subtitle(run), _tiles(run), _curves(run)]
    if run.result is not None:
        body += [_class_table(run.result), _confusion(run.result), _pictures(run)]
    body += [_about(run),
             "<footer>Written by <code>jseg report</code>. Scores are percent, Fa millionths; a dash marks a class "
             "that never occurs.</footer>"]
    return page_html(run.name, body)


def _subtitle(run: RunRecord) -> str:
    parts = [str(run.about[key]) for key in ("config", "device", "finished") if run.about.get(key)]
    lines = [" · ".join(parts)] if parts else []
    if run.result is not None:
        scored = [str(run.result.get("checkpoint") or ""), data_text(run.result), f"{run.result['images']:,} pictures",
                  when_text(run.result)]
        lines.append("scored: " + " · ".join(filter(None, scored)))
    return "".join(f'<p class="soft">{safe_text(line)}</p>' for line in lines)


# --- key figures ------------------------------------------------------------------------------------------------------
def _tiles(run: RunRecord) -> str:
    tiles: list[tuple[str, str]] = []
    if run.result is not None:
        scores = run.result["metrics"]
        tiles += [(f"{score_text(key, value)} {unit}", label) for key, label, unit in TILES
                  for value in [finite_number(scores.get(key))] if value is not None]
    main = "top1" if is_classification(run) else "mIoU"
    best = [(e["val"][main], e["iter"]) for e in run.evaluations if isinstance(e["val"].get(main), (int, float))]
    if best:
        score, place = max(best)
        tiles.append((percent_text(score, "%"), f"best in training, at {place}"))
    if run.steps:
        last = run.steps[-1]
        tiles.append((f"{last['iter']:,}", "iterations"))
    if isinstance(run.about.get("seconds"), (int, float)):
        tiles.append((clock_text(run.about["seconds"]), "training time"))
    lead = " lead" if run.result is not None else ""
    cells = [f'<div class="tile{lead if i == 0 else ""}"><b>{safe_text(value)}</b><span>{safe_text(label)}</span></div>'
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
        lines = [Series(key, at, _column(scores, key), dots=True)
                 for key in ("top1", "top5", "mIoU", "mAcc", "aAcc", "mBoundaryIoU", "Pd")
                 if any(finite_number(score.get(key)) is not None for score in scores)]
        charts.append(("Evaluation", line_chart(lines, y_label="score", percent=True)))
        alarms = [None if value is None else score_number("Fa", value) for value in _column(scores, "Fa")]
        if any(value is not None for value in alarms):
            charts.append(("False alarms", line_chart([Series("Fa", at, alarms, dots=True)], from_zero=True,
                                                      y_label="pixels per million")))
    if run.steps:
        at = [step["iter"] for step in run.steps]
        charts.append(("Learning rate", line_chart([Series("lr", at, _column(run.steps, "lr"))],
                                                   y_label="learning rate", from_zero=True)))
        charts.append(("Speed", line_chart([Series("images/s", at, _column(run.steps, "images_per_s"), smoothed=True)],
                                           y_label="images per second", from_zero=True)))
    return chart_cards(charts)


def _column(entries: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [finite_number(entry.get(key)) for entry in entries]


# --- tables -----------------------------------------------------------------------------------------------------------
def _class_table(result: Mapping[str, Any]) -> str:
    columns = [key for key in result["per_class"][0] if key != "name"]
    shares, counted = _pixel_shares(result["confusion"]), counted_things(result)
    rows = []
    for k, row in enumerate(result["per_class"]):
        values = [finite_number(row.get(key)) for key in columns]
        cells = "".join(f"<td>{score_text(key, value)}{_bar(value) if key == columns[0] else ''}</td>"
                        for key, value in zip(columns, values))
        rows.append(f"<tr><td>{class_swatch(result, k)}{safe_text(row['name'])}</td>{cells}"
                    f"<td>{percent_text(shares[k])}</td></tr>")
    averages = [(key, finite_number(result["metrics"].get("m" + key))) for key in columns]
    means = "".join(f"<td>{score_text(key, value)}{_bar(value) if key == columns[0] else ''}</td>"
                    for key, value in averages)
    views = "" if result.get("tta") is None else " with test-time augmentation"
    return (f'<h2>Classes</h2><p class="note">{result["images"]:,} pictures{views}, {result["seconds"]:.0f} s.</p>'
            + sortable_table(["class", *(safe_text(score_title(key)) for key in columns), f"of {counted}"], rows,
                             f'<tr class="mean"><td>mean</td>{means}<td></td></tr>'))


def _pixel_shares(confusion: Sequence[Sequence[int]]) -> list[float]:
    sums = [sum(row) for row in confusion]
    return [value / max(sum(sums), 1) for value in sums]


def _confusion(result: Mapping[str, Any]) -> str:
    rows = "".join(f'<tr><td>{safe_text(truth)}</td><td class="left">{safe_text(guess)}</td><td>{percent_text(share)}'
                   f"</td><td>{percent_text(of_all)}</td></tr>"
                   for truth, guess, share, of_all in top_mistakes(result["confusion"], result["classes"]))
    large = " large" if len(result["classes"]) > NUMBERS_UP_TO else ""
    return (f'<h2>Confusion</h2><div class="split{large}"><div class="card">'
            f'{heat_map(result["confusion"], result["classes"])}<p class="note">Rows: true class; columns: predicted '
            f"class; percent of the true class's {counted_things(result)}.</p></div>"
            '<div class="card wide mistakes"><h3>Largest mistakes</h3><table><thead><tr><th>truth</th><th class="left">'
            f'taken for</th><th>of class</th><th>of all</th></tr></thead><tbody>{rows}</tbody></table></div></div>')


# --- pictures ---------------------------------------------------------------------------------------------------------
def _pictures(run: RunRecord) -> str:
    groups = []
    for key, title in (("worst", "Worst pictures"), ("best", "Best pictures")):
        shots = [_shot(run, record) for record in run.result.get(key) or [] if record.get("files")]
        if any(shots):
            legend = "" if is_classification(run) else _legend(run.result)
            groups.append(f"<h2>{title}</h2>{legend}{''.join(shots)}")
    if not groups:
        run.notes.append("no kept pictures: `jseg val ... --keep RUN/eval --out RUN/metrics.json` saves the worst and "
                         "best ones")
    return "".join(groups)


def _shot(run: RunRecord, record: Mapping[str, Any]) -> str:
    folder, files = run.folder / (run.result.get("kept_in") or "eval"), record["files"]
    if "truth" not in files:
        return _classified(run, folder / files.get("picture", ""), record)
    try:
        picture = read_image(folder / files["picture"])
        maps = [read_mask(folder / files[key]) for key in ("truth", "prediction")]
        views = [fit(picture, PICTURE_PX)]
        views += [overlay(views[0], fit(labels, PICTURE_PX, labels=True), run.result["palette"], OPACITY)
                  for labels in maps]
    except (DataError, ValueError, KeyError, TypeError) as error:
        run.notes.append(f"a picture is left out: {error}")
        return ""
    name = pathlib.PurePath(record["img_path"]).name
    figures = "".join(f'<figure><img alt="{safe_text(kind)} of {safe_text(name)}" '
                      f'src="{_embedded(view)}"><figcaption>{kind}</figcaption></figure>'
                      for kind, view in zip(("picture", "truth", "prediction"), views))
    scores = f"mIoU {percent_text(record['mIoU'])} %, accuracy {percent_text(record['aAcc'])} %"
    return (f'<div class="card shot"><h3>{safe_text(name)} <span class="soft">· {scores}</span></h3>'
            f"<div>{figures}</div></div>")


def _classified(run: RunRecord, path: pathlib.Path, record: Mapping[str, Any]) -> str:
    """A picture that a classifier took for another class."""
    try:
        view = fit(read_image(path), PICTURE_PX)
        words = f"{record['truth']}, taken for {record['guess']}; truth {percent_text(record['prob'])} %"
        name = pathlib.PurePath(record["img_path"]).name
    except (DataError, ValueError, KeyError, TypeError) as error:
        run.notes.append(f"a picture is left out: {error}")
        return ""
    return (f'<div class="card shot"><h3>{safe_text(name)} <span class="soft">· {safe_text(words)}</span></h3><div>'
            f'<figure><img alt="picture {safe_text(name)}" src="{_embedded(view)}"></figure></div></div>')


def _legend(result: Mapping[str, Any]) -> str:
    names = "".join(f"<span>{class_swatch(result, k)}{safe_text(name)}</span>"
                    for k, name in enumerate(result["classes"]))
    legend = f'<div class="legend">{names}</div>'
    if len(result["classes"]) <= LEGEND_UP_TO:
        return legend
    return f'<details><summary>colours of {len(result["classes"])} classes</summary>{legend}</details>'


def _embedded(image) -> str:
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 86])
    assert ok, "OpenCV encodes 8-bit pictures as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


# --- about ------------------------------------------------------------------------------------------------------------
def _about(run: RunRecord) -> str:
    facts = [(key, str(value)) for key, value in run.about.items() if isinstance(value, (str, int, float))
             and key != "seconds"]
    if isinstance(run.about.get("seconds"), (int, float)):
        facts.append(("training time", clock_text(run.about["seconds"])))
    if run.steps:
        facts += _log_facts(run.steps)
    if run.result is not None:
        facts += [(key, value) for key, value in (("checkpoint", str(run.result.get("checkpoint") or "")),
                                                  ("scored on", data_text(run.result)),
                                                  ("scored at", when_text(run.result))) if value]
    rows = "".join(f"<dt>{safe_text(key)}</dt><dd>{safe_text(value)}</dd>" for key, value in facts)
    notes = "".join(f'<p class="note">{safe_text(note)}</p>' for note in run.notes)
    config = (f"<details><summary>config.yaml</summary><pre>{safe_text(run.config_text)}</pre></details>"
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


def _bar(value: float | None) -> str:
    return f'<span class="bar"><i style="width:{100 * (value or 0):.1f}%"></i></span>'
