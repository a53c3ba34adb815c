"""Training end to end on a small dataset of real files: exact resume, signals, refusals, the log."""

import json
import os
import re
import signal
import time

import jittor as jt
import numpy as np
import pytest
from small_run import (TIMINGS, arrays, dump_config, finish, lasting, lines, make_datasets, small_config, start,
                       wait_for)
from stand_in_loggers import fake_wandb
from terminal import Terminal

from jseg.engine.checkpoint import CheckpointError, find_state, load_weights, read_state
from jseg.engine.log import RunLog
from jseg.engine.run_folder import RunFolderError, locked
from jseg.engine.plan import Plan
from jseg.engine.train import NonFiniteError, train
from jseg.engine.train_cfg import AT_THE_END, TrainCfg
from jseg.errors import ConfigError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_datasets(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def config(pictures):
    return small_config(pictures)


def test_a_run_killed_five_times_equals_one_never_killed(config, tmp_path, plain_children):
    config["train_dataloader"]["num_workers"] = 1
    rng = np.random.default_rng(int(os.environ.get("JSEG_TEST_SEED", "1")))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(config, whole), whole)
    for target in sorted(rng.integers(1, 60, 5)):
        process = start(config, killed, "--resume")
        wait_for(process, killed, target)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        process.wait()
    finish(start(config, killed, "--resume"), killed)
    assert lasting(killed) == lasting(whole)
    assert [e["iter"] for e in lasting(whole) if "loss" in e] == list(range(1, 61))
    expected, got = arrays(whole), arrays(killed)
    assert expected.keys() == got.keys()
    different = [name for name in expected if not np.array_equal(expected[name], got[name])]
    assert not different, f"{len(different)} of {len(expected)} arrays differ: {different[:5]}"
    for folder in (whole, killed):
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["best", "eval", "iter_56", "last"]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(config, tmp_path, number, status, plain_children):
    # never done before the signal arrives
    config["train_cfg"].update(ckpt_interval=10000, val_interval=10000, max_iters=10000)
    run = tmp_path / "run"
    process = start(config, run)
    wait_for(process, run, 4)
    process.send_signal(number)
    finish(process, run, status)
    done = [e["iter"] for e in lines(run) if "loss" in e][-1]
    assert read_state(run / "last")[2]["iter"] == done < 10000
    assert f"stopped after {done} of 10000 iterations" in run.with_suffix(".txt").read_text()
    assert (run / "run.lock").read_text() == ""


def test_nonfinite_loss_stops_and_names_the_files(config, tmp_path):
    config["optimizer"]["lr"], config["param_scheduler"] = 1e6, []
    config["train_cfg"].update(ckpt_interval=2, accumulative_counts=1, clip_grad=None)
    with pytest.raises(NonFiniteError, match=r"is not finite.*nonfinite_iter_\d+\.json.*clip_grad"):
        train(config, work_dir=str(tmp_path / "run"))
    report_path, = (tmp_path / "run").glob("nonfinite_iter_*.json")
    report = json.loads(report_path.read_text())
    assert len(report["files"]) == 4 and all(os.path.isfile(f["img_path"]) for f in report["files"])
    found, notes = find_state(tmp_path / "run")
    assert not notes and (found is None or read_state(found)[2]["iter"] < report["iter"])


