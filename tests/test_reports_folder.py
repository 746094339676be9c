import json

import numpy as np
import pandas as pd
import pytest
import yaml

from reports.folder import read_predictions, read_study
from tests.test_reports_report import write_predictions


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"search": {"name": "s", "metric": "val/auroc"}}))
    return tmp_path


def write_events(folder, *events):
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


def epoch(trial, number, value):
    return {"event": "epoch", "trial": trial, "epoch": number, "stage": "pretrain", "metrics": {"val/auroc": value}}


def table(**columns):
    records = {
        "record_id": ["b", "a", "c"],
        "patient_id": [1, 1, 2],
        "fold": [10, 9, 10],
        "split": ["test", "valid", "test"],
    }
    return pd.DataFrame(records | {"y_MI": [1, 0, 0], "p_MI": [0.9, 0.2, 0.3]} | columns)


def test_a_folder_without_a_study_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"is no study's folder, it lacks study.yaml: .*study_dir=DIR$") as refused:
        read_study(tmp_path)
    assert "\n" not in str(refused.value)


def test_mistakes_that_were_drawn_of_other_weights_are_not_shown_for_these(folder):
    made_by = {"trial": 0, "digest": "a"}
    (folder / "report" / "errors").mkdir(parents=True)
    write_predictions(folder / "report" / "predictions.parquet", table(), made_by)
    listed = folder / "report" / "errors" / "errors.json"
    for whose, shown in ((made_by, True), (made_by | {"digest": "b"}, False), (made_by | {"index": 2}, False)):
        listed.write_text(json.dumps({"made_by": whose, "num_mistakes": 1, "mistakes": [{"record_id": "a"}]}))
        assert bool(read_study(folder).errors) == shown
    listed.write_text(json.dumps({"reason": "memory"}))
    assert read_study(folder).errors == {"reason": "memory"}


def write_checkpoint(folder, name, **described):
    (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / name / "checkpoint.json").write_text(json.dumps(described))


def test_predictions_that_do_not_say_whose_they_are_are_of_the_trial_of_the_last_pass(folder):
    (folder / "report").mkdir()
    table().to_parquet(folder / "report" / "predictions.parquet")
    passed = [{"event": "test_fold_opened", "model": "best", "trial": trial} for trial in (1, 4)]
    write_events(folder, *passed, {"event": "test_fold_opened", "model": "default_configuration", "trial": 0})
    write_checkpoint(folder, "best_1", trial=4)
    assert read_study(folder).predictions["best"].made_by == {"trial": 4}
    write_checkpoint(folder, "best_1", trial=7)
    read = read_study(folder)
    assert (read.outdated, "best" in read.predictions) == (4, False)
    write_events(folder)
    assert read_study(folder).predictions["best"].made_by == {}


def test_predictions_of_another_trial_are_not_the_default_configurations(folder):
    (folder / "report").mkdir()
    write_checkpoint(folder, "default", trial=0)
    path = folder / "report" / "predictions_default_configuration.parquet"
    write_predictions(path, table(), {"trial": 0, "digest": "d"})
    assert "default_configuration" in read_study(folder).predictions
    write_predictions(path, table(), {"trial": 5, "digest": "d"})
    read = read_study(folder)
    assert read.predictions == {}
    said = "predictions_default_configuration.parquet is of trial 5, the default configuration is trial 0"
    assert read.problems == (f"{said}; predictions_default_configuration.parquet is left out",)


@pytest.mark.parametrize("value", [1.01, -0.01])
def test_probabilities_outside_of_0_and_1_are_refused_by_record(tmp_path, value):
    table(p_MI=[0.9, value, 0.3]).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="must hold probabilities between 0 and 1, 1 are not .the first: of record a"):
        read_predictions(tmp_path / "p.parquet", [])


def test_a_probability_that_float32_rounded_past_1_counts_as_1(tmp_path):
    table(p_MI=[1 + 1e-7, -1e-7, 0.3]).to_parquet(tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet", []).scores[:, 0].tolist() == [0.0, 1.0, 0.3]


def test_a_record_without_a_patient_is_refused_and_not_made_one_with_the_others(tmp_path):
    table(patient_id=["x", None, None]).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match="must name each record's patient, 2 have none .the first: record a"):
        read_predictions(tmp_path / "p.parquet", [])


