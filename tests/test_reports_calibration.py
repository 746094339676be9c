"""Calibration figures against scikit-learn and torchmetrics, and what they are where there is little to go by."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from reports.folder import Predictions, Study
from reports.statistics.bins import NUM_BINS
from reports.statistics.calibration import Answers, Resampled, label_kind, of_model
from reports.statistics.resamples import patient_resamples
from reports.statistics.temperature import rescaled

CLASSES = ("NORM", "MI", "CD")


def predictions(kind="multilabel", *, seed=0, num_records=600, stretch=2.0, classes=CLASSES):
    """Answers whose logits are `stretch` times what the labels follow; half of the records validate."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.7, 1.2, (num_records, len(classes)))
    if kind == "multilabel":
        targets, scores = rng.random(logits.shape) < expit(logits), expit(stretch * logits)
    else:
        chosen = [rng.choice(len(classes), p=row) for row in softmax(logits, axis=1)]
        targets, scores = np.eye(len(classes))[chosen], softmax(stretch * logits, axis=1)
    return Predictions(
        classes=classes,
        record_ids=np.arange(num_records).astype(str),
        patient_ids=rng.integers(num_records // 2, size=num_records).astype(str),
        splits=np.where(np.arange(num_records) % 2 == 0, "valid", "test"),
        targets=targets.astype(np.float64),
        scores=scores.astype(np.float32).astype(np.float64),
    )


def calibrated(given, kind="multilabel", num_resamples=50):
    return of_model(given, kind, num_resamples=num_resamples, seed=0)


def stages_of(given, kind, found):
    test = given.of_split("test")
    return test, {"before": test.scores, "after": rescaled(test.scores, found["temperature"]["value"], kind)}


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_brier_scores_are_scikit_learns_and_errors_torchmetrics_own(kind):
    given = predictions(kind)
    found = calibrated(given, kind)
    test, stages = stages_of(given, kind, found)
    for stage, scores in stages.items():
        columns = list(zip(test.targets.T, scores.T, strict=True))
        briers = [brier_score_loss(*column) for column in columns]
        errors = [
            float(binary_calibration_error(torch.tensor(p), torch.tensor(y).int(), n_bins=NUM_BINS)) for y, p in columns
        ]
        block = found[stage]
        for name, brier, error in zip(CLASSES, briers, errors, strict=True):
            assert block["classes"][name]["brier"]["value"] == pytest.approx(brier, abs=1e-6)
            assert block["classes"][name]["ece"]["value"] == pytest.approx(error, abs=1e-6)
        assert block["brier_macro"]["value"] == pytest.approx(np.mean(briers), abs=1e-6)
        assert block["ece_macro"]["value"] == pytest.approx(np.mean(errors), abs=1e-6)
        flat = (torch.tensor(scores.ravel()), torch.tensor(test.targets.ravel()).int())
        assert block["pooled"]["ece"]["value"] == pytest.approx(
            float(binary_calibration_error(*flat, n_bins=NUM_BINS)), abs=1e-6
        )


def test_the_error_of_the_first_choice_is_torchmetrics_multiclass_one():
    given = predictions("single_label")
    found = calibrated(given, "single_label")
    test, stages = stages_of(given, "single_label", found)
    for stage, scores in stages.items():
        labels = torch.tensor(test.targets.argmax(axis=1))
        expected = multiclass_calibration_error(torch.tensor(scores), labels, len(CLASSES), n_bins=NUM_BINS, norm="l1")
        assert found[stage]["first_choice"]["ece"] == pytest.approx(float(expected), abs=1e-6)
        assert "add up to 1" in found[stage]["pooled"]["intercept"]["reason"]
        assert found[stage]["first_choice"]["accuracy"] == np.mean(scores.argmax(axis=1) == labels.numpy())


@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_a_temperature_puts_answers_right_that_are_too_sure(kind):
    found = calibrated(predictions(kind, num_records=2000), kind)
    assert found["temperature"]["value"] == pytest.approx(2.0, rel=0.15)
    before, after = found["before"], found["after"]
    assert before["pooled"]["slope"]["high"] < 0.7
    assert after["pooled"]["slope"]["low"] < 1 < after["pooled"]["slope"]["high"]
    assert after["ece_macro"]["value"] < 0.6 * before["ece_macro"]["value"]
    assert found["difference"]["brier_macro"]["high"] < 0
    for name in ("brier", "ece", "ece_adaptive"):
        change = after[f"{name}_macro"]["value"] - before[f"{name}_macro"]["value"]
        assert found["difference"][f"{name}_macro"]["value"] == pytest.approx(change, abs=1e-12)


def test_the_temperature_follows_from_validation_alone():
    given = predictions()
    test = given.splits == "test"
    other = replace(given, targets=np.where(test[:, None], 1 - given.targets, given.targets))
    assert calibrated(other)["temperature"] == calibrated(given)["temperature"]
    without = calibrated(replace(given, splits=np.full(len(test), "test")))
    assert without["temperature"]["value"] is None
    assert without["temperature"]["reason"] == "there are no validation records"
    assert "before" in without
    assert "after" not in without


def test_intervals_are_percentiles_of_resamples_of_the_patients_and_those_of_errors_are_turned():
    given = predictions()
    found = calibrated(given, num_resamples=200)["before"]
    test = given.of_split("test")
    weights = np.concatenate(list(patient_resamples(test.patient_ids, num_resamples=200, seed=0)), axis=1)
    briers, errors = [], []
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for drawn in weights.T:
        briers.append(np.average((test.scores - test.targets) ** 2, axis=0, weights=drawn).mean())
        gaps = [
            abs(np.sum(drawn[inside] * (column - labels)[inside])) / drawn.sum()
            for column, labels in zip(test.scores.T, test.targets.T, strict=True)
            for low, high in zip(edges[:-1], edges[1:], strict=True)
            for inside in [(column >= low) & (column < high)]
        ]
        errors.append(np.sum(gaps) / len(CLASSES))
    low, high = np.quantile(briers, [0.025, 0.975])
    assert (found["brier_macro"]["low"], found["brier_macro"]["high"]) == pytest.approx((low, high), abs=1e-12)
    low, high = np.quantile(errors, [0.025, 0.975])
    value = found["ece_macro"]["value"]
    turned = (2 * value - high, 2 * value - low)
    assert (found["ece_macro"]["low"], found["ece_macro"]["high"]) == pytest.approx(turned, abs=1e-12)


def test_what_chance_makes_of_a_right_model_is_what_a_right_model_shows():
    values, by_chance, above = [], [], 0
    for seed in range(20):
        found = calibrated(predictions(seed=seed, stretch=1.0), num_resamples=1)["before"]["ece_macro"]
        values.append(found["value"])
        by_chance.append(found["by_chance"])
        above += found["value"] > found["by_chance_high"]
    assert np.mean(values) == pytest.approx(np.mean(by_chance), rel=0.1)
    assert above <= 4  # one in twenty is expected
    single = calibrated(predictions("single_label", stretch=1.0), "single_label", 1)["before"]["ece_macro"]
    assert single["value"] < 1.5 * single["by_chance"]


def test_the_diagram_has_every_record_once_and_its_bins_add_up_to_the_error():
    found = calibrated(predictions())["before"]["classes"]["MI"]
    bins = {name: np.array(column) for name, column in found["bins"].items()}
    assert bins["count"].sum() == 300
    assert bins["positive"].sum() == found["num_positive"]
    share = bins["positive"] / bins["count"]
    gaps = bins["count"] * np.abs(share - bins["probability"])
    assert gaps.sum() / 300 == pytest.approx(found["ece"]["value"], abs=1e-12)
    assert np.all((bins["low"] <= share) & (share <= bins["high"]))


def test_the_skill_is_nil_for_answering_the_share_of_positives():
    given = predictions()
    shares = given.of_split("test").targets.mean(axis=0)
    told = calibrated(replace(given, scores=np.broadcast_to(shares, given.scores.shape).copy()))
    for content in told["before"]["classes"].values():
        assert content["brier_skill"] == pytest.approx(0, abs=1e-12)
        assert content["slope"]["reason"] == "all records have the same probability"
        assert content["intercept"]["value"] == pytest.approx(0, abs=1e-9)


def test_a_class_without_a_positive_on_test_is_in_no_mean_and_says_why_it_has_no_slope():
    given = predictions()
    targets = given.targets.copy()
    targets[given.splits == "test", 2] = 0
    found = calibrated(replace(given, targets=targets))
    assert found["before"]["num_classes"] == 2
    assert found["before"]["classes"]["CD"]["slope"]["reason"] == "no record is positive"
    assert found["before"]["classes"]["CD"]["brier_skill"] is None
    others = [found["before"]["classes"][name]["brier"]["value"] for name in ("NORM", "MI")]
    assert found["before"]["brier_macro"]["value"] == pytest.approx(np.mean(others), abs=1e-12)


def test_a_class_without_a_positive_on_validation_is_named_and_the_temperature_is_fitted():
    given = predictions()
    targets = given.targets.copy()
    targets[given.splits == "valid", 2] = 0
    temperature = calibrated(replace(given, targets=targets))["temperature"]
    assert temperature["classes_without_positive"] == ["CD"]
    assert temperature["value"] > 0


def one_record(given):
    return replace(given, splits=np.where(np.arange(len(given.splits)) == 0, "test", "valid"))


def no_test(given):
    return replace(given, splits=np.full(len(given.splits), "valid"))


def not_a_number(given):
    return replace(given, scores=np.where(given.splits[:, None] == "test", np.nan, given.scores))


def separated(given):
    return replace(given, scores=np.where(given.targets > 0.5, 0.9, 0.1))


def certain(given):
    return replace(given, scores=given.targets.copy())


def alike(given):
    return replace(given, scores=np.full_like(given.scores, 0.25))


def no_positive(given):
    return replace(given, targets=np.zeros_like(given.targets))


def one_patient(given):
    return replace(given, patient_ids=np.full(len(given.splits), "one"))


CASES = [one_record, no_test, not_a_number, separated, certain, alike, no_positive, one_patient]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("classes", [CLASSES, ("MI",)])
@pytest.mark.parametrize("kind", ["multilabel", "single_label"])
def test_where_there_is_little_to_go_by_there_is_a_reason_and_never_an_error(case, classes, kind):
    found = calibrated(case(predictions(classes=classes)), kind, num_resamples=5)
    text = json.dumps(found, allow_nan=False)
    if case in (no_test, not_a_number):
        assert "before" not in found
        assert found["reason"]
    if case in (separated, certain) and kind == "multilabel":
        assert "rightly" in found["temperature"]["reason"]
        assert "without an overlap" in text
    if case in (one_record, one_patient):
        assert found["before"]["pooled"]["ece"]["reason"] == "the records are of one patient"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["valid", "test"]), st.integers(0, 2), *[st.booleans()] * 2, *[st.integers(0, 4)] * 2
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["multilabel", "single_label"]),
)
def test_whatever_the_predictions_the_figures_are_plain_numbers_or_none(rows, kind):
    columns = list(zip(*rows, strict=True))
    given = Predictions(
        classes=("A", "B"),
        record_ids=np.arange(len(rows)).astype(str),
        patient_ids=np.array(columns[1]).astype(str),
        splits=np.array(columns[0]),
        targets=np.array(columns[2:4], dtype=np.float64).T,
        scores=np.array(columns[4:6], dtype=np.float64).T / 4,
    )
    found = calibrated(given, kind, num_resamples=3)
    json.dumps(found, allow_nan=False)
    for stage in ("before", "after"):
        for content in found.get(stage, {}).get("classes", {}).values():
            assert 0 <= content["brier"]["value"] <= 1
            assert 0 <= content["ece"]["value"] <= 1 + 1e-12


