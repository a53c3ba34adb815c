"""Overlays, charts, heat maps and the page of a run, without Jittor."""

import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from jseg.cli import main
from jseg.errors import DataError
from jseg.report.curves import Series, line_chart, nice_ticks, smooth, tick_text
from jseg.report.matrix import heat_map, row_shares, top_mistakes
from jseg.data.overlay import colour_map, contact_sheet, fit, legend, overlay
from jseg.report.page import write_report

PALETTE = [(255, 0, 0), (0, 255, 0), (10, 20, 30)]


def test_overlay_mixes_and_leaves_ignored_pixels():
    image = np.full((2, 2, 3), 100, np.uint8)
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    mixed = overlay(image, labels, PALETTE, 0.5)
    assert mixed[0, 0].tolist() == [50, 50, 178] and mixed[0, 1].tolist() == [50, 178, 50]
    assert mixed[1, 1].tolist() == [100, 100, 100]
    np.testing.assert_array_equal(overlay(image, labels, PALETTE, 0.0), image)
    assert overlay(image, labels, PALETTE, 1.0)[1, 0].tolist() == [30, 20, 10]
    assert colour_map(labels, PALETTE)[1, 1].tolist() == [0, 0, 0]
    assert image.max() == 100
    with pytest.raises(ValueError, match="one size"):
        overlay(image, labels[:1], PALETTE)
    with pytest.raises(ValueError, match="accepted 0-1"):
        overlay(image, labels, PALETTE, 2)


def test_overlay_takes_wide_labels():
    labels = np.array([[300, 1]], np.int32)
    palette = [(i % 256, 0, 0) for i in range(301)]
    assert overlay(np.zeros((1, 2, 3), np.uint8), labels, palette, 1.0)[0, 0].tolist() == [0, 0, 44]


def test_legend_and_contact_sheet_sizes():
    sheet = legend(["a class with a long name"] * 6, PALETTE * 2, 300)
    assert sheet.shape[1:] == (300, 3) and sheet.shape[0] > 100 and (sheet == (0, 0, 255)).all(-1).any()
    pictures = [np.full((20, 40, 3), 10 * i, np.uint8) for i in range(4)]
    grid = contact_sheet([pictures[:2], pictures[2:]], ["one", "two"], captions=["x", "y"], cell_width=80, gap=4)
    assert grid.shape == (4 + 24 + 2 * (24 + 40 + 4), 2 * 80 + 3 * 4, 3)
    with pytest.raises(ValueError, match="no pictures"):
        contact_sheet([])


def test_fit_keeps_label_values():
    labels = np.zeros((100, 60), np.uint8)
    labels[:, 30:] = 7
    small = fit(labels, 50, labels=True)
    assert small.shape == (50, 30) and set(np.unique(small)) == {0, 7} and (small == 7).mean() == 0.5
    assert fit(np.zeros((100, 60, 3), np.uint8), 50).shape == (50, 30, 3)
    assert fit(labels, 500) is labels


@pytest.mark.parametrize("low, high, expected",
                         [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 160000, [0, 50000, 100000, 150000, 200000]),
                          (0.31, 0.34, [0.31, 0.32, 0.33, 0.34]), (-1, 1, [-1, -0.5, 0, 0.5, 1])])
def test_ticks_are_round_and_enclose(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-7])
def test_ticks_of_a_constant(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1] and len(ticks) > 1


def test_tick_texts():
    assert [tick_text(v) for v in (0, 0.25, 6e-5, 2000, 20000, 1.5e6)] == ["0", "0.25", "6e-5", "2000", "20k", "1.5M"]
    assert tick_text(0.35, percent=True) == "35 %"


def test_smoothing_does_not_shift():
    straight = np.arange(30.0)
    np.testing.assert_allclose(smooth(straight, 7)[:27], straight[:27])
    assert smooth(np.array([1.0, 9.0]), 5)[0] == 1.0


def points_of(svg, kind="path"):
    """Parse a chart (which also proves it well-formed) and return its curve paths."""
    root = ET.fromstring(svg)
    return [e for e in root.iter(kind) if "line" in e.get("class", "")]


