"""Does a search of 24 trials find what 24 full trainings at random find? Simulated on recorded curves.

Of every table that regret.py takes, which holds some hundred recorded curves: 24 of them, drawn anew for each seed,
are what random search trains, one after another, and the best value of any of their epochs is what is to be found. A
search has 24 trials of the same table too, two at a time. Its share is that of the seeds for which it has found as
good a value in a quarter, half and the whole of the time in which random search finds its own (the median over seeds),
and ever.

    fifo    every trial is trained to its end
    asha    as it is shipped: the first rung at a quarter of the trial, and half of the trials go on
    thirds  scheduler.reduction_factor=3: the first rung at a ninth of the trial, and a third of the trials go on
    median  scheduler=median as it is shipped

each with sampler=tpe, gp and random. An epoch takes as long on either side: what two trials at a time, of a core each,
gain over one of two cores is not in it.

    python benchmarks/few_trials.py --json FILE
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import optuna
from figures import Figure, parse_arguments, publish
from numpy.typing import NDArray
from regret import GP, RANDOM, TPE, curves_of, halving, tables

from search_spaces.schedulers import MedianStopping, NoStopping, Policy
from search_spaces.schema import Sampler
from search_spaces.simulation import StudyInMemory, TableOfCurves, simulate

NUM_TRIALS, NUM_WORKERS, NUM_SEEDS = 24, 2, 100
START_SECONDS = 0.2
WITHIN = {"a_quarter": 0.25, "half": 0.5, "the_whole": 1.0, "any_time": np.inf}


def median(num_epochs: int) -> Policy:
    """As search_spaces/scheduler/median.yaml has it."""
    return MedianStopping(frozenset(range(2, num_epochs)), 3)


SAMPLERS: dict[str, Sampler] = {"tpe": TPE, "gp": GP, "random": RANDOM}
POLICIES: dict[str, Callable[[int], Policy]] = {
    "fifo": lambda num_epochs: NoStopping(),
    "asha": halving,
    "thirds": lambda num_epochs: halving(num_epochs, 3),
    "median": median,
}


def found(table: str, sampler: str, policy: str, num_seeds: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds until the value is found, by the search and by random search, of each seed; infinite where it is not."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Optuna's, of what it will change
    curves = curves_of(table)
    assert isinstance(curves, TableOfCurves)
    searched, at_random = np.full(num_seeds, np.inf), np.empty(num_seeds)
    for seed in range(num_seeds):
        drawn = np.random.default_rng(seed).permutation(len(curves.choices))[:NUM_TRIALS]
        level, at_random[seed] = curves.best_of(drawn)
        books = StudyInMemory(
            curves.space, SAMPLERS[sampler], POLICIES[policy](curves.num_epochs), num_trials=NUM_TRIALS, seed=seed
        )
        search = simulate(books, curves, num_workers=NUM_WORKERS, start_seconds=START_SECONDS)
        hits = (result.at_seconds for result in search.results if result.found.value >= level)
        searched[seed] = next(hits, np.inf)
    return searched, at_random


def figures_of(table: str, num_seeds: int) -> Iterable[Figure]:
    """All of one table."""
    cases = [(table, sampler, policy, num_seeds) for sampler in SAMPLERS for policy in POLICIES]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = list(pool.map(found, *zip(*cases, strict=True)))
    usual = float(np.median(outcomes[0][1]))
    yield Figure(f"{Path(table).stem}_random_search", usual, "s")
    for (_, sampler, policy, _), (searched, _) in zip(cases, outcomes, strict=True):
        for name, times in WITHIN.items():
            share = float(np.mean(searched <= min(times * usual, np.finfo(float).max)))
            yield Figure(f"{Path(table).stem}_{sampler}_{policy}_in_{name}", share, "of searches")


def main() -> None:
    """Simulate all searches and publish what they found."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__)
    publish([figure for table in tables() for figure in figures_of(table, NUM_SEEDS)], arguments.json)


if __name__ == "__main__":
    main()
