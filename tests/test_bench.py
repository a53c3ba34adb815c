"""The benchmark: pairing, protocol, comparison, counts of work, the page, limits of time;
with a stand-in for PyTorch's side.
"""

import json
import pathlib
import sys
import threading

import numpy as np
import pytest

from jseg import cli
from jseg.bench import ahead, cold, gpu, kernels, limits, models, opponents, page, pairing, work
from jseg.bench.kernels import differences
from jseg.bench.side import Side, SideError
from jseg.config import load_config
from jseg.errors import RuntimeSetupError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAKE = (sys.executable, str(ROOT / "tests" / "fake_torch_side.py"))
CONFIG = ROOT / "configs" / "segnext" / "segnext_tiny_demo-128x160_cpu.yaml"
MACHINE = {"date": "2026-01-02T03:04:05+00:00", "device": "a device", "command": "jseg bench",
           "versions": {"jseg": "1", "Jittor": ""}}
TIMES = {"median_ms": 12.5, "q1_ms": 12.0, "q3_ms": 13.25, "min_ms": 11.0, "runs": 5, "rounds": 5}


def fake(behaviour="agree", **options):
    return Side("fake", list(FAKE), env={"FAKE_SIDE": behaviour}, **options)


def test_quartiles_and_ratio():
    assert pairing.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert pairing.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    with pytest.raises(ValueError, match="no value"):
        pairing.quartiles([])
    found = pairing.ratio([[1.0, 1.0], [2.0], [1.0]], [[3.0], [4.0, 4.0], [5.0]])
    assert found["median"] == 3.0 and found["q1"] == 2.5


def test_sides_run_in_turn_and_the_first_run_is_thrown_away():
    order = []

    def runner(name, seconds):
        def run(count):
            order.append((name, count))
            return [9.0] + [seconds] * (count - 1) if len(order) > 2 and count > 1 else [seconds] * count
        return run

    found = pairing.interleave({"a": runner("a", 0.1), "b": runner("b", 1.0)}, 2)
    assert order == [("a", 1), ("b", 1), ("a", 6), ("b", 1), ("a", 6), ("b", 1)]
    assert found == {"a": [[0.1] * 5] * 2, "b": [[1.0]] * 2}
    assert pairing.summary(found["a"])["median_ms"] == pytest.approx(100) and pairing.summary(found["a"])["runs"] == 10
    assert pairing.visit_length(0.0001) == pairing.MOST_RUNS and pairing.visit_length(9.0) == 1


def test_a_side_answers_and_reports_its_own_memory():
    ballast = np.ones(60_000_000)  # ru_maxrss of a child would start from ours
    with fake() as side:
        assert side.ready == {"side": "fake"} and side.ask("echo", word="ä")["heard"] == "ä"
        side.ask("open", weights="w")
        assert len(side.run(3)) == 3 and min(side.run(2)) >= 0.002
        assert 1e6 < side.ask("peak")["bytes"] < ballast.nbytes
        with pytest.raises(SideError, match="fake: KeyError"):
            side.ask("open")
        assert side.ask("close")["closed"] is True
    with fake(clock="processor") as side:  # whose task sleeps for two milliseconds
        side.ask("open", weights="w")
        assert min(side.run(5)) < 0.001


def test_a_kernel_is_chosen_by_its_name_or_a_part_of_names():
    names = ["attention", "deformable_attention", "linear"]
    assert kernels._chosen(names, ["attention"]) == ["attention"] and kernels._chosen(names, []) == names
    assert kernels._chosen(names, ["atten", "linear"]) == names


def test_a_side_that_dies_or_sleeps_is_named_with_its_last_words():
    with fake("die") as side:
        side.ask("open", weights="w")
        with pytest.raises(SideError, match="fake: ended with status 3: .*out of luck"):
            side.run(1)
    with fake() as side:
        side.ask("open", weights="w")
        with pytest.raises(SideError, match="no answer within 0 s"):
            side.run(1000, timeout_s=0.05)
    with pytest.raises(SideError, match="nowhere/python cannot be started"):
        Side("gone", ["nowhere/python"])


def test_another_python_gets_the_first_environment(monkeypatch):
    """What jseg chose for itself must not make PyTorch faster or slower."""
    from jseg.bench.side import _environment, jseg_command
    monkeypatch.setenv("JSEG_TEST_MARK", "later")
    assert ("JSEG_TEST_MARK" not in _environment(list(FAKE), {"A": "1"})
            and _environment(list(FAKE), {"A": "1"})["A"] == "1")
    assert _environment(jseg_command(), {})["JSEG_TEST_MARK"] == "later"


