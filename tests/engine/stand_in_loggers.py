"""Stand-ins for the packages wandb and mlflow that record what jseg calls, with the signatures of the real ones."""

from __future__ import annotations

import sys
import types


class Recorder:
    """Every call as (name, arguments); `fails` maps names of calls to what they raise or run."""

    def __init__(self):
        self.calls, self.fails = [], {}

    def note(self, call, /, **arguments):
        if call in self.fails:
            self.fails[call]()
        self.calls.append((call, arguments))

    def of(self, call):
        return [arguments for called, arguments in self.calls if called == call]


def fake_wandb(monkeypatch) -> Recorder:
    """Put a stand-in of wandb into `sys.modules`."""
    record = Recorder()

    class Run:
        def __init__(self, run_id):
            self.id, self.dir, self.url = run_id, "wandb/files", f"https://wandb.example/{run_id}"
            self.config = types.SimpleNamespace(
                update=lambda d, allow_val_change=None: record.note("config", config=d, change=allow_val_change))
            self.summary = types.SimpleNamespace(update=lambda d: record.note("summary", **d))

        def define_metric(self, name, step_metric=None):
            record.note("define_metric", name=name, step_metric=step_metric)

        def log(self, data, step=None, commit=None):
            record.note("log", **data)

        def finish(self, exit_code=None):
            record.note("finish", exit_code=exit_code)

    def init(*, project=None, entity=None, name=None, group=None, mode=None, dir=None, id=None, resume=None,
             reinit=None, settings=None):
        record.note("init", project=project, entity=entity, name=name, group=group, mode=mode, dir=dir, id=id,
                    resume=resume)
        return Run(id or f"made{len(record.of('init'))}")

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, lambda **values: values
    monkeypatch.setitem(sys.modules, "wandb", module)
    return record


def fake_mlflow(monkeypatch) -> Recorder:
    """Put a stand-in of mlflow, mlflow.tracking and mlflow.entities into `sys.modules`."""
    record = Recorder()

    class MlflowClient:
        def __init__(self, tracking_uri=None, registry_uri=None):
            record.note("client", tracking_uri=tracking_uri)

        def get_experiment_by_name(self, name):
            found = record.of("create_experiment")
            return types.SimpleNamespace(experiment_id="7") if found else None

        def create_experiment(self, name, artifact_location=None, tags=None):
            record.note("create_experiment", name=name)
            return "7"

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            record.note("create_run", experiment_id=experiment_id, run_name=run_name)
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"run{len(record.of('create_run'))}"))

        def update_run(self, run_id, status=None, name=None):
            record.note("update_run", run_id=run_id, status=status)

        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            assert len(params) <= 100 and len(metrics) <= 1000  # what servers take
            record.note("log_batch", run_id=run_id, metrics=list(metrics), params=list(params))

        def log_text(self, run_id, text, artifact_file):
            record.note("log_text", run_id=run_id, text=text, file=artifact_file)

        def set_terminated(self, run_id, status=None, end_time=None):
            record.note("set_terminated", run_id=run_id, status=status)

    package, tracking, entities = (types.ModuleType(name) for name in ("mlflow", "mlflow.tracking", "mlflow.entities"))
    package.__path__, tracking.MlflowClient = [], MlflowClient
    entities.Param = lambda key, value: (key, value)
    entities.Metric = lambda key, value, timestamp, step: (key, value, step)
    for module in (package, tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return record
