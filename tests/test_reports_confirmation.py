"""The winner's curse in the report: figures from the events alone, and what the page and its cautions say of them."""

import json
import shutil
import statistics

import pandas as pd
import pytest
import yaml

from reports.folder import read_study
from tests.test_reports_report import TRIALS, change_json, change_yaml, rebuilt, section, write_predictions, write_study

VALUES = {2: (0.61, 0.66, 0.58), 0: (0.64, 0.65, 0.66)}
"""Of each seed; the search's best is trial 2 with 0.68, trial 0 has 0.66."""


@pytest.fixture(scope="module")
def unconfirmed(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "runs")


@pytest.fixture
def study_dir(tmp_path, unconfirmed):
    shutil.copytree(unconfirmed, tmp_path / "runs")
    return tmp_path / "runs"


def add_events(study_dir, events):
    with (study_dir / "events.jsonl").open("a") as file:
        file.write("".join(f"{json.dumps(event)}\n" for event in events))


def runs(values=VALUES, states=None):
    events = []
    for trial, found in values.items():
        for index, value in enumerate(found, start=1):
            events.append(
                {"event": "confirmation_started", "trial": trial, "index": index, "seed": 100 * trial + index}
            )
            if value is not None:
                ended = {"event": "confirmation_ended", "trial": trial, "index": index, "seconds": 2.5}
                failed = (states or {}).get((trial, index))
                ended |= {"state": "FAIL", "value": None, "reason": failed} if failed else {"state": "COMPLETE"}
                events.append({"value": value, "reason": None} | ended)
    return events


def ask(study_dir, top_k=2, seeds=3):
    change_yaml(study_dir / "study.yaml", lambda c: c["search"].update(confirm={"top_k": top_k, "seeds": seeds}))


def confirm(study_dir):
    """As a study is left whose choice fell on trial 0, seed 2."""
    ask(study_dir)
    add_events(study_dir, runs())
    mean = statistics.fmean(VALUES[0])
    chosen = {"trial": 0, "index": 2, "seed": 2, "mean": mean, "sd": 0.01, "seeds": 3, "value": 0.65, "estimate": 0.66}
    ranking = [{"trial": 0, "index": 2}, {"trial": 2, "index": 1}]
    add_events(study_dir, [{"event": "confirmation_chosen", **chosen, "ranking": ranking}])
    confirmed = {key: chosen[key] for key in ("index", "seed", "mean", "sd", "seeds", "estimate")}
    change_json(study_dir / "checkpoints" / "best_1" / "checkpoint.json", trial=0, value=0.65, confirmed=confirmed)
    write_made_by(study_dir, {"trial": 0, "digest": "d", "index": 2})


def test_estimate_mean_spread_and_shrinkage_are_those_of_the_events(study_dir):
    confirm(study_dir)
    found = rebuilt(study_dir)[0]["confirmation"]
    assert [row["trial"] for row in found["rows"]] == [0, 2]
    for row in found["rows"]:
        values = VALUES[row["trial"]]
        assert row["mean"] == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert row["sd"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert (row["low"], row["high"]) == (min(values), max(values))
        estimate = next(trial.value for trial in read_study(study_dir).trials if trial.number == row["trial"])
        assert row["shrinkage"] == pytest.approx(estimate - statistics.fmean(values), abs=1e-12)
        assert [run["value"] for run in row["seeds"]] == list(values)
    assert found["shrinkage"] == pytest.approx(statistics.fmean(row["shrinkage"] for row in found["rows"]))
    assert found["seconds"] == 15.0
    assert (found["chosen"]["trial"], found["chosen"]["index"]) == (0, 2)


def test_headline_and_section_say_confirmed_and_the_caution_is_gone(study_dir):
    confirm(study_dir)
    page = rebuilt(study_dir)[1]
    head, drawn = page[: page.index("</header>")], section(page, "confirmation")
    assert "trial 0, confirmed: the best mean of 2 trials, 3 new seeds each; seed 2, its median" in head
    assert "Not confirmed" not in head
    assert drawn.count('class="seed') == 2 + 6  # two drawings with three seeds each
    assert drawn.count('class="seed best"') == 1
    assert "chosen; seed 2 is delivered" in drawn
    assert "not by its value in the search" in section(page, "models")


def test_without_confirmation_the_head_says_so_and_there_is_no_section(study_dir):
    metrics, page = rebuilt(study_dir)
    assert metrics["confirmation"]["chosen"] is None
    assert metrics["confirmation"]["rows"] == []
    assert "Not confirmed: the best trial was chosen among 2 by one training of each" in page
    assert 'id="confirmation"' not in page
    assert "so that value flatters it" in section(page, "models")


def test_a_search_of_one_completed_trial_has_nothing_to_confirm(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"search": {"name": "s"}}))
    assert "Not confirmed" not in rebuilt(tmp_path)[1]


