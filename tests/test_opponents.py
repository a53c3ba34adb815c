"""The opponents of `jseg bench`: which, what they run, that wrong ones are not timed, going on, the tables of --zoo."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
import sys

import pytest
from small_model import small_segnext
from test_bench import FAKE, MACHINE, TIMES, FakeJseg

from jseg import cli
from jseg.bench import models, opponents, zoo, zoo_page
from jseg.bench.side import Side, SideError, torch_command
from jseg.config import configs_folder
from jseg.errors import ConfigError, DataError

EVERYBODY = "torch,compile,onnxruntime,openvino,openvino-bf16"


def quiet(line: str) -> None:
    """Takes a line of progress."""


def without(monkeypatch, *packages: str) -> None:
    """Let these packages be not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a))


def test_opponents_are_named_with_commas():
    assert opponents.opponent_names("openvino, torch,,openvino") == ["openvino", "torch"]
    found = opponents.rivals(opponents.opponent_names(EVERYBODY), torch="python", jittor=True)
    assert [rival.name for rival in found] == ["PyTorch", "PyTorch, tuned", "torch.compile", "ONNX Runtime", "OpenVINO",
                                               "OpenVINO bf16", "plain Jittor"]
    assert [rival.command[0] for rival in found[:4]] == ["python"] * 3 + [sys.executable]
    assert [rival.words.get("precision") for rival in found[3:6]] == ["float32", "float32", "bf16"]
    assert found[1].words == {"channels_last": True} and found[1].env and not found[0].env
    assert [rival.file for rival in found] == [False] * 3 + [True] * 3 + [False]
    assert opponents.rivals() == []


@pytest.mark.parametrize("words, said", [
    (["--zoo", "--against", "openvin"], "--against openvin: not an opponent; did you mean 'openvino'?"),
    (["--zoo", "--against", ","], "names nobody; accepted, with commas between: torch, compile"),
    (["--zoo", "--against", "onnxruntime,compile"], "--against compile: runs under a Python that has PyTorch"),
    (["--kernels", "--against", "openvino"], "--against: opponents of whole models; give --model CONFIG or --zoo"),
    (["--zoo", "--resume"], "--resume: goes on with the file of --json"),
    (["--zoo", "SegNext-T", "--against", "onnxruntime"], None),
    (["--zoo", "SegNeXt-TT"], "--zoo SegNeXt-TT: no model of the table; did you mean 'SegNeXt-T'?"),
    (["--gpu", "--zoo"], "--gpu: decides itself what to measure"),
    (["--zoo", "--tables", "page.md"], "page.md: has no place for the tables; put the lines <!-- zoo -->")])
