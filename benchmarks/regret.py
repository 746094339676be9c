"""How good a search is for the device-hours that it takes: ours beside the stock one, simulated on recorded curves.

Simple regret: by how much the best value that any epoch of any trial has reported so far misses the best one known of
the task, as a share of what a median configuration misses. Device-hours are workers times simulated hours; a sampler's
own time passes on the simulated clock, in which a worker waits. A task's budget is what so many full trainings of
random configurations take.

    ours            sampler=gp and scheduler=asha as they are shipped
    ours_tpe        the same with sampler=tpe
    ours_promotion  ours with scheduler=asha_promotion
    ours_grace_1    ours with the first rung at epoch 1
    stock           ray.tune's OptunaSearch and ASHAScheduler themselves, with their defaults
    stock_later     the same with the first rung where ours has it
    random_asha     ours with random points
    random          random points, each trained to its end

Tasks are those of YAHPO's surrogate of LCBench (lcbench.py) where it is there, and the tables of benchmarks/curves/
that hold some hundred recorded curves (record_curves.py). Interquartile means over tasks and seeds with 95 % intervals
of a bootstrap over seeds; 30 seeds.

Target: of the device-hours after which stock has its final regret, ours has that regret after at most half, on the
median of the tasks (`share_of_stock_hours`; a task on which it is not reached within the budget counts as 2).

The first epoch of a trial says nothing in this surrogate (lcbench.py). Stock's first rung is there, so a part of what
it loses is the surrogate's doing: `stock_later` has a share of its own (`share_of_stock_later_hours`).

    python benchmarks/regret.py --json FILE [--long]

4 workers have a budget of 12 trainings, 16 one of 30. The short form takes 5 tasks of LCBench, the long one all 34.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from figures import Bound, Figure, parse_arguments, publish
from lcbench import LcBench, LcBenchTask, folder
from numpy.typing import NDArray

from search_spaces.distributions import parse
from search_spaces.schedulers import Decision, NoStopping, Policy, PromotingHalving, SuccessiveHalving, spaced
from search_spaces.schema import GpSampler, PlainSampler, Sampler, TpeSampler, first_rung
from search_spaces.simulation import Books, Curves, Search, StudyInMemory, TableOfCurves, put_in_place, simulate

NUM_SEEDS = 30
TRAININGS = {4: 12, 16: 30}
"""By the number of workers, the full trainings that a budget would pay for."""
SHORT_TASKS = ("126029", "167168", "189354", "189905", "189909")
START_SECONDS = 1.0
FACTOR = 2
GRID = np.geomspace(0.02, 1.0, 80)
"""Shares of the budget at which regret is looked at."""
AT = (0.1, 0.25, 0.5, 1.0)
NOT_REACHED = 2.0
NUM_RESAMPLES = 1000
LEAST_CONFIGURATIONS = 120


# -------- the arms

Arm = Callable[[Curves, int], Books]
"""Books of curves and a seed."""


def of_ours(sampler: Sampler, policy: Callable[[int], Policy]) -> Arm:
    """Our searcher, and our scheduler for so many epochs. No default configuration is given: stock has none either."""
    return lambda curves, seed: StudyInMemory(
        curves.space, sampler, policy(curves.num_epochs), num_trials=num_trials_of(curves), seed=seed
    )


def num_trials_of(curves: Curves) -> int:
    """A table has so many configurations and no more."""
    return len(curves.choices) if isinstance(curves, TableOfCurves) else 10**9


def halving(num_epochs: int, factor: int = FACTOR) -> Policy:
    """ASHA as it is shipped, or with another reduction_factor."""
    return SuccessiveHalving(spaced(first_rung(num_epochs, factor), factor, num_epochs), factor)


def promoting(num_epochs: int) -> Policy:
    """The same rungs, with promotion."""
    return PromotingHalving(spaced(first_rung(num_epochs, FACTOR), FACTOR, num_epochs), FACTOR)


class Stock:
    """Ray Tune's own searcher and scheduler, called as its controller calls them."""

    def __init__(self, curves: Curves, seed: int, **settings: Any) -> None:
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        space = {leaf.key: leaf.distribution for leaf in curves.space.leaves}
        sampler = optuna.samplers.TPESampler(seed=seed)
        self._searcher = OptunaSearch(space, sampler=sampler, metric="value", mode="max")
        self._scheduler = ASHAScheduler(max_t=curves.num_epochs, metric="value", mode="max", **settings)
        self._trials: list[SimpleNamespace] = []
        self._num_trials, self._space = num_trials_of(curves), curves.space

    def next_trial(self) -> tuple[int, Mapping[str, Any]] | None:
        """See Books."""
        if len(self._trials) == self._num_trials:
            return None
        trial = SimpleNamespace(trial_id=str(len(self._trials)))
        self._trials.append(trial)
        self._scheduler.on_trial_add(None, trial)
        return len(self._trials) - 1, self._searcher.suggest(trial.trial_id)

    def trains(self, number: int, choices: Mapping[str, Any]) -> None:
        """See Books."""
        put_in_place(self._searcher._ot_study, number, self._space, choices)

    def report(self, number: int, epoch: int, value: float, *, last: bool) -> Decision:
        """See Books."""
        trial, result = self._trials[number], {"value": value, "training_iteration": epoch}
        stops = self._scheduler.on_trial_result(None, trial, result) == "STOP" or last
        self._searcher.on_trial_result(trial.trial_id, result)
        if stops:
            self._scheduler.on_trial_complete(None, trial, result)
            self._searcher.on_trial_complete(trial.trial_id, result=result)
        return "stop" if stops else "go_on"

    def diverges(self, number: int) -> None:
        """See Books."""
        self._searcher.on_trial_complete(self._trials[number].trial_id, error=True)