def test_compare_finds_differences():
    ours = {"logits": np.array([1.0, -4.0]), "label_maps": np.array([1, 2, 3, 4])}
    assert models.compare(ours, ours) == {"logits": 0.0, "label_maps": 0.0}
    found = models.compare(ours, {"logits": np.array([1.0, -4.4]), "label_maps": np.array([1, 2, 3, 5])})
    assert found["logits"] == pytest.approx(0.4 / 4.4) and found["label_maps"] == 0.25
    gradients = models.compare({"gradient/a": 1.0, "gradient/b": 0.0}, {"gradient/a": 1.1, "gradient/b": 1e-9})
    assert gradients["gradients"] == pytest.approx(0.1 / 1.1011)
    with pytest.raises(SideError, match="do not fit together: extra"):
        models.compare(ours, {**ours, "extra": np.zeros(1)})
    assert models.compare(ours, {"label_maps": np.array([1, 2, 3, 3])}) == {"label_maps": 0.25}
    assert models.compare({"loss": np.ones(1), "gradient/a": 1.0, "gradient/unused": 0.0},
                          {"loss": np.ones(1), "gradient/a": 1.0}) == {"gradients": 0.0, "loss": 0.0}
    with pytest.raises(SideError, match="do not fit together: gradient/b"):
        models.compare({"gradient/a": 1.0, "gradient/b": 1.0}, {"gradient/a": 1.0})
    theirs = {"out0": np.array([1, 3]), "dx": np.array([0.5])}
    assert differences({"out0": np.array([1, 2]), "dx": np.array([1.0])}, theirs) == {"out0": 0.5, "dx": 1.0}


class FakeJseg:
    """jseg's side without Jittor: what `measure_model` asks of it, answered at once."""

    def __init__(self, *_, **__):
        self.asked = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, **words):
        self.asked.append(do)
        if do == "results":
            np.savez(words["out"], logits=np.ones((1, 2)), label_maps=np.ones((1, 2), np.uint8))
        if do == "open":
            assert (pathlib.Path(words["config"]).is_file()
                    and np.load(words["inputs"])["images"].shape == (1, 3, 40, 36))
        return {"bytes": 2**20, "seconds": [0.001] * words.get("warm", 0)}

    def run(self, count):
        return [0.001] * count


@pytest.mark.parametrize("behaviour, outcome", [("agree", None), ("differ", "results differ from jseg's, not timed: "
                                                                            "logits differ by 5.0e-01"),
                                                ("labels", "cannot be compared: jseg's label maps have one class"),
                                                ("die", "other: ended with status 3")])
def test_a_model_is_compared_before_it_is_timed(monkeypatch, behaviour, outcome):
    real = Side
    monkeypatch.setattr(models, "Side", lambda name, *a, **k: FakeJseg() if name == "jseg" else real(name, *a, **k))
    job = models.Measurement(load_config(CONFIG), "demo", "infer", (40, 36), 1, 1)
    row = models.measure_model(job, [opponents.Rival("other", FAKE, {"FAKE_SIDE": behaviour})], repeat=2,
                               say=lambda line: None)
    found = row["others"]["other"]
    assert row["jseg"]["median_ms"] == pytest.approx(1.0) and row["jseg"]["peak_bytes"] == 2**20
    assert row["title"] == "demo, inference, 1 x 40x36, 1 thread"
    if outcome is None:
        assert found["ratio"]["median"] > 2 and found["rounds"] == 2 and found["peak_bytes"] > 1e6
    else:
        assert found["failed"].startswith(outcome) and "median_ms" not in found
    assert "**" in page.page({"machine": MACHINE, "models": [row]}) or outcome


def test_work_of_kernels():
    shapes = {"x": (1, 4, 8, 8), "weight": (6, 4, 1, 1), "bias": (6,)}
    assert work.operations("pointwise", shapes, [(1, 6, 8, 8)], {}) == 2 * 6 * 64 * 4
    assert work.operations("readout", {}, [], {}) is None
    assert work.traffic([(2, 3), ()]) == 4 * 7
    found = work.share_of_limit(1e-3, 10**6, 10**9, {"copy_gb_s": 10.0, "sgemm_gflop_s": 2000.0})
    assert ((found["gb_s"], found["gflop_s"], found["share"]) == tuple(map(pytest.approx, (1.0, 1000.0, 0.5)))
            and found["bound"] == "arithmetic")


