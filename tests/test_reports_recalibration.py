"""Slope and intercept against scikit-learn and scipy, their variance against the formula in plain loops."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from reports.statistics.recalibration import CLIP, intercept, logit, slope


def drawn(seed, num_records=300, stretch=0.7, shift=-0.4, num_patients=None):
    """Labels that lie as `stretch` and `shift` say from the probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, num_records)
    targets = (rng.random(num_records) < expit(stretch * logits + shift)).astype(np.float64)
    patients = rng.integers(num_patients or num_records, size=num_records).astype(str)
    return targets, expit(logits), patients


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_a_logistic_regression_without_penalty(seed):
    targets, probabilities, patients = drawn(seed)
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(logit(probabilities)[:, None], targets)
    assert slope(targets, probabilities, patients).value == pytest.approx(fitted.coef_[0, 0], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_slope_and_intercept_are_where_scipy_finds_the_largest_likelihood(seed):
    targets, probabilities, patients = drawn(seed)
    logits = np.log(probabilities / (1 - probabilities))

    def loss(shift, stretch):
        predictor = shift + stretch * logits
        return np.sum(np.logaddexp(0, predictor) - targets * predictor)

    both = minimize(lambda x: loss(*x), [0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert slope(targets, probabilities, patients).value == pytest.approx(both.x[1], abs=1e-6)
    one = minimize_scalar(lambda shift: loss(shift, 1.0), bounds=(-5, 5), method="bounded", options={"xatol": 1e-10})
    assert intercept(targets, probabilities, patients).value == pytest.approx(one.x, abs=1e-6)


def test_the_interval_is_that_of_scores_summed_by_patient():
    targets, probabilities, patients = drawn(0, num_patients=90)
    found = slope(targets, probabilities, patients)
    logits = logit(probabilities)
    fitted = LogisticRegression(C=np.inf, tol=1e-13, max_iter=10_000).fit(logits[:, None], targets)
    expected = expit(fitted.intercept_[0] + fitted.coef_[0, 0] * logits)
    bread, meat = np.zeros((2, 2)), np.zeros((2, 2))
    for patient in np.unique(patients):
        score = np.zeros(2)
        for row in np.flatnonzero(patients == patient):
            x = np.array([1.0, logits[row]])
            bread += expected[row] * (1 - expected[row]) * np.outer(x, x)
            score += (targets[row] - expected[row]) * x
        meat += np.outer(score, score)
    num_patients = np.unique(patients).size
    variance = num_patients / (num_patients - 1) * np.linalg.inv(bread) @ meat @ np.linalg.inv(bread)
    assert found.high - found.low == pytest.approx(2 * 1.959963984540054 * np.sqrt(variance[1, 1]), abs=1e-6)


def test_the_intervals_hold_the_truth_as_often_as_they_say():
    """Two records a patient, alike; the bounds are three standard errors of 400 draws around 95 %."""
    held = {"slope": 0, "intercept": 0}
    for seed in range(400):
        rng = np.random.default_rng(seed)
        logits = np.repeat(rng.normal(-0.5, 1.2, 150), 2)
        targets = np.repeat((rng.random(150) < expit(logits[::2])).astype(np.float64), 2)
        same = rng.random(300) < 0.8  # the second record mostly says what the first does
        targets = np.where(same, targets, (rng.random(300) < expit(logits)).astype(np.float64))
        patients = np.repeat(np.arange(150), 2).astype(str)
        for name, fit, truth in (("slope", slope, 1.0), ("intercept", intercept, 0.0)):
            interval = fit(targets, expit(logits), patients)
            held[name] += interval.low <= truth <= interval.high
    assert all(0.917 <= number / 400 <= 0.983 for number in held.values()), held


@pytest.mark.parametrize(
    ("targets", "probabilities", "told"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], "no record is positive"),
        ([1, 1], [0.1, 0.2], "no record is negative"),
        ([1], [0.1], "no record is negative"),
        ([0, 1, 0, 1], [0.4] * 4, "all records have the same probability"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8], "without an overlap"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.7, 0.8], "without an overlap"),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.8], "without an overlap"),  # apart but for a tie
        ([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0], "without an overlap"),
    ],
)
def test_a_slope_that_does_not_exist_has_a_reason(targets, probabilities, told):
    patients = np.arange(len(targets)).astype(str)
    with pytest.raises(ValueError, match=told):
        slope(np.array(targets, dtype=np.float64), np.array(probabilities), patients)


def test_probabilities_of_0_and_1_have_a_logit_all_the_same():
    found = logit(np.array([0.0, CLIP / 2, 0.5, 1.0]))
    assert found.tolist() == pytest.approx([np.log(CLIP), np.log(CLIP), 0.0, -np.log(CLIP)], abs=1e-6)
    nearest = np.nextafter(np.float32(1), np.float32(0)).astype(np.float64)
    assert np.log(nearest / (1 - nearest)) == pytest.approx(logit(nearest), abs=1e-9)  # kept to the bit, not clipped


def test_saturated_probabilities_have_a_slope():
    targets, probabilities, patients = drawn(3)
    probabilities[:6], targets[:6] = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0]
    assert 0 < slope(targets, probabilities, patients).value < 1
    assert np.isfinite(intercept(targets, probabilities, patients).value)


def test_records_of_one_patient_give_a_value_without_an_interval():
    targets, probabilities, _ = drawn(0)
    found = slope(targets, probabilities, np.full(len(targets), "one"))
    assert (found.low, found.reason) == (None, "the records are of one patient")
