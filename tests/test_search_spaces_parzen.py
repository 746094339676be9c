"""The Parzen estimator: what it compares trials by, its densities, and that no proposal costs more than another."""

import gc
import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy.integrate import quad

from search_spaces import history as history_module
from search_spaces.history import END, ENOUGH, History, PausingStudy, place_of, value_at
from search_spaces.parzen import MAX_GOOD, MAX_REST, Density, ParzenSampler, split

DISTRIBUTIONS = [
    FloatDistribution(0.1, 0.9),
    FloatDistribution(1e-5, 1e-1, log=True),
    FloatDistribution(0.0, 1.0, step=0.25),
    IntDistribution(1, 5),
    IntDistribution(16, 512, log=True),
    IntDistribution(2, 10, step=2),
    CategoricalDistribution(("a", None, 3)),
]


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def study_of(num_trials, *, report, seed=0, minimize=False):
    """A study of so many trials of one x; `report` gives a trial's values and how it ended (None: it runs)."""
    study = optuna.create_study(direction="minimize" if minimize else "maximize")
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    for number in range(num_trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0.0, 1.0)
        values, state = report(number, x)
        for epoch, value in enumerate(values, 1):
            trial.report(value, epoch)
        if state is not None:
            study.tell(trial, values[-1] if state == TrialState.COMPLETE else None, state=state)
    return study


def history_of(study):
    history = History()
    history.update(study, len(study.trials))
    return history


# -------- places


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1))
def test_every_place_is_a_value_of_the_range_and_a_value_is_at_its_place(distribution, place):
    place = place * (len(distribution.choices) - 1) if isinstance(distribution, CategoricalDistribution) else place
    value = value_at(distribution, place)
    assert distribution._contains(distribution.to_internal_repr(value))
    again = value_at(distribution, place_of(distribution, value))
    assert again == (pytest.approx(value) if isinstance(value, float) else value)


# -------- densities


def test_a_density_of_numbers_integrates_to_one_and_is_drawn_from():
    density = Density(np.array([[0.1], [0.15], [0.9]]), [0])

    def at(place):
        return math.exp(density.log(np.array([[place]]))[0]) / math.sqrt(2 * math.pi)

    assert quad(at, 0, 1, limit=200)[0] == pytest.approx(1)
    drawn = density.draw(4000, np.random.default_rng(0))[:, 0]
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert (drawn < 0.3).mean() == pytest.approx(quad(at, 0, 0.3)[0], abs=0.03)


def test_a_choice_is_drawn_as_often_as_its_chance_says_beside_a_number():
    density = Density(np.array([[0.2, 2.0], [0.3, 2.0], [0.8, 0.0]]), [0, 3])
    drawn = density.draw(6000, np.random.default_rng(0))
    # the three trials' kernels give each choice a fourth beside their own, that of the whole range gives all the same
    of_trials = (np.array([1, 0, 2]) + 3 / 4) / (3 + 3 * 3 / 4)
    expected = 3 / 4 * of_trials + 1 / 4 / 3
    assert np.bincount(drawn[:, 1].astype(int)) / 6000 == pytest.approx(expected, abs=0.03)
    logs = density.log(np.array([[0.25, 2.0], [0.25, 1.0]]))
    assert logs[0] > logs[1]


# -------- what trials are compared by


def test_trials_are_compared_at_the_last_epoch_that_enough_have_reached():
    """All that passed epoch 1 look bad later: what they reported early no longer counts."""

    def report(number, x):
        return ([x, x], TrialState.PRUNED) if number % 2 else ([1 - x, 1 - x, x, x], None)

    study = study_of(60, report=report)
    good, _ = split(history_of(study), 60)
    by_x = sorted(range(0, 60, 2), key=lambda number: -study.trials[number].params["x"])
    assert good == sorted(by_x[:6])  # of those that reached epoch 4, though they still run


def test_a_completed_trial_counts_by_its_own_value_once_enough_have_completed():
    def report(number, x):
        return [1 - x, x], TrialState.COMPLETE

    study = study_of(30, report=report)
    history = history_of(study)
    assert len(history.at[END]) == 30
    best = sorted(range(30), key=lambda number: -study.trials[number].params["x"])[:3]
    assert split(history, 30)[0] == sorted(best)


