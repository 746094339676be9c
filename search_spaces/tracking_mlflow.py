"""MLflow beside a search: one run a trial, in an experiment named after the study.

Without a server the runs are kept in `mlflow/mlflow.db` of the study's folder: MLflow's own choice for one machine is
SQLite since 3.7, and its stores of plain files raise an error since 3.14.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from search_spaces.schema import MlflowTracking
from search_spaces.tracking import study_id
from trainables.study import StudyFolder

STUDY, TRIAL, BEST = "heartsweep.study", "heartsweep.trial", "best_trial"
"""Tags of a run: whose it is, which trial's, and whether the search's best so far."""
ENDED = ("FINISHED", "FAILED")
"""What MLflow calls a run that nothing is added to; KILLED is one that goes on with the next launch."""
METRICS_A_REQUEST, PARAMS_A_REQUEST, RUNS_A_REQUEST = 1000, 100, 1000  # what MLflow takes at most
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else it tells its makers what is called, from hospitals, too
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the tracker tries again itself, and MLflow's own seven take minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Read by MLflow from the environment, where what the user set stays."""


class MlflowRuns:
    """The MLflow runs of a study.

    What a run has is asked of MLflow, and only what it lacks is told: a study that goes on, or has moved, goes on with
    the same runs. Epochs carry the time at which they ended, whenever they come to be told.

    Args:
        tracking: the server's address, if there is one.
        folder: the study's.
        maximize: whether the largest value is the best.
    """

    def __init__(self, tracking: MlflowTracking, folder: StudyFolder, *, maximize: bool) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow.entities  # takes seconds
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):  # else the making of the tables is told line by line
            logging.getLogger(name).setLevel(logging.WARNING)
        self._entities, self._make_client = mlflow.entities, MlflowClient
        self._uri = tracking.uri
        self._folder = folder
        self._sign = 1 if maximize else -1
        self._study: str | None = None
        self._experiment = ""
        self._ids: dict[int, str] = {}
        self._ended: set[int] = set()
        self._open: set[int] = set()
        self._deleted: set[int] = set()
        self._known: dict[int, set[tuple[str, int]]] = {}
        self._metrics: dict[int, list[Any]] = defaultdict(list)
        self._best: tuple[float, int] | None = None
        self._tagged: int | None = None

    def connect(self) -> None:
        """Reach the server, or make the study's own store; the first time that takes seconds."""
        place = self._folder.path / "mlflow"
        if self._uri is None:
            place.mkdir(parents=True, exist_ok=True)
        uri = self._uri or f"sqlite:///{place / 'mlflow.db'}"
        self._client = self._make_client(tracking_uri=uri, registry_uri=uri)

    def take_in(self, event: Mapping[str, Any]) -> None:
        """Take in one event of the study; metrics are kept back for `settle`, to be sent together."""
        if self._study is None:
            self._study = study_id(event)
            self._experiment = self._find_experiment()
            self._find_runs()
        number, kind = event.get("trial"), event["event"]
        if number is None:
            return
        if kind == "trial_ended":
            self._compare(number, event)
        if number in self._ended:
            return
        if kind == "trial_started":
            self._begin(number, event)
        elif number not in self._open:
            return
        elif kind == "epoch":
            self._keep(number, event, event["epoch"], event["metrics"])
        elif kind == "exploit":  # a parameter of MLflow's is never changed, so what a trial took over becomes a tag
            taken_over = json.dumps({"donor": event["donor"], **event["params"]})
            self._client.set_tag(self._ids[number], f"exploit.epoch_{event['epoch']}", taken_over)
        elif kind == "trial_ended":
            self._end(number, event)

    def settle(self) -> None:
        """Send the metrics that were kept back, and say which trial is the best so far."""
        for number in sorted(self._metrics):
            self._send(number)
        if self._best is None or self._best[1] == self._tagged:
            return
        if self._tagged is not None:
            self._client.delete_tag(self._ids[self._tagged], BEST)
        self._tagged = self._best[1]
        self._client.set_tag(self._ids[self._tagged], BEST, "true")

    def close(self) -> None:
        """Call the runs of trials that have not ended killed; never raises."""
        with contextlib.suppress(Exception):  # one failure is enough: a server that is down keeps each call waiting
            for number in sorted(self._open):
                self._client.set_terminated(self._ids[number], "KILLED")

    # -------- experiments and runs that are there

    def _find_experiment(self) -> str:
        """The experiment that has this study, under whatever name its folder had; else that of the folder's name."""
        mark = f"{STUDY}.{self._study}"
        found = self._client.search_experiments(filter_string=f"tags.`{mark}` = 'true'", max_results=1)
        if found:
            return str(found[0].experiment_id)
        name = self._folder.path.name
        named = self._client.get_experiment_by_name(name)
        experiment = named.experiment_id if named else self._client.create_experiment(name, **self._artifacts())
        self._client.set_experiment_tag(experiment, mark, "true")
        return str(experiment)

    def _artifacts(self) -> dict[str, str]:
        """Where a store of the study's own would keep files; none are given to it, but the place must not be ./."""
        return {} if self._uri else {"artifact_location": (self._folder.path / "mlflow" / "artifacts").as_uri()}

    def _find_runs(self) -> None:
        for run in self._all_runs():
            number = int(run.data.tags[TRIAL])
            self._ids[number] = run.info.run_id
            deleted = run.info.lifecycle_stage == "deleted"  # what a user deleted stays so
            if deleted:
                self._deleted.add(number)
            if run.info.status in ENDED or deleted:
                self._ended.add(number)
            if run.data.tags.get(BEST) and not deleted:
                self._tagged = number

    def _all_runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{STUDY}` = '{self._study}'",
                run_view_type=self._entities.ViewType.ALL,
                max_results=RUNS_A_REQUEST,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    # -------- one run

    def _begin(self, number: int, event: Mapping[str, Any]) -> None:
        if number in self._ids:
            self._client.update_run(self._ids[number], status="RUNNING")
            self._known[number] = self._steps_of(self._ids[number])
        else:
            tags = {STUDY: str(self._study), TRIAL: str(number)}
            run = self._client.create_run(
                self._experiment, start_time=milliseconds(event), tags=tags, run_name=f"trial {number}"
            )
            self._ids[number], self._known[number] = run.info.run_id, set()
        self._open.add(number)
        params = [self._entities.Param(admitted(key), text_of(value)) for key, value in event["params"].items()]
        for begin in range(0, len(params), PARAMS_A_REQUEST):
            self._client.log_batch(self._ids[number], params=params[begin : begin + PARAMS_A_REQUEST])

    def _steps_of(self, run_id: str) -> set[tuple[str, int]]:
        """The metrics and steps that a run has."""
        names = self._client.get_run(run_id).data.metrics
        return {(name, entry.step) for name in names for entry in self._client.get_metric_history(run_id, name)}

    def _keep(self, number: int, event: Mapping[str, Any], step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if (admitted(name), step) not in self._known[number]:
                metric = self._entities.Metric(admitted(name), value, milliseconds(event), step)
                self._metrics[number].append(metric)

    def _send(self, number: int) -> None:
        kept = self._metrics.pop(number, [])
        for begin in range(0, len(kept), METRICS_A_REQUEST):
            self._client.log_batch(self._ids[number], metrics=kept[begin : begin + METRICS_A_REQUEST])

    def _end(self, number: int, event: Mapping[str, Any]) -> None:
        values = {key: event[key] for key in ("value", "seconds") if event[key] is not None}
        self._keep(number, event, event["epochs"], {f"trial/{key}": value for key, value in values.items()})
        self._send(number)
        tags = {"state": event["state"]} | ({"reason": event["reason"][:5000]} if event["reason"] else {})
        self._client.log_batch(self._ids[number], tags=[self._entities.RunTag(*tag) for tag in tags.items()])
        status = "FAILED" if event["state"] == "FAIL" else "FINISHED"
        self._client.set_terminated(self._ids[number], status, milliseconds(event))
        self._open.discard(number)
        self._ended.add(number)

    def _compare(self, number: int, event: Mapping[str, Any]) -> None:
        """Keep the best completed trial whose run can be tagged, as a deleted one cannot; of equal ones the first."""
        if number not in self._deleted and event["state"] == "COMPLETE" and event["value"] is not None:
            value = self._sign * event["value"]
            if self._best is None or (value, -number) > (self._best[0], -self._best[1]):
                self._best = (value, number)


def milliseconds(event: Mapping[str, Any]) -> int:
    """When an event was, since 1970."""
    return round(datetime.fromisoformat(event["time"]).timestamp() * 1000)


def admitted(name: str) -> str:
    """A name of letters that MLflow takes in names of metrics and parameters."""
    return re.sub(r"[^\w./ :-]", "_", name)


def text_of(value: Any) -> str:
    """A choice as a text."""
    return value if isinstance(value, str) else json.dumps(value)
