"""PED-ANOVA for many resamples or shufflings of the same trials at once.

Optuna's evaluator takes a study and answers once, in tens of milliseconds for 500 trials; intervals and chances need
1,200 answers. Here every parameter is put on its grid once. What a resample changes is how often each cell of the grid
was drawn, by all trials and by the best; the densities on the grid follow from these counts in a few products of
matrices. The figures are Optuna's, which a test holds them against.

Shapes: R resamples, n trials, P parameters, G cells of a parameter's grid.

Source: PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255, as Optuna 5 computes it: densities by Scott's rule (Scott
1992) on at most 50 cells, with a prior as one more observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial
from scipy.special import ndtr

from reports.statistics.discrimination import Floats

MAX_CELLS = 50
LEAST_SIGMA = 0.5 / 1.64
"""Of a kernel, in cells: 90 % of it lie within its own."""
FLOOR = 1e-12
"""Added to every density, so that none is divided by zero."""
_CHUNK = 64
"""Resamples at once: their kernels, 50 x 50 numbers each, stay small."""


@dataclass(frozen=True)
class Grid:
    """One parameter's cells."""

    cells: NDArray[np.int64]
    """(n,) where each trial lies."""
    size: int
    """G."""
    is_choice: bool
    """A cell an option, in no order."""

    def densities(self, counts: Floats) -> Floats:
        """(R, G) estimated from (R, G) counts."""
        return (_of_options if self.is_choice else _of_numbers)(counts) + FLOOR


@dataclass(frozen=True)
class Grids:
    """The trials of a group on the grids of all their parameters."""

    grids: tuple[Grid, ...]

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], names: Sequence[str]) -> Self | None:
        """Put trials on grids; None where a parameter was drawn from more than one distribution."""
        found = []
        for name in names:
            distributions = {trial.distributions[name] for trial in trials}
            if len(distributions) > 1:
                return None
            found.append(_grid(distributions.pop(), [trial.params[name] for trial in trials]))
        return cls(tuple(found))

    def divergences(self, drawn: NDArray[np.int64], worth: Floats, *, best_share: float) -> Floats:
        """How far the best trials' choices lie from all trials'.

        Args:
            drawn: (R, n) positions of the trials that each resample holds.
            worth: (R, n) the value of each of them, greater being better.
            best_share: a trial is among the best if it is in this share of its resample; ties are.

        Returns:
            (R, P) PED-ANOVA's figures.
        """
        is_best = _among_best(worth, best_share)
        parts = [
            self._divergences(drawn[at : at + _CHUNK], is_best[at : at + _CHUNK]) for at in range(0, len(drawn), _CHUNK)
        ]
        return np.concatenate(parts)

    def _divergences(self, drawn: NDArray[np.int64], is_best: NDArray[np.bool_]) -> Floats:
        found = np.empty((len(drawn), len(self.grids)))
        for at, grid in enumerate(self.grids):
            cells = grid.cells[drawn]
            everywhere = grid.densities(_counts(cells, np.ones_like(is_best), grid.size))
            best = grid.densities(_counts(cells, is_best, grid.size))
            found[:, at] = (everywhere * (best / everywhere - 1) ** 2).sum(axis=1)
        return np.asarray(found * is_best.mean(axis=1, keepdims=True) ** 2)


def _among_best(worth: Floats, share: float) -> NDArray[np.bool_]:
    """(R, n) whether a value is at least the last of the best share of its row."""
    last = math.ceil(share * worth.shape[1]) - 1
    return np.asarray(-worth <= np.partition(-worth, last, axis=1)[:, [last]])


def _counts(cells: NDArray[np.int64], counted: NDArray[np.bool_], size: int) -> Floats:
    """(R, G) how often each cell occurs among those counted."""
    rows = np.arange(len(cells))[:, None] * size + cells
    return np.bincount(rows[counted], minlength=len(cells) * size).reshape(len(cells), size).astype(np.float64)


def _grid(of: BaseDistribution, taken: Sequence[Any]) -> Grid:
    if isinstance(of, CategoricalDistribution):
        options = np.array([of.to_internal_repr(value) for value in taken], dtype=np.int64)
        return Grid(options, len(of.choices), is_choice=True)
    number: Any = of
    size = MAX_CELLS
    if isinstance(of, IntDistribution) and of.log:
        size = min(math.ceil(np.log(of.high - of.low + 1) / np.log(2)) + 1, size)
    elif number.step is not None:
        size = min(round((number.high - number.low) / number.step) + 1, size)
    low, high = (math.log(number.low), math.log(number.high)) if number.log else (number.low, number.high)
    values = np.log(taken) if number.log else np.asarray(taken)
    cells = np.ceil((values - low) / ((high - low) / (size - 1)) - 0.5).astype(np.int64)
    return Grid(cells.clip(0, size - 1), size, is_choice=False)


def _of_options(counts: Floats) -> Floats:
    """Each option that occurs is a kernel, mostly its own, with its count as weight; the prior is flat."""
    size, total = counts.shape[1], counts.sum(axis=1, keepdims=True)
    spread = 1 / ((counts > 0).sum(axis=1, keepdims=True) + 1)
    kernels = (total * spread + counts) / (1 + size * spread)
    return np.asarray((kernels + 1 / size) / (total + 1))


def _of_numbers(counts: Floats) -> Floats:
    """A normal kernel on each cell that occurs, of one width in a resample, cut off at the ends; the prior is wide."""
    num, size = counts.shape
    total = counts.sum(axis=1)
    width = np.maximum(_scott(counts, total), LEAST_SIGMA)
    apart = np.abs(np.arange(size)[:, None] - np.arange(size))
    kernels = _masses(width, size)[:, apart]  # (R, G, G)
    kernels /= kernels.sum(axis=2, keepdims=True)
    edges = (np.arange(size + 1) - 0.5 - (size - 1) / 2) / size
    prior = np.diff(ndtr(edges))
    observed = (counts[:, None, :] @ kernels)[:, 0]
    return np.asarray((observed + prior / prior.sum()) / (total[:, None] + 1)).reshape(num, size)


def _masses(width: Floats, size: int) -> Floats:
    """(R, G) what a normal curve of each width leaves in the cell that lies 0, 1, ... cells from its middle."""
    apart = np.arange(size)
    outer = ndtr(-(apart + 0.5) / width[:, None])
    inner = ndtr(-(apart - 0.5) / width[:, None])  # left tails: differences of right ones would be lost
    return np.asarray(inner - outer)


def _scott(counts: Floats, total: Floats) -> Floats:
    """(R,) the width of the kernels, in cells."""
    cells = np.arange(counts.shape[1])
    mean = counts @ cells / total
    squares = (counts * (cells - mean[:, None]) ** 2).sum(axis=1)
    deviation = np.sqrt(squares / np.maximum(1, total - 1))
    reached = counts.cumsum(axis=1)
    first = (reached >= np.maximum(total // 4, 1)[:, None]).argmax(axis=1)
    third = (reached > (total * 3 // 4)[:, None]).argmax(axis=1)
    return np.asarray(1.059 * np.minimum((third - first) / 1.34, deviation) * total**-0.2)