def test_a_diverged_or_failed_trial_is_never_good():
    study = study_of(20, report=lambda number, x: ([1 + x], None))
    for number in range(10):
        study._storage.set_trial_user_attr(number, "reason", "non_finite: the loss is nan")
        study.tell(number, state=TrialState.PRUNED)
    study.tell(10, state=TrialState.FAIL)
    history = history_of(study)
    good, rest = split(history, 20)
    assert min(good) > 10
    assert set(rest) >= set(range(10))  # they are what to stay away from
    assert history.places[10] == {}  # of the failed one nothing is known


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_what_is_known_does_not_depend_on_when_it_was_looked_at(seed, minimize):
    draw = np.random.default_rng(seed)
    study = optuna.create_study(direction="minimize" if minimize else "maximize")
    study.sampler = optuna.samplers.RandomSampler(seed=seed)
    seen = PausingStudy(study)
    history, running = History(), []
    for number in range(25):
        trial = study.ask()
        trial.suggest_float("x", 0.0, 1.0)
        running.append(trial)
        for one in [one for one in running if draw.random() < 0.5]:
            seen.go_on(one.number)  # a paused trial reports nothing
            one.report(draw.random(), len(study.trials[one.number].intermediate_values) + 1)
            what = draw.choice(["pause", "stop", "none", "none"])
            if what == "pause":
                seen.pause(one.number)
            elif what == "stop":
                study.tell(one, state=TrialState.PRUNED)
                running.remove(one)
        if draw.random() < 0.4:
            history.update(seen, number + 1)
    history.update(seen, 25)
    anew = History()
    anew.update(seen, 25)
    assert history.at == anew.at
    assert history.places == anew.places
    assert split(history, 25) == split(anew, 25)
    assert history.num_reporting == anew.num_reporting


# -------- what it costs


class Counted:
    """A storage that counts how many trials are read from it."""

    def __init__(self, storage):
        self._storage, self.num_read = storage, 0

    def __getattr__(self, name):
        return getattr(self._storage, name)

    def get_trial(self, trial_id):
        self.num_read += 1
        return self._storage.get_trial(trial_id)

    def get_all_trials(self, study_id, deepcopy=True, states=None):
        trials = self._storage.get_all_trials(study_id, deepcopy, states)
        self.num_read += len(trials)
        return trials


def operations(num_trials, monkeypatch):
    """Trials read and kernels laid for one proposal, in a study of so many trials, of which four run."""
    study = study_of(
        num_trials, report=lambda number, x: ([x], None if number >= num_trials - 4 else TrialState.PRUNED)
    )
    kernels = []
    laid = Density.__init__

    def lay(self, places, num_choices):
        kernels.append(len(places))
        laid(self, places, num_choices)

    monkeypatch.setattr(Density, "__init__", lay)
    counts = []
    for number in (num_trials, num_trials + 1):
        study.sampler = ParzenSampler(num_startup_trials=1, seed=number)
        study._storage = counted = Counted(study._storage)
        kernels.clear()
        study.ask().suggest_float("x", 0.0, 1.0)
        counts.append((counted.num_read, sum(kernels)))
        study._storage = counted._storage
    monkeypatch.setattr(Density, "__init__", laid)
    return counts[1]


def test_a_proposal_reads_and_weighs_no_more_after_3000_trials_than_after_300(monkeypatch):
    read, kernels = operations(300, monkeypatch)
    assert (read, kernels) == operations(3000, monkeypatch)
    assert kernels == MAX_GOOD + MAX_REST
    assert read < 20  # those that run, and a few reads by Optuna itself of the one that is asked for


def test_only_the_latest_of_the_rest_are_weighed():
    study = study_of(400, report=lambda number, x: ([-float(number)], TrialState.PRUNED))
    good, rest = split(history_of(study), 400)
    assert good == list(range(MAX_GOOD))
    assert rest == list(range(400 - MAX_REST, 400))
    assert ENOUGH < MAX_REST


def test_a_study_that_is_gone_leaves_nothing_behind():
    study = study_of(3, report=lambda number, x: ([x], TrialState.COMPLETE))
    study.sampler = ParzenSampler(num_startup_trials=1, seed=0)
    study.ask().suggest_float("x", 0.0, 1.0)
    before = len(history_module._histories)
    del study
    gc.collect()
    assert len(history_module._histories) == before - 1
