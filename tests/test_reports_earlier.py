"""The best of earlier studies has a row where it was tested on the same records, and a reason where it was not."""

import json
import shutil

import pytest

from reports.report import build
from tests.test_reports_report import predictions, write_predictions, write_study


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("written") / "written")


@pytest.fixture
def earlier(written, tmp_path):
    """Makes a study on the same records with another gap between the scores of positives and negatives."""

    def make(name, gap, change=lambda table: table):
        folder = shutil.copytree(written, tmp_path / name)
        table = change(predictions(gap))
        write_predictions(folder / "report" / "predictions.parquet", table, {"trial": 2, "digest": f"of {name}"})
        return folder

    return make


def reported(study, folders):
    settings = {"earlier_studies": [str(folder) for folder in folders]}
    page = build(study, num_resamples=20, evaluate=settings).read_text()
    return page, json.loads((study / "report" / "metrics.json").read_text())


def test_the_best_on_validation_of_earlier_models_is_held_against_the_best_trial(earlier):
    page, metrics = reported(earlier("now", 1.0), [earlier("worse", 0.3), earlier("better", 2.5)])
    assert metrics["earlier"] == "better"
    difference = metrics["differences"]["earlier"]["test"]["auroc_macro"]
    assert difference["value"] < 0
    assert difference["p_value"] < 0.05
    assert "Best of earlier studies <small>better</small>" in " ".join(page.split())
    assert metrics["problems"] == []


def test_the_test_fold_takes_no_part_in_the_choice(earlier):
    def only_good_on_test(table):
        better = predictions(3.0)
        test = table["split"] == "test"
        answers = [name for name in table if name.startswith("p_")]
        return table.assign(**{name: better[name].where(test, table[name]) for name in answers})

    _, metrics = reported(earlier("now", 1.0), [earlier("lucky", 0.2, only_good_on_test), earlier("steady", 0.8)])
    assert metrics["earlier"] == "steady"


def test_what_cannot_stand_beside_it_is_named_with_the_reason_and_no_path(earlier, tmp_path):
    fewer = earlier("fewer", 1.0, lambda table: table.iloc[:-3])
    unfinished = earlier("unfinished", 1.0)
    (unfinished / "report" / "predictions.parquet").unlink()
    page, metrics = reported(earlier("now", 1.0), [fewer, unfinished, tmp_path / "nowhere"])
    assert metrics["earlier"] is None
    assert "earlier" not in metrics["baselines"]
    records, none, folder = metrics["problems"]
    assert "the earlier study fewer is left out" in records
    assert "3 are in one only" in records
    assert "the earlier study unfinished has no predictions of its best trial" in none
    assert "the earlier study nowhere: nowhere is no study's folder" in folder
    assert str(tmp_path) not in page


def test_without_earlier_studies_nothing_is_said_of_them(earlier):
    page, metrics = reported(earlier("now", 1.0), [])
    assert metrics["earlier"] is None
    assert "earlier studies" not in page
