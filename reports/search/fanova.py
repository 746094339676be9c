"""How much of the value's variance over the space each parameter explains by itself: fANOVA, main effects.

A random forest is fitted to the trials; each of its trees cuts the space into boxes of one value each, so that the mean
over all other parameters, and its variance along one parameter, follow exactly. What is left to 1 are interactions.

Two differences from Optuna's evaluator, which this equals on a space of linear ranges: a logarithmic range is measured
as it was drawn from (on a linear measure 1e-5 to 1e-4 would be 3 % of 1e-5 to 3e-3), and a choice counts its options
alone (there, combinations of one-hot columns that are no option have a volume too). It is also many times as fast.

The forest's fit to trials that a tree has not seen (out of bag) says how far it can be believed.

Source: Hutter, Hoos and Leyton-Brown 2014, An Efficient Approach for Assessing Hyperparameter Importance, sec. 4.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from reports.statistics.discrimination import Floats

NUM_TREES = 64
"""As many as Optuna grows."""
MAX_STEPS = 1000
"""Whole numbers beyond which they are taken for a range without steps."""


@dataclass(frozen=True)
class Fanova:
    """What a forest makes of the trials."""

    shares: dict[str, float]
    """Parameter -> the part of the variance that it explains by itself."""
    explained: float
    """The part of the values' variance that the forest predicts out of bag; below 0 it predicts nothing."""


