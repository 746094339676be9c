"""Which points are tried: Optuna's samplers, made afresh for every trial so that a proposal can be repeated.

A sampler that lives as long as the study draws from a generator whose state no journal holds: after a crash it would
begin again and propose the same points twice. One made for each trial, seeded by the study's seed and the trial's
number, makes the proposal a function of those and of the study's history.

TPE (search_spaces/parzen.py) learns from every trial that has reported anything, whether it was stopped, waits or runs.
GP, CMA-ES and NSGA-II as they are in Optuna learn from completed trials alone. GP takes running trials for bad ones:
under a scheduler that pauses trials most of them wait and some of the best do, so a paused trial is shown to it as
pruned where it stands (`PausedAsPruned`).
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from data.plain_pickles import ArraysOnly
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
            return optuna.samplers.GPSampler(n_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "cmaes":
            return CmaEs(n_startup_trials=settings.num_startup_trials, seed=draw)
        if settings.name == "nsga2":
            return optuna.samplers.NSGAIISampler(population_size=settings.population_size, seed=draw)
        # random; and grid, whose points all wait in the study's queue
        return optuna.samplers.RandomSampler(seed=draw)


class PausedAsPruned(optuna.Study):
    """A study as its sampler is to see it: a trial that is paused is shown as pruned with what it has reported.

    In the journal it runs, for it may go on. Its sampler would then learn nothing from it: TPE would propose at random
    until enough trials have completed, which under promotion are few, and would stay away from the rest.

    Args:
        study: into which it proposes.

    Attributes:
        changes: numbers of trials that were paused or went on, in that order.
    """

    def __init__(self, study: optuna.Study) -> None:
        super().__init__(study.study_name, study._storage, study.sampler)
        self._paused: dict[int, FrozenTrial] = {}
        self.changes: list[int] = []

    @property
    def paused(self) -> Container[int]:
        """Trials that are paused, by number."""
        return self._paused

    def pause(self, trial: FrozenTrial) -> None:
        """Show a trial as pruned from now on."""
        self._paused[trial.number] = shown = copy.copy(trial)
        shown.state = TrialState.PRUNED
        self.changes.append(trial.number)

    def go_on(self, number: int) -> None:
        """Show a trial as it is again."""
        if self._paused.pop(number, None) is not None:
            self.changes.append(number)

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        if not self._paused:
            return super()._get_trials(deepcopy, states, use_cache)
        trials = super()._get_trials(deepcopy=False, use_cache=use_cache)
        shown = [self._paused.get(trial.number, trial) for trial in trials]
        wanted = [trial for trial in shown if states is None or trial.state in states]
        return copy.deepcopy(wanted) if deepcopy else wanted


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
