"""Who is stopped when: policies that see (trial, epoch, value) and answer whether the trial goes on.

A policy is plain Python without Ray, so that its rules can be tested and replayed in microseconds; after a crash the
study's events are put through it again. Nothing in a policy is random or depends on time: the same results in the same
order give the same decisions.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod

from search_spaces.schema import Scheduler
from trainables.settings import Task


class Policy(ABC):
    """A rule that stops trials early. Trial 0, the default configuration, never is: reports compare with it."""

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Take in a trial's result at the end of an epoch.

        Args:
            number: the trial.
            epoch: from 1, on the axis of the whole trial.
            value: the searched metric, finite, greater being better.

        Returns:
            Whether the trial goes on.
        """
        return self._judge(number, epoch, value) or number == 0

    @abstractmethod
    def _judge(self, number: int, epoch: int, value: float) -> bool:
        """Take the result in and say whether an ordinary trial would go on."""


class NoStopping(Policy):
    """Every trial runs to its end."""

    def _judge(self, number: int, epoch: int, value: float) -> bool:
        return True


class SuccessiveHalving(Policy):
    """Asynchronous successive halving, the stopping kind: at each rung the best of those that came so far go on.

    A rung decides once it holds `reduction_factor` results; those that came before pass. (Ray's own decides from the
    second on, by which a mediocre second trial is stopped for not beating the first.)

    Args:
        rungs: the epochs at whose end it decides, ascending.
        reduction_factor: of a rung's results, the best 1 / reduction_factor go on, at least one.

    Source: ASHA, Li et al. 2020, arXiv:1810.05934, in the stopping variant of its implementation in Ray Tune.
    """

    def __init__(self, rungs: tuple[int, ...], reduction_factor: int) -> None:
        self.rungs = rungs
        self.reduction_factor = reduction_factor
        self._results: dict[int, list[float]] = {rung: [] for rung in rungs}

    def _judge(self, number: int, epoch: int, value: float) -> bool:
        if epoch not in self._results:
            return True
        results = self._results[epoch]
        results.append(value)
        if len(results) < self.reduction_factor:
            return True
        results.sort(reverse=True)
        return value >= results[max(1, len(results) // self.reduction_factor) - 1]


class MedianStopping(Policy):
    """Stop a trial whose best value is below the median of the others' running means up to the same epoch.

    Args:
        epochs: where it decides.
        min_trials: how many other trials must have come that far.

    Source: Vizier, Golovin et al. 2017, sec. 3.2.2.
    """

    def __init__(self, epochs: frozenset[int], min_trials: int) -> None:
        self._epochs = epochs
        self._min_trials = min_trials
        self._values: dict[int, dict[int, float]] = {}

    def _judge(self, number: int, epoch: int, value: float) -> bool:
        mine = self._values.setdefault(number, {})
        mine[epoch] = value
        if epoch not in self._epochs:
            return True
        others = [values for other, values in self._values.items() if other != number and max(values) >= epoch]
        so_far = [[value for at, value in values.items() if at <= epoch] for values in others]
        means = [statistics.fmean(values) for values in so_far if values]  # none were finite: nothing to compare with
        return len(means) < self._min_trials or max(mine.values()) >= statistics.median(means)


def rungs_of(task: Task, *, grace_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs grace_epochs * reduction_factor ** k before the last, none in a joint trial's first fine-tuning epoch.

    A freshly put-on head says little about its trial: such a rung moves one epoch on.
    """
    rungs = []
    rung = grace_epochs
    while rung < task.num_epochs:
        moved = rung + 1 if rung in unsettled_epochs(task) else rung
        if moved < task.num_epochs and moved not in rungs:
            rungs.append(moved)
        rung *= reduction_factor
    return tuple(rungs)


def exploit_epochs(task: Task, interval_epochs: int) -> frozenset[int]:
    """Epochs at whose end population-based training compares trials: every interval, before the last epoch.

    One that falls on the first fine-tuning epoch of a joint trial moves one epoch on.
    """
    every = range(interval_epochs, task.num_epochs, interval_epochs)
    moved = {epoch + 1 if epoch in unsettled_epochs(task) else epoch for epoch in every}
    return frozenset(epoch for epoch in moved if epoch < task.num_epochs)


def unsettled_epochs(task: Task) -> set[int]:
    """Epochs whose value no scheduler may act on."""
    return {task.num_pretrain_epochs + 1} if task.stages == "joint" else set()


def make_policy(settings: Scheduler, task: Task) -> Policy:
    """The policy that the study's `scheduler` asks for (population-based training stops no one)."""
    if settings.name == "asha":
        rungs = rungs_of(task, grace_epochs=settings.grace_epochs, reduction_factor=settings.reduction_factor)
        return SuccessiveHalving(rungs, settings.reduction_factor)
    if settings.name == "median":
        epochs = frozenset(range(settings.grace_epochs, task.num_epochs)) - unsettled_epochs(task)
        return MedianStopping(epochs, settings.min_trials)
    return NoStopping()
