"""A search without its trainings: recorded learning curves, workers and a clock that are simulated.

Searcher and scheduler are those of a real study, so a policy can be tried on thousands of trials in seconds. Whoever
hands out trials and judges their results is a `Books`: `StudyInMemory` here, which decides as a study's ledger does.
Where the curves come from is a `Curves`; all values are such that greater is better.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pyarrow.parquet as pq
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from search_spaces.distributions import Space, decoded, encoded
from search_spaces.history import PausingStudy, place_of
from search_spaces.samplers import make_sampler
from search_spaces.schedulers import Decision, Policy
from search_spaces.schema import Sampler

# ---- where curves come from --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """One epoch of a curve.

    Attributes:
        value: the searched metric at its end; NaN where the trial diverged.
        seconds: what it took.
    """

    value: float
    seconds: float


@dataclass(frozen=True)
class Curve:
    """What training one configuration gives.

    Attributes:
        choices: the configuration that was trained; a table may hold but a neighbour of the one asked for.
        epoch: what is measured at the end of an epoch, from 1.
    """

    choices: Mapping[str, Any]
    epoch: Callable[[int], Epoch]


class Curves(Protocol):
    """A source of learning curves.

    Attributes:
        space: what is searched.
        num_epochs: of a whole trial.
    """

    space: Space
    num_epochs: int

    def of(self, choices: Mapping[str, Any], taken: set[int]) -> Curve:
        """The curve of a configuration.

        Args:
            choices: by dotted name.
            taken: one study's, empty at its beginning: which of a finite number of curves it has had.
        """


@dataclass(frozen=True)
class Synthetic:
    """Curves that a function gives.

    Args:
        space: what is searched.
        num_epochs: of a whole trial.
        value: of choices and epoch.
        seconds: of an epoch, of the choices.
    """

    space: Space
    num_epochs: int
    value: Callable[[Mapping[str, Any], int], float]
    seconds: Callable[[Mapping[str, Any]], float] = lambda choices: 1.0

    def of(self, choices: Mapping[str, Any], taken: set[int]) -> Curve:
        """See Curves."""
        return Curve(choices, lambda epoch: Epoch(self.value(choices, epoch), self.seconds(choices)))


class TableOfCurves:
    """Curves that were recorded: a trial trains the nearest recorded configuration that its study has not had.

    Near is what differs least in the unit cube of the space (search_spaces.history.place_of); a choice differs by 0 or
    1, as does a key that only one of two configurations has. The sampler is told of the configuration that was trained,
    not of the one it proposed: what it learns is true, but a proposal near a good point that is used up becomes a point
    further off. So a sampler that closes in (TPE) shows less of an advantage over random search than it would have, the
    less the fuller the table is used.

    Args:
        path: a parquet file with a row for each configuration and epoch: `configuration`, `epoch` from 1, `value`,
            `seconds` and the keys of the space. One whose rows end early, or in a missing value, diverged there.
        space: what is searched.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self.space = space
        table = pq.read_table(path).to_pandas().sort_values(["configuration", "epoch"])
        self.num_epochs = int(table["epoch"].max())
        epochs = table.pivot(index="configuration", columns="epoch", values=["value", "seconds"])
        self._values, self._seconds = epochs["value"].to_numpy(), epochs["seconds"].fillna(0.0).to_numpy()
        self.choices = [self._choices(row) for row in table.drop_duplicates("configuration").to_dict("records")]
        self._cube = np.array([self._in_the_cube(choices) for choices in self.choices])

    def of(self, choices: Mapping[str, Any], taken: set[int]) -> Curve:
        """See Curves.

        Raises:
            ValueError: if the study has had every configuration.
        """
        if len(taken) == len(self.choices):
            raise ValueError(f"the table must hold as many configurations as the study has trials, got {len(taken)}")
        distance = self._distances(self._in_the_cube(choices))
        distance[list(taken)] = np.inf
        row = int(distance.argmin())
        taken.add(row)
        return Curve(
            self.choices[row],
            lambda epoch: Epoch(float(self._values[row, epoch - 1]), float(self._seconds[row, epoch - 1])),
        )

    def best_of(self, configurations: Sequence[int]) -> tuple[float, float]:
        """The best value of any epoch of these, trained one after another, and the seconds after which it is there."""
        values, seconds = self._values[configurations].ravel(), self._seconds[configurations].ravel()
        first = int(np.nanargmax(values))
        return float(values[first]), float(seconds[: first + 1].sum())

    def _choices(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row's choices: of a key that it lacks, and of a choice that is null, the table has a missing value."""
        choices: dict[str, Any] = {}
        for leaf in self.space.leaves:
            if leaf.holds(choices):
                value = row[leaf.key]
                missing = value is None or value != value
                choices[leaf.key] = None if missing else decoded(encoded(value))
                if isinstance(leaf.distribution, IntDistribution):  # a column with missing values holds floats
                    choices[leaf.key] = int(value)
        return choices

    def _in_the_cube(self, choices: Mapping[str, Any]) -> list[float]:
        return [
            place_of(leaf.distribution, encoded(choices[leaf.key])) if leaf.key in choices else math.nan
            for leaf in self.space.leaves
        ]

    def _distances(self, point: Sequence[float]) -> NDArray[np.float64]:
        of_choices = [isinstance(leaf.distribution, CategoricalDistribution) for leaf in self.space.leaves]
        apart = np.abs(self._cube - point)
        apart = np.where(of_choices, apart != 0, np.nan_to_num(apart, nan=1.0))
        apart[np.isnan(self._cube) & np.isnan(point)] = 0.0  # neither has the key
        distances: NDArray[np.float64] = np.square(apart).sum(axis=1)
        return distances


# ---- who hands out trials ----------------------------------------------------------------------------------------


class Books(Protocol):
    """Who hands out trials and judges what they report."""

    def next_trial(self) -> tuple[int, Mapping[str, Any]] | None:
        """A trial to go on with from where it stands, or a new one, with its choices; None if there is none now."""

    def trains(self, number: int, choices: Mapping[str, Any]) -> None:
        """Take in that a new trial trains other choices than it was handed out with."""

    def report(self, number: int, epoch: int, value: float, *, last: bool) -> Decision:
        """Take in an epoch's value and whether it is the trial's last; what does not go on has ended or waits."""

    def diverges(self, number: int) -> None:
        """Take in that a trial has ended without a value."""


class StudyInMemory:
    """The decisions of a study's ledger without its books.

    Args:
        space: what is searched.
        sampler: the study's.
        policy: the study's, which has seen nothing yet.
        num_trials: how many are handed out.
        seed: the study's.
        first_points: choices of the first trials, encoded.

    Attributes:
        study: Optuna's, in memory.
    """

    def __init__(
        self,
        space: Space,
        sampler: Sampler,
        policy: Policy,
        *,
        num_trials: int,
        seed: int,
        first_points: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._space, self._sampler, self._policy = space, sampler, policy
        self._num_trials, self._seed = num_trials, seed
        self._best: list[float] = []
        self.study = optuna.create_study(direction="maximize")
        for point in first_points:
            self.study.enqueue_trial(dict(point))
        self._proposing = PausingStudy(self.study)

    def next_trial(self) -> tuple[int, Mapping[str, Any]] | None:
        """See Books."""
        promoted = self._policy.promoted()
        if promoted is not None:
            self._proposing.go_on(promoted)
            return promoted, {}
        number = len(self._best)
        if number == self._num_trials:
            return None
        self._best.append(-math.inf)
        self._proposing.sampler = make_sampler(self._sampler, seed=self._seed, number=number)
        return number, self._space.ask(self._proposing.ask())

    def trains(self, number: int, choices: Mapping[str, Any]) -> None:
        """See Books."""
        put_in_place(self.study, number, self._space, choices)

    def report(self, number: int, epoch: int, value: float, *, last: bool) -> Decision:
        """See Books."""
        self.study._storage.set_trial_intermediate_value(self._id(number), epoch, value)
        self._best[number] = max(value, self._best[number])
        decision = self._policy.report(number, epoch, value)
        if last or decision in ("stop", "complete"):
            self._end(number, TrialState.PRUNED if decision == "stop" and not last else TrialState.COMPLETE)
            return "stop"
        if decision == "pause":
            self._proposing.pause(number)
        return decision

    def diverges(self, number: int) -> None:
        """See Books."""
        self.study._storage.set_trial_user_attr(self._id(number), "reason", "non_finite")
        self._end(number, TrialState.PRUNED)

    def _end(self, number: int, state: TrialState) -> None:
        self._policy.ended(number)
        self.study.tell(number, self._best[number] if state == TrialState.COMPLETE else None, state=state)

    def _id(self, number: int) -> int:
        return self.study._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)


def put_in_place(study: optuna.Study, number: int, space: Space, choices: Mapping[str, Any]) -> None:
    """Let a study in memory believe that a trial was proposed with other choices than it was."""
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    storage.get_trial(trial_id).params.clear()
    storage.get_trial(trial_id).distributions.clear()
    for leaf in space.leaves:
        if leaf.key in choices:
            value = leaf.distribution.to_internal_repr(encoded(choices[leaf.key]))
            storage.set_trial_param(trial_id, leaf.key, value, leaf.distribution)


# ---- workers and a clock -----------------------------------------------------------------------------------------


@dataclass
class Simulated:
    """A trial of a simulated search.

    Attributes:
        number: its number in the study.
        curve: what it trains.
        epoch: the last one computed.
        num_starts: how often a worker took it up.
    """

    number: int
    curve: Curve
    epoch: int = 0
    num_starts: int = 0


@dataclass(frozen=True)
class Result:
    """One report.

    Attributes:
        at_seconds: of the simulated clock.
        number: the trial's.
        epoch: from 1.
        found: what was measured.
    """

    at_seconds: float
    number: int
    epoch: int
    found: Epoch


@dataclass
class Search:
    """What a simulated search did.

    Attributes:
        trials: by number.
        results: in the order in which they came.
        seconds: where the clock stood at its end.
        device_seconds: in which a worker was held, of all workers.
        asking_seconds: which the books took to hand out trials, measured.
    """

    trials: dict[int, Simulated] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    device_seconds: float = 0.0
    asking_seconds: float = 0.0


def simulate(
    books: Books,
    curves: Curves,
    *,
    num_workers: int,
    start_seconds: float = 0.0,
    max_seconds: float = math.inf,
    charge_asking: bool = False,
) -> Search:
    """Run a search whose trainings are looked up.

    A worker that becomes free takes the next trial; one that finds none waits for the next report. What would be
    reported after `max_seconds` is not.

    Args:
        books: hand out trials and judge them.
        curves: what training gives.
        num_workers: how many trials run at a time.
        start_seconds: what a worker needs before a trial's first epoch, each time it takes one up.
        max_seconds: where the clock stops.
        charge_asking: whether the time that `books` take for a trial, measured, passes on the simulated clock; they
            serve one worker at a time.
    """
    simulation = _Simulation(books, curves, start_seconds, charge_asking)
    return simulation.run(num_workers, max_seconds)


class _Simulation:
    """Workers that hold trials, in the order in which these report next."""

    def __init__(self, books: Books, curves: Curves, start_seconds: float, charge_asking: bool) -> None:
        self._books, self._curves = books, curves
        self._start_seconds, self._charge_asking = start_seconds, charge_asking
        self._search = Search()
        self._taken: set[int] = set()
        self._reports: list[tuple[float, int, int]] = []  # when, after how many others, of which trial
        self._num_reports = 0
        self._since: dict[int, float] = {}  # up to where a running trial's time is counted
        self._books_free_at = 0.0

    def run(self, num_workers: int, max_seconds: float) -> Search:
        search = self._search
        self._place(num_workers)
        while self._reports and self._reports[0][0] <= max_seconds:
            search.seconds, _, number = heapq.heappop(self._reports)
            self._count(number)
            if not self._goes_on(search.trials[number]):
                del self._since[number]
            self._place(num_workers)
        if self._reports:
            search.seconds = max_seconds
            for number in self._since:
                self._count(number)
        return search

    def _goes_on(self, trial: Simulated) -> bool:
        """Whether a trial whose next epoch has come to its end computes another one."""
        trial.epoch += 1
        found = trial.curve.epoch(trial.epoch)
        if math.isnan(found.value):
            self._books.diverges(trial.number)
            return False
        self._search.results.append(Result(self._search.seconds, trial.number, trial.epoch, found))
        last = trial.epoch == self._curves.num_epochs
        if self._books.report(trial.number, trial.epoch, found.value, last=last) != "go_on":
            return False
        self._expect(trial, self._search.seconds)
        return True

    def _place(self, num_workers: int) -> None:
        """Give every free worker a trial, as long as there are any."""
        while len(self._since) < num_workers:
            began = time.perf_counter()
            following = self._books.next_trial()
            asking = time.perf_counter() - began
            self._search.asking_seconds += asking
            if following is None:
                return
            trial = self._taken_up(*following)
            self._since[trial.number] = self._search.seconds
            begins = self._search.seconds
            if self._charge_asking:
                begins = self._books_free_at = max(begins, self._books_free_at) + asking
            self._expect(trial, begins + self._start_seconds)

    def _taken_up(self, number: int, choices: Mapping[str, Any]) -> Simulated:
        trials = self._search.trials
        if number not in trials:
            trials[number] = Simulated(number, self._curves.of(choices, self._taken))
            if trials[number].curve.choices != choices:
                self._books.trains(number, trials[number].curve.choices)
        trials[number].num_starts += 1
        return trials[number]

    def _expect(self, trial: Simulated, begins: float) -> None:
        """Await a trial's next epoch, which begins then."""
        seconds = trial.curve.epoch(trial.epoch + 1).seconds
        heapq.heappush(self._reports, (begins + seconds, self._num_reports, trial.number))
        self._num_reports += 1

    def _count(self, number: int) -> None:
        """Count a held worker's time up to now."""
        # the clock of a cut search may stand before a trial that waits for the books
        self._search.device_seconds += self._search.seconds - self._since[number]
        self._since[number] = self._search.seconds
