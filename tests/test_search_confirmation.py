"""A confirmation on real Ray, as it is typed: killed in the middle, gone on with, chosen, evaluated and reported."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import launch
from tests.test_search import REPOSITORY, TINY, check_books, events_of, run_in

pytestmark = pytest.mark.cluster

CONFIRMED = [
    *(word for word in TINY if not word.startswith("scheduler.")),
    "scheduler=fifo",
    "search.num_trials=3",
    "task.pretrain.num_epochs=1",
    "task.finetune.num_epochs=1",
    "data.max_train_patients=60",
    "data.max_valid_patients=12",
    "search.confirm.top_k=2",
    "search.confirm.seeds=2",
    "search.ensemble=2",
]


def killed_when_said(folder, *arguments, words):
    """Type a line and kill its process, but none of those it has started, once it has said something."""
    with subprocess.Popen(
        [sys.executable, str(REPOSITORY / "launch.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as running:
        said = []
        for line in running.stdout:
            said.append(line)
            if words in line:
                os.kill(running.pid, signal.SIGKILL)
                return
    pytest.fail("it ended before it could be killed: " + "".join(said))


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory):
    """A folder in which a confirmation that was killed in the middle has been gone on with."""
    folder = tmp_path_factory.mktemp("confirmed")
    killed_when_said(folder, *CONFIRMED, words="seed 1  epoch 1")
    events = events_of(folder / "study")
    assert not any(event["event"] in ("confirmation_chosen", "test_fold_opened") for event in events)
    ended = run_in(folder, *CONFIRMED)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder


def test_every_run_ended_once_under_a_seed_of_its_own_and_no_trial_was_added(confirmed):
    study = confirmed / "study"
    check_books(study, 3)
    events = events_of(study)
    ended = [event for event in events if event["event"] == "confirmation_ended"]
    table = pd.read_parquet(study / "trials.parquet").sort_values(["value", "number"], ascending=[False, True])
    best = table["number"].tolist()[:2]
    assert sorted((e["trial"], e["index"]) for e in ended) == sorted((t, i) for t in best for i in (1, 2))
    assert {event["state"] for event in ended} == {"COMPLETE"}
    assert len({e["seed"] for e in events if e["event"] == "confirmation_started"} | {0}) == 5
    assert not any((study / "running").iterdir())
    assert [thing for e in events if e["event"] == "released" for thing in e["left"]] == []


def test_the_choice_is_the_best_mean_and_was_written_down_before_the_test_fold_was_opened(confirmed):
    study = confirmed / "study"
    events = events_of(study)
    kinds = [event["event"] for event in events]
    assert kinds.count("confirmation_chosen") == 1
    assert kinds.index("confirmation_chosen") < kinds.index("test_fold_opened")
    values = {}
    for event in events:
        if event["event"] == "confirmation_ended":
            values.setdefault(event["trial"], {})[event["index"]] = event["value"]
    trial = max(sorted(values), key=lambda number: sum(values[number].values()))
    delivered = json.loads((study / "checkpoints" / "best_1" / "checkpoint.json").read_text())
    assert delivered["trial"] == trial
    assert delivered["value"] == min(values[trial].values())  # of two, the worse
    assert delivered["confirmed"]["mean"] == pytest.approx(np.mean(list(values[trial].values())))
    assert delivered["run"]["seed"] == delivered["confirmed"]["seed"]
    assert delivered["run"]["data"]["subsample_seed"] == 0


def test_the_report_says_what_was_confirmed_and_predicts_as_the_delivered_model_was_judged(confirmed):
    report = confirmed / "study" / "report"
    metrics, page = json.loads((report / "metrics.json").read_text()), (report / "index.html").read_text()
    delivered = json.loads((confirmed / "study" / "checkpoints" / "best_1" / "checkpoint.json").read_text())
    recomputed = metrics["best"]["valid"]["auroc_macro"]["value"]
    assert recomputed == pytest.approx(delivered["value"], abs=1e-5)  # the same validation records for every seed
    assert metrics["confirmation"]["chosen"]["trial"] == delivered["trial"]
    assert "confirmed: the best mean of 2 trials, 2 new seeds each" in page
    assert '<section id="confirmation"' in page
    assert "they should agree" not in page


def test_the_delivered_model_is_trained_again_outside_the_tuner_bit_for_bit(confirmed, monkeypatch, capsys):
    delivered = json.loads((confirmed / "study" / "checkpoints" / "best_1" / "checkpoint.json").read_text())
    monkeypatch.chdir(confirmed)
    typed = [f"trial={delivered['trial']}", f"trial_seed={delivered['confirmed']['index']}"]
    assert " ".join(typed) in (confirmed / "study" / "report" / "index.html").read_text()
    assert launch.main(["command=train", "study_dir=study", *typed]) == 0
    assert "the study's figures, bit for bit" in capsys.readouterr().out
    assert launch.main(["command=train", "study_dir=study", typed[0], "trial_seed=9"]) == 2
    assert "has not confirmed trial" in capsys.readouterr().err


def test_the_ensemble_is_the_mean_of_its_members_and_can_be_evaluated(confirmed, monkeypatch, capsys):
    study = confirmed / "study"
    listed = json.loads((study / "checkpoints" / "ensemble" / "checkpoint.json").read_text())["ensemble"]
    assert len({member["trial"] for member in listed}) == 2
    tables = [pd.read_parquet(study / "report" / "members" / f"{m['digest'][:16]}.parquet") for m in listed]
    found = pd.read_parquet(study / "report" / "predictions_ensemble.parquet")
    answers = [name for name in found if name.startswith("p_")]
    expected = (tables[0][answers].to_numpy() + tables[1][answers].to_numpy()) / 2
    np.testing.assert_allclose(found[answers].to_numpy(), expected, atol=1e-12)
    monkeypatch.chdir(confirmed)
    assert launch.main(["command=evaluate", "checkpoint=study/checkpoints/ensemble"]) == 0
    assert "auroc_macro" in capsys.readouterr().out
    saved = pd.read_parquet(study / "checkpoints" / "ensemble" / "evaluations" / "synthetic_valid.parquet")
    valid = found[found["split"] == "valid"].reset_index(drop=True)
    assert saved["record_id"].tolist() == valid["record_id"].tolist()
    np.testing.assert_allclose(saved[answers].to_numpy(), valid[answers].to_numpy(), atol=1e-5)


def test_the_same_line_again_chooses_and_opens_nothing(confirmed, monkeypatch, capsys):
    study = confirmed / "study"
    before = [event["event"] for event in events_of(study)]
    monkeypatch.chdir(confirmed)
    assert launch.main(CONFIRMED) == 0
    assert "test fold opened 0 times now" in capsys.readouterr().out
    added = [event["event"] for event in events_of(study)][len(before) :]
    assert added == ["study_resumed"]
