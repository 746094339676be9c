"""Calibration errors against torchmetrics and plain loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torchmetrics.functional.classification import binary_calibration_error

from reports.statistics.bins import NUM_BINS, EqualMass, equal_width, width_sums, wilson


def drawn(seed, num_records=400, num_classes=3):
    """Probabilities, as float64 of float32, that are not quite right about the labels."""
    rng = np.random.default_rng(seed)
    probabilities = rng.beta(0.6, 1.4, (num_records, num_classes)).astype(np.float32).astype(np.float64)
    targets = (rng.random(probabilities.shape) < probabilities**1.3).astype(np.float64)
    return targets, probabilities


@pytest.mark.parametrize("seed", range(5))
def test_the_error_over_equal_width_bins_is_torchmetrics_own(seed):
    targets, probabilities = drawn(seed)
    sums = width_sums(equal_width(probabilities), probabilities - targets, np.ones((len(targets), 1)))
    found = np.abs(sums[:, :, 0]).sum(axis=1) / len(targets)
    for column, value in enumerate(found):
        scores, labels = torch.tensor(probabilities[:, column]), torch.tensor(targets[:, column]).int()
        expected = binary_calibration_error(scores, labels, n_bins=NUM_BINS, norm="l1")
        assert value == pytest.approx(float(expected), abs=1e-6)


def equal_mass_in_loops(probabilities, residuals, weights):
    """Every record's bin from the middle of its tie group, one record after another."""
    total = sum(weights)
    sums = [0.0] * NUM_BINS
    for probability, residual, weight in zip(probabilities, residuals, weights, strict=True):
        below = sum(w for p, w in zip(probabilities, weights, strict=True) if p < probability)
        level = sum(w for p, w in zip(probabilities, weights, strict=True) if p == probability)
        sums[min(int(NUM_BINS * (below + level / 2) / total), NUM_BINS - 1)] += weight * residual
    return sums


@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.integers(0, 3)), min_size=2, max_size=40).filter(
        lambda rows: any(weight for *_, weight in rows)
    )
)
def test_equal_mass_bins_are_those_of_plain_loops_whatever_the_ties_and_weights(rows):
    probabilities, labels, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    probabilities = probabilities / 8
    residuals = probabilities - labels
    found = EqualMass(probabilities).sums(residuals, np.column_stack([weights, np.ones(len(rows))]))
    np.testing.assert_allclose(found[:, 0], equal_mass_in_loops(probabilities, residuals, weights), atol=1e-12)
    np.testing.assert_allclose(found[:, 1], equal_mass_in_loops(probabilities, residuals, [1] * len(rows)), atol=1e-12)
    bins = EqualMass(probabilities).bins()
    np.testing.assert_allclose(np.bincount(bins, residuals, minlength=NUM_BINS), found[:, 1], atol=1e-12)


@given(st.integers(1, 300))
def test_equal_mass_bins_differ_by_a_record_at_most_where_no_two_are_alike(num_records):
    counts = np.bincount(EqualMass(np.random.default_rng(0).random(num_records)).bins(), minlength=NUM_BINS)
    assert counts.max() - counts.min() <= 1


def test_records_of_one_probability_are_in_one_bin():
    assert np.unique(EqualMass(np.full(50, 0.3)).bins()).size == 1


def test_the_bins_reach_from_0_to_1():
    edges = np.array([0.0, 1 / NUM_BINS, np.nextafter(1 / NUM_BINS, 0), np.nextafter(1, 0), 1.0])
    assert equal_width(edges).tolist() == [0, 1, 0, NUM_BINS - 1, NUM_BINS - 1]


@given(st.integers(1, 200), st.data())
def test_the_interval_of_a_share_is_wilsons(count, data):
    positive = data.draw(st.integers(0, count))
    low, high = wilson(np.array([positive]), np.array([count]))
    expected = binomtest(positive, count).proportion_ci(0.95, method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)