@dataclass(frozen=True)
class Range:
    """A number: one column, between two ends."""

    column: int
    low: float
    high: float

    def measures(self, lows: Floats, highs: Floats) -> Floats:
        """(L,) the part of the range that each of L boxes holds."""
        return np.asarray((self._high(highs) - self._low(lows)).clip(min=0) / (self.high - self.low))

    def points(self, lows: Floats, highs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(M,) parts of the range between all boxes' ends, and (M, L) which boxes hold which."""
        low, high = self._low(lows), self._high(highs)
        edges = np.unique(np.concatenate([[self.low, self.high], low, high]))
        middles = (edges[1:] + edges[:-1])[:, None] / 2
        return np.diff(edges) / (self.high - self.low), (low < middles) & (middles <= high)

    def _low(self, lows: Floats) -> Floats:
        return lows[:, self.column].clip(self.low, self.high)

    def _high(self, highs: Floats) -> Floats:
        return highs[:, self.column].clip(self.low, self.high)


@dataclass(frozen=True)
class Steps:
    """Whole numbers, or numbers in steps: one column, and each of them with its part of the range."""

    column: int
    values: Floats
    parts: Floats

    def measures(self, lows: Floats, highs: Floats) -> Floats:
        """(L,) the part of the range that each of L boxes holds."""
        return np.asarray(self.parts @ self.points(lows, highs)[1])

    def points(self, lows: Floats, highs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(M,) parts, and (M, L) which boxes hold which number."""
        values = self.values[:, None]
        return self.parts, (lows[:, self.column] < values) & (values <= highs[:, self.column])


@dataclass(frozen=True)
class Options:
    """A choice: a column an option, 1 where it was taken."""

    columns: slice
    num: int

    def measures(self, lows: Floats, highs: Floats) -> Floats:
        """(L,) the part of the options that each of L boxes holds."""
        return np.asarray(self.points(lows, highs)[1].mean(axis=0))

    def points(self, lows: Floats, highs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """(M,) equal parts, and (M, L) which boxes hold which option."""
        low, high = lows[:, self.columns], highs[:, self.columns]
        one, zero = ((low < value) & (value <= high) for value in (1.0, 0.0))
        held = np.array([one[:, at] & np.delete(zero, at, axis=1).all(axis=1) for at in range(self.num)])
        return np.full(self.num, 1 / self.num), held


Domain = Range | Steps | Options


def missing() -> str | None:
    """Why there is no fANOVA where this report is made; None where there is."""
    if importlib.util.find_spec("sklearn") is not None:
        return None
    return "scikit-learn, which grows its forest, is not installed where this report was made (the extra `report`)"


def fanova(trials: Sequence[FrozenTrial], names: Sequence[str], *, seed: int) -> Fanova:
    """Main effects of `names`, all of which these trials have; their values must not all be equal.

    Args:
        trials: COMPLETE, with the values that they are compared by.
        names: parameters that were varied among them.
        seed: of the forest.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    from sklearn.ensemble import RandomForestRegressor

    domains, columns = zip(*_encoded(trials, names), strict=True)
    values = np.array([trial.value for trial in trials])
    features = np.concatenate(columns, axis=1)
    forest = RandomForestRegressor(n_estimators=NUM_TREES, max_depth=64, random_state=seed, oob_score=True)
    forest.fit(features, values)
    shares = [found for tree in forest.estimators_ if (found := _of_tree(tree.tree_, domains)) is not None]
    mean = np.mean(shares, axis=0) if shares else np.zeros(len(names))
    return Fanova(dict(zip(names, mean.tolist(), strict=True)), float(forest.oob_score_))


def _encoded(trials: Sequence[FrozenTrial], names: Sequence[str]) -> list[tuple[Domain, Floats]]:
    """Each parameter's domain and its columns (n, 1 or number of options)."""
    found: list[tuple[Domain, Floats]] = []
    place = 0
    for name in names:
        distributions = {trial.distributions[name] for trial in trials}
        taken = [trial.params[name] for trial in trials]
        domain, columns = _column(list(distributions), taken, place)
        found.append((domain, columns))
        place += columns.shape[1]
    return found


def _column(distributions: list[BaseDistribution], taken: list[Any], place: int) -> tuple[Domain, Floats]:
    first: Any = distributions[0]
    if isinstance(first, CategoricalDistribution):
        internal = np.array([first.to_internal_repr(value) for value in taken], dtype=np.int64)
        num = len(first.choices)
        return Options(slice(place, place + num), num), np.eye(num)[internal]
    scale = math.log if first.log else float
    ranges: list[Any] = list(distributions)
    low, high = min(of.low for of in ranges), max(of.high for of in ranges)
    column = np.array([[scale(value)] for value in taken])
    if first.step is None or (high - low) / first.step >= MAX_STEPS:
        return Range(place, scale(low), scale(high)), column
    numbers = np.arange(low, high + first.step / 2, first.step)
    if not first.log:
        return Steps(place, numbers, np.full(len(numbers), 1 / len(numbers))), column
    edges = np.log(np.append(numbers - 0.5, numbers[-1] + 0.5))  # as a whole number is drawn from a logarithmic range
    return Steps(place, np.log(numbers), np.diff(edges) / (edges[-1] - edges[0])), column


def _of_tree(tree: Any, domains: Sequence[Domain]) -> Floats | None:
    """(P,) the part of one tree's variance that each parameter explains; None of a tree without a cut."""
    lows, highs, values = _leaves(tree)
    measures = np.array([domain.measures(lows, highs) for domain in domains])  # (P, L)
    volumes = measures.prod(axis=0)
    mean = float(volumes @ values)
    variance = float(volumes @ (values - mean) ** 2)
    if variance <= 1e-30:
        return None
    found = []
    for at, domain in enumerate(domains):
        parts, held = domain.points(lows, highs)
        marginal = held @ (values * np.delete(measures, at, axis=0).prod(axis=0))
        found.append(float(parts @ (marginal - mean) ** 2) / variance)
    return np.array(found)


def _leaves(tree: Any) -> tuple[Floats, Floats, Floats]:
    """The boxes of a tree's leaves: (L, F) lower ends, which they do not hold, (L, F) upper ends, (L,) values."""
    shape = tree.node_count, tree.n_features
    lows, highs = np.full(shape, -np.inf), np.full(shape, np.inf)
    for node in range(tree.node_count):  # a node comes before its children
        left, right = tree.children_left[node], tree.children_right[node]
        if left < 0:
            continue
        feature, threshold = tree.feature[node], tree.threshold[node]
        lows[[left, right]], highs[[left, right]] = lows[node], highs[node]
        highs[left, feature] = lows[right, feature] = threshold
    leaf = tree.children_left < 0
    return lows[leaf], highs[leaf], tree.value[leaf, 0, 0]
