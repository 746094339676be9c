"""Who is stopped when: policies that see (trial, epoch, value) and answer whether the trial goes on, waits or is over.

A policy is plain Python without Ray, so that its rules can be tested and replayed in microseconds; after a crash the
study's events are put through it again. Nothing in a policy is random or depends on time: the same calls in the same
order give the same decisions.
"""

from __future__ import annotations

import itertools
import math
import statistics
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from typing import Literal

from search_spaces.schema import Scheduler
from trainables.settings import Task

Decision = Literal["go_on", "pause", "stop", "complete"]
"""What becomes of a trial: a paused one gives its place up and may go on later, a complete one ends with its best."""


class Policy(ABC):
    """A rule that stops trials early. Trial 0, the default configuration, never is: reports compare with it."""

    def report(self, number: int, epoch: int, value: float) -> Decision:
        """Take in a trial's result at the end of an epoch.

        Args:
            number: the trial.
            epoch: from 1, on the axis of the whole trial.
            value: the searched metric, finite, greater being better.

        Returns:
            Whether the trial goes on now. One that is paused reports no more until `promoted` names it.
        """
        decision = self._judge(number, epoch, value)
        return "go_on" if number == 0 else decision

    @abstractmethod
    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        """Take the result in and say what becomes of an ordinary trial."""

    def promoted(self) -> int | None:
        """A paused trial that is to go on now, which then is no longer paused; None if there is none.

        It is asked for before a new trial is begun.
        """
        return None

    def ended(self, number: int) -> None:
        """Take in that a trial has ended, of itself or not: it is not promoted any more."""
        return