def test_what_a_run_leaves_and_that_memory_stays_flat(config, tmp_path, monkeypatch):
    config["train_cfg"].update(max_iters=12, val_interval=12, log_interval=5, loggers="wandb")
    logged = fake_wandb(monkeypatch)
    config["param_scheduler"] = config["param_scheduler"][1:]
    alive, add = [], RunLog.add
    monkeypatch.setattr(RunLog, "add", lambda self, *a: (alive.append(jt.number_of_lived_vars()), add(self, *a))[1])
    result = train(config, work_dir=str(tmp_path / "run"))
    assert alive[3] == alive[5] == alive[9], alive  # every second step closes a sum of gradients
    run = tmp_path / "run"
    assert result["iter"] == 12 and result["signal"] is None and result["best"]["iter"] == 12
    assert [e["iter"] for e in lines(run)] == [5, 10, 12, 12] and "mIoU" in lines(run)[-1]["val"]
    assert set(TIMINGS) <= set(lines(run)[0]) and {"decode.loss_ce", "grad_norm", "epoch"} <= set(lines(run)[0])
    weights, meta = load_weights(run / "best.safetensors")
    assert meta["classes"] == ["ground", "disc", "box"] and len(meta["palette"]) == 3
    assert meta["config"]["optimizer"]["lr"] == 1e-3 and meta["origin"]["ema"] is True
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["metrics"]["mIoU"] == pytest.approx(result["metrics"]["mIoU"]) and any((run / "eval").iterdir())
    trained, averaged = load_weights(run / "best" / "weights.safetensors")[0], weights
    assert not np.array_equal(trained["decode_head.conv_seg.weight"], averaged["decode_head.conv_seg.weight"])
    with pytest.raises(RunFolderError, match="holds a run already.*--resume"):
        train(config, work_dir=str(run))
    config["train_cfg"]["max_iters"] = 14  # a finished run can be prolonged
    assert train(config, work_dir=str(run), resume=True)["iter"] == 14
    assert logged.of("config")[0]["config"]["optimizer"]["lr"] == 1e-3 and logged.of("finish") == [{"exit_code": 0}] * 2
    assert logged.of("summary")[0]["final/mIoU"] == result["metrics"]["mIoU"] and logged.of("init")[1]["id"] == "made1"


def test_resuming_with_another_optimizer_says_what_to_do(config, tmp_path):
    config["train_cfg"].update(max_iters=2, accumulative_counts=1, ema=None)
    config["param_scheduler"], config["val_dataloader"], config["train_cfg"]["val_interval"] = [], None, None
    train({**config, "optimizer": {"type": "SGD", "lr": 0.01}}, work_dir=str(tmp_path / "run"))
    assert (tmp_path / "run" / "best.safetensors").exists()
    with pytest.raises(CheckpointError, match="no 'exp_avg.*load_from"):
        train(config, work_dir=str(tmp_path / "run"), resume=True)


def test_two_runs_in_one_folder_are_refused(config, tmp_path):
    with locked(tmp_path):
        with pytest.raises(RunFolderError, match=f"in use by another run .pid {os.getpid()}"):
            train(config, work_dir=str(tmp_path))
    with locked(tmp_path):  # a stale file is no lock
        pass


