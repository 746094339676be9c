"""Population-based training's decisions: who takes over whose weights, and with which choices."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces.distributions import parse
from search_spaces.population import donor_for, explored, inside, moved, sampled
from search_spaces.schema import PbtScheduler

PBT = PbtScheduler(name="pbt", interval_epochs=1, quantile=0.25, resample_probability=0.5, factors=(0.8, 1.25))
SPACE = parse(
    {
        "task": {
            "finetune": {
                "lr": {"log_uniform": [1e-4, 1e-2]},
                "batch_size": {"int_uniform": [8, 32], "step": 8},
                "mode": {"choice": ["finetune", "linprobe"]},
            }
        }
    }
)


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(st.integers(0, 30), st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0.05, 0.5),
    st.integers(0, 1000),
)
def test_only_the_worst_take_over_and_only_from_the_best(values, quantile, seed):
    size = math.floor(len(values) * quantile)
    ranked = sorted(values, key=lambda trial: (values[trial], -trial))
    for number in values:
        donor = donor_for(number, values, quantile=quantile, draw=np.random.default_rng(seed))
        if number == 0 or number not in ranked[:size]:
            assert donor is None
        elif donor is not None:
            assert donor in ranked[len(ranked) - size :]
            assert donor != number


def test_the_default_configuration_never_takes_over():
    values = {0: 0.1, 1: 0.9, 2: 0.8, 3: 0.7}
    assert donor_for(0, values, quantile=0.25, draw=np.random.default_rng(0)) is None


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000))
def test_what_is_explored_lies_in_the_space(seed):
    params = {"task.finetune.lr": 1e-3, "task.finetune.batch_size": 16, "task.finetune.mode": "finetune"}
    changed = explored(params, SPACE, PBT, np.random.default_rng(seed))
    assert changed.keys() == params.keys()
    assert 1e-4 <= changed["task.finetune.lr"] <= 1e-2
    assert changed["task.finetune.batch_size"] in (8, 16, 24, 32)
    assert changed["task.finetune.mode"] in ("finetune", "linprobe")


def test_the_same_draw_explores_the_same_choices():
    params = {"task.finetune.lr": 1e-3}
    first, second = (explored(params, SPACE, PBT, np.random.default_rng(3)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("distribution", "value", "factor", "expected"),
    [
        (FloatDistribution(0.0, 1.0), 0.4, 1.25, 0.5),
        (FloatDistribution(0.0, 1.0), 0.9, 1.25, 1.0),
        (FloatDistribution(1e-4, 1e-2, log=True), 1e-4, 0.8, 1e-4),
        (IntDistribution(8, 32, step=8), 16, 1.25, 24),
        (IntDistribution(1, 100, log=True), 10, 1.25, 12),
        (CategoricalDistribution(["a", "b"]), "a", 1.25, "a"),
    ],
)
def test_a_number_moves_by_the_factor_inside_its_range_and_a_choice_stays(distribution, value, factor, expected):
    assert moved(distribution, value, factor) == (pytest.approx(expected) if expected != "a" else "a")


def test_a_stepped_value_lies_on_a_step():
    assert inside(FloatDistribution(0.5, 1.0, step=0.25), 0.9) == 1.0
    assert inside(FloatDistribution(0.5, 1.0, step=0.25), 0.85) == 0.75


def test_a_sampled_logarithmic_value_is_spread_over_its_decades():
    draw = np.random.default_rng(0)
    values = [sampled(FloatDistribution(1e-4, 1.0, log=True), draw) for _ in range(400)]
    assert 0.4 < np.mean(np.array(values) < 1e-2) < 0.6