def test_what_cannot_be_meant_is_refused_first(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("page.md").write_text("# A page\n")
    monkeypatch.setattr(models, "Side", None)  # nothing may be started
    if said is None:  # names and families, in any case
        assert [one.name for one in zoo.chosen_models([words[1], "stdc"])] == ["SegNeXt-T", "STDC1"]
        return
    assert cli.main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_the_zoo_has_every_family_once():
    families = {path.name for path in configs_folder().iterdir() if path.is_dir()} - {"_base_", "pretrain"}
    assert {one.config.partition("/")[0] for one in zoo.ZOO} == families
    assert len({one.name for one in zoo.ZOO}) == len(zoo.ZOO) == len(families) + 1  # SegNeXt in two sizes
    assert all((configs_folder() / one.config).is_file() for one in zoo.ZOO)
    job = zoo.zoo_measurement(zoo.ZOO[0], "train", 2)
    assert (job.title, job.batch) == ("SegNeXt-T, training step, 2 x 512x512, 2 threads", 2)


@pytest.fixture
def small_job() -> models.Measurement:
    return models.Measurement(small_segnext(), "small", "infer", (64, 96), 1, 1)


def test_a_runtime_runs_our_file_and_a_wrong_file_is_not_timed(small_job, monkeypatch, tmp_path):
    """The wrong one stands beside the right one: the last step takes the smallest score."""
    onnx = pytest.importorskip("onnx", reason="the onnx package is not installed: pip install 'jseg-jittor[onnx]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'jseg-jittor[onnx]'")
    write, wrong = models._write_files, tmp_path / "wrong.onnx"

    def write_two(job, others, words, folder):
        assert write(job, others, words, folder) == ""
        proto = onnx.load(str(folder / "model.onnx"))
        assert [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 96]
        next(node for node in proto.graph.node if node.op_type == "ArgMax").op_type = "ArgMin"
        onnx.save(proto, str(wrong))
        return ""

    monkeypatch.setattr(models, "_write_files", write_two)
    right, = opponents.rivals(["onnxruntime"])
    planted = dataclasses.replace(right, name="planted", words={**right.words, "file": str(wrong)})
    row = models.measure_model(small_job, [planted, right], repeat=2, say=quiet)
    found = row["others"]["ONNX Runtime"]
    assert found["differences"]["label_maps"] <= 5e-3 and found["rounds"] == 2 and found["ratio"]["median"] > 0
    assert min(found["start_s"], found["built_s"], found["first_s"], row["jseg"]["first_s"]) > 0
    assert found["peak_bytes"] > 1e7 and "onnxruntime" in found["built_by"] and row["classes_seen"] > 1
    refused = row["others"]["planted"]
    assert refused["failed"].startswith("results differ from jseg's, not timed: label_maps differ by")
    assert refused["differences"]["label_maps"] > 0.1 and "median_ms" not in refused


def test_who_cannot_is_said_and_the_others_go_on(small_job, monkeypatch):
    without(monkeypatch, "openvino")
    real = Side
    monkeypatch.setattr(models, "Side", lambda name, *a, **k: FakeJseg() if name == "jseg" else real(name, *a, **k))
    absent, fake = opponents.rivals(["openvino"])[0], opponents.Rival("other", FAKE, {"FAKE_SIDE": "agree"})
    job = dataclasses.replace(small_job, size=(40, 36))
    row = models.measure_model(job, [absent, fake], repeat=1, say=quiet)
    assert row["others"]["OpenVINO"] == {"failed": "not installed: pip install 'jseg-jittor[openvino]'", "absent": True}
    assert row["others"]["other"]["ratio"]["median"] > 0
    assert zoo.still_open(row, [absent, fake]) is None
    here = dataclasses.replace(absent, absent="")
    assert zoo.still_open(row, [here, fake]) == [here], "once it is installed, it is measured"
    assert zoo.still_open({"failed": "no memory", "others": {}}, []) == [] == zoo.still_open(None, [])
    assert models._cannot(here, dataclasses.replace(job, mode="train"), "") == {"failed": "does not train"}
    assert models._cannot(here, job, "has no ONNX file: x") == {"failed": "has no ONNX file: x"}


def test_a_python_without_pytorch_says_what_to_install():
    if importlib.util.find_spec("torch") is not None:
        pytest.skip("this Python has PyTorch")
    with pytest.raises(SideError, match="PyTorch is not installed in this Python .* -m pip install torch"):
        Side("PyTorch", torch_command(sys.executable))
    with pytest.raises(ConfigError, match="name it by --against-torch PYTHON"):
        opponents.rivals(["torch"])


def a_row(name: str = "SegNeXt-T", mode: str = "infer", **ratios) -> dict:
    """A row as `measure_model` gives it; an opponent with a text instead of a ratio has failed."""
    first = {"start_s": 0.5, "built_s": 0.25, "first_s": 0.5, "peak_bytes": 2**27}
    others = {key: {"failed": r} if isinstance(r, str) else
              {**TIMES, **first, "median_ms": 12.5 * r, "ratio": {"median": r, "q1": r, "q3": r}}
              for key, r in ratios.items()}
    return {"name": name, "title": f"{name}, {mode}", "mode": mode, "threads": 2, "batch": 1, "size": [512, 512],
            "jseg": {**TIMES, **first}, "others": others}


def test_an_interrupted_run_goes_on(monkeypatch, tmp_path, capsys):
    """Each row is measured once, opponents that come later alone, and what a run did not reach stays in the file."""
    asked, faults = [], [("BiSeNetV2", KeyboardInterrupt()), ("BiSeNetV2", SideError("jseg: was killed"))]

    def measure(job, others, **_):
        asked.append((job.name, [rival.name for rival in others]))
        if faults and job.name == faults[0][0]:
            raise faults.pop(0)[1]
        return {**a_row(job.name, **{rival.name: 2.0 for rival in others}), "title": job.title}

    def bench(against: str, *names: str) -> tuple[int, list, list]:
        del asked[:]
        code = cli.main(["bench", "--zoo", *names, "--json", str(out), "--resume", "--against", against])
        return code, list(asked), [row["name"] for row in json.loads(out.read_text())["zoo"]]

    monkeypatch.setattr(models, "measure_model", measure)
    out, ort, both = tmp_path / "zoo.json", ["ONNX Runtime"], ("PIDNet-S", "BiSeNetV2")
    assert bench("onnxruntime", "stdc") == (0, [("STDC1", ort)], ["STDC1"])
    assert bench("onnxruntime", *both) == (130, [("PIDNet-S", ort), ("BiSeNetV2", ort)], ["STDC1", "PIDNet-S"])
    assert bench("onnxruntime", *both) == (1, [("BiSeNetV2", ort)], ["STDC1", "PIDNet-S", "BiSeNetV2"])
    assert bench("onnxruntime", *both) == (0, [("BiSeNetV2", ort)], ["STDC1", "PIDNet-S", "BiSeNetV2"])
    code, found, _ = bench("onnxruntime,openvino", *both, "stdc")
    assert (code, found) == (0, [(name, ["OpenVINO"]) for name in (*both, "STDC1")])
    rows = json.loads(out.read_text())["zoo"]
    assert all(sorted(row["others"]) == ["ONNX Runtime", "OpenVINO"] for row in rows)
    assert bench("openvino", *both)[1] == []
    kept = json.loads(out.read_text())
    assert "origin" in kept["zoo"][0] and len(kept["commands"]) == 4, "of every run that asked for other things"
    assert kept["commands"][0] == "jseg bench --zoo stdc --repeat 5 --against onnxruntime"


def test_tables_go_between_the_marks(tmp_path, capsys):
    rows = [a_row(**{"PyTorch": 3.0, "ONNX Runtime": 2.0, "OpenVINO bf16": 0.5}),
            a_row("PIDNet-S", **{"PyTorch": 0.5, "ONNX Runtime": "has no ONNX file: a | b", "OpenVINO bf16": 0.25}),
            a_row("STDC1", "train", **{"PyTorch": 2.0}), {**a_row("CGNet"), "failed": "jseg: was killed", "others": {}}]
    del rows[3]["jseg"]
    rows[0]["others"]["ONNX Runtime"]["built_by"] = "onnxruntime 9.8"
    (tmp_path / "zoo.json").write_text(json.dumps({"machine": MACHINE, "zoo": rows}))
    page = tmp_path / "page.md"
    page.write_text("# Before\n\n<!-- zoo -->\nold\n<!-- end of zoo -->\n\nafter\n")
    words = ["bench", "--add", str(tmp_path / "zoo.json"), "--tables", str(page)]
    for _ in range(2):
        assert cli.main(words) == 0
        text = page.read_text()
        assert text.startswith("# Before\n\n<!-- zoo -->\n") and text.endswith("<!-- end of zoo -->\n\nafter\n")
    for part in ("old", "Measured 2026-01-02 on a device, by", "    jseg bench"):
        assert (part in text) == (part != "old")
    for line in ("### Inference, 1 picture, 2 threads", "### Training step, 1 picture, 2 threads",
                 "| SegNeXt-T | 512x512 | 12.5 | 37.5 (3.00) | 25.0 (2.00) | 6.2 (0.50) | **2.00** |",
                 "| PIDNet-S | 512x512 | 12.5 | 6.2 (0.50) | [1] | 3.1 (0.25) | **0.50** |",
                 "| PIDNet-S | 128 | 128 | [1] | 128 |", "| PIDNet-S | 1.2 | 1.2 | [1] | 1.2 |",
                 "Compared with onnxruntime 9.8.",
                 "- [1] ONNX Runtime: has no ONNX file: a / b", "- CGNet: jseg: was killed",
                 "| STDC1 | 512x512 | 12.5 | 25.0 (2.00) | **2.00** |"):
        assert line in text, f"{line!r} is not in\n{text}"
    joined = " ".join(text.split())
    assert "PyTorch 1.22 (2 models), ONNX Runtime 2.00 (1 model), OpenVINO bf16 0.35 (2 models)" in joined
    assert "the fastest in float32 1.00. jseg is behind: PIDNet-S (0.50)." in joined
    assert joined.count("jseg is behind: nowhere") == 1, "the training step"
    with pytest.raises(DataError, match="has no place for the tables"):
        zoo_page.check_marks(tmp_path / "zoo.json")


@pytest.mark.parametrize("name, modes", [("PIDNet-S", ("infer", "train")), ("FPN-PoolFormer-S12", ("infer",))])
def test_mmsegmentation_builds_any_config(name, modes):
    python = os.environ.get("JSEG_REFEREE_PYTHON")
    if not python:
        pytest.skip("no PyTorch with MMSegmentation: make parity runs this")
    one, = zoo.chosen_models([name])
    for mode in modes:
        job = zoo.zoo_measurement(one, mode, 1, size=(64, 96))
        row = models.measure_model(job, opponents.rivals(["torch"], torch=python), repeat=1, say=quiet)
        for found in row["others"].values():
            assert "failed" not in found, (mode, found)
            assert set(found["differences"]) == ({"logits", "label_maps"} if mode == "infer" else {"loss", "gradients"})
