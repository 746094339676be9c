"""fANOVA: Optuna's figures on linear ranges, a plain enumeration elsewhere, and words where scikit-learn is missing."""

import itertools
import sys

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from sklearn.ensemble import RandomForestRegressor

from reports.search import fanova as module
from reports.search.fanova import NUM_TREES, fanova
from reports.search.importance import _AsStudy

LINEAR = {"a": FloatDistribution(-1.0, 1.0), "b": FloatDistribution(0.0, 10.0), "c": FloatDistribution(2.0, 3.0)}


def trial_of(params, value, space):
    return create_trial(params=params, distributions=space, value=value, state=TrialState.COMPLETE)


def linear_trials(num, *, seed=0):
    draw = np.random.default_rng(seed)
    params = [{name: float(draw.uniform(of.low, of.high)) for name, of in LINEAR.items()} for _ in range(num)]
    return [trial_of(one, 2 * one["a"] + 0.1 * one["b"] + draw.normal(0, 0.05), LINEAR) for one in params]


@pytest.mark.parametrize("num", [8, 40])
def test_on_linear_ranges_the_figures_are_optunas(num):
    trials = linear_trials(num)
    found = fanova(trials, list(LINEAR), seed=5)
    theirs = FanovaImportanceEvaluator(seed=5, n_trees=NUM_TREES).evaluate(
        _AsStudy(trials, StudyDirection.MAXIMIZE), params=list(LINEAR)
    )
    assert found.shares == pytest.approx(theirs, abs=1e-6)


def test_what_matters_has_the_largest_part_and_parts_are_no_more_than_all():
    found = fanova(linear_trials(60), list(LINEAR), seed=0)
    assert found.shares["a"] > 0.7 > found.shares["b"] > found.shares["c"]
    assert sum(found.shares.values()) <= 1 + 1e-9
    assert found.explained > 0.7


def test_noise_is_said_to_be_unpredictable():
    draw = np.random.default_rng(0)
    trials = [trial_of(trial.params, float(draw.normal()), LINEAR) for trial in linear_trials(60)]
    assert fanova(trials, list(LINEAR), seed=0).explained < 0.2


def test_choices_and_whole_numbers_are_measured_by_their_options_alone():
    space = {"kind": CategoricalDistribution(["x", "y", "z"]), "depth": IntDistribution(1, 4)}
    draw = np.random.default_rng(1)
    params = [{"kind": "xyz"[int(draw.integers(3))], "depth": int(draw.integers(1, 5))} for _ in range(50)]
    worth = {"x": 0.0, "y": 1.0, "z": 3.0}
    trials = [trial_of(one, worth[one["kind"]] + one["depth"] * draw.normal(0.2, 0.1), space) for one in params]
    found = fanova(trials, ["kind", "depth"], seed=2)
    features = [[*(one["kind"] == option for option in "xyz"), one["depth"]] for one in params]
    forest = RandomForestRegressor(n_estimators=NUM_TREES, max_depth=64, random_state=2)
    forest.fit(np.array(features, dtype=float), [trial.value for trial in trials])
    cells = list(itertools.product("xyz", (1, 2, 3, 4)))
    rows = np.array([[*(kind == option for option in "xyz"), depth] for kind, depth in cells], dtype=float)
    parts = {"kind": [], "depth": []}
    for tree in forest.estimators_:  # cuts of whole numbers lie midway between two: every cell is in one leaf
        table = tree.predict(rows).reshape(3, 4)
        parts["kind"].append(table.mean(axis=1).var() / table.var())
        parts["depth"].append(table.mean(axis=0).var() / table.var())
    assert found.shares == pytest.approx({name: np.mean(each) for name, each in parts.items()}, abs=1e-6)


def test_a_logarithmic_range_is_measured_as_it_was_drawn_from():
    space = {"lr": FloatDistribution(1e-6, 1.0, log=True), "other": FloatDistribution(0.0, 1.0)}
    draw = np.random.default_rng(0)
    params = [{"lr": float(10 ** draw.uniform(-6, 0)), "other": float(draw.uniform())} for _ in range(200)]
    values = [float(one["lr"] > 1e-3) + float(one["other"] > 0.5) for one in params]
    found = fanova(
        [trial_of(one, value, space) for one, value in zip(params, values, strict=True)], list(space), seed=0
    )
    assert found.shares == pytest.approx({"lr": 0.5, "other": 0.5}, abs=0.05)  # linearly, lr would have 0.004


def test_the_figures_follow_from_the_seed():
    trials = linear_trials(20)
    assert fanova(trials, list(LINEAR), seed=1) == fanova(trials, list(LINEAR), seed=1)
    assert fanova(trials, list(LINEAR), seed=1) != fanova(trials, list(LINEAR), seed=2)


def test_without_scikit_learn_there_is_a_reason(monkeypatch):
    assert module.missing() is None
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    assert "extra `report`" in module.missing()