TPE, GP = TpeSampler(name="tpe", num_startup_trials=5), GpSampler(name="gp", num_startup_trials=5)
RANDOM = PlainSampler(name="random")
ARMS: dict[str, Arm] = {
    "ours": of_ours(GP, halving),
    "ours_tpe": of_ours(TPE, halving),
    "ours_promotion": of_ours(GP, promoting),
    "ours_grace_1": of_ours(GP, lambda num_epochs: SuccessiveHalving(spaced(1, FACTOR, num_epochs), FACTOR)),
    "stock": Stock,
    "stock_later": lambda curves, seed: Stock(curves, seed, grace_period=first_rung(curves.num_epochs, FACTOR)),
    "random_asha": of_ours(RANDOM, halving),
    "random": of_ours(RANDOM, lambda num_epochs: NoStopping()),
}


# -------- one search, and all of them


@dataclass(frozen=True)
class Case:
    """What one process computes: a task's searches with so many workers."""

    task: str
    num_workers: int
    num_trainings: int
    num_seeds: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        best_known: the best value of the task that anything here has met.
        median: of random configurations, their best values' median.
        reached: by arm, the best value so far (seeds, shares of the budget).
        asking_ms: by arm, for a trial.
    """

    best_known: float
    median: float
    reached: dict[str, NDArray[np.float64]]
    asking_ms: dict[str, float]


def outcome_of(case: Case) -> Outcome:
    """Run a case's searches."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # Ray's and Optuna's, of what they will change
    curves = curves_of(case.task)
    seconds, values = sample_of(curves, 200)
    max_seconds = case.num_trainings * seconds / case.num_workers
    reached, asking_ms = {}, {}
    for name, arm in ARMS.items():
        searches = [
            simulate(
                arm(curves, seed),
                curves,
                num_workers=case.num_workers,
                start_seconds=START_SECONDS,
                max_seconds=max_seconds,
                charge_asking=True,
            )
            for seed in range(case.num_seeds)
        ]
        reached[name] = np.stack([best_so_far(search, max_seconds, float(values.min())) for search in searches])
        num_trials = sum(len(search.trials) for search in searches)
        asking_ms[name] = 1000 * sum(search.asking_seconds for search in searches) / num_trials
    best_known = max(float(values.max()), *(float(found.max()) for found in reached.values()))
    return Outcome(best_known, float(np.median(values)), reached, asking_ms)


def curves_of(task: str) -> Curves:
    """The curves of a task of LCBench, or of a table by its path."""
    if task.endswith(".parquet"):
        return TableOfCurves(Path(task), parse(json.loads(Path(task).with_suffix(".json").read_text())["space"]))
    path = folder()
    assert path is not None
    return LcBenchTask(LcBench(path), task)


def tasks_of(*, long: bool) -> list[str]:
    """What there is to simulate on."""
    path = folder()
    if path is None:
        return tables()
    return (LcBench(path).tasks if long else list(SHORT_TASKS)) + tables()


def tables() -> list[str]:
    """Tables of recorded curves that a search does not use up."""
    paths = map(str, sorted((Path(__file__).parent / "curves").glob("*.parquet")))
    return [path for path in paths if num_trials_of(curves_of(path)) >= LEAST_CONFIGURATIONS]


