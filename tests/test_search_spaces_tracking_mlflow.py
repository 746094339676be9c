import os
import shutil
import socket
from datetime import datetime

import pytest

from search_spaces import tracking_mlflow
from search_spaces.schema import MlflowTracking
from search_spaces.tracking import make_tracker
from trainables.study import StudyFolder

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytestmark = [
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's own models
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),  # MLflow keeps one per address
]
LOCAL = MlflowTracking(name="mlflow", uri=None)


@pytest.fixture(autouse=True)
def _an_environment_without_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in tracking_mlflow.DEFAULTS:
        monkeypatch.setenv(name, "")  # so that it is put back even where the test sets it
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def study(tmp_path, empty):
    folder = StudyFolder(tmp_path / "a study")
    folder.record("study_started", store="ab12")
    (folder.path / "mlflow").mkdir()
    shutil.copy(empty, folder.path / "mlflow" / "mlflow.db")
    return folder


def start(study, number, **params):
    study.record("trial_started", trial=number, params=params)


def epoch(study, number, at, value=0.5):
    metrics = {"train/loss": 1 / at, "val/auroc": value}
    return study.record("epoch", trial=number, epoch=at, stage="finetune", metrics=metrics, seconds=1.5)


def end(study, number, state="COMPLETE", value=0.7, reason=None, epochs=1):
    study.record("trial_ended", trial=number, state=state, value=value, reason=reason, epochs=epochs, seconds=3.0)


def tell(study, tracking=LOCAL, **how):
    with make_tracker(tracking, study, **how):
        pass


def client_of(study):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{study.path / 'mlflow' / 'mlflow.db'}")


def runs_of(study, experiment="a study"):
    client = client_of(study)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    by_number = {int(run.data.tags["heartsweep.trial"]): run for run in found}
    assert len(by_number) == len(found)  # one run a trial
    return by_number


def history(study, run, name):
    return [(entry.step, entry.value) for entry in client_of(study).get_metric_history(run.info.run_id, name)]


def test_every_trial_is_a_run_with_its_choices_its_epochs_and_its_end(study, caplog):
    start(study, 0, lr=1e-3, size="tiny", leads=["I", "V2"])
    start(study, 1, **{"odd (name)": None})
    at = [epoch(study, 0, 1, 0.6), epoch(study, 0, 2, 0.7)]
    study.record("exploit", trial=0, donor=1, epoch=2, params={"lr": 2e-3})
    end(study, 0, epochs=2)
    epoch(study, 1, 1, 0.4)
    end(study, 1, "FAIL", None, "RuntimeError: no")
    start(study, 2)
    end(study, 2, "PRUNED", 0.9, "scheduler")
    tell(study)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("search_spaces")] == []
    first, failed, pruned = (runs_of(study)[number] for number in range(3))
    assert first.info.run_name == "trial 0"
    assert first.data.params == {"lr": "0.001", "size": "tiny", "leads": '["I", "V2"]'}
    assert failed.data.params == {"odd _name_": "null"}
    assert history(study, first, "val/auroc") == [(1, 0.6), (2, 0.7)]
    times = [entry.timestamp for entry in client_of(study).get_metric_history(first.info.run_id, "val/auroc")]
    assert times == [round(1000 * datetime.fromisoformat(event["time"]).timestamp()) for event in at]
    assert [run.info.status for run in (first, failed, pruned)] == ["FINISHED", "FAILED", "FINISHED"]
    assert [run.data.tags["state"] for run in (first, failed, pruned)] == ["COMPLETE", "FAIL", "PRUNED"]
    assert failed.data.tags["reason"] == "RuntimeError: no"
    assert first.data.metrics["trial/value"] == 0.7
    assert first.data.tags["exploit.epoch_2"] == '{"donor": 1, "lr": 0.002}'
    assert [run.data.tags.get("best_trial") for run in (first, failed, pruned)] == ["true", None, None]


def test_a_driver_that_is_killed_and_started_again_goes_on_with_the_same_runs_and_doubles_nothing(study):
    start(study, 0, lr=1e-3)
    epoch(study, 0, 1)
    start(study, 1)
    end(study, 1, value=0.6)
    killed = tracking_mlflow.MlflowRuns(LOCAL, study, maximize=True)
    killed.connect()
    for event in study.read_events():
        killed.take_in(event)
    killed.settle()
    before = runs_of(study)
    assert [before[number].info.status for number in (0, 1)] == ["RUNNING", "FINISHED"]
    epoch(study, 0, 2)
    tell(study)
    assert runs_of(study)[0].info.status == "KILLED"  # Ctrl-C this time
    epoch(study, 0, 3)
    end(study, 0, value=0.8, epochs=3)
    tell(study)
    after = runs_of(study)
    assert {n: run.info.run_id for n, run in before.items()} == {n: run.info.run_id for n, run in after.items()}
    assert history(study, after[0], "val/auroc") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert (after[0].info.status, after[0].data.params) == ("FINISHED", {"lr": "0.001"})
    assert [after[number].data.tags.get("best_trial") for number in (0, 1)] == ["true", None]


def test_the_best_is_the_smallest_where_the_search_minimizes_and_of_equal_ones_the_first(study):
    for number, value in enumerate((0.3, 0.2, 0.2)):
        start(study, number)
        end(study, number, value=value)
    tell(study, maximize=False)
    assert [runs_of(study)[number].data.tags.get("best_trial") for number in range(3)] == [None, "true", None]


def test_a_study_under_another_name_keeps_its_experiment_and_another_of_its_name_its_own_runs(study, tmp_path):
    start(study, 0)
    end(study, 0)
    uri = MlflowTracking(name="mlflow", uri=f"sqlite:///{study.path / 'mlflow' / 'mlflow.db'}")
    tell(study, uri)
    moved = StudyFolder(shutil.copytree(study.path, tmp_path / "moved"))
    tell(moved, uri)
    assert client_of(study).get_experiment_by_name("moved") is None
    assert list(runs_of(study)) == [0]
    other = StudyFolder(tmp_path / "elsewhere" / "a study")
    other.record("study_started", store="cd34")
    start(other, 0)
    tell(other, uri)
    client = client_of(study)
    assert len(client.search_runs([client.get_experiment_by_name("a study").experiment_id])) == 2


def test_a_run_that_a_user_deleted_stays_deleted(study):
    start(study, 0)
    end(study, 0)
    tell(study)
    client_of(study).delete_run(runs_of(study)[0].info.run_id)
    tell(study)
    assert runs_of(study) == {}


def test_where_the_best_run_was_deleted_the_best_of_the_others_is_tagged_and_the_study_is_told_on(study, caplog):
    for number, value in enumerate((0.9, 0.7, 0.8)):
        start(study, number)
        end(study, number, value=value)
    tell(study)
    client_of(study).delete_run(runs_of(study)[0].info.run_id)
    start(study, 3)
    end(study, 3, value=0.6)
    tell(study)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("search_spaces")] == []
    after = runs_of(study)
    assert {number: run.data.tags.get("best_trial") for number, run in after.items()} == {1: None, 2: "true", 3: None}
    assert after[3].info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_one_line(study, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        start(study, 0)
        tell(study, MlflowTracking(name="mlflow", uri=uri))
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("search_spaces")]
    assert line.startswith("tracking stopped, the search goes on: ")


def test_mlflow_tells_its_makers_nothing_unless_asked_to(study, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    tracking_mlflow.MlflowRuns(LOCAL, study, maximize=True)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    tracking_mlflow.MlflowRuns(LOCAL, study, maximize=True)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
