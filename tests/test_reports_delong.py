import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from reports.statistics.delong import delong, differs_notably, midranks


def covariance_in_loops(targets, models):
    """DeLong et al. 1988, equations 4 and 5, as they stand."""
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    m, n = len(positives), len(negatives)
    v10, v01, areas = [], [], []
    for scores in models:
        psi = [[1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0 for j in negatives]
               for i in positives]  # fmt: skip
        v10.append([sum(row) / n for row in psi])
        v01.append([sum(psi[i][j] for i in range(m)) / m for j in range(n)])
        areas.append(sum(sum(row) for row in psi) / (m * n))
    covariance = np.zeros((len(models), len(models)))
    for r in range(len(models)):
        for s in range(len(models)):
            s10 = sum((v10[r][i] - areas[r]) * (v10[s][i] - areas[s]) for i in range(m)) / (m - 1)
            s01 = sum((v01[r][j] - areas[r]) * (v01[s][j] - areas[s]) for j in range(n)) / (n - 1)
            covariance[r, s] = s10 / m + s01 / n
    return areas, covariance


def two_models(seed, num_records=60):
    rng = np.random.default_rng(seed)
    targets = (rng.random(num_records) < 0.4).astype(float)
    first = np.round(rng.normal(size=num_records) + targets, 1)  # with ties
    return targets, first, np.round(first + rng.normal(size=num_records), 1)


@pytest.mark.parametrize("seed", range(4))
def test_areas_and_covariances_are_the_published_formulas(seed):
    targets, *models = two_models(seed)
    areas, covariance = covariance_in_loops(targets, models)
    found = delong(targets, *models)
    np.testing.assert_allclose(found.values, areas, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.covariance, covariance, rtol=0, atol=1e-6)


def test_the_interval_and_the_test_are_the_normal_ones():
    targets, *models = two_models(9)
    areas, covariance = covariance_in_loops(targets, models)
    found = delong(targets, *models)
    reach = norm.ppf(0.975) * math.sqrt(covariance[0][0])
    np.testing.assert_allclose(found.interval(), [areas[0] - reach, min(1, areas[0] + reach)], rtol=0, atol=1e-6)
    value, low, high, p = found.difference()
    error = math.sqrt(covariance[0][0] + covariance[1][1] - 2 * covariance[0][1])
    assert value == pytest.approx(areas[0] - areas[1], abs=1e-6)
    assert (low, high) == (
        pytest.approx(value - 1.959964 * error, abs=1e-6),
        pytest.approx(value + 1.959964 * error, abs=1e-6),
    )
    assert p == pytest.approx(2 * norm.sf(abs(value) / error), abs=1e-6)


def test_a_model_does_not_differ_from_itself():
    targets, scores, _ = two_models(1)
    assert delong(targets, scores, scores).difference() == (0.0, 0.0, 0.0, 1.0)


def test_records_of_one_patient_make_it_too_sure():
    targets, scores, _ = two_models(2)
    once, thrice = delong(targets, scores), delong(np.repeat(targets, 3), np.repeat(scores, 3))
    assert thrice.covariance[0, 0] < 0.4 * once.covariance[0, 0]  # the same patients, who tell nothing more


def test_one_positive_has_no_variance_and_no_positive_is_refused():
    alone = delong(np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3]))
    assert math.isnan(alone.interval()[0])
    assert math.isnan(delong(np.array([1, 0, 0]), np.array([3, 1, 2]), np.array([1, 3, 2])).difference()[1])
    with pytest.raises(ValueError, match="needs a positive and a negative record, got 0 positives among 3"):
        delong(np.zeros(3), np.arange(3.0))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_midranks_are_those_of_scipy(values):
    np.testing.assert_array_equal(midranks(np.array(values)), rankdata(values))


def test_intervals_differ_notably_by_a_quarter_of_a_width():
    assert not differs_notably(0.8, 0.9, 0.82, 0.92)
    assert differs_notably(0.8, 0.9, 0.83, 0.9)
    assert not differs_notably(0.8, 0.9, None, None)