def sample_of(curves: Curves, num: int) -> tuple[float, NDArray[np.float64]]:
    """Mean seconds of a full training of random configurations, and the best value of each."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    taken: set[int] = set()
    num = min(num, num_trials_of(curves))
    drawn = [curves.of(curves.space.ask(study.ask()), taken) for _ in range(num)]
    epochs = [[curve.epoch(epoch) for epoch in range(1, curves.num_epochs + 1)] for curve in drawn]
    seconds = [sum(epoch.seconds for epoch in of_one) for of_one in epochs]
    return float(np.mean(seconds)), np.array([np.nanmax([epoch.value for epoch in of_one]) for of_one in epochs])


def best_so_far(search: Search, max_seconds: float, before: float) -> NDArray[np.float64]:
    """The best value at each share of the budget; `before` any report the worst of a random sample."""
    times = np.array([result.at_seconds for result in search.results])
    best = np.maximum.accumulate([before, *(result.found.value for result in search.results)])
    return np.asarray(best[np.searchsorted(times, GRID * max_seconds, side="right")], dtype=np.float64)


# -------- figures


def regret_of(outcome: Outcome, arm: str) -> NDArray[np.float64]:
    """Regret (seeds, shares of the budget) where a median configuration has 1."""
    span = outcome.best_known - outcome.median
    return (outcome.best_known - outcome.reached[arm]) / span


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the middle half along the first axis."""
    ordered, cut = np.sort(values, axis=0), len(values) // 4
    mean: NDArray[np.float64] = ordered[cut : len(values) - cut].mean(axis=0)
    return mean


def with_interval(of_tasks: list[NDArray[np.float64]], draw: np.random.Generator) -> tuple[float, float, float]:
    """Interquartile mean over tasks and seeds, and the ends of its 95 % interval, seeds drawn again in each task."""
    mean = float(interquartile_mean(np.concatenate(of_tasks)))
    again = [
        float(interquartile_mean(np.concatenate([draw.choice(values, len(values)) for values in of_tasks])))
        for _ in range(NUM_RESAMPLES)
    ]
    low, high = np.quantile(again, [0.025, 0.975])
    return mean, float(low), float(high)


def share_of_hours(outcome: Outcome, baseline: str) -> float:
    """Of the budget after which `baseline` has its final regret, the share after which ours has it."""
    theirs = interquartile_mean(regret_of(outcome, baseline))
    ours = interquartile_mean(regret_of(outcome, "ours"))
    needed = GRID[np.argmax(theirs <= theirs[-1])]
    hit = np.flatnonzero(ours <= theirs[-1])
    return float(GRID[hit[0]] / needed) if len(hit) else NOT_REACHED


def figures_of(outcomes: Mapping[str, Outcome], num_workers: int) -> Iterable[Figure]:
    """All figures of one number of workers."""
    draw = np.random.default_rng(0)
    for baseline, target in (("stock", 0.5), ("stock_later", None)):
        shares = {task: share_of_hours(outcome, baseline) for task, outcome in outcomes.items()}
        median = float(np.median(list(shares.values())))
        bound: Bound | None = None if target is None else "at most"
        name = f"share_of_{baseline}_hours_{num_workers}_workers"
        yield Figure(name, median, "share", 1.0, 1 / median, target=target, bound=bound)
        for task, share in shares.items():
            yield Figure(
                f"share_of_{baseline}_hours_{num_workers}_workers_task_{Path(task).stem}",
                share,
                "share",
                1.0,
                1 / share,
            )
    for share in AT:
        place = int(np.searchsorted(GRID, share - 1e-9))
        of_stock = None
        for name in ("stock", *(arm for arm in ARMS if arm != "stock")):
            regrets = [regret_of(outcome, name)[:, place] for outcome in outcomes.values()]
            mean, low, high = with_interval(regrets, draw)
            of_stock = mean if of_stock is None else of_stock
            title = f"regret_{name}_{num_workers}_workers_at_{share:g}"
            yield Figure(title, mean, "of a median configuration's", of_stock, of_stock / max(mean, 1e-9))
            yield Figure(f"{title}_low", low, "of a median configuration's")
            yield Figure(f"{title}_high", high, "of a median configuration's")
    for name in ARMS:
        asking = float(np.mean([outcome.asking_ms[name] for outcome in outcomes.values()]))
        yield Figure(f"asking_{name}_{num_workers}_workers", asking, "ms/trial")


def main() -> None:
    """Simulate all searches and publish what they reached."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__, ("--long", {"action": "store_true", "help": "all tasks of LCBench"}))
    tasks = tasks_of(long=arguments.long)
    if not tasks:
        raise SystemExit("set HEARTSWEEP_DATASETS to the folder that holds yahpo_lcbench/: nothing to simulate on")
    cases = [Case(task, num, num_trainings, NUM_SEEDS) for num, num_trainings in TRAININGS.items() for task in tasks]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = list(pool.map(outcome_of, cases))
    figures: list[Figure] = []
    for num in TRAININGS:
        of_these = {case.task: found for case, found in zip(cases, outcomes, strict=True) if case.num_workers == num}
        figures += figures_of(of_these, num)
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
