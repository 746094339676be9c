"""Simulated searches: their clock and their budget are exact, and they decide as the ledger does."""

import functools
import math
import os

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from search_spaces.compose import compose_choices
from search_spaces.distributions import parse, run_with
from search_spaces.ledger import Ledger
from search_spaces.schedulers import MedianStopping, NoStopping, PromotingHalving, SuccessiveHalving, make_policy
from search_spaces.schema import PlainSampler, TpeSampler, checked
from search_spaces.simulation import StudyInMemory, Synthetic, TableOfCurves, simulate
from trainables.files import write_tensors
from trainables.state import best_path
from trainables.study import StudyFolder

SPACE = parse({"lr": {"log_uniform": [1e-4, 1e-2]}, "depth": {"int_uniform": [1, 4]}, "name": {"choice": ["a", "b"]}})
RANDOM = PlainSampler(name="random")
NUM_EPOCHS = 9
POLICIES = {
    "fifo": NoStopping,
    "asha": lambda: SuccessiveHalving((1, 3), 3),
    "asha_promotion": lambda: PromotingHalving((1, 3), 3),
    "median": lambda: MedianStopping(frozenset(range(1, NUM_EPOCHS)), 3),
}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def quality(choices):
    """Best at a rate of 1e-3, from 0 to 1."""
    return 1 - abs(math.log10(choices["lr"]) + 3)


def rising(choices, epoch):
    """A curve that rises to the quality; the better one is the better one at every epoch."""
    return quality(choices) - 1 / epoch


CURVES = Synthetic(SPACE, NUM_EPOCHS, rising, lambda choices: float(choices["depth"]))


def books_of(policy, *, num_trials=30, seed=0, sampler=RANDOM, **rest):
    return StudyInMemory(SPACE, sampler, POLICIES[policy](), num_trials=num_trials, seed=seed, **rest)


def seconds_of(search, start_seconds):
    """What its trials took, summed up from their curves."""
    epochs = sum(trial.curve.epoch(epoch).seconds for trial in search.trials.values() for epoch in reached(trial))
    return epochs + start_seconds * sum(trial.num_starts for trial in search.trials.values())


def reached(trial):
    return range(1, trial.epoch + 1)


def most_at_a_time(search, start_seconds):
    """How many trials were held at a time, by each epoch's span."""
    spans = []
    for result in search.results:
        seconds = search.trials[result.number].curve.epoch(result.epoch).seconds
        spans += [(result.at_seconds - seconds, 1), (result.at_seconds, -1)]
    held, most = 0, 0
    for _, change in sorted((round(at, 6), change) for at, change in spans):
        held += change
        most = max(most, held)
    return most


# -------- the clock


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.sampled_from([0.0, 2.5]), st.integers(0, 3))
def test_every_epoch_is_counted_once_and_device_seconds_are_the_sum(policy, num_workers, num_trials, start, seed):
    books = books_of(policy, num_trials=num_trials, seed=seed)
    search = simulate(books, CURVES, num_workers=num_workers, start_seconds=start)
    told = [(result.number, result.epoch) for result in search.results]
    assert sorted(told) == sorted(
        (number, epoch) for number, trial in search.trials.items() for epoch in reached(trial)
    )
    assert len(search.trials) == num_trials
    assert search.device_seconds == pytest.approx(seconds_of(search, start))
    assert search.device_seconds <= num_workers * search.seconds + 1e-6
    assert most_at_a_time(search, start) <= num_workers
    times = [result.at_seconds for result in search.results]
    assert times == sorted(times)
    assert search.seconds == times[-1]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.floats(0.5, 300))
def test_a_budget_is_kept_to_the_second(num_workers, max_seconds):
    books = books_of("asha", num_trials=10**6)
    search = simulate(books, CURVES, num_workers=num_workers, start_seconds=0.25, max_seconds=max_seconds)
    assert search.seconds == max_seconds
    assert search.device_seconds == pytest.approx(num_workers * max_seconds)  # no worker ever waits
    assert all(result.at_seconds <= max_seconds for result in search.results)


def test_one_worker_without_stopping_is_a_sequential_search():
    search = simulate(books_of("fifo", num_trials=4), CURVES, num_workers=1, start_seconds=1.0)
    assert [(result.number, result.epoch) for result in search.results] == [
        (number, epoch) for number in range(4) for epoch in range(1, NUM_EPOCHS + 1)
    ]
    depths = [trial.curve.choices["depth"] for trial in search.trials.values()]
    ends = np.cumsum([1 + NUM_EPOCHS * depth for depth in depths])
    assert [result.at_seconds for result in search.results if result.epoch == NUM_EPOCHS] == ends.tolist()


