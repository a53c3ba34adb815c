"""The loggers beside log.jsonl: what they are told, over a resume too, and that none of them can end a run."""

import functools
import json
import struct
import sys
import threading

import pytest
from small_run import lines
from stand_in_loggers import fake_mlflow, fake_wandb

from jseg.engine.log import RunLog
from jseg.engine.loggers import group
from jseg.engine.train_cfg import TrainCfg, train_cfg_faults
from jseg.errors import ConfigError

CONFIG = {"optimizer": {"type": "AdamW", "lr": 0.1}, "seed": 3, "param_scheduler": [{"type": "PolyLR"}],
          "paramwise_cfg": {"custom_keys": {f"part{i}": {"lr_mult": 2.0} for i in range(120)}}}


def write_run(folder, loggers, *, start_iter=0, steps=4, error=None, final=None):
    """A run of `steps` steps with a line and an evaluation every two of them; ends by `error` or as `final` says."""
    with RunLog(folder, max_iters=10, batch_size=2, start_iter=start_iter, loggers=loggers, config=CONFIG) as log:
        for i in range(start_iter, start_iter + steps):
            log.add({"loss": float(i), "decode.acc_seg": 50.0}, 0.0)
            if i % 2:
                log.write(epoch=0, lr=0.1)
                log.write_val({"mIoU": i / 10, "mAcc": None})
        if error:
            raise error
        if final:
            log.write_final(final)


def test_wandb_hears_of_config_steps_scores_and_of_a_resumed_run(tmp_path, monkeypatch, capsys):
    record = fake_wandb(monkeypatch)
    block = {"type": "wandb", "project": "roads", "group": "g"}
    (tmp_path / "first").mkdir()
    write_run(tmp_path / "first", [block])
    assert record.of("init") == [{"project": "roads", "entity": None, "name": "first", "group": "g", "mode": None,
                                  "dir": str(tmp_path / "first"), "id": None, "resume": "allow"}]
    assert record.of("define_metric")[1] == {"name": "*", "step_metric": "iter"}
    assert record.of("config") == [{"config": CONFIG, "change": True}]
    rows = record.of("log")
    assert [row["iter"] for row in rows] == [2, 2, 4, 4] and rows[1] == {"val/mIoU": 0.1, "iter": 2}
    assert rows[2]["train/loss"] == 2.5 and rows[2]["train/decode.acc_seg"] == 50.0 and "train/iter" not in rows[2]
    assert record.of("finish") == [{"exit_code": 130}]  # it can be resumed
    write_run(tmp_path / "first", [block], start_iter=4, steps=2, final={"mIoU": 0.5, "mAcc": None})
    assert record.of("init")[1]["id"] == "made1" and record.of("summary")[-1] == {"final/mIoU": 0.5}
    assert record.of("finish")[1:] == [{"exit_code": 0}] and record.of("log")[-1]["iter"] == 6
    assert capsys.readouterr().err.count("logger wandb: https://wandb.example/made1") == 2


def test_mlflow_hears_of_config_steps_scores_and_of_a_resumed_run(tmp_path, monkeypatch):
    record = fake_mlflow(monkeypatch)
    block = {"type": "mlflow", "tracking_uri": "http://host:5000", "experiment": "roads"}
    with pytest.raises(KeyError):
        write_run(tmp_path, [block], error=KeyError("x"))
    assert record.of("client") == [{"tracking_uri": "http://host:5000"}]
    params = dict(pair for batch in record.of("log_batch") for pair in batch["params"])
    assert params["optimizer.lr"] == "0.1" and params["param_scheduler"] == '[{"type": "PolyLR"}]'
    assert len(params) == 124 and "type: AdamW" in record.of("log_text")[0]["text"]
    metrics = [metric for batch in record.of("log_batch") for metric in batch["metrics"]]
    assert ("train/loss", 0.5, 2) in metrics and ("val/mIoU", 0.3, 4) in metrics and not [
        metric for metric in metrics if metric[0].endswith("/mAcc")]
    write_run(tmp_path, [block], start_iter=4, steps=2, final={"mIoU": 0.5})
    assert len(record.of("create_run")) == 1 and record.of("update_run") == [{"run_id": "run1", "status": "RUNNING"}]
    assert record.of("log_batch")[-1]["metrics"] == [("final/mIoU", 0.5, 6)]
    assert [end["status"] for end in record.of("set_terminated")] == ["FAILED", "FINISHED"]


def test_a_logger_that_fails_warns_once_and_one_that_hangs_is_left(tmp_path, monkeypatch, capsys):
    board, server, release = fake_wandb(monkeypatch), fake_mlflow(monkeypatch), threading.Event()

    def gone():
        raise ConnectionError("no route to host")

    board.fails["log"], server.fails["log_text"] = gone, functools.partial(release.wait, 60)
    monkeypatch.setitem(group.PATIENCE_S, "stopped", 0.2)
    write_run(tmp_path, [{"type": "wandb"}, {"type": "mlflow"}])
    said = capsys.readouterr().err
    assert said.count("warning: logger wandb") == 1 and "ConnectionError: no route to host; training goes on" in said
    assert "logger mlflow: not all numbers are sent after 0 s; log.jsonl has them" in said
    assert [entry["iter"] for entry in lines(tmp_path)] == [2, 2, 4, 4] and board.of("finish")
    release.set()


