"""The tree-structured Parzen estimator, at a cost that does not grow with the number of trials.

Differences from Optuna's, which is the model for all else: how trials are compared (search_spaces/history.py); the
density of the rest is that of the latest ones, where Optuna puts a kernel on each; a whole number is a bin of a
continuous range.

Source: TPE, Bergstra et al. 2011; its multivariate form, BOHB, Falkner et al. 2018, arXiv:1807.01774; kernels, weights
and share of good trials, Optuna 5 (Watanabe 2023, arXiv:2304.11127).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from scipy.special import ndtr, ndtri

from search_spaces.history import History, HistorySampler, num_choices_of

GOOD_SHARE, MAX_GOOD = 0.1, 25
MAX_REST = 200
NUM_CANDIDATES = 24
NUM_OF_FULL_WEIGHT = 25
MAX_KERNELS_IN_A_ROW = 100
"""A kernel is never narrower than its range divided by this."""


class ParzenSampler(HistorySampler):
    """Draws candidates from the density of the good trials and proposes the one with the best ratio to the rest's."""

    def _propose(self, history: History, number: int, group: dict[str, BaseDistribution]) -> NDArray[np.float64]:
        good, rest = (
            Density(_table([history.places[other] for other in numbers], list(group)), num_choices_of(group))
            for numbers in split(history, number)
        )
        candidates = good.draw(NUM_CANDIDATES, self._generator)
        best: NDArray[np.float64] = candidates[(good.log(candidates) - rest.log(candidates)).argmax()]
        return best


def split(history: History, number: int) -> tuple[list[int], list[int]]:
    """Good trials and the latest of the rest, before trial `number`, each by number."""
    num_good = min(math.ceil(GOOD_SHARE * history.num_reporting), MAX_GOOD)
    good = {other for _, other in history.compared(num_good)[:num_good]}
    rest: list[int] = []
    for other in reversed(range(number)):
        if len(rest) == MAX_REST:
            break
        if other not in good:
            rest.append(other)
    return sorted(good), rest[::-1]


def _table(places: list[dict[str, float]], names: list[str]) -> NDArray[np.float64]:
    """The places (N, D) of those trials that have all of the parameters."""
    rows = [[place[name] for name in names] for place in places if all(name in place for name in names)]
    return np.array(rows).reshape(len(rows), len(names))


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
