"""Where a model is wrong: what counts as a mistake, in which order, and that the sheets are of these."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reports.checkpoints.error_sheets import draw_mistakes
from reports.evaluate import evaluate_study
from reports.folder import Predictions, read_study
from reports.mistakes import figures_of_mistakes, mistakes, table_of
from reports.report import build
from reports.sections import errors
from trainables.study import StudyFolder
from trainables.workers import Workers


def predictions_of(targets, scores, classes="AB"):
    targets, scores = np.asarray(targets, float), np.asarray(scores, float)
    ids = np.array([f"r{n:03d}" for n in range(len(targets))])
    return Predictions(tuple(classes), ids, ids, np.array(["test"] * len(ids)), targets, scores)


def test_the_most_confident_come_first_and_equal_ones_by_record():
    predictions = predictions_of([[0, 0], [0, 0], [0, 0], [1, 0]], [[0.9, 0], [0.6, 0], [0.9, 0], [0.2, 0]])
    found = [(m.label, m.kind, m.rank, m.record_id, m.confidence) for m in mistakes(predictions, "multilabel")]
    assert found == [
        ("A", "false_positive", 1, "r000", 0.9),
        ("A", "false_positive", 2, "r002", 0.9),
        ("A", "false_positive", 3, "r001", 0.6),
        ("A", "false_negative", 1, "r003", 0.8),
    ]


@given(
    arrays(bool, (12, 3)),
    arrays(float, (12, 3), elements=st.floats(0, 1)),
    st.floats(0.1, 0.9),
)
def test_mistakes_are_those_that_a_plain_loop_finds(targets, scores, limit):
    found = mistakes(predictions_of(targets, scores, "ABC"), "multilabel", thresholds=dict.fromkeys("ABC", limit))
    expected = {
        (name, "false_positive" if scores[row, k] >= limit else "false_negative", f"r{row:03d}")
        for row in range(12)
        for k, name in enumerate("ABC")
        if (scores[row, k] >= limit) != targets[row, k]
    }
    assert {(m.label, m.kind, m.record_id) for m in found} == expected
    assert len(found) == len(expected)
    for m in found:
        assert 0 <= m.confidence <= 1


def test_of_single_labels_the_largest_probability_is_what_is_said():
    predictions = predictions_of([[1, 0, 0], [0, 1, 0]], [[0.4, 0.35, 0.25], [0.4, 0.3, 0.3]], "ABC")
    found = [(m.label, m.kind, m.record_id, m.answers, m.threshold) for m in mistakes(predictions, "single_label")]
    assert found == [("A", "false_positive", "r001", ("A",), None), ("B", "false_negative", "r001", ("A",), None)]


def test_a_probability_that_is_no_number_is_left_out():
    predictions = predictions_of([[0, 0], [0, 0]], [[np.nan, 0.9], [0.9, 0]])
    assert [m.record_id for m in mistakes(predictions, "multilabel")] == ["r001"]
    assert mistakes(predictions_of(np.zeros((0, 2)), np.zeros((0, 2))), "multilabel") == []
    assert table_of([]).empty


@pytest.fixture
def evaluated(tmp_path, put_checkpoint, tiny_recordings):
    study = StudyFolder(tmp_path / "study")
    study.write_configuration({"search": {"name": "s", "metric": "val/auroc"}})
    study.record("study_started", store=tiny_recordings.store.hash)
    put_checkpoint(study.checkpoints / "best_1")
    evaluate_study(study, tiny_recordings.store.path, Workers())
    return study


def draw_in(study, store, number=1):
    return draw_mistakes(study, store.path, Workers(), num_mistakes=number)


def test_the_sheets_are_those_of_the_most_confident_mistakes(evaluated, tiny_store):
    drawn = draw_in(evaluated, tiny_store)
    folder = evaluated.report / "errors"
    listed = json.loads((folder / "errors.json").read_text())["mistakes"]
    predictions = read_study(evaluated.path).predictions["best"].of_split("test")
    expected = [m for m in mistakes(predictions, "multilabel") if m.rank == 1]
    assert drawn == len(expected) > 0
    assert [(m["class"], m["kind"], m["record_id"]) for m in listed] == [
        (m.label, m.kind, m.record_id) for m in expected
    ]
    assert {path.name for path in folder.glob("*.svg")} == {m["file"] for m in listed}
    table = pd.read_parquet(folder / "errors.parquet")
    assert len(table) == len(mistakes(predictions, "multilabel"))
    assert table["drawn"].sum() == drawn
    for mistake in listed:
        assert f"Record {mistake['record_id']}" in (folder / mistake["file"]).read_text()
        assert sum(mistake["saliency"]["share_of_lead"].values()) == pytest.approx(1, abs=1e-3)


def test_drawing_opens_no_fold_is_written_down_and_done_once(evaluated, tiny_store):
    before = [event["event"] for event in evaluated.read_events()]
    drawn = draw_in(evaluated, tiny_store)
    (event,) = [event for event in evaluated.read_events()][len(before) :]
    assert (event["event"], event["records"]) == ("test_records_drawn", drawn)
    files = {path.name: path.read_bytes() for path in (evaluated.report / "errors").iterdir()}
    assert draw_in(evaluated, tiny_store) == 0
    assert len(list(evaluated.read_events())) == len(before) + 1
    shutil.rmtree(evaluated.report / "errors")
    draw_in(evaluated, tiny_store)
    assert {path.name: path.read_bytes() for path in (evaluated.report / "errors").iterdir()} == files


def test_the_page_holds_the_sheets_and_says_the_same_twice(evaluated, tiny_store):
    drawn = draw_in(evaluated, tiny_store)
    page = build(evaluated.path, num_resamples=5).read_text()
    assert page.count("data:image/svg+xml;base64,") == drawn
    assert build(evaluated.path, num_resamples=5).read_text() == page
    counts = figures_of_mistakes(read_study(evaluated.path))["classes"]
    metrics = json.loads((evaluated.report / "metrics.json").read_text())
    assert metrics["mistakes"]["classes"] == counts


def test_a_page_without_room_links_sheets_and_one_without_files_does_too(evaluated, tiny_store, monkeypatch):
    drawn = draw_in(evaluated, tiny_store)
    monkeypatch.setattr(errors, "MOST_BYTES", 40_000)
    page = build(evaluated.path, num_resamples=5).read_text()
    assert 0 < page.count("data:image/svg+xml;base64,") < drawn
    assert "sheets are linked" in page
    assert page.count(">Sheet in millimetres</a>") == drawn
    for path in (evaluated.report / "errors").glob("*.svg"):
        path.unlink()
    assert "data:image" not in build(evaluated.path, num_resamples=5).read_text()


def test_without_sheets_the_report_says_why_or_nothing(evaluated, tiny_store, put_checkpoint, compose_run):
    assert 'id="errors"' not in build(evaluated.path, num_resamples=5).read_text()
    draw_in(evaluated, tiny_store, 0)
    assert 'id="errors"' not in build(evaluated.path, num_resamples=5).read_text()
    put_checkpoint(evaluated.checkpoints / "best_1", run=compose_run("seed=1"))
    assert draw_in(evaluated, tiny_store) == 0
    page = build(evaluated.path, num_resamples=5).read_text()
    assert "were not drawn: the best trial&#39;s weights are not those" in page


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("something else")])
def test_what_goes_wrong_while_drawing_is_told_and_stops_nothing(evaluated, tiny_store, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("reports.checkpoints.error_sheets.attribution", fail)
    assert draw_in(evaluated, tiny_store) == 0
    assert f"were not drawn: {error}." in build(evaluated.path, num_resamples=5).read_text()
    monkeypatch.undo()
    assert draw_in(evaluated, tiny_store) > 0