def test_limits_are_measured():
    assert limits.copy_bandwidth(2, megabytes=1, repeats=2) > 0.01
    assert limits.matrix_rate(side=64, repeats=2) > 0.01


def test_only_a_cold_cache_is_emptied(tmp_path):
    mine, theirs = tmp_path / "jseg_cpu_cold", tmp_path / "jseg_cpu"
    for cache in (mine, theirs):
        for name in ("jit", "obj_files"):
            (cache / name).mkdir(parents=True)
            (cache / name / "a.so").touch()
    cold.empty_cache(mine)
    assert not list((mine / "jit").iterdir()) and (mine / "obj_files" / "a.so").exists()
    with pytest.raises(SideError, match="nothing was removed"):
        cold.empty_cache(theirs)
    assert (theirs / "jit" / "a.so").exists()


def test_a_cold_start_is_measured_in_an_emptied_cache(monkeypatch, tmp_path):
    cache = tmp_path / "jseg_cpu_cold"
    order = []

    class FakeCold(FakeJseg):
        def __init__(self, name, command, *, threads, env):
            assert env == {"cache_name": "jseg_cpu_cold"}
            order.append(name)

        def ask(self, do, **words):
            if do == "hello":
                (cache / "jit").mkdir(parents=True)
                (cache / "jit" / "op.so").touch()
                return {"cache": str(cache)}
            order.append((words["warm"], "weights" in words, len(list(cache.glob("jit/*.so")))))
            return {"built_s": 0.5, "seconds": [8.0, 0.1][:words["warm"]]}

    monkeypatch.setenv("cache_name", "jseg_cpu")
    monkeypatch.setattr(cold, "Side", FakeCold)
    row = cold.measure_cold(models.Measurement(load_config(CONFIG), "demo", "train", (32, 32), 1),
                            say=lambda line: None)
    assert order == ["jseg, to build the core", (0, False, 1), "jseg, cold", (2, True, 0)]
    assert (row["total_s"], row["second_s"]) == (8.5, 0.1)


