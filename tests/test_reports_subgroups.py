"""Figures of groups against scikit-learn and plain loops; no group is ever lost."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from reports.folder import ATTRIBUTES, Predictions, Study
from reports.statistics.intervals import ENOUGH_PATIENTS
from reports.statistics.operating_points import Rule, operating_points
from reports.statistics.resamples import patient_resamples
from reports.statistics.subgroups import COMPARED_PATIENTS, DIMENSIONS, UNKNOWN, groups_of, subgroups

CLASSES = ("NORM", "MI", "RARE")
AGES = [0.0, 17.9, 18.0, 39.9, 40.0, 64.0, 65.0, 75.0, 85.0, 90.0, 300.0, np.nan, -1.0]


def attributes(num_records, seed=0):
    rng = np.random.default_rng(seed)
    flags = [(), ("static_noise",), ("static_noise", "pacemaker"), None]
    return pd.DataFrame(
        {
            "age": rng.choice(AGES, num_records),
            "sex": rng.choice(np.array(["male", "female", None], dtype=object), num_records, p=[0.5, 0.4, 0.1]),
            "device": rng.choice(np.array(["CS-12", "AT-60 3", None], dtype=object), num_records, p=[0.8, 0.15, 0.05]),
            "site": rng.integers(60, size=num_records).astype(str),
            "quality": pd.Series([flags[index] for index in rng.integers(4, size=num_records)], dtype=object),
        }
    )


def predictions(num_records=500, seed=0, **columns):
    """Test records alone; a tenth of a percent of them carries RARE."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_records, len(CLASSES))) < [0.4, 0.3, 0.0]).astype(np.float64)
    targets[0, 2] = 1
    return Predictions(
        classes=CLASSES,
        record_ids=np.arange(num_records).astype(str),
        patient_ids=rng.integers(max(1, num_records * 2 // 3), size=num_records).astype(str),
        splits=np.full(num_records, "test"),
        targets=targets,
        scores=1 / (1 + np.exp(-(rng.normal(size=targets.shape) + 1.5 * targets))),
        attributes=attributes(num_records, seed).assign(**columns),
    )


def study(given):
    return Study("s", {}, (), 0, (), {}, {}, {"best": given})


def found_in(given, metrics=None, num_resamples=30):
    return subgroups(study(given), metrics or {}, num_resamples=num_resamples, seed=0)


def named(content, dimension):
    return {group["name"]: group for group in content["dimensions"][dimension]["groups"]}


def test_values_are_scikit_learns_on_the_groups_records():
    given = predictions()
    groups = named(found_in(given), "sex")
    for sex in ("male", "female"):
        rows = (given.attributes["sex"] == sex).to_numpy()
        areas = {
            name: roc_auc_score(given.targets[rows, index], given.scores[rows, index])
            for index, name in enumerate(CLASSES)
            if 0 < given.targets[rows, index].sum() < rows.sum()
        }
        assert groups[sex]["auroc_macro"]["value"] == pytest.approx(np.mean(list(areas.values())), abs=1e-6)
        for name, content in groups[sex]["classes"].items():
            assert content["auroc"]["value"] == pytest.approx(areas[name], abs=1e-6)
        assert groups[sex]["num_records"] == rows.sum()
        assert groups[sex]["num_patients"] == np.unique(given.patient_ids[rows]).size


def test_a_difference_is_over_the_classes_that_both_sides_have_enough_of_in_the_same_resamples():
    given = predictions()
    difference = named(found_in(given, num_resamples=40), "device")["AT-60 3"]["difference"]
    inside = (given.attributes["device"] == "AT-60 3").to_numpy()
    assert difference["classes"] == ["NORM", "MI"]

    def macro(rows, weights):
        return np.mean(
            [
                roc_auc_score(given.targets[rows, k], given.scores[rows, k], sample_weight=weights[rows])
                for k in range(2)
            ]
        )

    everyone = np.ones(len(inside))
    expected = macro(inside, everyone) - macro(~inside, everyone)
    assert difference["value"] == pytest.approx(expected, abs=1e-6)
    weights = np.concatenate(list(patient_resamples(given.patient_ids, num_resamples=40, seed=0)), axis=1)
    drawn = [macro(inside, column) - macro(~inside, column) for column in weights.T]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (difference["low"], difference["high"]) == pytest.approx((low, high), abs=1e-6)


def test_two_groups_that_are_each_others_rest_have_one_difference_from_two_sides():
    given = predictions(sex=["male", "female"] * 250)
    content = found_in(given)
    one, other = (group["difference"] for group in content["dimensions"]["sex"]["groups"])
    assert (other["value"], other["low"], other["high"]) == (-one["value"], -one["high"], -one["low"])
    swapped = predictions(sex=["male", "female"] * 250, device="x", site="x", age=50.0, quality=None)
    assert found_in(swapped)["num_differences"] == 1


def test_a_sensitivity_is_the_share_of_the_groups_positives_at_the_threshold_of_validation():
    given = predictions()
    thresholds = {"NORM": {"threshold": 0.5}, "MI": {"threshold": 0.7}, "RARE": {"threshold": None}}
    metrics = {"operating_points": {"classes": thresholds}}
    group = named(found_in(given, metrics, num_resamples=200), "device")["CS-12"]
    rows = (given.attributes["device"] == "CS-12").to_numpy()
    shares = [
        np.mean(given.scores[rows & (given.targets[:, index] > 0.5), index] >= threshold)
        for index, threshold in enumerate((0.5, 0.7))
    ]
    assert [group["classes"][name]["sensitivity"]["value"] for name in ("NORM", "MI")] == pytest.approx(shares)
    macro = group["sensitivity_macro"]
    assert macro["value"] == pytest.approx(np.mean(shares))
    assert macro["low"] < macro["value"] < macro["high"]
    assert named(found_in(given), "device")["CS-12"]["sensitivity_macro"] is None


def test_a_group_of_everybody_has_the_sensitivities_of_the_table_of_decisions():
    test = predictions(device="x").with_classes(["NORM", "MI"])
    decisions = operating_points(replace(test, scores=test.scores[::-1]), test, Rule())
    group = named(found_in(test, {"operating_points": decisions}), "device")["x"]
    assert group["sensitivity_macro"] == decisions["macro"]["sensitivity"]
    for name in test.classes:
        assert group["classes"][name]["sensitivity"] == decisions["classes"][name]["sensitivity"]


def test_all_positives_found_is_no_proof_that_all_will_be():
    given = predictions(device="x").with_classes(["NORM"])
    scores = np.where(given.targets > 0.5, 0.9, given.scores)
    metrics = {"operating_points": {"classes": {"NORM": {"threshold": 0.9}}}}
    group = named(found_in(replace(given, scores=scores), metrics), "device")["x"]
    found, num_patients = group["sensitivity_macro"], group["classes"]["NORM"]["num_positive_patients"]
    assert (found["value"], found["low"], found["high"]) == (1.0, pytest.approx(0.025 ** (1 / num_patients)), 1.0)


def test_the_records_of_one_patient_give_a_group_no_interval():
    given = replace(predictions(device="x").with_classes(["NORM", "MI"]), patient_ids=np.full(500, "one"))
    metrics = {"operating_points": {"classes": {"NORM": {"threshold": 0.5}, "MI": {"threshold": 0.5}}}}
    group = named(found_in(given, metrics), "device")["x"]
    for found in (group["auroc_macro"], group["sensitivity_macro"]):
        assert (found["low"], found["high"], found["reason"]) == (None, None, "the records are of one patient")


def test_a_group_is_marked_below_as_many_patients_as_a_class_is_and_compared_from_fewer_on():
    content = found_in(predictions())
    assert (content["enough_patients"], content["compared_patients"]) == (ENOUGH_PATIENTS, COMPARED_PATIENTS)
    for found in content["dimensions"].values():
        for group in found["groups"]:
            assert group["small"] == (not group["fewest"] or group["fewest"]["num_patients"] < ENOUGH_PATIENTS)


def test_ages_fall_into_bands_and_unknown_ones_into_a_group_of_their_own():
    table = pd.DataFrame({"age": AGES})
    bands = {group.name: table["age"][group.rows].tolist() for group in groups_of(table, "age")}
    assert np.isnan(bands.pop(UNKNOWN)[0])
    assert bands == {
        "under 18": [0.0, 17.9],
        "18–39": [18.0, 39.9],
        "40–64": [40.0, 64.0],
        "65–74": [65.0],
        "75–84": [75.0],
        "85 and over": [85.0, 90.0, 300.0],  # 300: PTB-XL's way to say over 89
    }


def test_a_record_with_two_flags_is_in_two_groups_and_one_that_nobody_looked_at_in_neither():
    table = pd.DataFrame({"quality": pd.Series([(), ("a", "b"), ("b",), None], dtype=object)})
    groups = {group.name: np.flatnonzero(group.rows).tolist() for group in groups_of(table, "quality")}
    assert groups == {"no flag": [0], "b": [1, 2], "a": [1], UNKNOWN: [3]}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_no_record_is_in_no_group_and_no_group_is_lost(num_records, seed):
    table = attributes(num_records, seed)
    for dimension in DIMENSIONS:
        groups = groups_of(table, dimension)
        members = np.sum([group.rows for group in groups], axis=0)
        assert members.min() >= 1
        assert dimension == "quality" or members.max() == 1
        assert len({group.name for group in groups}) == len(groups)


def test_the_long_tail_of_sites_is_there_marked_and_with_reasons():
    content = found_in(predictions(), num_resamples=5)
    groups = content["dimensions"]["site"]["groups"]
    assert len(groups) == 60
    assert sum(group["num_records"] for group in groups) == 500
    assert all(group["small"] for group in groups)
    assert all("on both sides" in group["difference"]["reason"] for group in groups)


def test_a_group_that_cannot_be_scored_is_listed_with_the_reason():
    given = predictions()
    targets = given.targets.copy()
    alone = np.arange(500) < 3
    targets[alone] = 0
    given = replace(
        given, targets=targets, attributes=given.attributes.assign(device=np.where(alone, "seldom", "often"))
    )
    group = named(found_in(given), "device")["seldom"]
    assert group["auroc_macro"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no class has both a positive and a negative record",
    }
    assert (group["num_records"], group["fewest"], group["small"]) == (3, None, True)
    assert group["classes"] == {}


def test_a_group_is_marked_by_its_rarest_class():
    given = predictions(device="x")
    group = named(found_in(given), "device")["x"]
    assert group["fewest"] == {"class": "RARE", "num_patients": 1}
    assert group["small"]
    assert list(group["classes"]) == ["NORM", "MI"]  # those with enough patients
    assert group["difference"]["reason"] == "there are no other records"
    of_two = given.with_classes(["NORM", "MI"])
    assert not named(found_in(of_two), "device")["x"]["small"]
    assert min(group["classes"][name]["num_positive_patients"] for name in ("NORM", "MI")) >= COMPARED_PATIENTS


def test_a_group_whose_resamples_cannot_vary_has_no_interval_rather_than_one_without_width():
    given = predictions(40, device=["few"] * 4 + ["many"] * 36)
    scores, targets = given.scores.copy(), given.targets.copy()
    targets[:4, :2] = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    scores[:4] = 0.1 + 0.8 * targets[:4]
    given = replace(given, scores=scores, targets=targets, patient_ids=np.arange(40).astype(str))
    metrics = {"operating_points": {"classes": {"NORM": {"threshold": 0.5}}}}
    few = named(found_in(given.with_classes(["NORM", "MI"]), metrics), "device")["few"]
    for found in (few["auroc_macro"], few["sensitivity_macro"]):
        assert found["value"] == 1
        assert found["low"] is None or found["low"] < found["high"]


def test_predictions_of_an_older_version_are_said_not_to_know():
    given = predictions()
    reason = found_in(replace(given, attributes=pd.DataFrame()))["reason"]
    assert "without opening the test fold" in reason
    assert "reason" in subgroups(Study("s", {}, (), 0, (), {}, {}, {}), {}, num_resamples=5, seed=0)


def test_what_is_not_known_of_any_record_is_said_for_that_dimension_alone():
    content = found_in(predictions(quality=None, sex=None))
    assert content["dimensions"]["quality"] == {"groups": [], "reason": "not known of any test record"}
    assert content["dimensions"]["sex"]["groups"] == []
    assert content["dimensions"]["age"]["groups"]
    without = predictions()
    without = replace(without, attributes=without.attributes[["age"]])
    assert found_in(without)["dimensions"]["device"]["reason"] == "not known of any test record"


@pytest.mark.parametrize("num_records", [1, 2, 5])
def test_a_handful_of_records_has_reasons_and_never_an_error(num_records):
    found = found_in(predictions(num_records), num_resamples=3)
    json.dumps(found, allow_nan=False)
    assert "reason" in found or found["dimensions"]


def test_where_no_group_differs_about_one_interval_in_twenty_leaves_out_zero():
    content = [found_in(predictions(seed=seed), num_resamples=100) for seed in range(6)]
    looks = sum(found["num_differences"] for found in content)
    assert looks > 40
    assert sum(found["num_excluding_zero"] for found in content) < 0.2 * looks


def test_the_same_predictions_give_the_same_figures():
    assert found_in(predictions()) == found_in(predictions())


def test_the_attributes_are_the_dimensions():
    assert set(DIMENSIONS) == set(ATTRIBUTES)