def test_charts_are_well_formed_and_inside_the_frame():
    x = list(range(0, 40000, 10))
    svg = line_chart([Series("loss <a>", x, [1 / (1 + i) for i in x], smoothed=True),
                      Series("b", [0, 5], [None, float("nan")])],
                     y_label="loss & more")
    paths = points_of(svg)
    assert len(paths) == 2
    numbers = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", paths[0].get("d")), float)
    assert len(numbers) <= 500 and numbers[:, 0].min() >= 62 and numbers[:, 0].max() <= 624
    assert numbers[:, 1].min() >= 14 and numbers[:, 1].max() <= 260
    assert len(svg) < 40000


def test_charts_of_little_data():
    assert "nothing logged" in line_chart([Series("a", [], [])])
    assert "<circle" in line_chart([Series("a", [5], [0.5])])
    points_of(line_chart([Series("a", [1, 2], [0.0, 0.0], dots=True)], percent=True))


def test_heat_map_and_mistakes():
    confusion = [[8, 2, 0], [0, 0, 0], [5, 0, 15]]
    assert row_shares(confusion)[0].tolist() == [0.8, 0.2, 0.0] and row_shares(confusion)[1].sum() == 0
    root = ET.fromstring(heat_map(confusion, ["a<b", "b", "a very long class name"]))
    kinds = [e.get("class") for e in root.iter("rect")]
    assert kinds.count("hit") == 2 and kinds.count("miss") == 2
    assert top_mistakes(confusion, ["a", "b", "c"]) == [("c", "a", 0.25, pytest.approx(5 / 30)),
                                                        ("a", "b", 0.2, pytest.approx(2 / 30))]
    many = np.eye(171, dtype=int) * 9 + 1
    assert len(heat_map(many.tolist(), [f"class {i}" for i in range(171)])) < 6_000_000


