import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score, jaccard_score, precision_score, recall_score, roc_curve

from reports.folder import Predictions
from reports.statistics.operating_points import Rule, label_weights, operating_points, threshold


def predictions(targets, scores, split="test", patients=None):
    names = tuple(f"class{column}" for column in range(targets.shape[1]))
    ids = np.array([f"{split}{row:04d}" for row in range(len(targets))])
    patients = ids if patients is None else np.array(patients, dtype=str)
    return Predictions(names, ids, patients, np.full(len(ids), split), targets, scores)


def folds(seed=0, num_records=120, num_classes=3):
    rng = np.random.default_rng(seed)
    found = []
    for split in ("valid", "test"):
        targets = (rng.random((num_records, num_classes)) < 0.3).astype(float)
        scores = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) + 1.5 * targets)))
        found.append(predictions(targets, scores, split, rng.integers(0, num_records // 2, num_records)))
    return found


@st.composite
def one_class(draw):
    size = draw(st.integers(3, 30))
    targets = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), dtype=float)
    targets[:2] = [0, 1]
    return targets, np.array(draw(st.lists(st.integers(0, 10), min_size=size, max_size=size))) / 10


@settings(max_examples=80, deadline=None)
@given(one_class())
def test_no_other_threshold_is_better_and_no_higher_one_as_good(case):
    targets, scores = case
    worth = {
        "f1": lambda cut: fbeta_score(targets, scores >= cut, beta=1, zero_division=0),
        "youden": lambda cut: recall_score(targets, scores >= cut) + recall_score(1 - targets, scores < cut),
    }
    for criterion, of in worth.items():
        chosen = threshold(targets, scores, Rule(criterion))
        for cut in np.unique(scores):
            assert of(cut) <= of(chosen) + 1e-9
            assert cut <= chosen or of(cut) < of(chosen) - 1e-12


@settings(max_examples=80, deadline=None)
@given(one_class(), st.floats(0.05, 1))
def test_the_largest_threshold_that_reaches_the_sensitivity_is_chosen(case, wanted):
    targets, scores = case
    chosen = threshold(targets, scores, Rule("sensitivity", min_sensitivity=wanted))
    reached = [cut for cut in np.unique(scores) if recall_score(targets, scores >= cut) >= wanted - 1e-12]
    assert chosen == max(reached)


def test_youdens_threshold_is_where_the_curve_is_furthest_from_chance():
    valid, _ = folds(3)
    false, true, cuts = roc_curve(valid.targets[:, 0], valid.scores[:, 0], drop_intermediate=False)
    assert threshold(valid.targets[:, 0], valid.scores[:, 0], Rule("youden")) == cuts[np.argmax(true - false)]


def test_every_measure_is_that_of_scikit_learn_at_the_validation_threshold():
    valid, test = folds()
    found = operating_points(valid, test, Rule())
    means = {name: [] for name in ("sensitivity", "specificity", "ppv", "npv", "f1")}
    for index, name in enumerate(test.classes):
        cut = threshold(valid.targets[:, index], valid.scores[:, index], Rule())
        true, called = test.targets[:, index], test.scores[:, index] >= cut
        oracle = {
            "sensitivity": recall_score(true, called),
            "specificity": recall_score(1 - true, ~called),
            "ppv": precision_score(true, called),
            "npv": precision_score(1 - true, ~called),
            "f1": fbeta_score(true, called, beta=1),
        }
        assert found["classes"][name]["threshold"] == cut
        for measure, value in oracle.items():
            figure = found["classes"][name][measure]
            assert figure["value"] == pytest.approx(value, abs=1e-6)
            assert figure["low"] < figure["value"] < figure["high"]
            means[measure].append(value)
    for measure, values in means.items():
        assert found["macro"][measure]["value"] == pytest.approx(np.mean(values), abs=1e-6)


def test_the_threshold_does_not_look_at_the_test_fold():
    valid, test = folds()
    other = predictions(1 - test.targets, test.scores)
    cuts = [
        [one["threshold"] for one in operating_points(valid, fold, Rule())["classes"].values()]
        for fold in (test, other)
    ]
    assert cuts[0] == cuts[1]


def test_a_share_of_one_has_the_exact_bound_of_its_patients():
    targets = np.array([1.0] * 12 + [0.0] * 30)[:, None]
    found = operating_points(predictions(targets, targets, "valid"), predictions(targets, targets), Rule())
    sensitivity = found["classes"]["class0"]["sensitivity"]
    assert (sensitivity["value"], sensitivity["high"]) == (1.0, 1.0)
    assert sensitivity["low"] == pytest.approx(0.025 ** (1 / 12))  # Clopper and Pearson


def test_records_of_one_patient_make_no_interval_narrower():
    valid, test = folds()
    once = predictions(test.targets, test.scores)
    thrice = predictions(
        np.tile(test.targets, (3, 1)), np.tile(test.scores, (3, 1)), patients=np.tile(np.arange(len(test.targets)), 3)
    )
    for measure in ("sensitivity", "ppv", "f1"):
        first, second = (operating_points(valid, fold, Rule())["classes"]["class1"][measure] for fold in (once, thrice))
        assert first == pytest.approx(second, abs=1e-9)


def test_f_beta_and_g_beta_are_the_challenges_with_each_record_weighing_the_same():
    valid, test = folds(5)
    found = operating_points(valid, test, Rule(beta=2.0))["beta"]
    f_values, g_values = [], []
    for index in range(len(test.classes)):
        cut = threshold(valid.targets[:, index], valid.scores[:, index], Rule("g_beta", beta=2.0))
        tp = fp = fn = 0.0
        for row in range(len(test.targets)):
            weight = 1 / max(test.targets[row].sum(), 1)
            true, called = test.targets[row, index] > 0.5, test.scores[row, index] >= cut
            tp, fp, fn = tp + weight * (true and called), fp + weight * (called and not true), fn + weight * (
                true and not called
            )  # fmt: skip
        f_values.append(5 * tp / (5 * tp + fp + 4 * fn))
        g_values.append(tp / (tp + fp + 2 * fn))
    assert found["f_beta"]["value"] == pytest.approx(np.mean(f_values), abs=1e-6)
    assert found["g_beta"]["value"] == pytest.approx(np.mean(g_values), abs=1e-6)


def test_for_a_beta_of_one_and_one_label_a_record_they_are_f1_and_the_jaccard_index():
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 200)
    targets = (kinds[:, None] == np.arange(3)).astype(float)
    scores = rng.random((200, 3)) * 0.7 + 0.3 * targets
    np.testing.assert_array_equal(label_weights(targets), 1.0)
    valid, test = predictions(targets, scores, "valid"), predictions(targets, scores)
    found = operating_points(valid, test, Rule(beta=1.0))["beta"]
    cuts = [threshold(targets[:, k], scores[:, k], Rule("g_beta", beta=1.0)) for k in range(3)]
    called = scores >= np.array(cuts)
    assert found["f_beta"]["value"] == pytest.approx(fbeta_score(targets, called, beta=1, average="macro"), abs=1e-6)
    assert found["g_beta"]["value"] == pytest.approx(jaccard_score(targets, called, average="macro"), abs=1e-6)


def test_a_class_without_a_positive_on_either_fold_is_named_with_the_reason():
    valid, test = folds()
    valid.targets[:, 0] = 0
    test.targets[:, 1] = 0
    found = operating_points(valid, test, Rule(beta=2.0))
    assert list(found["classes"]) == ["class2"]
    assert "validation" in found["left_out"]["class0"]
    assert "test" in found["left_out"]["class1"]
    valid.targets[:] = 0
    assert operating_points(valid, test, Rule())["classes"] == {}


def test_a_class_that_is_never_called_has_no_ppv_and_takes_no_part_in_its_mean():
    valid, test = folds()
    test.scores[:, 0] = 0.0
    found = operating_points(valid, test, Rule())
    assert found["classes"]["class0"]["ppv"]["value"] is None
    assert found["classes"]["class0"]["sensitivity"]["value"] == 0.0
    assert found["classes"]["class0"]["sensitivity"]["high"] > 0.0
    assert found["macro"]["ppv"]["num_classes"] == 2