def test_runs_that_have_not_ended_are_counted_and_nothing_is_chosen(study_dir):
    ask(study_dir)
    add_events(study_dir, runs({2: (0.61, None), 0: (0.64, 0.65)}))
    metrics, page = rebuilt(study_dir)
    assert metrics["confirmation"]["chosen"] is None
    assert "1 of the runs has not ended: nothing is chosen yet" in section(page, "confirmation")
    assert "no choice follows from it yet" in page[: page.index("</header>")]
    assert metrics["confirmation"]["rows"][0]["mean"] is None  # two of three seeds


def test_a_seed_that_failed_is_named_with_its_reason(study_dir):
    ask(study_dir)
    add_events(study_dir, runs(states={(2, 1): "non_finite: the loss is <nan>", (0, 3): "process_died, 3 times"}))
    metrics, page = rebuilt(study_dir)
    drawn = section(page, "confirmation")
    assert "Trial 2, seed 1: non_finite: the loss is &lt;nan&gt;." in drawn
    assert "1 of 3 without a value" in drawn
    assert "Nothing was chosen: of each of these trials a run is missing, failed or diverged" in drawn
    assert [row["shrinkage"] for row in metrics["confirmation"]["rows"]] == [None, None]


def test_a_confirmation_that_has_not_begun_is_announced(study_dir):
    ask(study_dir)
    assert "it begins when the last trial has ended" in section(rebuilt(study_dir)[1], "confirmation")


def test_figures_of_another_seed_of_the_same_trial_are_not_shown_for_the_delivered_one(study_dir):
    confirm(study_dir)
    best = study_dir / "checkpoints" / "best_1" / "checkpoint.json"
    assert "best" in read_study(study_dir).predictions
    change_json(best, confirmed=json.loads(best.read_text())["confirmed"] | {"index": 1})
    read = read_study(study_dir)
    assert (read.outdated, "best" in read.predictions) == (0, False)
    write_made_by(study_dir, {"trial": 0, "digest": "d"})  # of the search's own model
    assert read_study(study_dir).outdated == 0


def write_made_by(study_dir, made_by):
    path = study_dir / "report" / "predictions.parquet"
    write_predictions(path, pd.read_parquet(path), made_by)


def test_trials_that_completed_after_the_choice_are_pointed_out(study_dir):
    confirm(study_dir)
    assert "Trials have completed since" not in rebuilt(study_dir)[1]
    add_events(study_dir, [{"event": "trial_ended", "trial": 9, "state": "COMPLETE"}])
    assert "Trials have completed since trial 0 was confirmed and chosen" in rebuilt(study_dir)[1]


def test_a_search_that_minimizes_shrinks_the_other_way(study_dir):
    confirm(study_dir)
    before = section(rebuilt(study_dir)[1], "confirmation")
    assert "shrank by" in before
    change_yaml(study_dir / "study.yaml", lambda c: c["search"].update(direction="minimize"))
    after = section(rebuilt(study_dir)[1], "confirmation")
    assert "did not shrink" in after
    assert "is the smallest" in after


def test_the_report_of_a_confirmed_study_is_the_same_to_the_byte(study_dir):
    confirm(study_dir)
    assert rebuilt(study_dir) == rebuilt(study_dir)


def test_the_trials_of_the_example_are_those_that_these_tests_are_about():
    assert [number for number, state, *_ in TRIALS if state == "COMPLETE"] == [0, 2]