@pytest.fixture
def run_folder(tmp_path, rng):
    """What training leaves: log, result, config, kept pictures."""
    folder = tmp_path / "my run <1>"
    (folder / "eval").mkdir(parents=True)
    lines = [{"iter": i, "loss": 2 / i, "lr": 1e-4, "images_per_s": 4.0, "data_wait": 0.01, "data_wait_share": 0.02,
              "memory_mb": 500 + i, "eta_s": 10, "decode.loss_ce": 2 / i} for i in range(10, 200, 10)]
    lines.append({"iter": 100, "val": {"mIoU": 0.4, "aAcc": 0.8, "mAcc": None}})
    (folder / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + '\n{"iter": 200, "lo')
    files = {"picture": "worst_1_picture.jpg", "truth": "worst_1_truth.png", "prediction": "worst_1_prediction.png"}
    cv2.imwrite(str(folder / "eval" / files["picture"]), rng.integers(0, 255, (30, 40, 3)).astype(np.uint8))
    for key in ("truth", "prediction"):
        cv2.imwrite(str(folder / "eval" / files[key]), rng.integers(0, 3, (30, 40)).astype(np.uint8))
    row = {"IoU": 0.5, "Acc": 0.6}
    gone = {key: name.replace("1", "2") for key, name in files.items()}
    shot = {"index": 3, "img_path": "/data/street <3>.png", "mIoU": 0.2, "aAcc": 0.5}
    result = {"metrics": {"aAcc": 0.8, "mIoU": 0.5, "mAcc": 0.6}, "confusion": [[5, 1, 0], [0, 6, 0], [0, 0, 0]],
              "images": 1234, "seconds": 9.5,
              "per_class": [{"name": "road", **row}, {"name": "a & b", **row},
                            {"name": "never", "IoU": None, "Acc": None}],
              "classes": ["road", "a & b", "never"], "palette": [list(c) for c in PALETTE], "tta": None,
              "kept_in": "eval", "worst": [{**shot, "files": files}], "best": [{**shot, "files": gone}]}
    (folder / "metrics.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text("train_dataloader: {batch_size: 2}\nmodel: {type: A<b>}\n")
    return folder


def test_page_is_complete_and_self_contained(run_folder):
    page = write_report(run_folder).read_text()
    assert (run_folder / "report.html").is_file()
    for text in ("my run &lt;1&gt;", "50.00 %", "best in training, at 100", "190", "street &lt;3&gt;.png", "a &amp; b",
                 "never", "1,234 pictures", "Largest mistakes", "A&lt;b&gt;", "1 unreadable lines", "690 MiB",
                 "Worst pictures", "1 min 35 s", "a picture is left out"):
        assert text in page, text
    assert page.count("data:image/jpeg;base64,") == 3 and "Best pictures" not in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "url(" not in page
    body = page[page.index("<main>"):page.index("</main>") + 7]
    ET.fromstring(re.sub(r"<img ([^>]*)>", r"<img \1/>", body))  # every tag closed, every character escaped


def test_page_names_checkpoint_data_and_date(run_folder, tmp_path, capsys):
    assert "scored: 1,234 pictures<" in write_report(run_folder).read_text()  # a result of an older version
    result = json.loads((run_folder / "metrics.json").read_text())
    result.update(checkpoint="best/<x>", date="2026-11-29T06:12:33+01:00",
                  data={"type": "CamVidDataset", "folders": ["data/camvid"], "split": "val"})
    result["metrics"].update(Pd=0.875, Fa=1.25e-5)
    result["per_class"][1].update(Pd=0.875, Fa=1.25e-5)
    for row in result["per_class"][::2]:
        row.update(Pd=None, Fa=None)
    (tmp_path / "mine.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path / "mine.json")]) == 0 and "mine.html" in capsys.readouterr().out
    page = (tmp_path / "mine.html").read_text()
    for text in ("scored: best/&lt;x&gt; · CamVidDataset (val) in data/camvid · 1,234 pictures · 2026-11-29 06:12",
                 "87.50 %", "12.50 ppm", "Fa (1e-6)", "<td>12.50</td>"):
        assert text in page, text


@pytest.mark.parametrize("change", [{"classes": ["a"]}, {"confusion": [[1]]}, {"metrics": 3}, {"palette": None},
                                    {"images": "many"}, {"per_class": [{"IoU": 1.0}]}])
def test_results_that_are_none_are_left_out(run_folder, change, capsys):
    result = {**json.loads((run_folder / "metrics.json").read_text()), **change}
    (run_folder / "metrics.json").write_text(json.dumps(result))
    assert "is not a result of" in write_report(run_folder).read_text()
    assert main(["report", str(run_folder / "metrics.json")]) == 2 and "is not a result" in capsys.readouterr().err


def test_a_damaged_log_is_drawn_as_far_as_it_goes(run_folder):
    with open(run_folder / "log.jsonl", "a") as file:
        for line in ("", "[" * 100_000, '{"iter": "x", "loss": 1}', '{"iter": [], "loss": 1}', '{"iter": 1e999}'):
            file.write(line + "\n")
    assert "5 unreadable lines" in write_report(run_folder).read_text()


def test_only_pages_are_overwritten(run_folder, tmp_path, capsys):
    target = tmp_path / "notes.html"
    target.write_text("<!doctype html><title>my own</title>")
    assert main(["report", str(run_folder), "--out", str(target)]) == 2
    assert "no page of jseg report" in capsys.readouterr().err and "my own" in target.read_text()
    target.write_text("<!doctype html>\n<html><head><title>old · jseg report</title>")  # of an older version
    for _ in range(2):
        assert main(["report", str(run_folder), "--out", str(target)]) == 0
    assert main(["report", str(run_folder), "--out", str(tmp_path)]) == 2


def test_page_without_an_evaluation_says_so(run_folder):
    (run_folder / "metrics.json").unlink()
    page = write_report(run_folder, run_folder / "deep" / "page.html").read_text()
    assert "no metrics.json" in page and "Confusion" not in page and "Learning rate" in page


def test_page_of_an_evaluation_alone(run_folder):
    (run_folder / "log.jsonl").unlink()
    page = write_report(run_folder).read_text()
    assert "no log.jsonl" in page and "Confusion" in page


def test_command_line(run_folder, tmp_path, capsys):
    assert main(["report", str(run_folder)]) == 0 and "written: " in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["report", str(empty)]) == 2 and "neither log.jsonl nor metrics.json" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err
    with pytest.raises(DataError):
        write_report(empty)


def test_reports_and_metrics_need_no_jittor():
    code = "import sys, jseg.report.page, jseg.data.overlay, jseg.metrics; sys.exit('jittor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).resolve().parents[1]).returncode == 0
