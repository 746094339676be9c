"""The whole job on real Ray, as it is typed: search, resume, report, a trial again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sklearn.metrics import roc_auc_score

import launch

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent
TINY = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=150",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[I,II,V2]",
    "data.window_s=3.0",
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=2",
    "search.num_trials=5",
    "scheduler.reduction_factor=2",
    "evaluate.num_resamples=50",
    "study_dir=study",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a search has run to its end."""
    folder = tmp_path_factory.mktemp("search")
    ended = run_in(folder, *TINY)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def run_in(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def journal_of(study):
    storage = JournalStorage(JournalFileBackend(str(study / "journal.log")))
    return optuna.load_study(study_name="heartsweep", storage=storage)


def events_of(study):
    return [json.loads(line) for line in (study / "events.jsonl").read_text().splitlines()]


def check_books(study, num_trials):
    """Every trial ended once, and journal, events and table say the same."""
    journal, events, table = journal_of(study), events_of(study), pd.read_parquet(study / "trials.parquet")
    assert [trial.number for trial in journal.trials] == list(range(num_trials))
    assert all(trial.state.is_finished() for trial in journal.trials)
    ended = [event["trial"] for event in events if event["event"] == "trial_ended"]
    assert sorted(ended) == list(range(num_trials))
    assert table["number"].tolist() == list(range(num_trials))
    for trial in journal.trials:
        assert trial.state == TrialState[table["state"][trial.number]]
        epochs = {
            e["epoch"]: e["metrics"]["val/auroc"]
            for e in events
            if e["event"] == "epoch" and e["trial"] == trial.number
        }
        assert trial.intermediate_values == epochs
        assert sorted(epochs) == list(range(1, table["epochs"][trial.number] + 1))


def test_a_search_has_looked_at_its_data_before_its_first_trial_and_leaves_a_card(finished):
    study = finished / "study"
    names = [json.loads(line)["event"] for line in (study / "events.jsonl").read_text().splitlines()]
    assert names.index("study_started") < names.index("data_checked") < names.index("trial_started")
    metrics = json.loads((study / "report" / "metrics.json").read_text())
    assert set(metrics["provenance"]["data"]["signals_in_two_parts"].values()) == {0}
    assert metrics["provenance"]["pretraining"]["kind"] == "this study"
    assert (study / "checkpoints" / "best_1" / "README.md").read_text().startswith("---\nlibrary_name: heartsweep")


def test_a_search_ends_with_its_books_in_order(finished):
    study = finished / "study"
    check_books(study, 5)
    states = pd.read_parquet(study / "trials.parquet")["state"].tolist()
    assert states[0] == "COMPLETE"  # the default configuration is never stopped
    assert "PRUNED" in states
    assert not (study / ".scratch").exists()
    assert not any((study / "running").iterdir())


def test_the_kept_checkpoints_are_the_best_completed_trials(finished):
    study = finished / "study"
    table = pd.read_parquet(study / "trials.parquet")
    best = (
        table[table["state"] == "COMPLETE"].sort_values(["value", "number"], ascending=[False, True])["number"].tolist()
    )
    kept = sorted(folder.name for folder in (study / "checkpoints").iterdir())
    assert kept == [f"best_{rank}" for rank in range(1, min(3, len(best)) + 1)] + ["default", "ensemble"]
    for rank, number in enumerate(best[:3], start=1):
        description = json.loads((study / "checkpoints" / f"best_{rank}" / "checkpoint.json").read_text())
        assert description["trial"] == number


def test_the_reports_auroc_is_scikit_learns_on_the_saved_predictions(finished):
    report = finished / "study" / "report"
    figures = json.loads((report / "metrics.json").read_text())
    predictions = pd.read_parquet(report / "predictions.parquet")
    test = predictions[predictions["fold"] == 10]
    classes = [name[2:] for name in predictions.columns if name.startswith("y_")]
    scored = [name for name in classes if 0 < test[f"y_{name}"].sum() < len(test)]
    expected = np.mean([roc_auc_score(test[f"y_{name}"], test[f"p_{name}"]) for name in scored])
    assert figures["best"]["test"]["auroc_macro"]["value"] == pytest.approx(expected, abs=1e-6)
    assert {"random_encoder", "default_configuration"} <= figures["baselines"].keys()
    assert "<html" in (report / "index.html").read_text()


def test_every_model_opened_the_test_fold_once_and_a_rebuilt_report_opens_nothing(finished, monkeypatch):
    study = finished / "study"
    opened = [event for event in events_of(study) if event["event"] == "test_fold_opened"]
    assert len(opened) == len({(event["model"], event["trial"]) for event in opened})
    before = (study / "report" / "metrics.json").read_bytes()
    monkeypatch.chdir(finished)
    assert launch.main(["command=report", "study_dir=study"]) == 0
    assert (study / "report" / "metrics.json").read_bytes() == before
    assert [event for event in events_of(study) if event["event"] == "test_fold_opened"] == opened


def test_a_trial_again_outside_the_tuner_gives_its_figures_bit_for_bit(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert launch.main(["command=train", "study_dir=study", "trial=2"]) == 0
    assert "the study's figures, bit for bit" in capsys.readouterr().out


def test_a_finished_study_says_so_and_what_to_change_and_a_new_tracker_is_told_it(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert launch.main([*TINY, "tracking=tensorboard"]) == 0
    assert json.loads((finished / "study" / "tensorboard" / "told.json").read_text()) == list(range(5))
    said = capsys.readouterr().out
    assert "finished with 5 trials; type search.num_trials=N" in said
    assert "test fold opened 0 times now" in said


def test_another_identity_is_refused_with_what_differs(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert launch.main([*TINY, "task.finetune.batch_size=4"]) == 2
    said = capsys.readouterr().err
    assert "task.finetune.batch_size was 8, now 4" in said
    assert "study_dir=DIR" in said


def test_a_checkpoint_is_evaluated_outside_the_study(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert launch.main(["command=evaluate", "checkpoint=study/checkpoints/best_1"]) == 0
    assert "auroc_macro" in capsys.readouterr().out


def test_a_search_that_is_killed_goes_on_without_losing_or_repeating_a_trial(tmp_path):
    study = tmp_path / "study"
    tracked = [*TINY, "tracking=wandb", "tracking.mode=offline"]
    running = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "launch.py"), *tracked],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    said = []
    for line in running.stdout:  # until something has ended and something else runs
        said.append(line)
        if "trial 2  epoch 1" in line or "trial 3  epoch 1" in line:
            break
    else:
        pytest.fail("the search ended before it could be killed: " + "".join(said))
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    before = [event for event in events_of(study) if event["event"] == "trial_ended"]
    assert len(before) < 5
    ended = run_in(tmp_path, *tracked)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_books(study, 5)
    assert (study / "report" / "index.html").exists()
    runs = sorted(path.name.rpartition("-")[2] for path in (study / "wandb").glob("offline-run-*"))
    assert runs == [f"{number:04d}" for number in range(5)]  # one a trial, the interrupted ones too


def test_two_workers_a_trial_leave_nothing_behind(tmp_path):
    ended = run_in(
        tmp_path,
        *TINY,
        "cluster.num_cpus=2",
        "cluster.workers_per_trial=2",
        "search.num_trials=2",
        "task.pretrain.num_epochs=1",
        "task.finetune.num_epochs=1",
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    check_books(tmp_path / "study", 2)
    assert not any((tmp_path / "study" / "running").iterdir())


METHODS = [
    "search=methods_ptbxl",
    "model=mtae,simclr,meclip",
    *TINY[1:],
    "search.num_trials=6",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=1",
    "study_dir=methods",
]


def test_methods_are_searched_against_each_other_and_reported_beside_their_untrained_encoders(finished):
    ended = run_in(finished, *METHODS)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    study = finished / "methods"
    check_books(study, 6)
    table = pd.read_parquet(study / "trials.parquet")
    assert set(table["model"]) <= {"mtae", "simclr", "meclip"}
    assert table["model"][0] == "mtae"
    assert (table["model.temperature"].notna() == table["model"].isin(["simclr", "meclip"])).all()
    assert (table["model.mask_ratio"].notna() == (table["model"] == "mtae")).all()
    metrics = json.loads((study / "report" / "metrics.json").read_text())
    rows = {row["option"]: row for row in metrics["choices"]["model"]}
    untrained = json.loads((study / "report" / "untrained.json").read_text())["model"]
    assert set(untrained) == set(table["model"])
    for option, found in untrained.items():
        assert rows[option]["untrained"] == found["metrics"]["val/auroc"]
    assert metrics["importance"]["at_epoch"]["reason"]  # six trials say nothing, and it says so
    events = events_of(study)
    opened = [event["model"] for event in events if event["event"] == "test_fold_opened"]
    assert set(opened) <= {"best", "random_encoder", "default_configuration", "ensemble_member"}
