"""The Gaussian process: its numbers against the plain formulas, and what it proposes."""

import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from scipy.integrate import quad
from scipy.optimize import check_grad
from threadpoolctl import threadpool_info, threadpool_limits

from search_spaces.gaussian import MAX_TRIALS, GaussianSampler, Process, _drawn, _near, _weighed
from search_spaces.history import END, History, PausingStudy


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def process():
    """Twenty places of two numbers and a choice; the first number and the choice matter."""
    draw = np.random.default_rng(0)
    num_choices = np.array([0, 0, 3])
    places = _drawn(20, num_choices, draw)
    scores = -5 * np.square(places[:, 0] - 0.3) + (places[:, 2] == 1) + 0.1 * draw.normal(size=20)
    return Process(places, scores - scores.mean(), num_choices)


def plain_kernel(process, places, others):
    """Element by element; a choice is 1 away from any other."""
    *lengths, _, scale = np.exp(process._parameters)
    kernel = np.empty((len(places), len(others)))
    for row, place in enumerate(places):
        for column, other in enumerate(others):
            apart = [place[0] - other[0], place[1] - other[1], float(place[2] != other[2])]
            r = math.sqrt(sum((part / length) ** 2 for part, length in zip(apart, lengths, strict=True)))
            kernel[row, column] = scale * (1 + math.sqrt(5) * r + 5 / 3 * r * r) * math.exp(-math.sqrt(5) * r)
    return kernel


def test_mean_and_deviation_are_those_of_the_formula(process):
    new = _drawn(6, np.array([0, 0, 3]), np.random.default_rng(1))
    known, noise = process._places, math.exp(process._parameters[-2])
    solved = np.linalg.inv(plain_kernel(process, known, known) + noise * np.eye(20))
    across = plain_kernel(process, new, known)
    mean, deviation = process.predict(new)
    np.testing.assert_allclose(mean, across @ solved @ process._scores, rtol=1e-6)
    variance = np.diag(plain_kernel(process, new, new) - across @ solved @ across.T)
    np.testing.assert_allclose(deviation**2, variance, rtol=1e-5, atol=1e-8)


def test_the_gradient_of_the_loss_is_its_slope(process):
    apart = process._apart(process._places, process._places)
    prior, spread = np.log([0.8, 0.8, 0.8, 0.05, 1.0]), np.array([1.0, 1.0, 1.0, 1.5, 1.0])
    for seed in range(3):
        at = np.random.default_rng(seed).normal(size=5) / 2
        found = [process._loss(at, apart, prior, spread)[part] for part in (0, 1)]
        off = check_grad(
            lambda x: process._loss(x, apart, prior, spread)[0], lambda x: process._loss(x, apart, prior, spread)[1], at
        )
        assert off < 1e-4 * max(1.0, abs(found[0]))


def test_what_matters_has_the_shorter_length_scale(process):
    first, second, _ = np.exp(process._parameters[:3])
    assert second > 2 * first


def test_the_improvement_is_the_integral_over_what_may_be_found_and_has_a_logarithm_far_below_too(process):
    places = _drawn(40, np.array([0, 0, 3]), np.random.default_rng(2))
    means, deviations = process.predict(places)
    for mean, deviation, log in zip(means, deviations, process.log_improvement(places), strict=True):

        def gain(z, mean=mean, deviation=deviation):
            return max(mean + deviation * z - process._best, 0) * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

        from_where = (process._best - mean) / deviation
        expected = quad(gain, from_where, from_where + 12)[0]
        if from_where < 4.5:
            assert log == pytest.approx(math.log(expected), abs=0.01)
        assert math.isfinite(log)


def test_what_is_supposed_moves_no_mean_and_makes_its_neighbourhood_known(process):
    draw = np.random.default_rng(3)
    places = _drawn(20, np.array([0, 0, 3]), draw)
    scores = -5 * np.square(places[:, 0] - 0.3)
    before = Process(places, scores - scores.mean(), np.array([0, 0, 3]))
    after = Process(places, scores - scores.mean(), np.array([0, 0, 3]))
    waiting = _drawn(3, np.array([0, 0, 3]), draw)
    after.suppose(waiting)
    np.testing.assert_allclose(after.predict(waiting)[0], before.predict(waiting)[0], atol=1e-6)
    assert (after.predict(waiting)[1] < before.predict(waiting)[1]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500))
