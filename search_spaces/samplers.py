"""Which points are tried: Optuna's samplers, made afresh for every trial so that a proposal can be repeated.

A sampler that lives as long as the study draws from a generator whose state no journal holds: after a crash it would
begin again and propose the same points twice. One made for each trial, seeded by the study's seed and the trial's
number, makes the proposal a function of those and of the study's history.

TPE learns from pruned trials, too: a trial that was stopped early ranks below all completed ones, those that got far
before the others. GP, CMA-ES and NSGA-II as they are in Optuna learn from completed trials alone.
"""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from search_spaces.schema import Sampler


def make_sampler(settings: Sampler, *, seed: int, number: int) -> BaseSampler:
    """The sampler that proposes trial `number`.

    Args:
        settings: the study's `sampler`.
        seed: the study's seed.
        number: which is also how many trials were proposed before.
    """
    draw = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if settings.name == "tpe":
            # Optuna 5's defaults, said aloud: earlier versions differ. `group` serves conditional spaces.
            return optuna.samplers.TPESampler(
                n_startup_trials=settings.num_startup_trials,
                multivariate=True,
                group=True,
                constant_liar=True,
                seed=draw,
            )
        if settings.name == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "cmaes":
            return optuna.samplers.CmaEsSampler(n_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=settings.population_size, seed=draw)
        # random; and grid, whose points all wait in the study's queue
        return optuna.samplers.RandomSampler(seed=draw)
