"""A Gaussian process over trials of unequal length, at a cost that does not grow with their number.

It takes the places of the trials that are compared (search_spaces/history.py) and the normal scores of their ranks, so
that neither a metric's scale nor a disaster matters. A running trial that has not come that far is held to give what is
expected of it. Beyond some number of trials it weighs the best ones, and as many that are spread over the rest. The
proposal has the greatest expected improvement of random candidates and of neighbours of the best.

Source: Snoek et al. 2012, arXiv:1206.2944 (kernel, improvement); asynchronous successive halving under a process over
the trials of one rung, MOBSTER, Klein et al. 2020, arXiv:2003.10865 (there one process over all rungs).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr, ndtri
from threadpoolctl import ThreadpoolController

from search_spaces.history import History, HistorySampler, num_choices_of

MAX_TRIALS = 150
NUM_CANDIDATES = 800
NUM_REFINED, NUM_NEIGHBOURS, REFINEMENTS = 5, 100, (0.05, 0.025, 0.0125)
MAX_ITERATIONS = 25
PRIOR_OF_LENGTHS = (0.8, 1.0)
"""Median of a length scale, of a range of 1, and standard deviation of its logarithm."""
PRIOR_OF_NOISE = (0.05, 1.5)
PRIOR_OF_SCALE = (1.0, 1.0)
SQRT_5 = math.sqrt(5)

Array = NDArray[np.float64]


class GaussianSampler(HistorySampler):
    """Proposes where a Gaussian process expects the greatest improvement."""

    def _propose(self, history: History, number: int, group: dict[str, BaseDistribution]) -> Array:
        # from 128 rows on, the threads of NumPy's and SciPy's libraries wait for each other: 400 ms instead of 30
        with _libraries().limit(limits=1, user_api="blas"):
            return self._proposed(history, number, group)

    def _proposed(self, history: History, number: int, group: dict[str, BaseDistribution]) -> Array:
        names, num_choices = list(group), np.array(num_choices_of(group))
        compared = [
            (rank, other)
            for rank, (_, other) in _weighed(history.compared(0))
            if all(name in history.places[other] for name in names)
        ]
        if len(compared) < 2:
            at_random: Array = _drawn(1, num_choices, self._generator)[0]
            return at_random
        ahead = {other for _, other in compared}
        running = [
            other
            for other in sorted(history.running)
            if other < number and other not in ahead and all(name in history.places[other] for name in names)
        ]
        places = np.array([[history.places[other][name] for name in names] for _, other in compared])
        scores = -ndtri((np.array([rank for rank, _ in compared]) + 0.5) / len(history.compared(0)))
        process = Process(places, scores - scores.mean(), num_choices)
        if running:
            waiting = np.array([[history.places[other][name] for name in names] for other in running])
            process.suppose(waiting)
        return self._best_of(process, places[:10], num_choices)

    def _best_of(self, process: Process, best: Array, num_choices: NDArray[np.int64]) -> Array:
        """The candidate of the greatest improvement; `best` are the best trials so far, the best first."""
        draw = self._generator
        near = _near(best[draw.integers(len(best), size=NUM_CANDIDATES // 2)], 0.1, num_choices, draw)
        candidates = np.concatenate([_drawn(NUM_CANDIDATES // 2, num_choices, draw), near])
        gains = process.log_improvement(candidates)
        for width in REFINEMENTS:
            top = candidates[gains.argsort()[-NUM_REFINED:]]
            again = _near(top.repeat(NUM_NEIGHBOURS // NUM_REFINED, axis=0), width, num_choices, draw)
            candidates, gains = np.concatenate([top, again]), process.log_improvement(np.concatenate([top, again]))
        found: Array = candidates[gains.argmax()]
        return found


@functools.cache  # looking for them takes milliseconds
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _weighed(ranked: list[tuple[float, int]]) -> list[tuple[int, tuple[float, int]]]:
    """Ranks and trials that are weighed: all, or the best and some that are spread over the rest."""
    if len(ranked) <= MAX_TRIALS:
        return list(enumerate(ranked))
    best = MAX_TRIALS // 2
    spread = np.linspace(best, len(ranked) - 1, MAX_TRIALS - best).astype(int)
    return [(int(rank), ranked[rank]) for rank in (*range(best), *spread)]


def _drawn(num: int, num_choices: NDArray[np.int64], draw: np.random.Generator) -> Array:
    """Places (num, D) at random."""
    places = draw.random((num, len(num_choices)))
    drawn: Array = np.where(num_choices > 0, np.floor(places * num_choices), places)
    return drawn


def _near(places: Array, width: float, num_choices: NDArray[np.int64], draw: np.random.Generator) -> Array:
    """Neighbours of places (N, D), each moved along about half of its numbers and in a tenth of its choices."""
    moved = np.clip(places + width * draw.normal(size=places.shape), 0, 1)
    moves = draw.random(places.shape) < np.where(num_choices > 0, 0.1, 0.5)
    near: Array = np.where(moves, np.where(num_choices > 0, _drawn(len(places), num_choices, draw), moved), places)
    return near


class Process:
    """A Gaussian process with a Matern kernel of 5/2, its parameters at the maximum of their posterior.

    Args:
        places: (N, D), in the unit cube; of a choice its index, whose distance to any other is 1.
        scores: (N,), greater being better, of mean 0.
        num_choices: of each parameter: 0 of a number.
    """

    def __init__(self, places: Array, scores: Array, num_choices: NDArray[np.int64]) -> None:
        self._places, self._scores, self._of_choices = places, scores, num_choices > 0
        self._parameters = self._fitted()
        self._condition()

    def suppose(self, places: Array) -> None:
        """Take what is expected at places (M, D) for what was found there."""
        expected, _ = self.predict(places)
        self._places = np.concatenate([self._places, places])
        self._scores = np.concatenate([self._scores, expected])
        self._condition()

    def predict(self, places: Array) -> tuple[Array, Array]:
        """Mean and standard deviation (M,) at places (M, D)."""
        lengths, _, scale = self._split(self._parameters)
        kernel = scale * _matern(np.tensordot(lengths**-2, self._apart(places, self._places), 1))
        half = solve_triangular(self._root, kernel.T, lower=True)
        return kernel @ self._weights, np.sqrt(np.maximum(scale - np.square(half).sum(axis=0), 1e-10))

    def log_improvement(self, places: Array) -> Array:
        """The logarithm (M,) of the expected improvement over the best mean of a trial."""
        mean, deviation = self.predict(places)
        above = (mean - self._best) / deviation
        # z * Phi(z) + phi(z); far below it is phi(z) / z**2, whose logarithm does not vanish
        near = np.maximum(above, -5.0)
        gain = near * np.exp(log_ndtr(near)) + np.exp(-near * near / 2) / math.sqrt(2 * math.pi)
        far = -above * above / 2 - math.log(math.sqrt(2 * math.pi)) - 2 * np.log(np.maximum(-above, 5.0))
        logs: Array = np.where(above > -5.0, np.log(gain), far) + np.log(deviation)
        return logs

    def _apart(self, places: Array, others: Array) -> Array:
        """Squared distances (D, M, N) along each parameter."""
        apart = places.T[:, :, None] - others.T[:, None, :]
        squared: Array = np.where(self._of_choices[:, None, None], apart != 0, apart * apart)
        return squared

    def _split(self, parameters: Array) -> tuple[Array, float, float]:
        """Length scales (D,), variance of the noise, and of the process."""
        return np.exp(parameters[:-2]), math.exp(parameters[-2]), math.exp(parameters[-1])

    def _condition(self) -> None:
        lengths, noise, scale = self._split(self._parameters)
        kernel = scale * _matern(np.tensordot(lengths**-2, self._apart(self._places, self._places), 1))
        self._root = np.linalg.cholesky(kernel + noise * np.eye(len(kernel)))
        self._weights = cho_solve((self._root, True), self._scores)
        self._best = float((kernel @ self._weights).max())

    def _fitted(self) -> Array:
        apart = self._apart(self._places, self._places)
        medians, spreads = zip(*[PRIOR_OF_LENGTHS] * len(self._of_choices), PRIOR_OF_NOISE, PRIOR_OF_SCALE, strict=True)
        prior, spread = np.log(medians), np.array(spreads)
        found = minimize(
            lambda parameters: self._loss(parameters, apart, prior, spread),
            prior,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(prior - 4 * spread, prior + 4 * spread, strict=True)),
            options={"maxiter": MAX_ITERATIONS},
        )
        return np.asarray(found.x, dtype=np.float64)

    def _loss(self, parameters: Array, apart: Array, prior: Array, spread: Array) -> tuple[float, Array]:
        """The negative logarithm of the posterior of the parameters' logarithms, up to a constant, and its gradient."""
        lengths, noise, scale = self._split(parameters)
        squared = np.tensordot(lengths**-2, apart, 1)
        kernel = _matern(squared)
        root = np.linalg.cholesky(scale * kernel + (noise + 1e-9) * np.eye(len(kernel)))
        inverse = cho_solve((root, True), np.eye(len(kernel)))
        weights = inverse @ self._scores
        loss = self._scores @ weights / 2 + np.log(np.diag(root)).sum()
        # d loss / d K = -(w w' - K^-1) / 2; d matern / d squared = -5/6 (1 + sqrt(5 squared)) exp(-sqrt(5 squared))
        slope = (inverse - np.outer(weights, weights)) / 2
        distance = SQRT_5 * np.sqrt(squared)
        along = slope * scale * (5 / 6) * (1 + distance) * np.exp(-distance)
        gradient = np.empty_like(parameters)
        gradient[:-2] = 2 * lengths**-2 * np.tensordot(apart, along, 2)
        gradient[-2] = noise * np.trace(slope)
        gradient[-1] = scale * (slope * kernel).sum()
        off = (parameters - prior) / spread
        return float(loss + off @ off / 2), gradient + off / spread


def _matern(squared: Array) -> Array:
    """The kernel of squared distances in units of the length scales."""
    distance = SQRT_5 * np.sqrt(squared)
    kernel: Array = (1 + distance + distance * distance / 3) * np.exp(-distance)
    return kernel