def test_mistakes_are_listed_before_anything_is_made(config, tmp_path):
    config["optimizer"]["type"] = "AdamV"
    config["train_cfg"]["max_itters"] = 3
    with pytest.raises(ConfigError, match="(?s)AdamW.*max_iters"):
        train(config, work_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(bool(jt.flags.use_cuda), reason="there is a GPU")
def test_mixed_precision_on_the_cpu_is_refused(config, tmp_path):
    config["train_cfg"]["amp"] = True
    with pytest.raises(ConfigError, match="train_cfg.amp: true needs a CUDA device"):
        train(config, work_dir=str(tmp_path / "run"))


def test_plan_counts_epochs_where_the_run_does():
    plan = Plan.of(TrainCfg.read({"max_epochs": 4, "val_interval": 2}), 5, evaluates=True)
    assert (plan.max_iters, plan.val_interval, plan.ckpt_interval) == (20, 10, 5)
    assert [i for i in range(1, 21) if plan.evaluates_after(i)] == [10, 20]
    plan = Plan.of(TrainCfg.read({"max_iters": 7, "accumulative_counts": 3}), 5, evaluates=False)
    assert plan.val_interval is None and not plan.evaluates_after(7)
    assert [plan.accumulation(i) for i in range(7)] == [(3, False), (3, False), (3, True), (3, False), (3, False),
                                                                  (3, True), (1, True)]


def test_train_cfg_fills_in_its_defaults():
    cfg = TrainCfg.read({"max_iters": 7, "log_interval": None, "keep": None, "clip_grad": {"max_norm": 2.0}, "ema": {}})
    assert (cfg.log_interval, cfg.keep, cfg.save_best, cfg.val_interval) == (50, 1, "mIoU", AT_THE_END)
    assert cfg.clip_grad.max_norm == 2.0 and cfg.ema.decay == 0.9998 and cfg.early_stop is None
    assert [Plan.of(c, 5, evaluates=True).val_interval
            for c in (cfg, TrainCfg.read({"max_iters": 7, "val_interval": None}))] == [7, None]


def test_log_of_a_resumed_run_reads_as_if_never_broken(tmp_path):
    log = RunLog(tmp_path, max_iters=10, batch_size=2)
    with log:
        for i in range(5):
            log.add({"loss": float(i), **({"grad_norm": 2.0} if i % 2 else {})}, 0.0)
            if i == 1:
                entry = log.write(epoch=0, lr=0.1)
                state = log.state()
        log.write_val({"mIoU": 0.5})
        log.write(epoch=0, lr=0.1)
    assert entry["loss"] == 0.5 and entry["grad_norm"] == 2.0 and lines(tmp_path)[-1]["loss"] == 3.0
    with open(log.path, "a") as file:
        file.write('{"iter": 6, "lo')
    with RunLog(tmp_path, max_iters=10, batch_size=2, start_iter=5, keep_val=False):
        assert [e["iter"] for e in lines(tmp_path)] == [2, 5] and "val" not in lines(tmp_path)[-1]
    with RunLog(tmp_path, max_iters=10, batch_size=2, start_iter=2) as log:
        log.restore(json.loads(json.dumps(state)))
        assert [e["iter"] for e in lines(tmp_path)] == [2]


def test_evaluations_leave_a_line_on_a_terminal_and_elsewhere(config, tmp_path, plain_children):
    config["train_cfg"].update(max_iters=4, val_interval=2)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    words = ("jseg", "train", tmp_path / "run.yaml", "--work-dir", tmp_path / "run")
    with Terminal(*words, env={"COLUMNS": "150"}) as shown:
        shown.watch(400)
        assert shown.status == 0, shown.text[-2000:]
    config["train_cfg"]["max_iters"] = 6
    run = tmp_path / "run"
    finish(start(config, run, "--resume"), run)
    texts = [shown.text, run.with_suffix(".txt").read_text()]
    found = [re.findall(r"iter (\d+)/\d  loss (\d\.\d{4})  mIoU (\d+\.\d\d)  aAcc (\d+\.\d\d)  "
                        r"(best so far|best (\d+\.\d\d) at (\d))  0:0\d:\d\d$", text.replace("\r", "\n"), re.M)
             for text in texts]
    assert [[words[0] for words in part] for part in found] == [["2", "4"], ["6"]], texts
    entries = lines(run)
    losses = {entry["iter"]: entry["loss"] for entry in entries if "loss" in entry}
    scores = {entry["iter"]: entry["val"]["mIoU"] for entry in entries if "val" in entry}
    for at, loss, score, _, words, best, best_at in sum(found, []):
        assert float(loss) == pytest.approx((losses[int(at)] + losses[int(at) - 1]) / 2, abs=1e-4)
        assert float(score) == pytest.approx(100 * scores[int(at)], abs=0.006)
        earlier = {step: value for step, value in scores.items() if step <= int(at)}
        first = max(earlier, key=earlier.get)
        assert words == "best so far" if first == int(at) else int(best_at) == first and float(best) > float(score)
    said = [len(re.findall(r"iter \d/\d  loss \d.*  lr ", text)) for text in texts]
    assert said == [0, 2], "lines of steps belong where there is no bar"
