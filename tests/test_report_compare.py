"""Comparison pages: groups of seeds, Welch's test, differing classes and data, and sorting in a browser."""

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from jseg.cli import main
from jseg.metrics import ConfusionMatrix
from jseg.report.config_diff import differing_keys
from jseg.report.significance import incomplete_beta, t_bound, t_two_sided, welch_test

NAMES = ["road", "sky", "a & b"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize("first, second, t, degrees, p, low, high", [  # scipy 1.17.1: ttest_ind(equal_var=False)
    ([0.61, 0.63, 0.62], [0.66, 0.64, 0.69],
     2.7716093126229393, 2.6162162162162192, 0.08107158828966088, -0.01081856388129488, 0.09748523054796154),
    ([0.61, 0.63, 0.62, 0.65, 0.60], [0.618, 0.622],
     -0.22645540682891915, 4.392779783393501, 0.8310002432947815, -0.025679946369457193, 0.02167994636945719),
    ([0.5, 0.52, 0.9], [0.501, 0.5011, 0.5012],
     -1.0674092799819663, 2.000000787401575, 0.3975649059198955, -0.6987960491474647, 0.4209960491474647),
    ([0.1, 0.2, 0.15], [10.0, 10.1, 10.3],
     107.58357591403791, 2.423707440100881, 1.612432181657834e-05, 9.644028233520867, 10.322638433145801)])
def test_welchs_test_is_scipys(first, second, t, degrees, p, low, high):
    found = welch_test(first, second)
    assert (found.t, found.degrees, found.p) == pytest.approx((t, degrees, p), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-8)
    assert found.difference == pytest.approx(np.mean(second) - np.mean(first))


def test_tails_of_t_and_beta_are_scipys():
    for t, degrees, p in ((0.0, 3, 1.0), (1.5, 1, 0.3743340836219977), (2.0, 2.5, 0.1573914957579659),
                          (8.0, 7.3, 7.261973208191443e-05), (40.0, 4, 2.3340163226012678e-06),
                          (1.96, 1e5, 0.04999856319430168), (-0.01, 30, 0.9920874925731777)):
        assert t_two_sided(t, degrees) == pytest.approx(p, rel=1e-9)
    for a, b, x, value in ((2, 3, 0.4, 0.5248), (0.5, 0.5, 0.1, 0.20483276469913345),
                           (20, 0.5, 0.99, 0.5286300645149844), (0.5, 20, 0.001, 0.15758381398363844),
                           (300, 0.5, 0.9, 1.9018190786819743e-15), (2, 3, 0, 0), (2, 3, 1, 1)):
        assert incomplete_beta(a, b, x) == pytest.approx(value, rel=1e-9)
    assert t_bound(0.05, 4) == pytest.approx(2.7764451051977943, rel=1e-12)
    assert welch_test([0.5], [0.4, 0.6]) is None and welch_test([0.5, 0.5], [0.6, 0.6]) is None


def write_run(folder, seed, *, names=NAMES, shift=0, **changes):
    """A finished run: log, config and a result whose confusion matrix depends on the seed; its IoUs by class."""
    folder.mkdir(parents=True)
    lines = [{"iter": i, "loss": 2 / i + seed / 50, "lr": 1e-4, "images_per_s": 4.0} for i in range(10, 200, 10)]
    lines += [{"iter": i, "val": {"mIoU": 0.3 + seed / 100 + i / 1000}} for i in (100, 200)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "config.yaml").write_text(f"seed: {seed}\noptimizer: {{type: AdamW, lr: {1 + shift}}}\n")
    counts = ConfusionMatrix(len(names))
    counts.matrix += 5 + np.arange(len(names)) + (90 + 3 * shift + seed) * np.eye(len(names), dtype=int)
    scores = counts.compute()
    rows = [{"name": name, **{key: float(values[k]) for key, values in scores["per_class"].items()}}
            for k, name in enumerate(names)]
    result = {"metrics": scores["metrics"], "per_class": rows, "confusion": counts.matrix.tolist(), "classes": names,
              "palette": [[10, 20, 30]] * len(names), "images": 5, "seconds": 1.5, "tta": None, "worst": [], "best": [],
              "data": {"type": "FolderDataset", "folders": ["data/mine"], "split": "val"},
              "date": "2026-11-29T06:12:33+01:00", "checkpoint": "best.safetensors", **changes}
    (folder / "metrics.json").write_text(json.dumps(result))
    return dict(zip(names, scores["per_class"]["IoU"]))


def body_of(page):
    """The page's content as a tree, which proves it well-formed, and as text without tags."""
    body = page[page.index("<main>"):page.index("</main>") + 7]
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))
    return ET.fromstring(body), text


