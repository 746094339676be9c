"""A report of a folder that is not as a search leaves it: a clear line, and the rest is shown."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from reports.report import build
from tests.test_reports_report import CLASSES, write_predictions, write_study


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("written") / "runs")


@pytest.fixture
def study_dir(written, tmp_path):
    shutil.copytree(written, tmp_path / "runs")
    return tmp_path / "runs"


def rebuilt(study_dir):
    index = build(study_dir, num_resamples=10)
    return json.loads((study_dir / "report" / "metrics.json").read_text()), index.read_text()


def head(page):
    return page[: page.index("</header>")]


def change(path, do):
    do(pd.read_parquet(path)).to_parquet(path)


def every_table(study_dir, do):
    for path in (study_dir / "report").glob("*.parquet"):
        change(path, do)


def test_a_study_half_written_is_shown_from_what_is_there(study_dir):
    (study_dir / "trials.parquet").unlink()
    events = (study_dir / "events.jsonl").read_text()
    (study_dir / "events.jsonl").write_text(events[: len(events) // 2])  # the last line is cut, no journal is there
    shutil.rmtree(study_dir / "checkpoints")
    for path in (study_dir / "report").glob("*.parquet"):
        path.unlink()
    metrics, page = rebuilt(study_dir)
    assert metrics["search"]["states"] == {"RUNNING": 2}
    assert "1 line of events.jsonl could not be read" in head(page)
    assert "no journal.log" in page


def test_a_table_of_trials_that_cannot_be_read_leaves_the_figures_of_the_models(study_dir):
    (study_dir / "trials.parquet").write_bytes(b"PAR1 and no more")
    metrics, page = rebuilt(study_dir)
    assert "trials.parquet is not readable parquet" in head(page)
    assert str(study_dir) not in page
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5


def test_a_checkpoint_without_labels_is_shown_without_their_kind(study_dir):
    path = study_dir / "checkpoints" / "best_1" / "checkpoint.json"
    described = json.loads(path.read_text())
    del described["contract"], described["classes"]
    path.write_text(json.dumps(described))
    for saved in (study_dir / "report").glob("*.parquet"):
        saved.unlink()
    metrics, page = rebuilt(study_dir)
    assert metrics["protocol"]["classes"] == []
    assert "superdiagnostic, 0 classes" in head(page)


def test_a_damaged_checkpoint_is_named_and_the_best_trial_is_that_of_the_table(study_dir):
    (study_dir / "checkpoints" / "best_1" / "checkpoint.json").write_text('{"trial": 2')
    metrics, page = rebuilt(study_dir)
    assert "checkpoints/best_1/checkpoint.json is not readable JSON" in head(page)
    assert metrics["search"]["best_trial"] == 2
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5
    assert "Which model is the best cannot be read" in head(page)
    assert "the figures are trial 2’s" in head(page)
    assert "has become the best since" not in head(page)


@pytest.mark.parametrize("made_by", [{"trial": 0, "digest": "d"}, {"trial": 0, "digest": "d", "index": 3}])
def test_without_a_checkpoint_the_predictions_are_shown_as_whose_they_say_they_are(study_dir, made_by):
    (study_dir / "checkpoints" / "best_1" / "checkpoint.json").unlink()
    path = study_dir / "report" / "predictions.parquet"
    write_predictions(path, pd.read_parquet(path), made_by)
    metrics, page = rebuilt(study_dir)
    assert metrics["search"]["best_trial"] == 0
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5
    assert "the figures are trial 0’s" in head(page)


def test_figures_of_which_nothing_says_whose_they_are_have_a_caution(study_dir):
    every_table(study_dir, lambda table: table)  # pandas drops what the file says of its maker
    assert "say which trial the figures are of" not in head(rebuilt(study_dir)[1])  # the events do
    lines = (study_dir / "events.jsonl").read_text().splitlines()
    (study_dir / "events.jsonl").write_text("\n".join(line for line in lines if "test_fold_opened" not in line) + "\n")
    assert "they are shown as trial 2’s, which is the best one now" in head(rebuilt(study_dir)[1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predictions_that_are_no_numbers_are_named_by_their_record_and_not_scored(study_dir, value):
    def spoil(table):
        table.loc[[7, 9], "p_MI"] = value
        return table

    change(study_dir / "report" / "predictions.parquet", spoil)
    metrics, page = rebuilt(study_dir)
    assert metrics["best"] == {}
    assert "predictions.parquet must hold finite probabilities, 2 are not (the first: of record r00007)" in head(page)
    assert "what the best trial predicted on it cannot be shown" in head(page)
    assert "has not been evaluated" not in page  # it has
    assert metrics["baselines"]["random_encoder"]["test"]["auroc_macro"]["value"] > 0.5
    assert "Learning curves" in page


def test_a_baseline_that_cannot_be_read_leaves_the_best_models_figures(study_dir):
    (study_dir / "report" / "predictions_random_encoder.parquet").write_bytes(b"nothing")
    metrics, page = rebuilt(study_dir)
    assert "predictions_random_encoder.parquet is not readable parquet" in head(page)
    assert set(metrics["baselines"]) == {"default_configuration"}
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5


def test_one_class_is_scored_alone(study_dir):
    others = [f"{kind}_{name}" for name in CLASSES if name != "MI" for kind in "yp"]
    every_table(study_dir, lambda table: table.drop(columns=others))
    metrics, _ = rebuilt(study_dir)
    block = metrics["best"]["test"]
    assert list(block["auroc"]) == ["MI"]
    assert block["auroc_macro"]["value"] == block["auroc"]["MI"]["value"]


def test_records_of_one_class_only_have_no_figure_and_say_why(study_dir):
    every_table(study_dir, lambda table: table.assign(**{f"y_{name}": 1 for name in CLASSES}))
    metrics, page = rebuilt(study_dir)
    assert metrics["best"]["test"]["auroc_macro"]["value"] is None
    assert "no class has both a positive and a negative record" in head(page)


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_single_record_has_a_page(study_dir, split):
    every_table(study_dir, lambda table: table[table["split"] == split].iloc[:1])
    metrics, page = rebuilt(study_dir)
    assert metrics["best"][split]["num_records"] == 1
    assert metrics["best"][split]["auroc_macro"]["value"] is None
    assert "tiny_search on synthetic" in head(page)


def test_two_records_of_one_patient_have_a_page(study_dir):
    def two(table):
        chosen = table[table["split"] == "test"].iloc[:2].assign(patient_id="one")
        return chosen.assign(**{f"y_{name}": [0, 1] for name in CLASSES})

    every_table(study_dir, two)
    assert rebuilt(study_dir)[0]["best"]["test"]["num_patients"] == 1


def test_a_study_without_a_finished_trial_has_no_best_one(study_dir):
    change(study_dir / "trials.parquet", lambda table: table.assign(state="FAIL", value=np.nan))
    shutil.rmtree(study_dir / "checkpoints")
    for path in (study_dir / "report").glob("*.parquet"):
        path.unlink()
    metrics, page = rebuilt(study_dir)
    assert (metrics["search"]["best_trial"], metrics["search"]["states"]) == (None, {"FAIL": 4})
    assert "has been evaluated on it" in head(page)


def test_another_versions_study_is_shown_as_far_as_it_is_known(study_dir):
    config = yaml.safe_load((study_dir / "study.yaml").read_text()) | {"novelty": {"of": [1, {"a": None}]}}
    del config["cluster"], config["sampler"], config["seed"]
    (study_dir / "study.yaml").write_text(yaml.safe_dump(config))
    strange = [
        {"event": "trial_levitated", "trial": "seven", "height_m": 3},
        {"event": "epoch", "metrics": [0.5]},
        {"event": "epoch", "trial": 2, "metrics": {"val/auroc": 0.9}},
        {"event": "trial_started", "params": None},
        {"event": "trial_started", "trial": 9, "params": "tiny"},
        {"event": "study_started", "changes": "many", "versions": None},
        {"event": "data_checked", "patients_in_two_parts": 0},
        {"event": 7},
    ]
    with (study_dir / "events.jsonl").open("a") as file:
        file.write("".join(f"{json.dumps(event)}\n" for event in strange))
    newer = {"device_joules": 3.5, "tags": "a"}
    older = ["reason", "seconds"]
    change(study_dir / "trials.parquet", lambda table: table.drop(columns=older).assign(**newer))
    metrics, page = rebuilt(study_dir)
    assert metrics["search"]["num_trials"] == 4
    assert "4 lines of events.jsonl could not be read" in head(page)
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5
    assert "device_joules" not in page  # a column of another version is no parameter
    assert "not looked for: the study was made by a version that did not look" in page


def test_another_versions_settings_of_the_report_are_named_and_the_rest_is_shown(study_dir):
    config = yaml.safe_load((study_dir / "study.yaml").read_text())
    config["evaluate"] = {"threshold": "cost", "protocol": "bench_2031"}
    (study_dir / "study.yaml").write_text(yaml.safe_dump(config))
    strange = [
        {"event": "confirmation_started", "trial": 2},
        {"event": "confirmation_ended", "index": 1},
        {"event": "confirmation_chosen", "trial": 2, "index": 1, "seeds": 3},
        {"event": "confirmation_chosen", "trial": 2, "index": 1, "seeds": 3, "ranking": ["2", {"place": 1}]},
    ]
    with (study_dir / "events.jsonl").open("a") as file:
        file.write("".join(f"{json.dumps(event)}\n" for event in strange))
    metrics, page = rebuilt(study_dir)
    assert "There are none: this version does not know evaluate.threshold=cost, only f1, youden, sensitivity" in page
    assert "this version does not know evaluate.protocol=bench_2031" in page
    assert "3 lines of events.jsonl could not be read" in head(page)
    assert metrics["best"]["test"]["auroc_macro"]["value"] > 0.5


def test_the_figures_that_are_shown_do_not_depend_on_what_is_left_out(written, study_dir, tmp_path):
    shutil.copytree(written, tmp_path / "whole")
    whole = rebuilt(tmp_path / "whole")[0]
    (study_dir / "report" / "predictions_random_encoder.parquet").unlink()
    (study_dir / "checkpoints" / "default" / "checkpoint.json").write_text("[")
    assert rebuilt(study_dir)[0]["best"] == whole["best"]
