"""The comparison of runs: one HTML file with their scores, curves and classes side by side, and what tells a difference
from chance.
"""

from __future__ import annotations

import os
import pathlib
import statistics
from typing import Any, Sequence

from jseg.metrics import CLASSIFIER_SCORES, SCORES, score_number, score_title
from jseg.report.config_diff import differing_keys
from jseg.report.curves import Series, colour_class, line_chart
from jseg.report.groups import RunGroup, class_ious, common_classes, main_score, mean_iou, read_groups, warnings_of
from jseg.report.parts import (breakable_text, chart_cards, class_swatch, clock_text, data_text, finite_number,
                               page_html, plain_table, safe_text, score_text, sortable_table, when_text, write_page)
from jseg.report.run import RunRecord
from jseg.report.significance import WelchTest, welch_test

__all__ = ["write_comparison"]

FAINT_UP_TO = 3  # lines; with more, the raw values behind the smoothed ones would hide them
KEYS_SHOWN = 60
NO_SPREAD = "one run each: no spread known"


def write_comparison(paths: Sequence[str | os.PathLike], out: str | os.PathLike = "comparison.html") -> pathlib.Path:
    """Write the comparison of runs with the first of them, or of the runs of one folder of repeated runs.

    Args:
        paths: folders of runs; folders of `jseg train --repeat`, whose runs count as one group; result files of
            `jseg val --out`.
        out: the file to write; an older page there is replaced, any other file is not.
    Returns:
        the path written.
    Raises:
        DataError: one of them holds nothing to report or is given twice, or `out` is another kind of file.
    """
    groups = read_groups(paths)
    title = ("Comparison of " + ", ".join(group.name for group in groups) if len(groups) > 1
             else f"{groups[0].name}: {_seeds_text(groups[0])}")
    colours, common = _colours(groups), common_classes(groups)
    warnings = "".join(f"<p>{safe_text(text)}</p>" for text in warnings_of(groups))
    body = [f"<h1>{breakable_text(title)}</h1>", _legend(groups, colours),
            f'<div class="card warning">{warnings}</div>' if warnings else "", _scores(groups, common),
            _significance(groups, common) if len(groups) > 1 else "", _curves(groups, colours),
            _classes(groups, common), _runs(groups), _configs(groups), _notes(groups),
            "<footer>Written by <code>jseg report</code>. Scores are percent, differences percentage points, Fa "
            "millionths; a dash marks what is not known.</footer>"]
    return write_page(out, page_html(title, body))


# --- names and colours ------------------------------------------------------------------------------------------------
def _colours(groups: Sequence[RunGroup]) -> list[list[int]]:
    """Number of the colour of each run: a group has one, but runs of a single group one each."""
    if len(groups) == 1:
        return [list(range(len(groups[0].runs)))]
    return [[i] * len(group.runs) for i, group in enumerate(groups)]


def _seeds_text(group: RunGroup) -> str:
    return "1 seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds"


def _legend(groups: Sequence[RunGroup], colours: Sequence[Sequence[int]]) -> str:
    items = [(own[0], group.name, ", ".join([_seeds_text(group)] * group.repeated
                                            + [str(group.path)] * (str(group.path) != group.name)))
             for group, own in zip(groups, colours)]
    if len(groups) == 1:
        items = [(own, run.name, "") for run, own in zip(groups[0].runs, colours[0])]
    lines = [f'<li><i class="{colour_class(own)}"></i><b>{safe_text(name)}</b> <span class="soft">{safe_text(more)}'
             "</span></li>" for own, name, more in items]
    return f'<ul class="runs">{"".join(lines)}</ul>'


# --- scores -----------------------------------------------------------------------------------------------------------
def _same_classes(groups: Sequence[RunGroup], common: Sequence[str]) -> bool:
    return all(len(result["classes"]) == len(common) for group in groups for result in group.results)


def _values(group: RunGroup, score: str, common: Sequence[str]) -> list[float]:
    """A score of each run; mIoU over the common classes."""
    if score != "mIoU":
        return group.scores(score)
    return [value for value in (mean_iou(result, common) for result in group.results) if value is not None]


