import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from reports.statistics import influence as module
from reports.statistics.delong import delong
from reports.statistics.discrimination import Ranking
from reports.statistics.influence import influence, placement_variance


@st.composite
def folds(draw):
    """Records of a few patients, with ties and patients of both kinds."""
    size = draw(st.integers(4, 30))
    targets = np.array(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)), dtype=float)
    targets[:2] = [0, 1]
    scores = np.array(draw(st.lists(st.integers(0, 12), min_size=size, max_size=size))) / 3
    owners = np.array(draw(st.lists(st.integers(0, 8), min_size=size, max_size=size)))
    return targets, scores, np.unique(owners, return_inverse=True)[1]


@settings(max_examples=60, deadline=None)
@given(folds())
def test_an_influence_is_the_derivative_of_the_metric_by_the_patients_weight(fold):
    targets, scores, owners = fold
    found, ranking, step = influence(*fold), Ranking.of(targets, scores), 1e-5
    np.testing.assert_allclose(found.values, ranking.auroc_and_auprc(np.ones((len(targets), 1)))[:, 0], atol=1e-12)
    for kind, part in ((1, found.positive), (0, found.negative)):
        for patient in range(owners.max() + 1):
            weights = np.ones((len(targets), 2))
            weights[(owners == patient) & (targets == kind)] += [step, -step]
            more, less = ranking.auroc_and_auprc(weights).T
            np.testing.assert_allclose(part[:, patient], (more - less) / (2 * step), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(folds())
def test_variances_and_degrees_of_freedom_are_positive_and_finite(fold):
    found = influence(*fold)
    assert (np.sum(found.total**2, axis=1) > 0).all()
    assert np.isfinite(found.total).all()
    assert (found.degrees_of_freedom >= 1).all()
    assert np.isfinite(found.degrees_of_freedom).all()


def test_with_one_record_a_patient_the_variance_is_delongs(monkeypatch):
    monkeypatch.setattr(module, "PRIOR_PATIENTS", 0)
    rng = np.random.default_rng(0)
    targets = (rng.random(150) < 0.3).astype(float)
    scores = np.round(rng.normal(size=150) + targets, 1)
    found = influence(targets, scores, np.arange(150))
    assert np.sum(found.total[0] ** 2) == pytest.approx(delong(targets, scores).covariance[0, 0], abs=1e-12)


def test_with_several_records_a_patient_the_variance_is_obuchowskis(monkeypatch):
    monkeypatch.setattr(module, "PRIOR_PATIENTS", 0)
    rng = np.random.default_rng(1)
    owners = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    targets = (owners < 15).astype(float)  # every patient of one kind: then there is no covariance of kinds
    scores = rng.normal(size=40)[owners] + 0.5 * rng.normal(size=len(owners)) + targets
    positives, negatives = np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    psi = [[float(scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]) for j in negatives] for i in positives]
    of_positive, of_negative, area = np.mean(psi, axis=1), np.mean(psi, axis=0), np.mean(psi)
    variance = 0.0
    for rows, placements, patients in ((positives, of_positive, range(15)), (negatives, of_negative, range(15, 40))):
        square = 0.0
        for patient in patients:
            own = owners[rows] == patient
            square += (sum(placements[own]) - own.sum() * area) ** 2
        variance += len(patients) / (len(patients) - 1) * square / len(rows) ** 2
    found = influence(targets, scores, owners)
    assert np.sum(found.total[0] ** 2) == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("area", [0.5, 0.7, 0.9, 0.97, 0.999])
def test_the_variance_of_a_placement_is_that_of_two_normals_that_share_half(area):
    z = norm.ppf(area)
    both = multivariate_normal.cdf([z, z], cov=[[1, 0.5], [0.5, 1]])
    assert placement_variance(area) == pytest.approx(both - area**2, abs=1e-6)


def test_few_patients_who_are_ranked_badly_leave_few_degrees_of_freedom():
    targets = (np.arange(120) < 20).astype(float)
    even = np.where(targets > 0, np.linspace(0, 1.5, 120), np.linspace(-1, 1, 120)[::-1])
    uneven = np.where(targets > 0, 2.0, np.linspace(-1, 1, 120))
    uneven[3] = -0.9
    found = [influence(targets, scores, np.arange(120)).degrees_of_freedom[0] for scores in (even, uneven)]
    assert found[1] < 4 < found[0]
