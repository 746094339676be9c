import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import average_precision_score, roc_auc_score

from reports.statistics import intervals, resamples
from reports.statistics.delong import delong
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
    monkeypatch.setattr(resamples, "_CHUNK_NUMBERS", 7 * len(patients))
    parts = bootstrap(targets, scores, patients, num_resamples=70, seed=1)
    np.testing.assert_allclose(parts.per_class, whole.per_class, rtol=0, atol=1e-14)
    np.testing.assert_allclose(parts.macro, whole.macro, rtol=0, atol=1e-14)
    assert (parts.num_macro, parts.num_redrawn) == (whole.num_macro, whole.num_redrawn)
    assert whole.num_redrawn > 0


def test_a_model_differs_from_itself_by_nothing_and_gets_no_interval_without_width():
    targets, scores, patients = simulated(80, num_classes=4)
    first, again = (bootstrap(targets, scores, patients, num_resamples=10, seed=0) for _ in range(2))
    for metric in intervals.METRICS:
        found, p = first.of_difference(again, metric)
        assert (found.value, found.low, found.high, p) == (0.0, None, None, None)
        assert found.reason == "no patient tells the two models apart"


def test_a_paired_difference_is_narrower_than_the_intervals_of_two_alike_models():
    targets, scores, patients = simulated(200)
    other = scores + 0.1 * np.random.default_rng(9).normal(size=scores.shape)
    first = bootstrap(targets, scores, patients, num_resamples=300, seed=0)
    second = bootstrap(targets, other, patients, num_resamples=300, seed=0)
    alone, paired = first.of_macro("auroc", 0.7), first.of_difference(second, "auroc")[0]
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


def test_a_paired_interval_leaves_out_zero_exactly_where_p_is_below_five_percent():
    targets, scores, patients = simulated(120)
    rng = np.random.default_rng(1)
    first = bootstrap(targets, scores, patients, num_resamples=10, seed=0)
    excluded = 0
    for spread in np.linspace(0.1, 3, 15):
        other = bootstrap(targets, scores + spread * rng.normal(size=scores.shape), patients, num_resamples=10, seed=0)
        for metric in intervals.METRICS:
            (found, p), (mirrored, again) = first.of_difference(other, metric), other.of_difference(first, metric)
            assert (p < 0.05) == (found.low > 0 or found.high < 0)
            assert (mirrored.low, mirrored.high, again) == (-found.high, -found.low, p)
            excluded += p < 0.05
    assert 3 < excluded < 30


def test_with_one_record_a_patient_the_paired_test_is_delongs_but_for_its_small_sample_factors():
    rng = np.random.default_rng(2)
    targets = (np.arange(3000) < 900).astype(float)[:, None]
    scores = [rng.normal(size=targets.shape) + targets for _ in range(2)]
    models = [bootstrap(targets, one, np.arange(3000), num_resamples=1, seed=0) for one in scores]
    _, p = models[0].of_difference(models[1], "auroc")
    assert p == pytest.approx(delong(targets[:, 0], *(one[:, 0] for one in scores)).difference()[-1], abs=0.002)


@pytest.mark.parametrize("alone", [1, 0])
def test_a_difference_decided_by_one_patient_of_a_kind_has_no_interval_and_no_p(alone):
    patients = np.repeat(np.arange(50), 2)
    targets = np.stack([patients < 20, (patients == 7) == alone], axis=1).astype(float)
    rng = np.random.default_rng(0)
    models = [bootstrap(targets, rng.normal(size=targets.shape), patients, num_resamples=5, seed=0) for _ in range(2)]
    for metric in intervals.METRICS:
        found, p = models[0].of_difference(models[1], metric)
        assert (found.low, found.high, p, found.reason) == (None, None, None, intervals.ALONE)


def test_records_of_one_patient_give_no_interval_of_any_kind():
    targets, scores, _ = simulated(60)
    one = np.zeros(len(targets), dtype=int)
    models = [bootstrap(targets, part, one, num_resamples=5, seed=0) for part in (scores, -scores)]
    for metric in intervals.METRICS:
        mean, pairs = models[0].of_macro(metric, 0.7), micro(targets, scores, one, metric)
        difference, p = models[0].of_difference(models[1], metric)
        for found in (models[0].of_class(metric, 0, 0.7), mean, pairs, difference):
            assert (found.low, found.high) == (None, None)
            assert "one patient alone" in found.reason
        assert p is None


def test_a_mean_has_no_interval_where_no_class_has_one():
    patients = np.arange(60)
    targets = (patients[:, None] == np.arange(12)).astype(float)  # each class has one positive patient
    found = bootstrap(targets, np.random.default_rng(0).random(targets.shape), patients, num_resamples=50, seed=0)
    mean = found.of_macro("auroc", 0.5)
    assert (mean.low, mean.high, mean.reason) == (None, None, f"in every class {intervals.ALONE}")


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


def test_an_interval_that_misses_its_value_says_so():
    assert Interval(0.5, 0.6, 0.7).excludes_value
    assert not Interval(0.6, 0.6, 0.7).excludes_value
    assert not Interval(0.5, None, None, "too few").excludes_value


def test_no_resamples_at_all_are_refused():
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        bootstrap(*simulated(10), num_resamples=0, seed=0)


def p_values(seed, num_classes, num_positive):
    """p of two exchangeable models on 150 patients with 1 to 3 records, `num_positive` of them positive in a class."""
    rng = np.random.default_rng([seed, num_classes, num_positive])
    patients = np.repeat(np.arange(150), rng.integers(1, 4, 150))
    kinds = np.array([rng.permutation(150) < num_positive for _ in range(num_classes)], dtype=float).T
    shared = rng.normal(size=kinds.shape)[patients] + 1.5 * kinds[patients]
    noise = rng.normal(size=(2, *kinds.shape))[:, patients] + rng.normal(size=(2, len(patients), num_classes))
    first, second = (
        bootstrap(kinds[patients], shared + 0.7 * part, patients, num_resamples=1, seed=0) for part in noise
    )
    return [first.of_difference(second, metric)[1] for metric in intervals.METRICS]


@pytest.mark.parametrize(("num_classes", "num_positive"), [(1, 2), (1, 5), (5, 5), (2, 20)])
def test_between_two_equally_good_models_p_is_small_no_oftener_than_it_says(num_classes, num_positive):
    """At 5 % of 300 folds, 26 or more have a chance of 0.4 %; percentiles had 9 to 19 % with few positives."""
    p = np.array([p_values(seed, num_classes, num_positive) for seed in range(300)])
    assert ((p <= 0.05).sum(axis=0) < 26).all()
    if num_positive == 20:
        assert ((p <= 0.05).sum(axis=0) > 4).all()