def test_a_logger_that_cannot_begin_says_why_and_how(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb needs the package wandb .*pip install 'jseg-jittor\[wandb\]'"):
        write_run(tmp_path, [{"type": "wandb"}])
    record, server = fake_wandb(monkeypatch), fake_mlflow(monkeypatch)
    server.fails["create_experiment"] = lambda: 1 // 0
    with pytest.raises(ConfigError, match="mlflow cannot begin .ZeroDivisionError.*tracking_uri can be reached"):
        write_run(tmp_path, [{"type": "wandb"}, {"type": "mlflow"}])
    assert record.of("finish") == [{"exit_code": 1}]  # the one that had begun is ended
    (tmp_path / "loggers.json").write_text("[]")
    with pytest.raises(ConfigError, match="loggers.json: holds no ids of loggers; remove it"):
        write_run(tmp_path, [{"type": "wandb"}])


def test_train_cfg_takes_names_blocks_and_the_old_switch():
    def read(**block):
        return [logger["type"] for logger in TrainCfg.read({"max_iters": 1, **block}).loggers]

    assert read() == [] and read(tensorboard=True) == ["tensorboard"] == read(loggers="tensorboard")
    assert read(tensorboard=True, loggers=["tensorboard", {"type": "wandb"}]) == ["tensorboard", "wandb"]
    faults = {text: train_cfg_faults({"train_cfg": {"max_iters": 1, "loggers": value}}) for text, value in {
        "unknown logger 'wandbb'; did you mean 'wandb'?": ["wandbb"], "'wandb' is there twice": ["wandb", "wandb"],
        "unknown key 'projct' for wandb; did you mean 'project'?": {"type": "wandb", "projct": "x"},
        "got 3, expected a list of names (tensorboard, wandb, mlflow)": 3,
        "train_cfg.loggers.experiment: got 3, expected text": [{"type": "mlflow", "experiment": 3}]}.items()}
    assert all(len(found) == 1 and text in found[0] for text, found in faults.items()), faults
    assert train_cfg_faults({"train_cfg": {"max_iters": 1, "loggers": []}}) == []


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes (blocks of 32 KiB; each piece has a
    checksum, a length and 1 whole, 2 first, 3 middle or 4 last)."""
    from wandb.proto import wandb_internal_pb2
    content, at, whole = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        length, kind = struct.unpack("<HB", content[at + 4:at + 7])
        if kind:
            whole += content[at + 7:at + 7 + length]
            if kind in (1, 4):
                yield wandb_internal_pb2.Record.FromString(whole)
                whole = b""
        at += 7 + length
        at += 32768 - at % 32768 if 32768 - at % 32768 < 7 else 0


def test_real_wandb_writes_the_run_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    block = {"type": "wandb", "project": "roads", "mode": "offline"}
    write_run(tmp_path, [block])
    write_run(tmp_path, [block], start_iter=4, steps=2, final={"mIoU": 0.5})
    wandb.teardown()  # its own process has written everything
    kept = json.loads((tmp_path / "loggers.json").read_text())["wandb"]
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in files] == [f"run-{kept}"] * 2  # `wandb sync` joins the two
    rows, summary, found = [], {}, {}
    for path in files:
        for entry in wandb_records(path):
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json)
                     for item in entry.history.item}
            rows += [items] if items else []
            summary.update({item.key or "/".join(item.nested_key): item.value_json for item in entry.summary.update})
            found.update({item.key: json.loads(item.value_json) for item in entry.config.update})
    assert [(row["iter"], row["val/mIoU"]) for row in rows if "val/mIoU" in row] == [(2, 0.1), (4, 0.3), (6, 0.5)]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == [0.5, 2.5, 4.5]
    assert summary["final/mIoU"] == "0.5" and found["optimizer"] == CONFIG["optimizer"]


def test_real_mlflow_keeps_the_run_in_a_database(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient
    monkeypatch.chdir(tmp_path)  # where MLflow puts the files of runs in a database
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    block = {"type": "mlflow", "tracking_uri": f"sqlite:///{tmp_path}/runs.db", "experiment": "roads"}
    write_run(tmp_path, [block])
    client = MlflowClient(block["tracking_uri"])
    kept = json.loads((tmp_path / "loggers.json").read_text())["mlflow"]
    assert client.get_run(kept).info.status == "KILLED"
    write_run(tmp_path, [block], start_iter=4, steps=2, final={"mIoU": 0.5})
    run = client.get_run(kept)
    assert run.info.status == "FINISHED" and run.info.run_name == tmp_path.name
    assert run.data.params["optimizer.lr"] == "0.1" and len(run.data.params) == 124
    assert [(m.step, m.value) for m in client.get_metric_history(kept, "val/mIoU")] == [(2, 0.1), (4, 0.3), (6, 0.5)]
    assert run.data.metrics["final/mIoU"] == 0.5
    assert "type: AdamW" in (tmp_path / client.download_artifacts(kept, "config.yaml")).read_text()


def test_real_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    write_run(tmp_path, [{"type": "tensorboard"}], final={"mIoU": 0.5})
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").glob("events.*"))
    assert all(name in content for name in (b"train/loss", b"val/mIoU", b"final/mIoU", b"type: AdamW"))