def _scores(groups: Sequence[RunGroup], common: Sequence[str]) -> str:
    if not any(group.results for group in groups):
        return ""
    main = main_score(groups)
    names, titles = [main], [main if main == "top1" else f"mIoU of {len(common)} classes"]
    if _same_classes(groups, common):  # the other scores are of all classes
        names += [name for name in dict.fromkeys((*SCORES, "Fa", *CLASSIFIER_SCORES))
                  if name != main and any(group.scores(name) for group in groups)]
        titles = [safe_text(score_title(name)) for name in names]
    shown = groups
    if len(groups) == 1:  # its runs, and their mean below
        shown = [RunGroup(run.name, run.folder, [run]) for run in groups[0].runs]
    rows = []
    for i, group in enumerate(shown):
        columns = [(name, _values(group, name, common), _values(groups[0], name, common)) for name in names]
        cells = [_mean_text(name, own) + (_delta(name, first, own) if len(groups) > 1 and i else "")
                 for name, own, first in columns]
        rows.append("".join(f"<td>{cell}</td>" for cell in [breakable_text(group.name), *cells]))
    if len(groups) > 1:
        titles.append("runs")
        rows = [f"{row}<td>{len(group.results)}</td>" for row, group in zip(rows, groups)]
    foot = "" if len(groups) > 1 else '<tr class="mean"><td>mean</td>' + "".join(
        f"<td>{_mean_text(name, _values(groups[0], name, common))}</td>" for name in names) + "</tr>"
    return f"<h2>Scores</h2>{sortable_table(['run', *titles], [f'<tr>{row}</tr>' for row in rows], foot)}"


