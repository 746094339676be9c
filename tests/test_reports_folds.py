import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.folder import Study, read_predictions
from reports.folds import facts, figures
from reports.sections.summary import cautions

CLASSES = ("A", "B", "C")


@pytest.fixture
def saved(tmp_path):
    """Predictions of three fold models on 90 records, and of all together on 30 more; B is rare in the last fold."""
    draw = np.random.default_rng(0)
    targets = (draw.random((120, 3)) < 0.4).astype(int)
    targets[60:90, 1] = 0
    scores = np.clip(targets * 0.2 + draw.random((120, 3)) * 0.8, 0, 1)
    answered_by = np.repeat([1, 2, 3, 0], 30)
    table = {
        "record_id": [f"{number:03d}" for number in range(120)],
        "patient_id": [str(number) for number in range(120)],
        "fold": np.where(answered_by == 0, 10, answered_by),
        "split": np.where(answered_by == 0, "test", "valid"),
        "answered_by": answered_by,
    }
    table |= {f"y_{name}": targets[:, k] for k, name in enumerate(CLASSES)}
    table |= {f"p_{name}": scores[:, k] for k, name in enumerate(CLASSES)}
    return pd.DataFrame(table), tmp_path / "predictions.parquet"


def read(table, path):
    table.to_parquet(path)
    return read_predictions(path, [10])


def test_each_folds_figures_are_scikit_learns_on_its_own_records(saved):
    table, path = saved
    found = figures(read(table, path))["folds"]
    assert found["classes"] == ["A", "C"]  # in the last fold nobody has B
    assert found["num_records"] == [30, 30, 30]
    for name, score in (("auroc_macro", roc_auc_score), ("average_precision_macro", average_precision_score)):
        expected = [
            np.mean([score(part[f"y_{key}"], part[f"p_{key}"]) for key in ("A", "C")])
            for _, part in table[table["answered_by"] > 0].groupby("answered_by")
        ]
        assert found[name] == pytest.approx(expected, abs=1e-12)
        assert found["mean"][name] == pytest.approx(np.mean(expected))
        assert found["sd"][name] == pytest.approx(np.std(expected, ddof=1))


def test_a_model_of_one_split_has_no_folds(saved):
    table, path = saved
    assert figures(read(table.drop(columns="answered_by"), path)) == {}
    assert figures(read(table.assign(answered_by=0), path)) == {}
    assert figures(None) == {}


def test_folds_without_a_common_class_are_told_without_figures(saved):
    table, path = saved
    found = figures(read(table[[column for column in table if column[2:] not in ("A", "C")]], path))["folds"]
    assert found["classes"] == []
    assert found["auroc_macro"] is found["mean"] is None


def study_of(**task):
    data = {"train_folds": [1, 2, 3], "valid_folds": [9], "max_train_patients": 50, "max_valid_patients": None}
    return Study("s", {"task": task, "data": data}, (), 0, (), {}, {}, {})


def test_the_head_of_the_page_says_how_the_folds_were_made(saved):
    said = facts(study_of(folds=3), figures(read(*saved)))
    assert said["Training"] == (
        "3 models, each on all but one of 3 folds made of the published folds 1–9, at most 50 patients each"
    )
    assert said["Validation"].startswith(
        "each record by the model that was not trained on its patient; macro AUROC of "
    )
    assert facts(study_of(folds=3), {})["Validation"] == "each record by the model that was not trained on its patient"
    assert facts(study_of(folds=1), {}) == facts(study_of(), {}) == {}


def test_pooled_figures_are_not_held_against_the_mean_that_the_search_followed():
    metrics = {
        "best": {"test": {}, "valid": {"auroc_macro": {"value": 0.8}}},
        "search": {"best_value": 0.85},
        "test_fold_openings": 0,
        "intervals_excluding_value": [],
    }
    assert "they should agree" in " ".join(cautions(study_of(), metrics))
    assert not cautions(study_of(), metrics | {"folds": {"mean": {"auroc_macro": 0.85}}})
    assert "they should agree" in " ".join(cautions(study_of(), metrics | {"folds": {"mean": {"auroc_macro": 0.8}}}))
    assert not cautions(study_of(), metrics | {"folds": {"mean": None}})