class NoStopping(Policy):
    """Every trial runs to its end."""

    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        return "go_on"


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
        self._losses: dict[int, list[float]] = {rung: [] for rung in rungs}  # ascending, the best first

    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        if epoch not in self._losses:
            return "go_on"
        losses = self._losses[epoch]
        insort(losses, -value)
        if len(losses) < self.reduction_factor:
            return "go_on"
        return "go_on" if -value <= losses[len(losses) // self.reduction_factor - 1] else "stop"


class PromotingHalving(Policy):
    """Asynchronous successive halving as published: a trial waits at each rung until it is among the rung's best.

    Before a new trial is begun, a waiting one goes on that is among the best 1 / reduction_factor of all that ever came
    to its rung, of the highest rung with such a trial, the best first. A trial that comes to a rung and would be named
    next goes on at once, in its own process. Past the last rung a trial runs to its end.

    Args:
        rungs: the epochs at whose end it decides, ascending.
        reduction_factor: of a rung's results, the best 1 / reduction_factor go on, rounded down.

    Source: ASHA, Li et al. 2020, arXiv:1810.05934, algorithm 2. The order of equals is not said there: here the one
    that came first is before the others.
    """

    def __init__(self, rungs: tuple[int, ...], reduction_factor: int) -> None:
        self.rungs = rungs
        self.reduction_factor = reduction_factor
        # (-value, how many came before), ascending, the best first
        self._results: dict[int, list[tuple[float, int]]] = {rung: [] for rung in rungs}
        self._waiting: dict[int, list[tuple[float, int, int]]] = {rung: [] for rung in rungs}

    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        if epoch not in self._results:
            return "go_on"
        place = (-value, len(self._results[epoch]))
        insort(self._results[epoch], place)
        if number == 0:
            return "go_on"
        insort(self._waiting[epoch], (*place, number))
        rung = self._rung_with_promotable()
        if rung is not None and self._waiting[rung][0][-1] == number:
            del self._waiting[rung][0]
            return "go_on"
        return "pause"

    def promoted(self) -> int | None:
        """The best promotable trial of the highest rung that has one."""
        rung = self._rung_with_promotable()
        return None if rung is None else self._waiting[rung].pop(0)[-1]

    def _rung_with_promotable(self) -> int | None:
        for rung in reversed(self.rungs):
            results, waiting = self._results[rung], self._waiting[rung]
            # no other that waits is better placed than the first
            if waiting and bisect_left(results, waiting[0][:2]) < len(results) // self.reduction_factor:
                return rung
        return None

    def ended(self, number: int) -> None:
        """A trial that waited will not go on; its results stay, to compare with."""
        for waiting in self._waiting.values():
            waiting[:] = [place for place in waiting if place[-1] != number]


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

    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        mine = self._values.setdefault(number, {})
        mine[epoch] = value
        if epoch not in self._epochs:
            return "go_on"
        others = [values for other, values in self._values.items() if other != number and max(values) >= epoch]
        so_far = [[value for at, value in values.items() if at <= epoch] for values in others]
        means = [statistics.fmean(values) for values in so_far if values]  # none were finite: nothing to compare with
        goes_on = len(means) < self._min_trials or max(mine.values()) >= statistics.median(means)
        return "go_on" if goes_on else "stop"


class EndingPlateaus(Policy):
    """Another policy, and besides the end of a trial that no longer improves: it is complete with its best.

    Args:
        policy: is asked first.
        first_epoch: from which on values count for the trial, e.g. the first one of a joint trial's fine-tuning.
        num_epochs: after how many epochs without an improvement it ends.
        tolerance: a value is an improvement where it is better by more than this than the last one that was.
    """

    def __init__(self, policy: Policy, *, first_epoch: int, num_epochs: int, tolerance: float) -> None:
        self._policy = policy
        self._first_epoch = first_epoch
        self._num_epochs = num_epochs
        self._tolerance = tolerance
        self._improved: dict[int, tuple[int, float]] = {}

    def _judge(self, number: int, epoch: int, value: float) -> Decision:
        decision = self._policy.report(number, epoch, value)
        if epoch < self._first_epoch:
            return decision
        since, best = self._improved.get(number, (epoch, -math.inf))
        if value > best + self._tolerance:
            self._improved[number] = (epoch, value)
        elif decision == "go_on" and epoch - since >= self._num_epochs:
            return "complete"
        return decision

    def promoted(self) -> int | None:
        """The other policy's."""
        return self._policy.promoted()

    def ended(self, number: int) -> None:
        """The other policy is told."""
        self._policy.ended(number)


def rungs_of(task: Task, *, grace_epochs: int, reduction_factor: int) -> tuple[int, ...]:
    """Epochs grace_epochs * reduction_factor ** k before the last, none in a joint trial's first fine-tuning epoch.

    A freshly put-on head says little about its trial: such a rung moves one epoch on.
    """
    rungs = []
    for rung in spaced(grace_epochs, reduction_factor, task.num_epochs):
        moved = rung + 1 if rung in unsettled_epochs(task) else rung
        if moved < task.num_epochs and moved not in rungs:
            rungs.append(moved)
    return tuple(rungs)


def spaced(first: int, factor: int, num_epochs: int) -> tuple[int, ...]:
    """Epochs first * factor ** k before the last."""
    return tuple(itertools.takewhile(lambda rung: rung < num_epochs, (first * factor**k for k in itertools.count())))


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
    policy = _rule(settings, task)
    if settings.name == "pbt" or settings.plateau_epochs is None:
        return policy
    first_epoch = task.num_pretrain_epochs + 1 if task.stages == "joint" else 1
    patience, tolerance = settings.plateau_epochs, settings.plateau_tolerance
    return EndingPlateaus(policy, first_epoch=first_epoch, num_epochs=patience, tolerance=tolerance)


def _rule(settings: Scheduler, task: Task) -> Policy:
    if settings.name in ("asha", "asha_promotion"):
        assert settings.grace_epochs is not None  # see search_spaces.schema.checked
        rungs = rungs_of(task, grace_epochs=settings.grace_epochs, reduction_factor=settings.reduction_factor)
        halving = SuccessiveHalving if settings.name == "asha" else PromotingHalving
        return halving(rungs, settings.reduction_factor)
    if settings.name == "median":
        epochs = frozenset(range(settings.grace_epochs, task.num_epochs)) - unsettled_epochs(task)
        return MedianStopping(epochs, settings.min_trials)
    return NoStopping()
