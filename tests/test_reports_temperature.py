"""The temperature against scipy's own minimum of the likelihood, for sigmoids and for a softmax."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from reports.statistics.temperature import fitted, negative_log_likelihood, rescaled

KINDS = ("multilabel", "single_label")


def drawn(kind, seed, true_temperature, num_records=400, num_classes=4):
    """Labels that follow the logits divided by the true temperature, and the probabilities without it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-0.5, 2, (num_records, num_classes))
    if kind == "multilabel":
        targets = rng.random(logits.shape) < expit(logits / true_temperature)
        return targets.astype(np.float64), expit(logits)
    chosen = [rng.choice(num_classes, p=row) for row in softmax(logits / true_temperature, axis=1)]
    return np.eye(num_classes)[chosen], softmax(logits, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("true_temperature", [0.6, 1.0, 2.5])
def test_the_temperature_is_where_scipy_finds_the_least_loss(kind, true_temperature):
    targets, probabilities = drawn(kind, 0, true_temperature)

    def loss(log_temperature):
        if kind == "multilabel":
            scaled = np.log(probabilities / (1 - probabilities)) / np.exp(log_temperature)
            return np.mean(np.logaddexp(0, scaled) - targets * scaled)
        powers = probabilities ** (1 / np.exp(log_temperature))
        return -np.mean(np.log((powers / powers.sum(axis=1, keepdims=True))[targets > 0.5]))

    best = minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
    found = fitted(targets, probabilities, kind)
    assert found == pytest.approx(np.exp(best.x), abs=1e-6)
    assert found == pytest.approx(true_temperature, rel=0.2)
    assert negative_log_likelihood(targets, rescaled(probabilities, found, kind), kind) == pytest.approx(best.fun)


@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_of_one_changes_nothing(kind):
    _, probabilities = drawn(kind, 1, 1.0)
    np.testing.assert_allclose(rescaled(probabilities, 1.0, kind), probabilities, rtol=1e-9)


@given(st.floats(0.05, 20.0), st.integers(0, 100))
def test_no_temperature_changes_the_ranks_within_a_class_of_a_multilabel_model(temperature, seed):
    probabilities = np.random.default_rng(seed).uniform(0.01, 0.99, (30, 2))
    scaled = rescaled(probabilities, temperature, "multilabel")
    for before, after in zip(probabilities.T, scaled.T, strict=True):
        assert np.all(np.diff(after[np.argsort(before)]) >= 0)


@given(st.floats(0.05, 20.0), st.integers(0, 100))
def test_under_any_temperature_a_softmax_sums_to_one_and_its_first_choice_stays(temperature, seed):
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(4), 30)
    scaled = rescaled(probabilities, temperature, "single_label")
    np.testing.assert_allclose(scaled.sum(axis=1), 1.0)
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_saturated_answers_have_a_temperature(kind):
    targets, probabilities = drawn(kind, 2, 1.0)
    probabilities[0], targets[0] = np.eye(4)[0], np.eye(4)[1]  # sure, and wrong
    assert 1 < fitted(targets, probabilities, kind) < 100
    assert np.isfinite(rescaled(probabilities, 0.5, kind)).all()


@pytest.mark.parametrize(
    ("kind", "targets", "probabilities", "told"),
    [
        ("multilabel", np.zeros((0, 2)), np.zeros((0, 2)), "there are no validation records"),
        ("multilabel", [[1.0, 0.0]], [[0.9, 0.2]], "every record is told rightly"),
        ("multilabel", [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], "tell no more than none would"),
        ("multilabel", [[1.0, 0.0], [0.0, 1.0]], [[0.2, 0.7], [0.7, 0.1]], "tell no more than none would"),
        ("single_label", [[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.4, 0.6]], "every record is told rightly"),
        ("single_label", [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]], "tell no more than none would"),
        ("single_label", [[1.0, 1.0], [0.0, 1.0]], [[0.9, 0.1], [0.4, 0.6]], "not exactly one class"),
    ],
)
def test_a_temperature_that_does_not_exist_has_a_reason(kind, targets, probabilities, told):
    with pytest.raises(ValueError, match=told):
        fitted(np.array(targets), np.array(probabilities), kind)


def test_a_class_without_a_positive_has_a_say_by_its_negatives():
    targets, probabilities = drawn("multilabel", 3, 2.0)
    targets[:, 0] = 0
    assert np.isfinite(fitted(targets, probabilities, "multilabel"))
