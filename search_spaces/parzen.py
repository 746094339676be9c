"""The tree-structured Parzen estimator over trials of unequal length, at a cost that does not grow with their number.

Differences from Optuna's, which is the model for all else:

- Trials are compared at one epoch, the last one that enough of them have reached, by what they reported there; so a
  trial that runs, waits or was stopped counts by its value as a completed one does. Optuna takes completed ones for
  better than all others, and those that got further for better than those that did not, whatever they reported.
- The density of the rest is that of the latest ones. Optuna puts a kernel on each of them.
- A whole number is a bin of a continuous range.

Source: TPE, Bergstra et al. 2011; its multivariate form and the choice of the epoch, BOHB, Falkner et al. 2018,
arXiv:1807.01774; kernels, weights and share of good trials, Optuna 5 (Watanabe 2023, arXiv:2304.11127).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space.group_decomposed import _SearchSpaceGroup
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr, ndtri

GOOD_SHARE, MAX_GOOD = 0.1, 25
ENOUGH = 20
"""So many trials, or half of all if that is fewer, must have reached the epoch at which trials are compared."""
MAX_REST = 200
NUM_CANDIDATES = 24
NUM_OF_FULL_WEIGHT = 25
MAX_KERNELS_IN_A_ROW = 100
"""A kernel is never narrower than its range divided by this."""
END = math.inf
"""The epoch at which the value of a completed trial stands, whichever it was reported at."""

# ---- what a study has seen ---------------------------------------------------------------------------------------


class History:
    """What a study's trials have reported, in the order in which the sampler needs it.

    It is brought up to date at the cost of what has changed: trials that wait or have ended are not looked at again. It
    follows from the trials alone, not from when it looked.

    Attributes:
        places: by number, where a trial's parameters lie in their ranges (`place_of`).
        at: by epoch, what was reported there, as ascending pairs of a loss and the trial's number.
        groups: parameters that are searched together.
        num_reporting: trials that have reported anything.
    """

    def __init__(self) -> None:
        self.places: list[dict[str, float]] = []
        self.at: dict[float, list[tuple[float, int]]] = {}
        self.groups = _SearchSpaceGroup()
        self.num_reporting = 0
        self._losses: list[dict[float, float]] = []
        self._kinds: set[tuple[str, ...]] = set()
        self._open: set[int] = set()  # trials that may report
        self._num_changes = 0

    def update(self, study: optuna.Study, number: int) -> None:
        """Take in what is new of the trials before `number`.

        Args:
            study: whose `changes`, if it has any, name trials that were paused or went on.
            number: the trial that is asked for.
        """
        changes: Sequence[int] = getattr(study, "changes", ())
        self._open.update(range(len(self.places), number), changes[self._num_changes :])
        self._num_changes = len(changes)
        while len(self.places) < number:
            self.places.append({})
            self._losses.append({})
        storage, sign = study._storage, 1 if study.direction == StudyDirection.MINIMIZE else -1
        for open_ in sorted(self._open):
            trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, open_)
            self._take_in(storage.get_trial(trial_id), sign)
        self._open.difference_update([open_ for open_ in self._open if open_ in getattr(study, "paused", ())])

    def _take_in(self, trial: FrozenTrial, sign: int) -> None:
        number, distributions = trial.number, trial.distributions
        if not self.places[number] and trial.state != TrialState.WAITING:
            self.places[number] = {name: place_of(distributions[name], value) for name, value in trial.params.items()}
            if tuple(distributions) not in self._kinds:
                self._kinds.add(tuple(distributions))
                self.groups.add_distributions(distributions)
        losses: dict[float, float] = {
            epoch: sign * value for epoch, value in trial.intermediate_values.items() if math.isfinite(value)
        }
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None
            losses[END] = sign * trial.value
        if trial.state.is_finished():
            self._open.discard(number)
            # one that diverged or failed is bad, whatever it reported before
            if trial.state == TrialState.FAIL or trial.user_attrs.get("reason", "scheduler") != "scheduler":
                losses = {}
            if trial.state == TrialState.FAIL:
                self.places[number] = {}
        self._replace(number, losses)

    def _replace(self, number: int, losses: dict[float, float]) -> None:
        before = self._losses[number]
        for epoch in before.keys() - losses.keys():
            del self.at[epoch][bisect_left(self.at[epoch], (before[epoch], number))]
        for epoch in losses.keys() - before.keys():
            insort(self.at.setdefault(epoch, []), (losses[epoch], number))
        self.num_reporting += bool(losses) - bool(before)
        self._losses[number] = losses

    def split(self, number: int) -> tuple[list[int], list[int]]:
        """Good trials and the latest of the rest, before trial `number`, each by number."""
        num_good = min(math.ceil(GOOD_SHARE * self.num_reporting), MAX_GOOD)
        enough = max(num_good, min(ENOUGH, math.ceil(self.num_reporting / 2)))
        reached = [epoch for epoch, losses in self.at.items() if len(losses) >= enough]
        ranked = self.at[max(reached)] if reached else []
        good = {other for _, other in ranked[:num_good]}
        rest: list[int] = []
        for other in reversed(range(number)):
            if len(rest) == MAX_REST:
                break
            if other not in good:
                rest.append(other)
        return sorted(good), rest[::-1]


def place_of(distribution: BaseDistribution, value: Any) -> float:
    """Where a value lies in its range, from 0 to 1; of a choice its index."""
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.to_internal_repr(value))
    low, high = _ends(distribution)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return ((math.log(value) if distribution.log else value) - low) / (high - low)


def value_at(distribution: BaseDistribution, place: float) -> Any:
    """The value that lies at a place of its range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place)]
    low, high = _ends(distribution)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    value = low + place * (high - low)
    value = math.exp(value) if distribution.log else value
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    value = min(max(value, distribution.low), distribution.high)
    return int(value) if isinstance(distribution, IntDistribution) else value


