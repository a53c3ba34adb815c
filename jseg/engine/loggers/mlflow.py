"""MLflow: a run of an experiment on a tracking server, in a database or in a folder."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Iterator, Mapping

from jseg.config import dump_config
from jseg.engine.loggers.base import LoggedRun, import_package, keep_id, kept_id
from jseg.registry import LOGGERS

__all__ = ["MlflowLogger"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_PARAMS, _LONGEST_PARAM = 100, 500  # of one request; characters that every server takes


@LOGGERS.register("mlflow")
class MlflowLogger:
    """A run of MLflow: the config as parameters and as `config.yaml`, numbers as metrics by iteration.

    A resumed run goes on in the same one; parameters stay those of its first start.

    Args:
        tracking_uri: such as http://host:5000 or sqlite:///mlflow.db; None for MLFLOW_TRACKING_URI, else MLflow's own.
        experiment: is made where there is none of the name.
        name: of the run; None for the name of the run's folder.
    """

    cure = "see that tracking_uri can be reached and that the run in loggers.json is there"
    unsent = "log.jsonl has them"

    def __init__(self, run: LoggedRun, *, tracking_uri: str | None = None, experiment: str = "jseg",
                 name: str | None = None):
        tracking = import_package("mlflow.tracking", "mlflow", "mlflow")
        self._entities = import_package("mlflow.entities", "mlflow", "mlflow")
        self._client = tracking.MlflowClient(tracking_uri)
        found = kept_id(run.work_dir, "mlflow")
        self._is_new, self._last = found is None, run.step
        if found is None:
            known = self._client.get_experiment_by_name(experiment)
            group = known.experiment_id if known else self._client.create_experiment(experiment)
            found = self._client.create_run(group, run_name=name or run.work_dir.resolve().name).info.run_id
            keep_id(run.work_dir, "mlflow", found)
        else:
            self._client.update_run(found, status="RUNNING")
        self._id, self.place = found, f"run {found}"

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Parameters once, since MLflow lets none change; the file at every start."""
        if self._is_new:
            params = [self._entities.Param(key, value) for key, value in dict(_flat(config)).items()]
            for first in range(0, len(params), _MOST_PARAMS):
                self._client.log_batch(self._id, params=params[first:first + _MOST_PARAMS])
        self._client.log_text(self._id, dump_config(config), "config.yaml")

    def log_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """One request for all."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[self._entities.Metric(name, value, now, step)
                                                  for name, value in scalars.items()])
        self._last = step

    def finish(self, scalars: Mapping[str, float], status: str) -> None:
        """Log the final scores and the status."""
        if scalars:
            self.log_scalars(scalars, self._last)
        self._client.set_terminated(self._id, _STATUS[status])


def _flat(block: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their values as text; long ones are in config.yaml alone."""
    for key, value in block.items():
        name = before + re.sub(r"[^\w.\-/ ]", "_", str(key))  # what MLflow takes
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) <= _LONGEST_PARAM and len(name) <= 250:
            yield name, text