def table_under(tree, title):
    """The rows of the table after a heading, as texts."""
    main_part = list(tree)
    at = next(i for i, element in enumerate(main_part) if "".join(element.itertext()) == title)
    table = next(element for element in main_part[at].iter("table")) if main_part[at].tag != "h2" else next(
        found for element in main_part[at + 1:] for found in element.iter("table"))
    return [["".join(cell.itertext()).split() for cell in row] for row in table.iter("tr")]


def test_groups_of_seeds_are_compared_with_mean_spread_and_test(tmp_path, capsys, monkeypatch):
    ious = {name: [write_run(tmp_path / name / f"seed_{seed}", seed + extra, shift=extra) for seed in seeds]
            for name, seeds, extra in (("base", (3, 4, 5), 0), ("wide", (4, 9, 12), 1), ("lone", (3,), 2))}
    (tmp_path / "base" / "seed_6").mkdir()
    (tmp_path / "base" / "seed_6" / "log.jsonl").write_text('{"iter": 10, "loss": 1.0}\n')  # still runs
    monkeypatch.chdir(tmp_path)
    assert main(["report", "base", "wide", "lone"]) == 0 and "written: comparison.html" in capsys.readouterr().out
    tree, text = body_of((tmp_path / "comparison.html").read_text())
    scores = {name: [np.mean(list(run.values())) for run in runs] for name, runs in ious.items()}
    rows = {row[0][0]: row for row in table_under(tree, "Scores")}
    mean, spread = 100 * np.mean(scores["base"]), 100 * np.std(scores["base"], ddof=1)
    assert rows["base"][1] == [f"{mean:.2f}", "±", f"{spread:.2f}"]
    change = np.mean(scores["wide"]) - np.mean(scores["base"])
    assert rows["wide"][1][-1].endswith(f"+{100 * change:.2f}") and rows["wide"][-1] == ["3"]
    test = welch_test(scores["base"], scores["wide"])
    chance = {row[0][0]: row for row in table_under(tree, "Significance")}
    p = f"{test.p:.4f}" if test.p < 0.01 else f"{test.p:.3f}"
    assert test.p > 1e-4 and chance["wide"][1] == ["3", "and", "3"]
    assert chance["wide"][4:] == [[f"{test.t:.2f}"], [f"{test.degrees:.1f}"], [p]]
    assert "lone has one run: no spread known" in text and "seed_6: has no metrics.json" in text
    classes = {" ".join(row[0]): row for row in table_under(tree, "IoU of the classes")}
    for name in NAMES:
        means = {group: np.mean([run[name] for run in runs]) for group, runs in ious.items()}
        assert [cell[0] for cell in classes[name][1:]] == [
            f"{100 * means['base']:.2f}", f"{100 * means['wide']:.2f}", f"+{100 * (means['wide'] - means['base']):.2f}",
            f"{100 * means['lone']:.2f}", f"+{100 * (means['lone'] - means['base']):.2f}"]
    assert len([e for e in tree.iter("path") if "line" in e.get("class", "")]) == 8 + 7  # losses, mIoUs
    assert ["optimizer.lr"] in [row[0] for row in table_under(tree, "What the configs differ in")]
    assert main(["report", "base"]) == 0 and (tmp_path / "base" / "report.html").is_file()
    assert "seed_4" in body_of((tmp_path / "base" / "report.html").read_text())[1]


