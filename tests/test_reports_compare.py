import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.compare import build, holm
from tests.test_reports_report import CLASSES, predictions, write_study


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("written") / "first")


@pytest.fixture
def studies(written, tmp_path):
    """Two studies on the same records, the second with the worse model and another sampler."""
    shutil.copytree(written, tmp_path / "first")
    shutil.copytree(written, tmp_path / "second")
    predictions(0.4).to_parquet(tmp_path / "second" / "report" / "predictions.parquet")
    set_value(tmp_path / "second", "sampler", {"name": "random"})
    return [tmp_path / "first", tmp_path / "second"]


def set_value(study, key, value):
    config = yaml.safe_load((study / "study.yaml").read_text())
    node = config
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    (study / "study.yaml").write_text(yaml.safe_dump(config))


def change_predictions(study, do):
    path = study / "report" / "predictions.parquet"
    do(pd.read_parquet(path)).to_parquet(path)


def compared(studies, tmp_path):
    page = build(studies, tmp_path / "out", num_resamples=200)
    return json.loads((tmp_path / "out" / "compare.json").read_text()), page.read_text()


def test_the_difference_is_that_of_scikit_learns_values_on_the_test_records(studies, tmp_path):
    content, _ = compared(studies, tmp_path)
    (found,) = content["differences"]
    tables = [pd.read_parquet(study / "report" / "predictions.parquet") for study in studies]
    tests = [table[table["split"] == "test"] for table in tables]
    for metric, of in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        first, second = (np.mean([of(t[f"y_{name}"], t[f"p_{name}"]) for name in CLASSES[:3]]) for t in tests)
        assert found[metric]["difference"]["value"] == pytest.approx(second - first, abs=1e-6)
        assert found[metric]["difference"]["low"] < second - first < found[metric]["difference"]["high"]
        assert found[metric]["p"] < 0.05
    assert (found["num_records"], found["num_patients"]) == (200, 90)
    assert found["classes"] == list(CLASSES[:3])


def test_a_study_and_its_copy_do_not_differ(studies, tmp_path):
    shutil.copytree(studies[0], tmp_path / "copy")
    content, page = compared([studies[0], tmp_path / "copy"], tmp_path)
    (found,) = content["differences"]
    reason = "no patient tells the two models apart"
    assert found["auroc"]["difference"] == {"value": 0.0, "low": None, "high": None, "reason": reason}
    assert found["auroc"]["p"] is None
    assert f"none <small>{reason}</small>" in page
    assert content["settings"] == []
    assert "the studies were given the same settings" in page


def test_the_settings_that_differ_are_listed_and_no_place(studies, tmp_path):
    set_value(studies[1], "study_dir", "/home/author/second")
    set_value(studies[1], "data.root", "/home/author/data")
    set_value(studies[1], "space", {"model.mask_ratio": {"uniform": [0.1, 0.2]}})
    content, page = compared(studies, tmp_path)
    settings = {row["key"]: row["values"] for row in content["settings"]}
    assert settings["sampler.name"] == ["tpe", "random"]
    assert settings["space.model.mask_ratio"] == ['{"uniform": [0.3, 0.9]}', '{"uniform": [0.1, 0.2]}']
    assert settings["space.model.size"][1] is None
    assert "/home/author" not in page


def test_partly_shared_records_are_compared_alone_and_counted(studies, tmp_path):
    change_predictions(studies[1], lambda table: table.iloc[:-50])
    (found,) = compared(studies, tmp_path)[0]["differences"]
    assert found["num_records"] == 150
    assert found["of"] == [200, 150]
    shown = [pd.read_parquet(study / "report" / "predictions.parquet").set_index("record_id") for study in studies]
    common = shown[1].index[shown[1]["split"] == "test"]
    first = np.mean(
        [roc_auc_score(shown[0].loc[common, f"y_{c}"], shown[0].loc[common, f"p_{c}"]) for c in CLASSES[:3]]
    )
    assert found["auroc"]["first"]["value"] == pytest.approx(first, abs=1e-6)


def test_a_validation_record_of_one_study_is_no_test_record_of_both(studies, tmp_path):
    change_predictions(studies[1], lambda table: table.assign(split=["test"] * 400))
    (found,) = compared(studies, tmp_path)[0]["differences"]
    assert (found["num_records"], found["of"]) == (200, [200, 400])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: set_value(s, "task.labels", "rhythm"), "its labels are rhythm, the first study's superdiagnostic"),
        (lambda s: set_value(s, "data.name", "other"), "its data are other"),
        (lambda s: (s / "report" / "predictions.parquet").unlink(), "it has no predictions of its best trial"),
        (
            lambda s: change_predictions(s, lambda t: t.assign(record_id="x" + t["record_id"])),
            "no test record is in both",
        ),
        (lambda s: change_predictions(s, lambda t: t.assign(patient_id="x")), "the same patient and labels"),
        (lambda s: change_predictions(s, lambda t: t.assign(y_MI=1 - t["y_MI"])), "the same patient and labels"),
        (lambda s: change_predictions(s, lambda t: t.drop(columns=["y_MI", "p_MI"])), "has the classes MI"),
        (lambda s: change_predictions(s, lambda t: t.assign(p_MI=np.nan)), "it has no predictions of its best trial"),
        (lambda s: change_predictions(s, lambda t: t[t["split"] == "test"].iloc[:1]), "no class has both"),
    ],
)
def test_what_cannot_be_compared_is_shown_side_by_side_with_the_reason(studies, tmp_path, change, reason):
    change(studies[1])
    content, page = compared(studies, tmp_path)
    (found,) = content["differences"]
    assert reason in found["reason"]
    assert "auroc" not in found
    assert "not compared: " in page
    assert content["studies"][0]["test"]["auroc_macro"]["value"] > 0.5


def test_labels_of_another_kind_are_not_compared(studies, tmp_path):
    path = studies[1] / "checkpoints" / "best_1" / "checkpoint.json"
    described = json.loads(path.read_text())
    described["contract"]["label_kind"] = "single_label"
    path.write_text(json.dumps(described))
    (found,) = compared(studies, tmp_path)[0]["differences"]
    assert "its labels are single_label, the first study's multilabel" in found["reason"]


def test_several_studies_are_held_against_the_first_with_adjusted_p_values(studies, tmp_path):
    third = tmp_path / "third"
    shutil.copytree(studies[0], third)
    predictions(1.4).to_parquet(third / "report" / "predictions.parquet")
    content, page = compared([*studies, third], tmp_path)
    plain = [found["auroc"]["p"] for found in content["differences"]]
    assert [found["auroc"]["p_holm"] for found in content["differences"]] == holm(plain)
    assert "Holm" in page


def test_the_same_studies_give_the_same_files_wherever_they_lie(studies, tmp_path):
    first = compared(studies, tmp_path)
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name} moved")
    moved = tmp_path.parent / f"{tmp_path.name} moved"
    assert compared([moved / "first", moved / "second"], moved) == first
    assert "http" not in first[1]
    assert "<script" not in first[1]
    assert "<b>odd" not in first[1]


def test_one_study_twice_is_refused(studies, tmp_path):
    with pytest.raises(ValueError, match="two studies or more, each once"):
        build([studies[0], studies[0]], tmp_path / "out")
    with pytest.raises(ValueError, match="is no study's folder"):
        build([studies[0], tmp_path], tmp_path / "out")


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_procedure_rejects_what_the_step_down_rule_does(values):
    adjusted = holm(values)
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
            if (len(values) - rank) * values[place] > level:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(adjusted) if value <= level} == rejected
