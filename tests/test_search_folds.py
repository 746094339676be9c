"""A search whose trials train on k folds, on real Ray, as it is typed: stopped, kept, reported and trained again."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import launch
from models.ensemble import Ensemble
from trainables.checkpoint import load

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parent.parent
TYPED = [
    "search=stmem_ptbxl",
    "scale=laptop",
    "data=synthetic",
    "data.reader.num_patients=80",
    "data.max_train_patients=null",
    "data.max_valid_patients=null",
    "data.leads=[II,V2]",
    "data.window_s=3.0",
    "task.folds=2",
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=2",
    "search.num_trials=4",
    "scheduler.grace_epochs=1",
    "scheduler.reduction_factor=2",
    "evaluate.num_resamples=20",
    "study_dir=study",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a search has run to its end, and what it printed."""
    folder = tmp_path_factory.mktemp("search")
    ended = subprocess.run(
        [sys.executable, str(REPOSITORY / "launch.py"), *TYPED],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder, ended.stdout


def events_of(folder):
    return [json.loads(line) for line in (folder / "study" / "events.jsonl").read_text().splitlines()]


def test_the_folds_are_said_before_the_first_trial(finished):
    assert "recordings: 2 folds (published 1-5, 6-9): " in finished[1]


def test_a_trial_on_folds_is_stopped_as_a_whole_and_judged_by_its_mean(finished):
    events = events_of(finished[0])
    table = pd.read_parquet(finished[0] / "study" / "trials.parquet").set_index("number")
    assert set(table["state"]) == {"COMPLETE", "PRUNED"}
    for number, trial in table.iterrows():
        told = [event for event in events if event["event"] == "epoch" and event["trial"] == number]
        assert [event["epoch"] for event in told] == list(range(1, trial["epochs"] + 1))
        assert all("val/auroc_sd" in event["metrics"] for event in told)
        if trial["state"] == "COMPLETE":
            tuned = [event["metrics"]["val/auroc"] for event in told if event["stage"] == "finetune"]
            assert trial["value"] == max(tuned)
        else:
            assert trial["epochs"] < 4


def test_the_delivered_model_is_the_one_that_was_tested(finished):
    study = finished[0] / "study"
    assert isinstance(load(study / "checkpoints" / "best_1").classifier, Ensemble)
    predictions = pd.read_parquet(study / "report" / "predictions.parquet")
    assert set(predictions["fold"][predictions["split"] == "valid"]) == set(range(1, 10))
    assert set(predictions["fold"][predictions["split"] == "test"]) == {10}
    assert not predictions["record_id"].duplicated().any()
    described = json.loads((study / "checkpoints" / "best_1" / "checkpoint.json").read_text())
    assert described["value"] == described["metrics"]["val/auroc"]
    assert described["run"]["task"]["folds"] == 2
    metrics = json.loads((study / "report" / "metrics.json").read_text())
    assert metrics["folds"]["mean"]["auroc_macro"] == pytest.approx(described["value"], abs=1e-5)
    assert metrics["folds"]["sd"]["auroc_macro"] == pytest.approx(described["metrics"]["val/auroc_sd"], abs=1e-5)
    page = next((study / "report").glob("*.html")).read_text()
    assert "they should agree" not in page
    assert "2 models, each on all but one of 2 folds made of the published folds 1–9" in page


def test_a_trial_on_folds_again_gives_its_figures_bit_for_bit(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished[0])
    trial = json.loads((finished[0] / "study" / "checkpoints" / "best_1" / "checkpoint.json").read_text())["trial"]
    assert launch.main(["command=train", "study_dir=study", f"trial={trial}"]) == 0
    assert f"trial {trial} again: the study's figures, bit for bit" in capsys.readouterr().out
