"""Several ranks: the same training and scores as one process, resume across rank counts,
and an end for every kind of failure.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jseg import losses
from jseg.cli import launch
from jseg.config import dump_config
from jseg.engine import watch
from jseg.engine.checkpoint import load_weights
from jseg.errors import ConfigError, RuntimeSetupError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from rank_faults import faulty_config, run_fault  # noqa: E402
from small_run import lines, make_datasets, make_pictures, small_config  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = make_datasets(tmp_path_factory.mktemp("pictures"))
    shutil.rmtree(folder / "val")
    make_pictures(folder / "val", 5, np.random.default_rng(1), largest=64)
    return folder


def jseg(*words, ranks=1):
    """Run a command on one process or on several; what it printed."""
    job = ["launch", "--cpu", "-n", str(ranks)] if ranks > 1 else []
    done = subprocess.run([sys.executable, "-m", "jseg", *job, *map(str, words)], cwd=ROOT, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(config, folder, iters, ranks, *words):
    """Train until `iters`; a run in the folder goes on."""
    config["train_cfg"]["max_iters"] = iters
    path = folder.with_suffix(".yaml")
    path.write_text(dump_config(config))
    jseg("train", path, "--work-dir", folder, *words, ranks=ranks)


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """One run of 12 steps on one process, and one that went 2 -> 1 -> 2 ranks,
    with an uneven split and everything random on.
    """
    config = small_config(pictures)
    config["train_dataloader"]["batch_size"] = 7  # 4 + 3
    config["model"]["decode_head"]["loss_decode"] = [
        {"type": "CrossEntropyLoss", "avg_non_ignore": True, "class_weight": [0.5, 1.0, 2.0]},
        {"type": "DiceLoss", "use_sigmoid": False, "loss_weight": 0.5}]
    config["optimizer"], config["paramwise_cfg"] = {"type": "SGD", "lr": 0.05, "momentum": 0.9}, None
    config["train_cfg"].update(val_interval=6, accumulative_counts=2)
    config["evaluator"] = {"boundary": {"dilation_ratio": 0.02}, "small_targets": {}}
    folder = tmp_path_factory.mktemp("runs")
    train(config, folder / "one", 12, 1)
    for iters, ranks in ((4, 2), (8, 1), (12, 2)):
        train(config, folder / "mixed", iters, ranks, "--resume")
    return folder


@pytest.mark.mpi
def test_two_ranks_then_one_then_two_equal_one_process(runs):
    one, mixed = (load_weights(runs / name / "last" / "weights.safetensors")[0] for name in ("one", "mixed"))
    apart = {name: float(np.abs(one[name] - mixed[name]).max() / max(1.0, np.abs(one[name]).max())) for name in one}
    worst = max(apart, key=apart.get)
    assert apart[worst] < 1e-5, f"{worst}: {apart[worst]}"
    steps = [[e for e in lines(runs / name) if "loss" in e] for name in ("one", "mixed")]
    assert [e["iter"] for e in steps[1]] == list(range(1, 13))
    # the same pictures, masks and bases: another picture would change the loss in the second digit
    for a, b in zip(*steps):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-5) and a["decode.acc_seg"] == pytest.approx(
            b["decode.acc_seg"], abs=0.5)
    assert json.loads((runs / "mixed" / "run.json").read_text())["ranks"] == 2


@pytest.mark.mpi
def test_sharded_evaluation_and_prediction_equal_one_process_bit_for_bit(runs, pictures, tmp_path):
    results = []
    for ranks in (1, 2, 3):
        jseg("val", "--checkpoint", runs / "one" / "best.safetensors", "--out", tmp_path / f"{ranks}.json", "--keep",
             tmp_path / str(ranks) / "keep", "--keep-count", "2", ranks=ranks)
        result = json.loads((tmp_path / f"{ranks}.json").read_text())
        assert result["images"] == 5 and result.pop("seconds") > 0 and result.pop("date")
        assert {"mBoundaryIoU", "Pd", "Fa"} <= set(result["metrics"])
        files = {path.name: path.read_bytes() for path in (tmp_path / str(ranks) / "keep").iterdir()}
        results.append((result, files))
    assert len(results[0][1]) == 12 and results[0] == results[1] == results[2]
    said = [jseg("predict", runs / "one" / "best.safetensors", pictures / "val" / "images", "--out",
                 tmp_path / f"p{ranks}", ranks=ranks)
            for ranks in (1, 2)]
    assert "5 inputs on 2 ranks (3, 2)" in said[1] and all(said[1].count(f"{i:02d}.png ->") == 1 for i in range(5))
    found = [{path.name: path.read_bytes() for path in (tmp_path / f"p{ranks}").iterdir()} for ranks in (1, 2)]
    assert len(found[0]) == 10 and found[0] == found[1]


@pytest.mark.mpi
@pytest.mark.parametrize("fault, status, words", [
    ("exception:1", 1, ("rank 1 of 2 on", "RuntimeError: injected", "faulty_step")),
    ("kill:0", 137, ("signal 9",)),
    ("stall:0", 137, ("rank 0 of 2 on", "has stalled", "last finished step 3", "stopped by a signal")),
    ("data:1", 2, ("rank 1 of 2 on", "street_07.png: truncated", "3 of 100000 iterations are saved")),
    ("nan:1", 2, ("loss of rank 1 of 2 is not finite", "nonfinite_iter_4.json")),
    ("rank-sigstop", 137, ("rank 1 of 2 on", "has stalled", "stopped by a signal")),
    ("launch-sigterm", 143, ("saved in", "go on with --resume")),
    ("launch-sighup", 129, ("saved in", "go on with --resume")),
    ("launch-sigkill", -9, ("saved in", "go on with --resume")),
    ("mpirun-sigkill", 137, ())])  # nobody hears the ranks any more
def test_a_failing_rank_ends_the_job(fault, status, words, pictures, tmp_path):
    seconds, got, said = run_fault(fault, faulty_config(pictures, fault), tmp_path / "run", grace=2.0)
    assert got == status and all(word in said for word in words), said[-3000:]
    assert seconds < 30  # on a busy machine; the table in docs/distributed.md has the measured times
    if fault == "data:1":  # the finished steps are saved, with the open sum of gradients over both ranks
        state = load_weights(tmp_path / "run" / "last" / "state.safetensors")[0]
        assert any(name.startswith("grad.") for name in state)
    if fault == "nan:1":
        report = json.loads((tmp_path / "run" / "nonfinite_iter_4.json").read_text())
        assert report["rank"] == 1 and len(report["files"]) == 2
    if fault.startswith(("launch", "mpirun")):  # nothing was lost
        done, saved = (lines(tmp_path / "run")[-1]["iter"],
                       json.loads((tmp_path / "run" / "last" / "state.json").read_text())["iter"])
        # Open MPI may end ranks whose mpirun is gone before they save
        assert saved == done or fault == "mpirun-sigkill" and 2 <= saved < done
    if fault == "launch-sigterm":
        assert f"stopped after {lines(tmp_path / 'run')[-1]['iter']} of" in said


@pytest.mark.mpi
def test_exchanges_and_norms_of_two_ranks():
    words = launch.mpirun_words("mpirun", type("Options", (), {"ranks": 2, "hostfile": None, "cpu": True, "grace": 6.0,
                                                               "command": []}))
    done = subprocess.run([*words[:words.index(sys.executable) + 1], "tests/engine/rank_probe.py"], cwd=ROOT,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("loss", [
    losses.CrossEntropyLoss(), losses.CrossEntropyLoss(avg_non_ignore=True),
    losses.CrossEntropyLoss(class_weight=[0.5, 1.0, 2.0]), losses.CrossEntropyLoss(
        class_weight=[0.5, 1.0, 2.0], avg_non_ignore=True), losses.CrossEntropyLoss(reduction="sum"),
    losses.CrossEntropyLoss(use_sigmoid=True, avg_non_ignore=True), losses.FocalLoss(),
    losses.DiceLoss(use_sigmoid=False),
    losses.TverskyLoss(), losses.LovaszLoss(per_image=True, reduction="mean")],
                         ids=lambda loss: f"{type(loss).__name__}-{vars(loss)}"[:60])
def test_losses_of_parts_add_up_to_the_loss_of_the_batch(loss, rng):
    import jittor as jt
    logits, labels = rng.normal(size=(5, 3, 4, 5)).astype(np.float32), rng.integers(0, 3, (5, 8, 10)).astype(np.int32)
    labels[0, :5], labels[3, :, 4:] = 255, 255  # the parts have different numbers of counted pixels
    whole = float(loss(jt.array(logits), jt.array(labels)).item())
    total, parts = loss.divisor(labels, 255), 0.0
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        part = 1.0 if total is None else loss.divisor(labels[rows], 255) / total
        parts += part * float(loss(jt.array(logits[rows]), jt.array(labels[rows])).item())
    assert parts == pytest.approx(whole, rel=2e-6)


def test_launch_says_what_is_wrong(tmp_path, monkeypatch):
    options = {"ranks": 4, "hostfile": None, "cpu": True, "grace": 6.0, "command": ["train", "c.yaml"]}
    words = launch.mpirun_words("mpirun", type("Options", (), options))
    assert words[:5] == ["mpirun", "-np", "4", "--bind-to", "none"] and words[-3:] == ["jseg", "train", "c.yaml"]
    assert ("--allow-run-as-root" in words) == (os.geteuid() == 0)
    hosts = tmp_path / "hosts"
    hosts.write_text("node1 slots=2\n# node3\nnode2\n")
    with pytest.raises(ConfigError, match="3 slots for 4 ranks"):
        launch.mpirun_words("mpirun", type("Options", (), {**options, "hostfile": str(hosts)}))
    monkeypatch.setenv("nvcc_path", "/usr/local/cuda/bin/nvcc")
    monkeypatch.setattr(launch.runtime, "gpus", lambda: [{"name": "H100"}] * 2)
    with pytest.raises(ConfigError, match="4 ranks, but 2 GPUs here .H100, H100.*-n 2"):
        launch.mpirun_words("mpirun", type("Options", (), {**options, "cpu": False}))
    with pytest.raises(ConfigError, match="got 'bench'.*train, pretrain, val, predict"):
        launch.run(type("Options", (), {**options, "command": ["bench"]}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeSetupError, match="no mpirun and no mpicc.*apt-get install -y openmpi-bin"):
        launch.run(type("Options", (), options))


def test_the_waiting_rank_is_not_taken_for_the_culprit():
    culprit, busy, victim = (watch.limit(100, phase, 5, state)
                             for phase, state in (("computes", "T"), ("computes", "R"), (watch.WAITING, "R")))
    assert culprit == 100 < busy < victim
    assert watch.limit(3, "computes", 0, "R") >= watch.START_SECONDS  # kernels compile


@pytest.mark.parametrize("given, threads, gpu", [
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "4,6",
      "use_nccl": "0"}, "half", "6"),
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "CUDA_VISIBLE_DEVICES": "0,1"}, "any", "0"),
    ({"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "CUDA_VISIBLE_DEVICES": "",
      "OMP_NUM_THREADS": "3"}, "3", "")])
def test_a_rank_takes_its_share_of_the_host_before_jittor_is_imported(given, threads, gpu):
    code = "import os, jseg; print([os.environ.get(k) for k in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES', 'use_mpi')])"
    env = {k: v for k, v in os.environ.items()
           if k not in ("OMP_NUM_THREADS", "nvcc_path", "use_nccl", "CUDA_VISIBLE_DEVICES")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                          env={**env, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1", **given})
    found = eval(done.stdout)
    cores = len(os.sched_getaffinity(0))
    expected = {"half": str(max(1, cores // 2)), "any": found[0], "3": "3"}[threads]
    assert found == [expected, gpu, "1"], done.stderr
