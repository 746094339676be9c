from dataclasses import replace

import pytest
import yaml

from reports.folder import Study
from reports.statistics.published import TABLE, published


def study(*, data="ptb_xl", labels="superdiagnostic", kind="multilabel", **of_data):
    of_data = {"train_folds": list(range(1, 9)), "valid_folds": [9], "test_folds": [10]} | of_data
    config = {"data": {"name": data, **of_data}, "task": {"labels": labels, "classes": None}}
    return Study("s", config, (), 0, (), {"contract": {"label_kind": kind}}, {}, {})


def models(found):
    return {row["model"]: row["value"] for row in found["rows"]}


def test_a_row_is_shown_for_its_own_task_alone():
    several, single = (
        models(published(study(labels=labels, kind=kind)))
        for labels, kind in (("superdiagnostic", "multilabel"), ("superdiagnostic_single", "single_label"))
    )
    assert several["ST-MEM, fine-tuned"] == 0.901
    assert single["ST-MEM ViT-B, fine-tuned"] == 0.933
    assert not several.keys() & single.keys()
    for other in (
        study(data="synthetic"),
        study(labels="all of mine"),
        study(labels="superdiagnostic", kind="single_label"),
    ):
        assert published(other)["rows"] == []
        assert "no published figure is known" in published(other)["reason"]


def test_a_study_on_the_published_folds_compares_and_any_other_says_why_not():
    assert published(study())["differs"] == []
    assert "do not compare" in published(study(test_folds=[9, 10]))["differs"][0]
    assert "train to 500 patients" in published(study(max_train_patients=500))["differs"][0]
    assert "published: 1 to 8 and 9" in published(study(train_folds=[1, 2]))["differs"][0]
    some = study()
    some = replace(some, config=some.config | {"task": {"labels": "superdiagnostic", "classes": ["MI", "CD"]}})
    assert "some of the protocol’s classes" in published(some)["differs"][0]
    several = replace(some, config=some.config | {"task": {"labels": "superdiagnostic", "folds": 9}})
    assert "the mean of 9 models" in published(several)["differs"][0]
    one = replace(some, config=some.config | {"task": {"labels": "superdiagnostic", "folds": 1}})
    assert published(one)["differs"] == []
    single = published(study(labels="superdiagnostic_single", kind="single_label"))
    assert "split of their authors’ own" in single["differs"][0]


def test_rows_are_in_descending_order_with_source_and_protocol():
    rows = published(study(labels="all"))["rows"]
    assert [row["value"] for row in rows] == sorted((row["value"] for row in rows), reverse=True)
    assert all(row["cite"] and row["protocol"] for row in rows)
    xresnet = next(row for row in rows if row["model"] == "xresnet1d101")
    assert (xresnet["low"], xresnet["high"]) == (0.918, 0.932)


@pytest.mark.parametrize("task", yaml.safe_load(TABLE.read_text())["tasks"], ids=lambda task: task["labels"])
def test_every_published_row_is_an_auroc_from_a_known_source(task):
    sources = yaml.safe_load(TABLE.read_text())["sources"]
    assert task["kind"] == ("single_label" if task["labels"].endswith("_single") else "multilabel")
    for row in task["rows"]:
        assert row["source"] in sources
        assert 0.5 < row["value"] < 1
        assert row.keys() <= {"source", "model", "value", "half", "sd", "low", "high"}
    assert len({(row["source"], row["model"]) for row in task["rows"]}) == len(task["rows"])


def test_the_tasks_are_label_protocols_that_ptb_xl_has():
    import pandas as pd

    from data.ptb_xl import protocols_of

    table = pd.DataFrame(
        {"diagnostic": [1.0], "form": [1.0], "rhythm": [1.0], "diagnostic_class": ["MI"], "diagnostic_subclass": ["A"]},
        index=["X"],
    )
    known = protocols_of(table)
    for task in yaml.safe_load(TABLE.read_text())["tasks"]:
        assert known[task["labels"]].kind == task["kind"]
