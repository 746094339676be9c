import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.statistics import intervals
from reports.statistics.intervals import Interval, bootstrap, logit_interval, micro


def simulated(num_patients, *, num_classes=2, gap=1.0, most_records=3, seed=0):
    """Patients with one to `most_records` alike records each; classes that differ by `gap` standard deviations."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), rng.integers(1, most_records + 1, num_patients))
    kinds = (rng.random((num_patients, num_classes)) < 0.4).astype(float)
    levels = rng.normal(size=(num_patients, num_classes)) + gap * kinds
    scores = levels[patients] + 0.1 * rng.normal(size=(len(patients), num_classes))
    return kinds[patients], scores, patients


def test_every_resample_is_scored_as_scikit_learn_scores_it():
    targets, scores, patients = simulated(60)
    found = bootstrap(targets, scores, patients, num_resamples=40, seed=5)
    weights = next(intervals._resamples(patients, num_resamples=40, seed=5))
    for column in range(40):
        drawn = {"sample_weight": weights[:, column]}
        areas = [roc_auc_score(targets[:, k], scores[:, k], **drawn) for k in range(2)]
        precisions = [average_precision_score(targets[:, k], scores[:, k], **drawn) for k in range(2)]
        np.testing.assert_allclose(found.per_class[:, :, column], [areas, precisions], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.macro[:, column], [np.mean(areas), np.mean(precisions)], rtol=0, atol=1e-12)


def test_a_resample_draws_as_many_patients_as_there_are_each_with_all_records():
    _, _, patients = simulated(50)
    for weights in intervals._resamples(patients, num_resamples=20, seed=0):
        by_patient = np.array([weights[patients == patient][0] for patient in range(50)])
        np.testing.assert_array_equal(by_patient[patients], weights)
        np.testing.assert_array_equal(by_patient.sum(axis=0), 50)


def test_a_seed_gives_the_same_resamples_however_many_are_held_at_once(monkeypatch):
    targets, scores, patients = simulated(40)
    targets[:, 1] = patients == 3  # one positive patient: redraws happen
    scores[:, 1] += targets[:, 1]
    whole = bootstrap(targets, scores, patients, num_resamples=70, seed=1)
    monkeypatch.setattr(intervals, "_CHUNK_NUMBERS", 7 * len(patients))
    parts = bootstrap(targets, scores, patients, num_resamples=70, seed=1)
    np.testing.assert_allclose(parts.per_class, whole.per_class, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.macro, whole.macro, rtol=0, atol=1e-14)
    assert (parts.num_macro, parts.num_redrawn) == (whole.num_macro, whole.num_redrawn)
    assert whole.num_redrawn > 0


def test_a_model_differs_from_itself_by_exactly_nothing():
    targets, scores, patients = simulated(80, num_classes=4)
    first = bootstrap(targets, scores, patients, num_resamples=100, seed=0)
    again = bootstrap(targets, scores, patients, num_resamples=100, seed=0)
    for metric in intervals.METRICS:
        assert first.of_difference(again, metric, 0.0) == Interval(0.0, 0.0, 0.0)


def test_a_paired_difference_is_narrower_than_the_intervals_of_two_alike_models():
    targets, scores, patients = simulated(200)
    other = scores + 0.1 * np.random.default_rng(9).normal(size=scores.shape)
    first = bootstrap(targets, scores, patients, num_resamples=300, seed=0)
    second = bootstrap(targets, other, patients, num_resamples=300, seed=0)
    alone, paired = first.of_macro("auroc", 0.7), first.of_difference(second, "auroc", 0.0)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_patients_with_many_alike_records_make_the_interval_wider_than_records_would():
    targets, scores, patients = simulated(60, most_records=9)
    by_patient = bootstrap(targets, scores, patients, num_resamples=300, seed=0).of_macro("auroc", 0.7)
    by_record = bootstrap(targets, scores, np.arange(len(patients)), num_resamples=300, seed=0).of_macro("auroc", 0.7)
    assert by_patient.high - by_patient.low > 1.5 * (by_record.high - by_record.low)


def test_a_resample_without_a_positive_is_redrawn_and_never_counted_as_one_half():
    patients = np.arange(40)
    targets = np.stack([patients < 20, patients < 1], axis=1).astype(float)
    found = bootstrap(targets, targets, patients, num_resamples=200, seed=0)  # a perfect model
    assert found.num_redrawn > 0
    assert found.percentiles_of_macro("auroc", 1.0) == Interval(1.0, 1.0, 1.0)
    assert found.percentiles_of_class("auroc", 1, 1.0) == Interval(1.0, 1.0, 1.0)


def test_a_perfect_model_has_the_lower_bound_that_its_number_of_patients_allows():
    patients = np.arange(40)
    targets = (patients < 12).astype(float)[:, None]
    found = bootstrap(targets, targets, patients, num_resamples=20, seed=0)
    for metric in intervals.METRICS:
        interval = found.of_class(metric, 0, 1.0)
        assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 12)), 1.0)


def test_a_class_of_one_positive_patient_has_no_interval_and_its_mean_a_wider_one():
    rng = np.random.default_rng(0)
    patients = np.arange(200)
    targets = np.stack([patients < 60, patients == 70], axis=1).astype(float)
    scores = rng.normal(size=targets.shape) + targets
    found = bootstrap(targets, scores, patients, num_resamples=50, seed=0)
    alone, mean = found.of_class("auroc", 1, 0.7), found.of_macro("auroc", 0.75)
    assert (alone.low, alone.high) == (None, None)
    assert alone.reason.startswith("one patient alone")
    other = found.of_class("auroc", 0, 0.75)
    assert mean.high - mean.low > other.high - other.low


@given(st.floats(0, 1), st.floats(1e-9, 0.2), st.floats(1, 500), st.integers(1, 500), st.floats(-0.2, 0.2))
def test_an_interval_lies_within_its_range_and_holds_its_value(value, variance, degrees, num_patients, bias):
    found = logit_interval(value, variance, degrees, num_patients=num_patients, bias=bias)
    assert 0 <= found.low <= value <= found.high <= 1
    assert not found.excludes_value


def test_the_interval_is_the_t_interval_of_the_logit():
    found = logit_interval(0.9, 0.02**2, 7.0, num_patients=30)
    reach = t.ppf(0.975, 7.0) * 0.02 / (0.9 * 0.1)
    np.testing.assert_allclose(
        [found.low, found.high], expit(logit(0.9) + np.array([-reach, reach])), rtol=0, atol=1e-12
    )


def test_a_paired_p_value_is_never_zero_and_agrees_with_the_interval():
    targets, scores, patients = simulated(120)
    models = [bootstrap(targets, scores * (1 + shift) + shift * targets, patients, num_resamples=199, seed=0)
              for shift in (0.0, 3.0, 0.0)]  # fmt: skip
    assert models[1].p_value(models[0], "auroc") == 2 * 1 / 200
    assert models[2].p_value(models[0], "auroc") == 1.0
    rng = np.random.default_rng(1)
    for _ in range(5):
        other = bootstrap(targets, scores + 0.3 * rng.normal(size=scores.shape), patients, num_resamples=199, seed=0)
        interval, p = models[0].of_difference(other, "auroc", 0.0), models[0].p_value(other, "auroc")
        samples = (models[0].macro - other.macro)[0]
        assert p == pytest.approx(min(1, 2 * (min((samples <= 0).sum(), (samples >= 0).sum()) + 1) / 200))
        assert (p < 0.04) <= (interval.low > 0 or interval.high < 0) <= (p < 0.07)


def test_micro_values_are_those_of_scikit_learn_over_all_pairs():
    targets, scores, patients = simulated(80, num_classes=3)
    for metric, oracle in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        found = micro(targets, scores, patients, metric)
        assert found.value == pytest.approx(oracle(targets, scores, average="micro"), abs=1e-6)
        assert found.low < found.value < found.high


def test_the_number_of_redrawn_resamples_is_what_their_chance_makes_it():
    patients = np.arange(50)
    targets = np.stack([patients < 25, patients < 1], axis=1).astype(float)
    found = bootstrap(targets, targets, patients, num_resamples=2000, seed=0)
    share_valid = 1 - (1 - 1 / 50) ** 50
    assert 2000 / (2000 + found.num_redrawn) == pytest.approx(share_valid, abs=0.03)


def test_where_hardly_a_resample_holds_every_class_only_differences_go_without_an_interval():
    patients = np.arange(60)
    targets = (patients[:, None] == np.arange(12)).astype(float)  # each class has one positive patient
    scores = np.random.default_rng(0).random(targets.shape)
    found = bootstrap(targets, scores, patients, num_resamples=100, seed=0)
    difference = found.of_difference(found, "auroc", 0.0)
    assert (difference.low, difference.high) == (None, None)
    assert difference.reason.startswith("fewer than 5% of the resamples")
    assert found.p_value(found, "auroc") is None
    mean = found.of_macro("auroc", 0.5)
    assert mean.low < 0.5 < mean.high


def test_an_interval_that_misses_its_value_says_so():
    assert Interval(0.5, 0.6, 0.7).excludes_value
    assert not Interval(0.6, 0.6, 0.7).excludes_value
    assert not Interval(0.5, None, None, "too few").excludes_value


def test_no_resamples_at_all_are_refused():
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        bootstrap(*simulated(10), num_resamples=0, seed=0)


def test_between_two_equally_good_models_p_is_small_about_as_often_as_it_says():
    rejected = 0
    for seed in range(150):
        targets, scores, patients = simulated(80, num_classes=2, seed=seed)
        noise = 0.7 * np.random.default_rng(seed + 1000).normal(size=(2, *scores.shape))  # exchangeable
        first, second = (bootstrap(targets, scores + part, patients, num_resamples=199, seed=seed) for part in noise)
        rejected += first.p_value(second, "auroc") <= 0.05
    assert 0.01 <= rejected / 150 <= 0.1
