"""What a study's trials have reported, kept for the samplers that learn from trials of unequal length.

Trials are compared at one epoch, the last one that enough of them have reached, by what they reported there; so a trial
that runs, waits or was stopped counts by its value as a completed one does. Optuna takes completed ones for better than
all others, and those that got further for better than those that did not, whatever they reported; or it leaves stopped
ones out.

Source: the choice of the epoch, BOHB, Falkner et al. 2018, arXiv:1807.01774.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left, insort
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

ENOUGH = 20
"""So many trials, or half of all if that is fewer, must have reached the epoch at which trials are compared."""
END = math.inf
"""The epoch at which the value of a completed trial stands, whichever it was reported at."""


class PausingStudy(optuna.Study):
    """A study that knows which of its trials are paused: in Optuna's words they run.

    Args:
        study: the same in its storage.

    Attributes:
        paused: numbers of the trials that are paused.
        changes: numbers of trials that were paused or went on, in that order.
    """

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler)
        self.paused: set[int] = set()
        self.changes: list[int] = []

    def pause(self, number: int) -> None:
        """A trial reports no more until it goes on."""
        self.paused.add(number)
        self.changes.append(number)

    def go_on(self, number: int) -> None:
        """A trial goes on if it was paused."""
        if number in self.paused:
            self.paused.remove(number)
            self.changes.append(number)


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
            study: one that may pause trials says which (PausingStudy).
            number: the trial that is asked for.
        """
        changes, paused = (study.changes, study.paused) if isinstance(study, PausingStudy) else ([], set())
        self._open.update(range(len(self.places), number), changes[self._num_changes :])
        self._num_changes = len(changes)
        while len(self.places) < number:
            self.places.append({})
            self._losses.append({})
        storage, sign = study._storage, 1 if study.direction == StudyDirection.MINIMIZE else -1
        for open_ in sorted(self._open):
            trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, open_)
            self._take_in(storage.get_trial(trial_id), sign)
        self._open -= self._open & paused

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

    def compared(self, at_least: int) -> list[tuple[float, int]]:
        """Losses and trials, the best first, at the last epoch that enough trials have reached, `at_least` so many."""
        enough = max(at_least, min(ENOUGH, math.ceil(self.num_reporting / 2)))
        reached = [epoch for epoch, losses in self.at.items() if len(losses) >= enough]
        return self.at[max(reached)] if reached else []

    @property
    def running(self) -> set[int]:
        """Trials that may report without being asked to go on."""
        return self._open


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


_histories: WeakKeyDictionary[optuna.Study, History] = WeakKeyDictionary()
"""What has been read of each open study, which spares a new sampler to read all of it again."""


class HistorySampler(BaseSampler):
    """A sampler that proposes from a study's history, group by group, and at random until there is enough of it.

    Args:
        num_startup_trials: so many trials must have reported before it does.
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
        """The proposal."""
        history = _histories[study]
        if history.num_reporting < max(self._num_startup_trials, 1):
            return {}
        proposed: dict[str, Any] = {}
        for group in history.groups.search_spaces:
            searched = {name: group[name] for name in sorted(group) if name in search_space}
            if searched:
                best = self._propose(history, trial.number, searched)
                proposed |= {name: value_at(searched[name], float(at)) for name, at in zip(searched, best, strict=True)}
        return proposed

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A value of a parameter that no trial before has had."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    @abstractmethod
    def _propose(self, history: History, number: int, group: dict[str, BaseDistribution]) -> NDArray[np.float64]:
        """Where trial `number` is to lie in the ranges of a group of parameters."""


def num_choices_of(group: dict[str, BaseDistribution]) -> list[int]:
    """Of each parameter; 0 of a number."""
    return [
        len(distribution.choices) if isinstance(distribution, CategoricalDistribution) else 0
        for distribution in group.values()
    ]