def _mean_text(name: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f' <span class="sd">± {score_text(name, statistics.stdev(values))}</span>' if len(values) > 1 else ""
    return score_text(name, statistics.fmean(values)) + spread


def _delta(name: str, first: Sequence[float], values: Sequence[float]) -> str:
    """The difference of two means, green where it is better; "" where one is not known."""
    if not first or not values:
        return ""
    change = score_number(name, statistics.fmean(values) - statistics.fmean(first))
    better = -change if name == "Fa" else change
    colour = " good" if better >= 0.005 else " bad" if better <= -0.005 else ""
    return f'<span class="delta{colour}">{_signed(change)}</span>'


def _signed(number: float) -> str:
    text = f"{number:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text.replace("-", "−")


# --- chance -----------------------------------------------------------------------------------------------------------
def _significance(groups: Sequence[RunGroup], common: Sequence[str]) -> str:
    values = [_values(group, main_score(groups), common) for group in groups]
    if sum(map(bool, values)) < 2:
        return ""
    if all(len(own) < 2 for own in values):
        return (f'<h2>Significance</h2><div class="card"><p>{NO_SPREAD.capitalize()}.</p><p class="note">Another '
                "seed alone moves a score. <code>jseg train --repeat 3</code> makes runs that tell by how much; its "
                "folder can be compared as one.</p></div>")
    rows = []
    for group, own in zip(groups[1:], values[1:]):
        test = welch_test(values[0], own)
        cells = [_no_test(groups[0], group, values[0], own), "", "", "", ""] if test is None else _test_cells(test)
        rows.append([breakable_text(group.name), f"{len(values[0])} and {len(own)}", *cells])
    head = [f"{main_score(groups)} against {safe_text(groups[0].name)}", "runs", "difference", "95 % interval", "t",
            "df", "p"]
    several = " The p values are not corrected for the number of comparisons." if len(groups) > 2 else ""
    return "<h2>Significance</h2>" + plain_table(head, rows, below=(
        '<p class="note">Welch’s t-test over the runs. p: how often a difference at least this large would come '
        "about if both had the same mean. It speaks of other seeds, not of other pictures: results keep no scores of "
        f"single pictures that could be compared in pairs.{several}</p>"))


def _test_cells(test: WelchTest) -> list[str]:
    p = "&lt; 0.0001" if test.p < 1e-4 else f"{test.p:.4f}" if test.p < 0.01 else f"{test.p:.3f}"
    interval = f"{_signed(100 * test.low)} … {_signed(100 * test.high)}"
    return [_signed(100 * test.difference), interval, f"{test.t:.2f}", f"{test.degrees:.1f}",
            f"<b>{p}</b>" if test.p < 0.05 else p]


def _no_test(first: RunGroup, group: RunGroup, first_values: Sequence[float], values: Sequence[float]) -> str:
    few = [one.name for one, own in ((first, first_values), (group, values)) if len(own) < 2]
    if not few:
        return "no run differs from the others of its group"
    return NO_SPREAD if len(few) == 2 else f"{safe_text(few[0])} has one run: no spread known"


# --- curves -----------------------------------------------------------------------------------------------------------
def _curves(groups: Sequence[RunGroup], colours: Sequence[Sequence[int]]) -> str:
    lines = [(group.name if run.name in group.name else f"{group.name} {run.name}", run, colour)
             for group, own in zip(groups, colours) for run, colour in zip(group.runs, own)]
    losses = [Series(name, [step["iter"] for step in run.steps], [finite_number(s.get("loss")) for s in run.steps],
                     smoothed=True, colour=colour, faint=len(lines) <= FAINT_UP_TO) for name, run, colour in lines
              if run.steps]
    main = main_score(groups)
    scores = [Series(name, [entry["iter"] for entry in run.evaluations],
                     [finite_number(entry["val"].get(main)) for entry in run.evaluations], dots=True, colour=colour)
              for name, run, colour in lines if run.evaluations]
    charts = []
    if losses:
        charts.append(("Loss", line_chart(losses, y_label="loss", from_zero=True, key=False)))
    if scores:
        charts.append((f"{main} in training", line_chart(scores, y_label=main, percent=True, key=False)))
    return chart_cards(charts)


# --- classes ----------------------------------------------------------------------------------------------------------
def _classes(groups: Sequence[RunGroup], common: Sequence[str]) -> str:
    scored = [group for group in groups if group.results]
    if not common:
        return ""
    ious = [[class_ious(result) for result in group.results] for group in scored]
    result = scored[0].results[0]
    rows = []
    for name in common:
        columns = [[own[name] for own in runs if own[name] is not None] for runs in ious]
        if len(scored) == 1:
            cells = _spread_cells(columns[0])
        else:
            cells = f"<td>{_mean_text('IoU', columns[0])}</td>" + "".join(
                f"<td>{_mean_text('IoU', column)}</td><td>{_delta('IoU', columns[0], column) or '–'}</td>"
                for column in columns[1:])
        rows.append(f"<tr><td>{class_swatch(result, result['classes'].index(name))}{safe_text(name)}</td>{cells}</tr>")
    names = [breakable_text(group.name) for group in scored]
    tips = [safe_text(f"{group.name} − {scored[0].name}") for group in scored]
    what = "accuracy" if main_score(groups) == "top1" else "IoU"
    head = (["class", f"mean {what}", "standard deviation", "lowest", "highest"] if len(scored) == 1 else
            ["class", names[0], *(cell for name, tip in zip(names[1:], tips[1:])
                                  for cell in (name, f'<span title="{tip}">difference</span>'))])
    return f"<h2>{what[0].upper()}{what[1:]} of the classes</h2>{sortable_table(head, rows)}"


def _spread_cells(values: Sequence[float]) -> str:
    if not values:
        return "<td>–</td>" * 4
    spread = statistics.stdev(values) if len(values) > 1 else None
    return "".join(f"<td>{score_text('IoU', value)}</td>"
                   for value in (statistics.fmean(values), spread, min(values), max(values)))


# --- the runs themselves ----------------------------------------------------------------------------------------------
def _runs(groups: Sequence[RunGroup]) -> str:
    rows = [[breakable_text(f"{group.name}/{run.name}" if group.repeated else group.name),
             *map(safe_text, _run_facts(run))] for group in groups for run in group.runs]
    head = ["run", "iterations", "training time", "device", "scored", "on", "pictures", "at"]
    return "<h2>Runs</h2>" + plain_table(head, rows, left=(3, 4, 5, 7))


def _run_facts(run: RunRecord) -> list[str]:
    result: dict[str, Any] = run.result or {}
    seconds = finite_number(run.about.get("seconds"))
    facts = [f"{run.steps[-1]['iter']:,}" if run.steps else "", "" if seconds is None else clock_text(seconds),
             run.about.get("device"), result.get("checkpoint"), data_text(result),
             f"{result['images']:,}" if result else "", when_text(result)]
    return [str(fact or "–") for fact in facts]


def _configs(groups: Sequence[RunGroup]) -> str:
    known = [group for group in groups if group.runs[0].config_text]
    if len(known) < 2:
        return ""
    keys = differing_keys([group.runs[0].config_text or "" for group in known])
    if not keys:
        return '<h2>Configs</h2><p class="card">The configs are the same but for the seed.</p>'
    more = f'<p class="note">and {len(keys) - KEYS_SHOWN} more keys</p>' if len(keys) > KEYS_SHOWN else ""
    return "<h2>What the configs differ in</h2>" + plain_table(
        ["key", *(breakable_text(group.name) for group in known)],
        [[f"<code>{safe_text(cell)}</code>" for cell in (key, *values)] for key, values in keys[:KEYS_SHOWN]],
        left=range(1, len(known) + 1), below=more)


def _notes(groups: Sequence[RunGroup]) -> str:
    notes = [note for group in groups for note in group.notes]
    notes += [f"{group.name}: {note}" for group in groups for run in group.runs for note in run.notes]
    return "".join(f'<p class="note">{safe_text(note)}</p>' for note in notes)
