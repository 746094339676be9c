"""PED-ANOVA of many resamples at once: Optuna's own figures, whatever the space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from reports.search.importance import BEST_SHARE, _divergences, _valued, divergences
from reports.search.ped_anova import Grids

SPACE = {
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "ratio": FloatDistribution(0.3, 0.9),
    "stepped": FloatDistribution(0.0, 1.0, step=0.25),
    "depth": IntDistribution(2, 12),
    "wide": IntDistribution(1, 4096, log=True),
    "even": IntDistribution(0, 400, step=2),
    "kind": CategoricalDistribution(["a", "b", None, 4]),
    "flag": CategoricalDistribution([True, False]),
}
NAMES = list(SPACE)


def one(draw, name):
    of = SPACE[name]
    if isinstance(of, CategoricalDistribution):
        return of.choices[int(draw.integers(len(of.choices)))]
    if isinstance(of, IntDistribution):
        return int(draw.integers(of.low, of.high + 1)) // of.step * of.step
    if of.step is not None:
        return float(of.step * draw.integers(round((of.high - of.low) / of.step) + 1))
    return float(np.exp(draw.uniform(np.log(of.low), np.log(of.high))) if of.log else draw.uniform(of.low, of.high))


def trials(num, *, seed, distinct=True):
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(num):
        params = {name: one(draw, name) for name in NAMES}
        value = float(draw.normal()) if distinct else float(draw.integers(4))
        made.append(create_trial(params=params, distributions=SPACE, value=value, state=TrialState.COMPLETE))
    for number, trial in enumerate(made):
        trial._trial_id = number
    return made


@settings(max_examples=25, deadline=None)
@given(
    num=st.integers(8, 60),
    seed=st.integers(0, 10_000),
    direction=st.sampled_from(list(StudyDirection)[1:]),
    distinct=st.booleans(),
)
def test_the_figures_are_optunas(num, seed, direction, distinct):
    made = trials(num, seed=seed, distinct=distinct)
    if len({trial.value for trial in made}) == 1:
        return
    found = _divergences(made, NAMES, direction, np.arange(num)[None])
    np.testing.assert_allclose(found[0], divergences(made, NAMES, direction), rtol=1e-9, atol=1e-12)


def test_resamples_and_shuffled_values_are_optunas_too():
    made, draw = trials(30, seed=3), np.random.default_rng(0)
    drawn, values_of = draw.integers(30, size=(5, 30)), draw.integers(30, size=(5, 30))
    found = _divergences(made, NAMES, StudyDirection.MAXIMIZE, drawn, values_of=values_of)
    for row in range(5):
        resample = [_valued(made[place], made[of].value) for place, of in zip(drawn[row], values_of[row], strict=True)]
        for number, trial in enumerate(resample):
            trial._trial_id = number  # else a trial drawn twice with two values would be among the best with both
        expected = divergences(resample, NAMES, StudyDirection.MAXIMIZE)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9, atol=1e-12)


def test_more_resamples_than_are_computed_at_once_come_in_their_order():
    made, draw = trials(12, seed=1), np.random.default_rng(0)
    drawn = draw.integers(12, size=(150, 12))
    together = _divergences(made, NAMES, StudyDirection.MINIMIZE, drawn)
    alone = [_divergences(made, NAMES, StudyDirection.MINIMIZE, row[None])[0] for row in drawn[::37]]
    np.testing.assert_allclose(together[::37], alone, rtol=1e-12)


def test_trials_whose_range_changed_midway_are_left_to_optuna():
    made = trials(20, seed=2)
    made[3].distributions = made[3].distributions | {"ratio": FloatDistribution(0.0, 1.0)}
    made[5].distributions = made[5].distributions | {"ratio": FloatDistribution(0.0, 1.0)}
    assert Grids.of(made, NAMES) is None
    found = _divergences(made, NAMES, StudyDirection.MAXIMIZE, np.arange(20)[None])[0]
    assert found == pytest.approx(divergences(made, NAMES, StudyDirection.MAXIMIZE))


def test_the_best_are_the_same_share_of_every_resample_with_ties_to_the_last_of_them():
    grids = Grids.of(trials(10, seed=0), ["flag"])
    worth = np.array([[9, 8, 8, 8, 1, 1, 1, 1, 1, 1]], dtype=float)
    found = grids.divergences(np.arange(10)[None], worth, best_share=BEST_SHARE)
    four = grids.divergences(np.arange(10)[None], worth, best_share=0.4)
    assert found == pytest.approx(four)