def _ends(distribution: BaseDistribution) -> tuple[float, float]:
    """The ends of a range, of logarithms where it has them; half a step wider than its values where there are steps."""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    half = (distribution.step or 0) / 2
    low, high = distribution.low - half, distribution.high + half
    return (math.log(low), math.log(high)) if distribution.log else (low, high)


# ---- densities ---------------------------------------------------------------------------------------------------


class Density:
    """A mixture of a kernel for each trial and one for the whole range, each a product over the parameters.

    Args:
        places: of the trials (N, D), oldest first.
        num_choices: of each parameter: 0 for a number.
    """

    def __init__(self, places: NDArray[np.float64], num_choices: Sequence[int]) -> None:
        num_kernels = len(places) + 1
        weights = np.append(_weights(len(places)), 1.0)
        self.weights = weights / weights.sum()
        self._numbers = [column for column, num in enumerate(num_choices) if not num]
        numbers = places[:, self._numbers]
        self._centres = np.concatenate([numbers, np.full((1, len(self._numbers)), 0.5)])
        self._widths = np.concatenate([_widths(numbers), np.ones((1, len(self._numbers)))])
        self._below = ndtr(-self._centres / self._widths)
        self._inside = ndtr((1 - self._centres) / self._widths) - self._below
        self._chances = {}
        for column, num in enumerate(num_choices):
            if num:
                chances = np.full((num_kernels, num), 1 / num_kernels)
                chances[np.arange(len(places)), places[:, column].astype(int)] += 1
                self._chances[column] = chances / chances.sum(axis=1, keepdims=True)

    def draw(self, num: int, generator: np.random.Generator) -> NDArray[np.float64]:
        """Places (num, D) drawn from it."""
        kernels = generator.choice(len(self.weights), num, p=self.weights)
        drawn = np.empty((num, len(self._numbers) + len(self._chances)))
        shares = self._below[kernels] + generator.random((num, len(self._numbers))) * self._inside[kernels]
        drawn[:, self._numbers] = np.clip(self._centres[kernels] + self._widths[kernels] * ndtri(shares), 0, 1)
        for column, chances in self._chances.items():
            reached = chances[kernels].cumsum(axis=1)
            # the last is left out: rounding may keep it below 1
            drawn[:, column] = (reached[:, :-1] < generator.random((num, 1))).sum(axis=1)
        return drawn

    def log(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its logarithm (num,) at places (num, D), up to a constant."""
        apart = (places[:, None, self._numbers] - self._centres) / self._widths
        logs = -np.square(apart).sum(axis=2) / 2 - np.log(self._widths * self._inside).sum(axis=1)
        for column, chances in self._chances.items():
            logs += np.log(chances[:, places[:, column].astype(int)].T)
        logs += np.log(self.weights)
        most = logs.max(axis=1)
        total: NDArray[np.float64] = most + np.log(np.exp(logs - most[:, None]).sum(axis=1))
        return total


def _weights(num: int) -> NDArray[np.float64]:
    """Of trials, oldest first: the latest ones have full weight, those before them less and less."""
    fading = max(num - NUM_OF_FULL_WEIGHT, 0)
    return np.concatenate([np.linspace(1 / max(num, 1), 1, fading), np.ones(num - fading)])


def _widths(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each kernel in each dimension (N, D) the distance to the farther of its neighbours, within limits."""
    num, dimensions = centres.shape
    order = centres.argsort(axis=0, kind="stable")
    ends = np.zeros((1, dimensions)), np.ones((1, dimensions))
    gaps = np.diff(np.concatenate([ends[0], np.take_along_axis(centres, order, axis=0), ends[1]]), axis=0)
    widths = np.maximum(gaps[:-1], gaps[1:])
    if num >= 2:  # the ends of the range are no neighbours
        widths[0], widths[-1] = gaps[1], gaps[-2]
    in_order = np.empty_like(widths)
    np.put_along_axis(in_order, order, widths, axis=0)
    return np.clip(in_order, 1 / min(MAX_KERNELS_IN_A_ROW, 2 + num), 1)


# ---- the sampler -------------------------------------------------------------------------------------------------

_histories: WeakKeyDictionary[optuna.Study, History] = WeakKeyDictionary()
"""What has been read of each open study, which spares a new sampler to read all of it again."""


class ParzenSampler(BaseSampler):
    """Draws candidates from the density of the good trials and proposes the one with the best ratio to the rest's.

    Args:
        num_startup_trials: so many trials must have reported before it does; until then it draws at random.
        seed: of what it draws.
    """

    def __init__(self, *, num_startup_trials: int, seed: int) -> None:
        self._num_startup_trials = num_startup_trials
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._generator = np.random.default_rng(seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What any trial before this one has had."""
        history = _histories.setdefault(study, History())
        history.update(study, trial.number)
        groups = history.groups.search_spaces
        return {name: group[name] for group in groups for name in sorted(group) if not group[name].single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal, group by group."""
        if self._draws_at_random(study):
            return {}
        proposed: dict[str, Any] = {}
        for group in _histories[study].groups.search_spaces:
            searched = {name: group[name] for name in sorted(group) if name in search_space}
            proposed |= self._propose(study, trial, searched) if searched else {}
        return proposed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of a parameter that no trial before has had."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _draws_at_random(self, study: optuna.Study) -> bool:
        return _histories[study].num_reporting < max(self._num_startup_trials, 1)

    def _propose(self, study: optuna.Study, trial: FrozenTrial, group: dict[str, BaseDistribution]) -> dict[str, Any]:
        history = _histories[study]
        num_choices = [
            len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0
            for distribution in group.values()
        ]
        good, rest = (
            Density(_table([history.places[number] for number in numbers], list(group)), num_choices)
            for numbers in history.split(trial.number)
        )
        candidates = good.draw(NUM_CANDIDATES, self._generator)
        best = candidates[(good.log(candidates) - rest.log(candidates)).argmax()]
        return {name: value_at(group[name], float(place)) for name, place in zip(group, best, strict=True)}


def _table(places: list[dict[str, float]], names: list[str]) -> NDArray[np.float64]:
    """The places (N, D) of those trials that have all of the parameters."""
    rows = [[place[name] for name in names] for place in places if all(name in place for name in names)]
    return np.array(rows).reshape(len(rows), len(names))