def study(**best):
    return Study("s", {}, (), 0, (), best, {}, {})


def test_the_kind_of_labels_is_the_contracts_or_else_what_the_answers_look_like():
    multilabel, single = predictions(), predictions("single_label")
    assert label_kind(study(contract={"label_kind": "single_label"}), multilabel) == "single_label"
    assert label_kind(study(), multilabel) == "multilabel"
    assert label_kind(study(), single) == "single_label"
    assert label_kind(study(), predictions(classes=("MI",))) == "multilabel"


@pytest.mark.slow
def test_the_interval_of_an_error_holds_it_about_as_often_as_it_says_where_it_is_well_above_chance():
    """The bounds are three standard errors of 150 draws around 93.5 %, what a longer simulation gave."""
    rng = np.random.default_rng(0)

    def drawn(num_records):
        logits = rng.normal(-1.5, 1.5, (num_records, 1))
        return expit(0.6 * logits + 0.3), expit(logits)

    def error(truth, answers):
        return Resampled.of(Answers(truth, answers), np.arange(len(truth)), num_resamples=0, seed=0).all_records.ece[0]

    true_error = float(error(*drawn(300_000))[0])  # labels replaced by their probabilities: no noise but the bins'
    held = 0
    for _ in range(150):
        truth, answers = drawn(1500)
        targets = (rng.random(truth.shape) < truth).astype(np.float64)
        found = Resampled.of(Answers(targets, answers), np.arange(1500), num_resamples=200, seed=0).interval("ece", [0])
        held += found.low <= true_error <= found.high
    assert 0.875 <= held / 150 <= 0.995