def test_a_damaged_configuration_is_refused_in_one_line(tmp_path):
    (tmp_path / "study.yaml").write_text("a: [1\nb: {")
    with pytest.raises(ValueError, match="is not readable YAML") as refused:
        read_study(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_line_that_a_killed_process_left_in_parts_is_counted_and_passed_over(folder):
    write_events(folder, epoch(0, 1, 0.5), epoch(0, 2, 0.6))
    text = (folder / "events.jsonl").read_text()
    (folder / "events.jsonl").write_text(text[:-20] + "\n" + json.dumps({"event": "study_finished"}) + "\n")
    study = read_study(folder)
    assert [event["event"] for event in study.events] == ["epoch", "study_finished"]
    assert study.num_unreadable_events == 1


def test_an_epoch_that_was_repeated_counts_as_it_went_the_last_time(folder):
    started = {"event": "trial_started", "trial": 0, "params": {"task.lr": 0.1}}
    write_events(folder, started, epoch(0, 1, 0.5), epoch(0, 2, 0.6), epoch(0, 2, 0.61), epoch(0, 3, float("nan")))
    assert [(point.epoch, point.value) for point in read_study(folder).trials[0].curve] == [(1, 0.5), (2, 0.61)]


def test_a_trial_that_only_the_events_know_is_running(folder):
    write_events(folder, {"event": "trial_started", "trial": 1, "params": {"task.lr": 0.1}}, epoch(1, 1, 0.5))
    ended = {
        "number": 0,
        "state": "COMPLETE",
        "value": 0.7,
        "epochs": 2,
        "seconds": 3.0,
        "reason": None,
        "task.lr": 0.2,
    }
    pd.DataFrame([ended]).to_parquet(folder / "trials.parquet")
    first, second = read_study(folder).trials
    assert (first.state, first.value, first.params) == ("COMPLETE", 0.7, {"task.lr": 0.2})
    assert (second.state, second.value, second.params, second.epochs) == ("RUNNING", None, {"task.lr": 0.1}, 1)


def test_a_parameter_of_another_branch_of_the_space_is_left_out(folder):
    shared = {"state": "COMPLETE", "value": 0.7, "epochs": 1, "seconds": 1.0, "reason": None}
    rows = [shared | {"number": 0, "a": 1.0, "b": None}, shared | {"number": 1, "a": None, "b": "x"}]
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    assert [trial.params for trial in read_study(folder).trials] == [{"a": 1.0}, {"b": "x"}]


def test_predictions_come_in_the_order_of_their_ids(tmp_path):
    table().to_parquet(tmp_path / "p.parquet")
    found = read_predictions(tmp_path / "p.parquet", [10])
    assert found.record_ids.tolist() == ["a", "b", "c"]
    assert found.patient_ids.tolist() == ["1", "1", "2"]
    np.testing.assert_array_equal(found.scores[:, 0], [0.2, 0.9, 0.3])
    assert found.of_split("test").record_ids.tolist() == ["b", "c"]


def test_what_is_known_of_a_recording_follows_its_record(tmp_path):
    table(age=[50.0, None, 300.0], sex=["male", None, "female"], quality=[["a", "b"], [], None]).to_parquet(
        tmp_path / "p.parquet"
    )
    found = read_predictions(tmp_path / "p.parquet", [10]).of_split("test")
    assert found.record_ids.tolist() == ["b", "c"]
    assert found.attributes.columns.tolist() == ["age", "sex", "quality"]
    assert found.attributes["age"].tolist() == [50.0, 300.0]
    assert found.attributes["quality"].tolist() == [("a", "b"), None]


def test_predictions_of_an_older_version_have_no_attributes(tmp_path):
    table().to_parquet(tmp_path / "p.parquet")
    found = read_predictions(tmp_path / "p.parquet", [10])
    assert found.attributes.empty
    assert found.of_split("test").attributes.empty


def test_without_a_column_for_it_the_fold_says_which_split_a_record_is_in(tmp_path):
    table().drop(columns="split").to_parquet(tmp_path / "p.parquet")
    assert read_predictions(tmp_path / "p.parquet", [10]).splits.tolist() == ["valid", "test", "test"]


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (table().drop(columns="p_MI"), "lacks the columns p_MI"),
        (table().drop(columns="y_MI"), "must hold a label y_<class>"),
        (table(record_id=["a", "a", "b"]), "must hold each record once, got a again"),
        (table(y_MI=[1, 0, 2]), "must hold labels that are 0 or 1"),
        (table(p_MI=[0.1, np.nan, 0.2]), "must hold finite probabilities, 1 are not"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused_by_name(tmp_path, made, complaint):
    made.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=complaint) as refused:
        read_predictions(tmp_path / "p.parquet", [10])
    assert str(tmp_path / "p.parquet") in str(refused.value)


def test_a_truncated_table_is_refused_in_one_line(tmp_path):
    table().to_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:200])
    with pytest.raises(ValueError, match="p.parquet is not readable parquet") as refused:
        read_predictions(tmp_path / "p.parquet", [10])
    assert "\n" not in str(refused.value)