def test_the_weighed_trials_are_the_best_and_some_of_all_others_and_no_more_than_the_limit(num):
    ranked = [(float(rank), rank + 1000) for rank in range(num)]
    weighed = _weighed(ranked)
    assert len(weighed) == min(num, MAX_TRIALS)
    assert all(ranked[rank] == entry for rank, entry in weighed)
    ranks = [rank for rank, _ in weighed]
    assert ranks == sorted(set(ranks))
    assert ranks[: MAX_TRIALS // 2] == list(range(min(num, MAX_TRIALS // 2)))
    assert not num or ranks[-1] == num - 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100))
def test_candidates_and_their_neighbours_are_places(seed):
    num_choices, draw = np.array([0, 4, 0, 1]), np.random.default_rng(seed)
    places = _drawn(50, num_choices, draw)
    for found in (places, _near(places, 0.3, num_choices, draw)):
        assert (found >= 0).all()
        assert (found[:, ::2] <= 1).all()
        assert np.isin(found[:, 1], range(4)).all()
        assert (found[:, 3] == 0).all()


def searched(seed, num_trials=40, *, startup=5):
    """A study on which x near 0.3 and the choice b are best; every other trial is stopped after the first epoch."""
    study = optuna.create_study(direction="maximize")
    for number in range(num_trials):
        study.sampler = GaussianSampler(num_startup_trials=startup, seed=1000 * seed + number)
        trial = study.ask()
        x, name = trial.suggest_float("x", 0.0, 1.0), trial.suggest_categorical("name", ["a", "b", "c"])
        y = trial.suggest_float("y", 0.0, 1.0) if name == "b" else 0.0  # searched only then
        value = -abs(x - 0.3) + 0.3 * (name == "b") - 0.3 * y
        trial.report(value - 0.1, 1)
        stopped = number % 2
        study.tell(trial, None if stopped else value, state=TrialState.PRUNED if stopped else TrialState.COMPLETE)
    return study


def test_it_finds_what_is_best_also_where_a_parameter_is_searched_only_sometimes():
    for seed in range(3):
        late = searched(seed).trials[-10:]
        assert sum(trial.params["name"] == "b" for trial in late) >= 7
        near = [trial for trial in late if abs(trial.params["x"] - 0.3) < 0.1]
        assert len(near) >= 6
        assert np.median([trial.params["y"] for trial in late if trial.params["name"] == "b"]) < 0.15


def test_workers_that_ask_at_once_are_sent_to_different_places():
    study = searched(0, 20)
    asked = []
    for number in range(20, 26):
        study.sampler = GaussianSampler(num_startup_trials=5, seed=number)
        trial = study.ask()
        trial.suggest_categorical("name", ["a", "b", "c"])
        asked.append(trial.suggest_float("x", 0.0, 1.0))
    assert min(np.diff(sorted(asked))) > 1e-4


def test_a_paused_trial_teaches_as_a_stopped_one_does():
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    seen = PausingStudy(study)
    for number in range(12):
        trial = study.ask({"x": FloatDistribution(0, 1), "name": CategoricalDistribution(("a", "b"))})
        trial.report(trial.params["x"], 1)
        seen.pause(number)
    history = History()
    history.update(seen, 12)
    assert [number for _, number in history.compared(0)] == sorted(
        range(12), key=lambda n: -study.trials[n].params["x"]
    )
    assert END not in history.at
    assert history.running == set()


def test_a_proposal_takes_one_thread_of_the_libraries_and_gives_the_others_back(monkeypatch):
    def threads():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    seen = []
    monkeypatch.setattr(GaussianSampler, "_proposed", lambda *given: seen.append(threads()))
    with threadpool_limits(2, user_api="blas"):
        before = threads()
        GaussianSampler(num_startup_trials=1, seed=0)._propose(History(), 0, {})
        assert threads() == before
    assert seen == [[1] * len(before)]