def test_a_failed_measurement_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def fail(job, *_, **__):
        raise SideError(f"jseg: {job.size} is too large")

    monkeypatch.setattr(models, "measure_model", fail)
    words = ["bench", "--model", str(CONFIG), "--mode", "infer", "--size", "64", "64", "--size", "99", "99",
             "--batch", "3"]
    assert cli.main([*words, "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "a.md")]) == 1
    assert [row["title"][-9:] for row in json.loads((tmp_path / "a.json").read_text())["models"]] == [
        "3 x 64x64", "3 x 99x99"]
    assert "(99, 99) is too large" in (tmp_path / "a.md").read_text()


def test_the_page_shows_every_row():
    ratio = {"median": 10.0, "q1": 9.5, "q3": 10.5}
    other = {**TIMES, "median_ms": 125.0, "ratio": ratio, "peak_bytes": 500 * 2**20, "built_by": "mmsegmentation 1.2.2"}
    model = {"title": "tiny, inference", "jseg": {**TIMES, "peak_bytes": 100 * 2**20},
             "others": {"PyTorch": other, "tuned": {"failed": "no memory"}}}
    start = {"title": "tiny, inference", "import_s": 1.0, "built_s": 0.5, "first_s": 8.0, "total_s": 8.5,
             "second_s": 0.1}
    kernel = {"kernel": "msca", "case": "stage1", "grad": False, "jseg": TIMES, "others": {"plain Jittor": other},
              "limit": {"gb_s": 5.0, "gflop_s": None, "share": 0.4, "bound": "memory"}}
    part = {"device": "cpu", "threads": 2, "limits": {"copy_gb_s": 12.5, "sgemm_gflop_s": 300.0}, "rows": [kernel],
            "checks": {"msca": {"cases": 7, "error": 1e-6, "plain_error": 2e-6, "failures": []}}}
    text = page.page({"machine": MACHINE, "models": [model], "cold": [start], "kernels": [part]})
    for words in ("| tiny, inference | 12.5 (12.0-13.2) | 100 | 125 (12-13) | **10.0** (9.5-10.5) | 500 | - | - | - |",
                  "tuned: no memory", "mmsegmentation 1.2.2", "| tiny, inference | 1.0 | 0.5 | 8.0 | **8.5** | 0.10 |",
                  "| msca stage1 | 12.5 (12.0-13.2) | 5.0 | - | 40% memory |", "| msca | 7 | 1.0e-06"):
        assert words in text, f"{words!r} is not in\n{text}"
    later = {"machine": {**MACHINE, "date": "2027"}, "models": [dict(model, title="later")]}
    page.add_results(later, {"machine": MACHINE, "models": [model]})
    assert ([row["title"] for row in later["models"]] == ["tiny, inference", "later"]
            and "Rows of several runs" in page.page(later))


def test_the_clock_hands_unused_time_on():
    now = [0.0]
    clock = gpu.Clock({"a": 10, "b": 20}, now=lambda: now[0])
    assert clock.left("a") == 10 and clock.left("b") == 30
    now[0] = 12.0
    assert clock.out("a") and clock.left("b") == 18
    with pytest.raises(ValueError, match="no part 'c'"):
        clock.left("c")
    assert sum(gpu.PARTS.values()) < 480


def test_gpu_without_a_gpu_says_so(monkeypatch, capsys):
    monkeypatch.setattr(gpu.runtime, "gpus", lambda: [])
    assert cli.main(["bench", "--gpu"]) == 2
    assert "no NVIDIA GPU that can be used; nothing was measured" in capsys.readouterr().err
    monkeypatch.setattr(gpu.runtime, "gpus", lambda: [{"name": "a GPU"}])
    monkeypatch.setenv("nvcc_path", "")
    with pytest.raises(RuntimeSetupError, match="no CUDA toolkit"):
        gpu.check_gpu()


class FakeGpu:
    """Any side on a machine with a GPU, answered at once."""

    def __init__(self, name, *_, env=None, **__):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    close = kill = __exit__

    def ask(self, do, **words):
        if do == "results":
            np.savez(words["out"], logits=np.ones((1, 2)))
        if do == "check_kernel" and words["dtype" if "dtype" in words else "kernel"] == "float16":
            raise SideError("msca: no half precision")
        return {"kernels": {"kernels": {"msca": ["stage1"]}, "with_products": []},
                "limits": {"copy_gb_s": 3000.0, "sgemm_gflop_s": 60000.0},
                "check_kernel": {"ok": True, "cases": 1, "error": 1e-7, "plain_error": 1e-7, "failures": []},
                "open_kernel": {"floor": 1e-6, "bytes": 10**6, "operations": None, "options": {}, "names": []}}.get(
                    do, {"device": "a GPU"})

    def run(self, count, *_, **__):
        return [0.25 if self.name == "PyTorch" else 0.1] * count


def test_jobs_ahead_are_tried_twice_and_end_with_the_benchmark(monkeypatch):
    class Stuck(FakeGpu):
        tried: list = []

        def __init__(self, name, *_, **__):
            self.name, self.killed = name, threading.Event()

        def kill(self):
            self.killed.set()

        def ask(self, do, **words):
            if do == "open":
                self.tried.append(self.name)
                if self.name.startswith("slow"):
                    self.killed.wait(20)
                if not self.name.startswith("good"):
                    raise SideError(f"{self.name}: gone")
            return {}

    monkeypatch.setattr(ahead, "Side", Stuck)
    with ahead.Ahead({(name, "infer", False): ({}, {}) for name in ("good", "bad", "slow")}) as jobs:
        jobs.start()
        assert jobs.wait(("good", "infer", False), 10) == "" and "gone" in jobs.wait(("bad", "infer", False), 10)
        assert "still being compiled" in jobs.wait(("slow", "infer", False), 0)
    assert "gone" in jobs.wait(("slow", "infer", False), 0), "closing ends the process"
    assert sorted(Stuck.tried)[:3] == ["bad infer False"] * 2 + ["good infer False"]


def test_every_part_of_a_gpu_run_reports(monkeypatch):
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    for module in (gpu, kernels, ahead):
        monkeypatch.setattr(module, "Side", FakeGpu)
    results, kept = {"machine": MACHINE, "models": [], "kernels": []}, []
    gpu.measure_gpu(results, torch="python", keep=lambda: kept.append(json.dumps(results)), say=lambda line: None)
    parts = results["gpu"]["parts"]
    assert list(parts) == list(gpu.PARTS) and [name for name, part in parts.items() if "failed" in part] == ["kernels"]
    assert parts["kernels"]["failed"] == "wrong or absent: msca float16"
    rows = results["gpu"]["times"]
    assert (len(rows) == 16 and rows[0]["others"]["PyTorch, compiled"]["ratio"]["median"] == 2.5
            and "plain Jittor" in rows[0]["others"])
    assert ({tuple(row["size"]) for row in rows} == {(512, 512), (1024, 2048), (768, 1536)}
            and rows[-1]["dtype"] == "mixed")
    assert results["kernels"][0]["rows"][0]["limit"]["share"] > 0 and len(kept) >= len(rows)
    assert "msca stage1" in page.page(results) and "PyTorch, compiled" in page.page(results)


@pytest.mark.parametrize("variant", ["tiny", "base"])
def test_gpu_settings_need_no_file(variant, monkeypatch, tmp_path):
    shipped = gpu.settings(variant)
    monkeypatch.setattr(gpu.runtime, "__file__", str(tmp_path / "a" / "b.py"))
    own = gpu.settings(variant)
    for key in ("in_channels", "channels", "ham_channels", "num_classes"):
        assert own["model"]["decode_head"][key] == shipped["model"]["decode_head"][key]
    assert own["model"]["decode_head"]["ham_kwargs"]["MD_R"] == shipped["model"]["decode_head"]["ham_kwargs"]["MD_R"]


@pytest.mark.parametrize("words, said", [([], "nothing to measure"),
                                         (["--kernels", "--threads", "0"], "--threads 0: must be at least 1"),
                                         (["--size", "0", "8", "--cold"], "--size 0 8"),
                                         (["--gpu", "--kernels"], "--gpu: decides itself"),
                                         (["--add", "gone.json"], "gone.json: not a result of")])
def test_wrong_words_are_refused_before_minutes_are_spent(words, said, capsys):
    assert cli.main(["bench", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_makes_the_exit_status():
    from jseg.cli.bench import _failures
    good = {"checks": {"msca": {"failures": []}},
            "rows": [{"others": {"PyTorch": {"failed": "PyTorch: not written here"}}}]}
    assert _failures({"models": [], "kernels": [good]}) == []
    bad = {"checks": {"a": {"failures": ["x"]}, "b": {"failed": "y"}},
           "rows": [{"others": {"PyTorch": {"failed": "results differ, not timed"}}}]}
    assert _failures({"models": [], "kernels": [bad]}) == ["a: x", "b: y", "results differ, not timed"]


def test_earlier_results_make_a_page(tmp_path, capsys):
    row = {"title": "t", "import_s": 1, "built_s": 1, "first_s": 1, "total_s": 2, "second_s": 1}
    (tmp_path / "a.json").write_text(json.dumps({"machine": MACHINE, "cold": [row]}))
    assert cli.main(["bench", "--add", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "p.md")]) == 0
    assert "| t | 1.0 |" in (tmp_path / "p.md").read_text()


def test_warmup_counts_and_refuses_tiny_pictures(tmp_path, capsys):
    from jseg.cli import warmup
    for name in ("jit/a.so", "jit/b.so", "jit/b.cc", "jseg_cpu_kernels/msca_1.o"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert warmup.compiled(tmp_path) == {"operations": 2, "kernels": 1}
    assert cli.main(["warmup", str(CONFIG), "--size", "8", "8"]) == 2
    assert "at least 32 pixels" in capsys.readouterr().err
    assert [name for name, _ in warmup.steps(load_config(CONFIG), (64, 64), train=True)][-1] == "second training step"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_kernels_and_plain_path_agree_in_processes_of_their_own(mode):
    job = models.Measurement(load_config(CONFIG), "demo", mode, (64, 64), 2, 1)
    row = models.measure_model(job, opponents.rivals(jittor=True), repeat=1, say=lambda line: None)
    assert "failed" not in row["others"]["plain Jittor"], row["others"]["plain Jittor"]


def test_a_wheel_says_that_the_side_of_pytorch_is_missing(monkeypatch, capsys):
    from jseg.bench import side
    assert side.torch_command("python3")[1].endswith("tests/parity/torch_side.py")
    monkeypatch.setattr(side, "TORCH_SIDE", side.HERE.parents[1] / "tests" / "parity" / "none.py")
    assert cli.main(["bench", "--kernels", "--against-torch", "python3"]) == 2
    assert "an installed wheel does not have; clone the repository" in capsys.readouterr().err