def test_different_classes_and_data_are_said(tmp_path):
    first = write_run(tmp_path / "a" / "run", 1)
    second = write_run(tmp_path / "b" / "run", 2, names=["sky", "<dog>", "road"], images=7, tta={"flip": True},
                       data={"type": "CamVidDataset", "folders": ["data/camvid"], "split": "test"})
    out = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run" / "metrics.json"), "--out",
                 str(out)]) == 0
    tree, text = body_of(out.read_text())
    for words in ("only the 2 that all know are compared. Left out: run: a & b; run/metrics.json: <dog>",
                  "Different types of data set: run: FolderDataset; run/metrics.json: CamVidDataset",
                  "Different splits", "data/camvid", "run: 5; run/metrics.json: 7", "One run each: no spread known",
                  "mIoU of 2 classes"):
        assert words in text, words
    common = [[run[name] for name in ("road", "sky")] for run in (first, second)]
    assert [row[1][0][:5] for row in table_under(tree, "Scores")[1:]] == [f"{100 * np.mean(run):.2f}" for run in common]
    assert [" ".join(row[0]) for row in table_under(tree, "IoU of the classes")] == ["class", "road", "sky"]
    old = json.loads((tmp_path / "a" / "run" / "metrics.json").read_text())
    del old["data"], old["date"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert main(["report", str(tmp_path / "a" / "run"), str(tmp_path / "old.json"), "--out", str(out)]) == 0
    assert "Different" not in body_of(out.read_text())[1]  # an older result does not say, and nothing is made up


def test_what_cannot_be_compared_is_an_error(tmp_path, capsys):
    write_run(tmp_path / "a", 1)
    (tmp_path / "none").mkdir()
    for words, text in ((["a", "a"], "is given twice"), (["a", "gone"], "no such folder"),
                        (["a", "none"], "neither log.jsonl nor metrics.json")):
        assert main(["report", *(str(tmp_path / word) for word in words), "--out", str(tmp_path / "x.html")]) == 2
        assert text in capsys.readouterr().err and not (tmp_path / "x.html").exists()


def test_runs_without_scores_yet_are_drawn(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, 1)
        (tmp_path / name / "metrics.json").unlink()
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "x.html")]) == 0
    tree, text = body_of((tmp_path / "x.html").read_text())
    assert len(list(tree.iter("svg"))) == 2 and "More than" not in text and "no metrics.json" in text


def test_configs_differ_by_key():
    texts = ["a: {b: 1, c: [{type: X, p: 0.5}]}\nseed: 1\nd: true\n", "a: {b: 2, c: [{type: X}]}\nseed: 2\nd: true\n"]
    assert differing_keys(texts) == [("a.b", ["1", "2"]), ("a.c.0.p", ["0.5", "–"])]


@pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install -y chromium")
def test_tables_sort_in_a_browser(tmp_path):
    write_run(tmp_path / "run", 1, names=["b", "a", "c"])
    result = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for row, value in zip(result["per_class"], (0.5, None, 0.25)):
        row["IoU"] = value
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(result))
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    clicks = """<script>const seen = [], table = document.querySelector("table.sortable");
    for (const [column, times] of [[1, 0], [1, 1], [1, 1], [1, 1], [0, 1]])
      { for (let i = 0; i < times; i++) table.querySelectorAll("thead th button")[column].click();
        seen.push(Array.from(table.tBodies[0].rows, row => row.cells[0].textContent).join("") + " "
          + table.querySelectorAll("th")[column].getAttribute("aria-sort")); }
    document.title = seen.join("|") + "|" + table.tFoot.textContent.slice(0, 4);</script>"""
    (tmp_path / "page.html").write_text(page.replace("</body>", clicks + "</body>"))
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
                           f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/page.html"],
                          capture_output=True, text=True, timeout=120)
    assert re.search("<title>(.*)</title>", done.stdout)[1] == (
        "bac null|cba ascending|bca descending|bac null|abc ascending|mean")
