"""What a long search costs its driver, trial by trial, and what its samplers cost.

ray       the driver's processor time and memory a trial, on Ray: a search of 3,000 trials that compute nothing
          (search_scale.py), with random points and ASHA; of the 500 trials after the 100th, and of the last 500.
books     the same of a simulated search, in which nothing but the books takes any time: of the 500 trials before the
          1,000th, and of those before the 10,000th.
asking    what it takes to ask for one trial after 100, 1,000, 2,000 and 10,000: of our samplers whose model grows with
          the study, and of Optuna's own TPESampler.

Target of all: the last figure is at most 1.5 times the one before it.

    python benchmarks/growth.py --json FILE
"""

from __future__ import annotations

import functools
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
import psutil
from figures import Figure, parse_arguments, publish
from lcbench import SPACE
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from search_scale import ours as search_on_ray

from search_spaces.ledger import Ledger
from search_spaces.samplers import make_sampler
from search_spaces.schedulers import SuccessiveHalving
from search_spaces.schema import GpSampler, PlainSampler, Sampler, TpeSampler
from search_spaces.simulation import StudyInMemory, Synthetic, simulate

NUM_TRIALS = 10_000
NUM_ON_RAY, FIRST_ON_RAY = 3000, 100
NUM_EPOCHS = 27
WINDOW = 500
"""Trials over which a cost is averaged."""
NUM_ASKED = 20
NUM_WEIGHED = 2000
"""After so many trials each sampler weighs as many as it ever will: the Gaussian process 150 of those completed."""
TARGET = 1.5
CURVES = Synthetic(SPACE, NUM_EPOCHS, lambda choices, epoch: -abs(choices["momentum"] - 0.7) - 1 / epoch)


@dataclass
class Used:
    """What a driver had used up when so many trials had ended."""

    seconds: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)

    def look(self, ledger: Ledger) -> None:
        """Write down what has been used, once for every trial that has ended."""
        new = ledger.num_ended + 1 - len(self.seconds)
        if new:
            self.seconds += [time.process_time()] * new
            self.num_bytes += [psutil.Process().memory_info().rss] * new


def on_ray() -> Iterable[Figure]:
    """Processor time and memory a trial, early and late, of a search on Ray."""
    used = Used()
    search_on_ray(NUM_ON_RAY, "sampler=random", watch=used.look)
    for name, unit, of_all, scale in (
        ("time", "ms/trial", used.seconds, 1e3),
        ("memory", "kB/trial", used.num_bytes, 1e-3),
    ):
        before, after = (
            scale * (of_all[first + WINDOW] - of_all[first]) / WINDOW for first in (FIRST_ON_RAY, NUM_ON_RAY - WINDOW)
        )
        yield Figure(f"ray_driver_{name}_after_{FIRST_ON_RAY}", before, unit)
        yield grown(f"ray_driver_{name}_at_{NUM_ON_RAY}", after, unit, before)


def grown(name: str, after: float, unit: str, before: float) -> Figure:
    """What something costs late in a search, held against what it did early."""
    ratio = before / after if after > 0 else None
    return Figure(name, after, unit, before, ratio, target=TARGET * before, bound="at most")


class Watched(StudyInMemory):
    """A study that writes down what its driver has used up whenever a trial is handed out."""

    used: list[tuple[float, int]]

    def next_trial(self) -> tuple[int, Mapping[str, Any]] | None:
        """See Books."""
        self.used.append((time.process_time(), tracemalloc.get_traced_memory()[0]))
        return super().next_trial()


def books() -> Iterable[Figure]:
    """Processor time and memory a trial, early and late; of two searches, for memory is watched at a price."""
    early, late = slice(1000 - WINDOW, 1000), slice(NUM_TRIALS - WINDOW, NUM_TRIALS)
    for unit, place, scale in (("ms/trial", 0, 1e3), ("kB/trial", 1, 1e-3)):
        study = Watched(
            SPACE,
            PlainSampler(name="random"),
            SuccessiveHalving((1, 3, 9), 3),
            num_trials=NUM_TRIALS,
            seed=0,
        )
        study.used = []
        if place:
            tracemalloc.start()
        simulate(study, CURVES, num_workers=16)
        tracemalloc.stop()
        each = scale * np.diff(np.array(study.used)[:, place])
        before, after = float(each[early].mean()), float(each[late].mean())
        name = "driver_time" if not place else "driver_memory"
        yield Figure(f"{name}_at_1000", before, unit)
        yield grown(f"{name}_at_{NUM_TRIALS}", after, unit, before)


def filled(num_trials: int) -> optuna.Study:
    """A study of random trials, of which one in ten has completed and the others were stopped after the third epoch."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = {leaf.key: leaf.distribution for leaf in SPACE.leaves}
    for number in range(num_trials):
        choices = SPACE.ask(drawn.ask())
        last = NUM_EPOCHS if number % 10 == 0 else 3
        values = {epoch: CURVES.value(choices, epoch) for epoch in range(1, last + 1)}
        state = TrialState.COMPLETE if last == NUM_EPOCHS else TrialState.PRUNED
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=values[last],
                params=choices,
                distributions=distributions,
                intermediate_values=values,
            )
        )
    return study


def asking_ms(study: optuna.Study, sampler_of: Callable[[int], BaseSampler]) -> float:
    """What it takes to ask for one more trial: the least of some, the first of which reads the whole study.

    Args:
        study: to which the trials are added.
        sampler_of: the sampler that proposes a trial, by its number.
    """
    taken = []
    first = len(study.get_trials(deepcopy=False))
    for number in range(first, first + NUM_ASKED):
        study.sampler = sampler_of(number)
        began = time.perf_counter()
        SPACE.ask(study.ask())
        taken.append(1000 * (time.perf_counter() - began))
    return min(taken)


def samplers() -> Iterable[Figure]:
    """What asking costs after so many trials: ours, and TPE beside Optuna's."""
    former: dict[str, float] = {}
    for num_trials in (100, 1000, NUM_WEIGHED, NUM_TRIALS):
        study = filled(num_trials)
        theirs = asking_ms(study, lambda number: optuna.samplers.TPESampler(seed=number))
        for settings, baseline in (
            (TpeSampler(name="tpe", num_startup_trials=5), theirs),
            (GpSampler(name="gp", num_startup_trials=5), None),
        ):
            mine = asking_ms(study, functools.partial(ours, settings))
            limit = TARGET * former[settings.name] if num_trials == NUM_TRIALS else None
            former[settings.name] = mine
            ratio = None if baseline is None else baseline / mine
            name, bound = f"asking_{settings.name}_after_{num_trials}", None if limit is None else "at most"
            yield Figure(name, mine, "ms", baseline, ratio, target=limit, bound=bound)


def ours(settings: Sampler, number: int) -> BaseSampler:
    """Our sampler that proposes trial `number`."""
    return make_sampler(settings, seed=0, number=number)


def main() -> None:
    """Measure and publish."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    publish([*on_ray(), *books(), *samplers()], arguments.json)


if __name__ == "__main__":
    main()
