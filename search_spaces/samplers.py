"""Which points are tried: Optuna's samplers, made afresh for every trial so that a proposal can be repeated.

A sampler that lives as long as the study draws from a generator whose state no journal holds: after a crash it would
begin again and propose the same points twice. One made for each trial, seeded by the study's seed and the trial's
number, makes the proposal a function of those and of the study's history.

TPE (parzen.py) and the Gaussian process (gaussian.py) are ours and learn from every trial that has reported anything,
whether it was stopped, waits or runs. CMA-ES and NSGA-II as they are in Optuna learn from completed trials alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler

from data.plain_pickles import ArraysOnly
from search_spaces.gaussian import GaussianSampler
from search_spaces.parzen import ParzenSampler
from search_spaces.schema import Sampler
from trainables.study import StudyError


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
            return ParzenSampler(num_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "gp":
            return GaussianSampler(num_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "cmaes":
            return CmaEs(n_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=settings.population_size, seed=draw)
        # random; and grid, whose points all wait in the study's queue
        return optuna.samplers.RandomSampler(seed=draw)


class CmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's, which keeps its optimiser as a pickle in the journal: of that, nothing but an optimiser is loaded.

    A study's folder may come from elsewhere, and a pickle may run any program.
    """

    def _restore_optimizer(self, completed_trials: Sequence[optuna.trial.FrozenTrial]) -> Any:
        """The optimiser that the last trial with one kept; None where none did.

        Raises:
            StudyError: if that holds anything else.
        """
        for trial in reversed(completed_trials):
            prefix = self._attr_key_optimizer
            kept = {key: value for key, value in trial.system_attrs.items() if key.startswith(prefix)}
            if not kept:
                continue
            try:
                content = bytes.fromhex(self._concat_optimizer_attrs(kept))
                optimizer = ArraysOnly(io.BytesIO(content), also=[("cmaes._cma", "CMA")]).load()
                if type(optimizer).__name__ != "CMA":
                    raise ValueError(f"it is a {type(optimizer).__name__}")
            except Exception as error:  # noqa: BLE001  a damaged pickle raises anything; nothing of it is used then
                raise StudyError(
                    f"the journal must keep an optimiser of CMA-ES with trial {trial.number}, it keeps something else "
                    f"({' '.join(str(error).split())}): restore journal.log, or type study_dir=DIR for a new study"
                ) from error
            return optimizer
        return None