def test_workers_that_find_nothing_wait_for_a_trial_that_is_promoted():
    search = simulate(books_of("asha_promotion", num_trials=9), CURVES, num_workers=9)
    assert len(search.trials) == 9
    promoted = [trial for trial in search.trials.values() if trial.num_starts > 1]
    assert promoted  # nothing but a report can promote once all nine have begun
    assert sorted(trial.epoch for trial in search.trials.values())[-1] == NUM_EPOCHS


def test_the_time_that_asking_takes_passes_on_the_clock_for_one_worker_after_the_other(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr("search_spaces.simulation.time.perf_counter", lambda: float(next(ticks)))
    curves = Synthetic(SPACE, 1, rising)
    search = simulate(books_of("fifo", num_trials=4), curves, num_workers=2, charge_asking=True)
    # each takes a second: two are asked for at 0 and answered at 1 and 2, whose epochs end at 2 and 3
    assert [result.at_seconds for result in search.results] == [2.0, 3.0, 4.0, 5.0]
    assert search.device_seconds == 2 + 3 + 2 + 2
    free = simulate(books_of("fifo", num_trials=4), curves, num_workers=2)
    assert [result.at_seconds for result in free.results] == [1.0, 1.0, 2.0, 2.0]


# -------- what the policies reach


def best_of(search):
    return max(result.found.value for result in search.results)


def test_a_policy_that_stops_reaches_a_better_value_than_none_on_the_same_budget():
    reached_by = {
        policy: np.mean(
            [
                best_of(simulate(books_of(policy, num_trials=10**6, seed=seed), CURVES, num_workers=4, max_seconds=120))
                for seed in range(8)
            ]
        )
        for policy in POLICIES
    }
    assert reached_by["asha"] > reached_by["fifo"] + 0.02
    assert reached_by["asha_promotion"] > reached_by["fifo"] + 0.02
    assert reached_by["median"] > reached_by["fifo"] + 0.01


@pytest.mark.parametrize("policy", POLICIES)
def test_the_best_trial_runs_to_its_end_under(policy):
    for seed in range(4):
        search = simulate(books_of(policy, num_trials=27, seed=seed), CURVES, num_workers=3)
        best = max(search.trials.values(), key=lambda trial: quality(trial.curve.choices))
        assert best.epoch == NUM_EPOCHS


def test_optuna_is_told_how_each_trial_ended():
    books = books_of("asha", num_trials=30)
    search = simulate(books, CURVES, num_workers=4)
    for frozen in books.study.trials:
        trial = search.trials[frozen.number]
        done = trial.epoch == NUM_EPOCHS
        assert frozen.state == (TrialState.COMPLETE if done else TrialState.PRUNED)
        assert frozen.intermediate_values == {epoch: trial.curve.epoch(epoch).value for epoch in reached(trial)}
        assert frozen.value == trial.curve.epoch(trial.epoch).value
        assert frozen.params == trial.curve.choices


# -------- a table of curves

TABLED = parse(
    {
        "lr": {"log_uniform": [1e-4, 1e-2]},
        "depth": {"int_uniform": [1, 4]},
        "name": {"choice": ["a", None]},
        "decay": {"uniform": [0.0, 1.0], "when": {"name": "a"}},
    }
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve configurations on a grid; what a trial of one reports tells which it was. Number 5 diverges."""
    rows = [
        {
            "configuration": config,
            "lr": 10.0 ** -(4 - (config % 3)),
            "depth": 1 + config % 2,
            "name": "a" if config < 6 else None,
            "decay": 0.5 if config < 6 else None,
            "epoch": epoch,
            "value": math.nan if (config, epoch) == (5, 2) else config + epoch / 10,
            "seconds": 1.0 + config,
        }
        for config in range(12)
        for epoch in range(1, 4)
        if (config, epoch) != (5, 3)
    ]
    path = tmp_path_factory.mktemp("table") / "curves.parquet"
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_parquet(path)
    return path


def test_the_best_of_some_configurations_is_there_after_all_before_it_and_its_own_epochs_up_to_it(table):
    curves = TableOfCurves(table, TABLED)
    assert curves.best_of([2, 11, 5]) == (11.3, 3 * 3.0 + 3 * 12.0)
    assert curves.best_of([5]) == (5.1, 6.0)  # it diverged


def test_a_trial_trains_the_nearest_recorded_configuration_that_is_left(table):
    curves, taken = TableOfCurves(table, TABLED), set()
    asked = {"lr": 9e-4, "depth": 2, "name": None}
    assert curves.of(asked, taken).choices == {"lr": 1e-3, "depth": 2, "name": None}
    assert curves.of(asked, taken).choices == {"lr": 1e-3, "depth": 1, "name": None}  # a fourth of a range away
    assert taken == {7, 10}
    found = curves.of({"lr": 1e-4, "depth": 1, "name": "a", "decay": 0.4}, taken)
    assert found.choices == {"lr": 1e-4, "depth": 1, "name": "a", "decay": 0.5}
    assert (found.epoch(3).value, found.epoch(3).seconds) == (0.3, 1.0)


@pytest.mark.parametrize("sampler", [TpeSampler(name="tpe", num_startup_trials=3), RANDOM])
def test_the_sampler_learns_of_what_was_trained_and_no_configuration_is_trained_twice(table, sampler):
    books = StudyInMemory(TABLED, sampler, NoStopping(), num_trials=12, seed=0)
    search = simulate(books, TableOfCurves(table, TABLED), num_workers=2)
    trained = [frozen.params for frozen in books.study.trials]
    assert len({tuple(params.items()) for params in trained}) == 12
    assert trained == [search.trials[number].curve.choices for number in range(12)]


def test_a_trial_that_diverges_ends_there_and_its_time_counts(table):
    books = StudyInMemory(TABLED, RANDOM, NoStopping(), num_trials=12, seed=0)
    search = simulate(books, TableOfCurves(table, TABLED), num_workers=2)
    (number,) = [trial.number for trial in search.trials.values() if trial.epoch < 3]
    told = books.study.trials[number]
    assert (told.state, told.user_attrs, told.intermediate_values) == (
        TrialState.PRUNED,
        {"reason": "non_finite"},
        {1: 5.1},
    )
    assert search.device_seconds == sum(3 * (1 + config) for config in range(12)) - 6


def test_a_table_that_is_used_up_is_refused(table):
    with pytest.raises(ValueError, match="must hold as many configurations as the study has trials"):
        TableOfCurves(table, TABLED).of({"lr": 1e-3, "depth": 1, "name": None}, set(range(12)))


# -------- beside the ledger


TYPED = ("task.pretrain.num_epochs=3", "task.finetune.num_epochs=6", "search.num_trials=25", "search.keep_best=1")


@functools.cache
def launch_of(*typed):
    return checked(compose_choices(["search=stmem_ptbxl", *TYPED, *typed]).tree)


def open_ledger(path, launch):
    tree = launch.model_dump(mode="json", by_alias=True)
    space = parse(launch.space)
    return Ledger(
        StudyFolder(path),
        launch,
        space,
        make_run=functools.partial(run_with, launch),
        first_points=space.first_points(tree, launch.options),
        policy=make_policy(launch.scheduler, launch.task),
        describe=lambda trial, run: {"trial": trial.number, "value": trial.value},
    )


class Ledgers:
    """The real books of a study, told what trials of a simulated one report."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.best = {}

    def next_trial(self):
        following = self.ledger.next_trial()
        return following and (following[0].number, following[0].params)

    def report(self, number, epoch, value, *, last):
        self.best[number] = max(self.best.get(number, (-math.inf, 0)), (value, epoch))
        best, best_epoch = self.best[number]
        if last:
            path = best_path(self.ledger.folder.trial(number), best_epoch)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, {"weight": torch.zeros(1)}, {})
        whole = {"epoch": epoch, "stage": "finetune", "metrics": {"val/auroc": value}, "seconds": 1.0}
        found = {"value": best, "best_epoch": best_epoch, "finished": last, "reason": None}
        return "go_on" if self.ledger.report(number, whole | found) else "stop"


def auroc(choices, epoch):
    """A curve over the space of the ledger's study, with some noise in it."""
    noise = np.random.default_rng([int(1e6 * choices["model.mask_ratio"]), epoch]).normal(scale=0.02)
    return 0.8 - abs(choices["model.mask_ratio"] - 0.6) - 0.2 / epoch + noise


@pytest.mark.parametrize(
    "typed",
    [
        ("scheduler=asha", "sampler=gp"),
        ("scheduler=asha_promotion", "sampler=tpe"),
        ("scheduler=median", "sampler=random"),
    ],
)
def test_the_ledger_makes_the_decisions_of_the_simulation(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing waits for the disk
    launch = launch_of(*typed)
    space = parse(launch.space)
    curves = Synthetic(space, launch.task.num_epochs, auroc, lambda choices: 1 + choices["model.mask_ratio"])
    books = StudyInMemory(
        space,
        launch.sampler,
        make_policy(launch.scheduler, launch.task),
        num_trials=launch.search.num_trials,
        seed=launch.seed,
        first_points=space.first_points(launch.model_dump(mode="json", by_alias=True), launch.options),
    )
    simulated = simulate(books, curves, num_workers=3)
    ledger = open_ledger(tmp_path, launch)
    real = simulate(Ledgers(ledger), curves, num_workers=3)
    assert real.results == simulated.results
    assert {"COMPLETE", "PRUNED"} == {trial.state for trial in ledger.trials.values()}
    for frozen in books.study.trials:
        trial = ledger.trials[frozen.number]
        assert trial.params == simulated.trials[frozen.number].curve.choices
        waits = frozen.state == TrialState.RUNNING  # the ledger ends them when nothing can promote them any more
        assert trial.state == ("PRUNED" if waits else frozen.state.name)
        assert waits or trial.told == frozen.value
