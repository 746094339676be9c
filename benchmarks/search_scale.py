"""What the search itself costs when trials are many and short: 1,000 of them, ours beside Tune's own, in one run.

Stock, ours, ours, stock: what else the machine does while one of them runs would else favour the other.

Two trials at a time, Ray already up (for ours as launch.py starts it), four epochs a trial that compute nothing but
report a value that follows from the trial's choices, early stopping by asha. Both use an actor again for the next
trial.

    stock    Ray Tune as its documentation has it: a class trainable, OptunaSearch (TPE), ASHAScheduler,
             reuse_actors=True. Its record is Tune's own: loggers' files, and a snapshot every ten seconds or more.
    ours     search=stmem_ptbxl with its books written as ever: each event on the disk before anything is done, an
             Optuna journal, a table of all trials, the best models kept. Same sampler, same rates of stopping.

Figures: trials and results per second, and the driver's processor time a trial. Target: at least as many trials per
second as stock (a ratio of 1).

    python benchmarks/search_scale.py --json FILE [--trials 1000]
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray.tune
import torch
from figures import Figure, parse_arguments, publish
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from trial_start import CONCURRENT_TRIALS, open_ledger, our_launch, ray_instance

from search_spaces.ledger import Ledger
from search_spaces.tuning import run_trials
from trainables.files import write_tensors
from trainables.trial import Assignment, Engine, Trial

NUM_EPOCHS = 4
SPACE = {
    "lr": optuna.distributions.FloatDistribution(1e-5, 3e-3, log=True),
    "mask_ratio": optuna.distributions.FloatDistribution(0.3, 0.9),
    "layer_decay": optuna.distributions.FloatDistribution(0.5, 1.0),
}
TYPED = (
    "sampler=tpe",
    "scheduler=asha",
    "scheduler.grace_epochs=1",
    "scheduler.reduction_factor=3",
    "task.pretrain.num_epochs=2",
    "task.finetune.num_epochs=2",
    "space=none",
    "space.task.pretrain.lr={log_uniform: [1.0e-5, 3.0e-3]}",
    "space.model.mask_ratio={uniform: [0.3, 0.9]}",
    "space.task.finetune.layer_decay={uniform: [0.5, 1.0]}",
)


@dataclass(frozen=True)
class Cost:
    """What a whole search took."""

    seconds: float
    driver_seconds: float
    num_results: int


def value(lr: float, mask_ratio: float, layer_decay: float, epoch: int) -> float:
    """What a trial reports: a smooth function of its choices that rises with the epochs."""
    distance = abs(math.log10(lr) + 3.5) / 2 + abs(mask_ratio - 0.7) + abs(layer_decay - 0.8)
    return 0.9 - 0.2 * distance - 0.1 / epoch


# -------- Tune's own


class StockTrial(ray.tune.Trainable):
    """A trial of Tune's own that computes nothing."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take on a trial."""
        self._choices, self._epoch = {name: config[name] for name in SPACE}, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another one."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch."""
        self._epoch += 1
        return {"auroc": value(**self._choices, epoch=self._epoch), "done": self._epoch == NUM_EPOCHS}


def stock(num_trials: int) -> Cost:
    """Run Tune's own searcher and scheduler."""
    with tempfile.TemporaryDirectory() as storage, ray_instance(Path(storage, "ray.log")):
        tuner = ray.tune.Tuner(
            StockTrial,
            tune_config=ray.tune.TuneConfig(
                metric="auroc",
                mode="max",
                num_samples=num_trials,
                max_concurrent_trials=CONCURRENT_TRIALS,
                reuse_actors=True,
                search_alg=OptunaSearch(SPACE, sampler=optuna.samplers.TPESampler(seed=0), metric="auroc", mode="max"),
                scheduler=ASHAScheduler(max_t=NUM_EPOCHS, grace_period=1, reduction_factor=3),
            ),
            run_config=ray.tune.RunConfig(
                storage_path=storage,
                name="study",
                verbose=0,
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        )
        began, used = time.perf_counter(), time.process_time()
        results = tuner.fit()
        cost = Cost(
            time.perf_counter() - began,
            time.process_time() - used,
            sum(int(result.metrics["training_iteration"]) for result in results),
        )
        if results.num_errors or len(results) != num_trials:
            raise RuntimeError(f"{num_trials} trials must end without an error, got {results.errors[:1]}")
    return cost


# -------- ours


class Short:
    """The engine of a trial that computes nothing; it keeps the weights of its best epoch, as every trial does."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment, self._epoch = assignment, 0
        run = assignment.run
        self._choices = {
            "lr": run.task.pretrain.peak_lr,
            "mask_ratio": run.model.arguments["mask_ratio"],
            "layer_decay": run.task.finetune.layer_decay,
        }

    def next_epoch(self) -> dict[str, Any]:
        """The next epoch's result."""
        self._epoch += 1
        found = value(**self._choices, epoch=self._epoch)
        finished = self._epoch == NUM_EPOCHS
        if finished:
            write_tensors(self._assignment.folder / f"best-{NUM_EPOCHS:04d}.safetensors", {"w": torch.zeros(1)}, {})
        return {
            "epoch": self._epoch,
            "stage": "pretrain" if self._epoch <= NUM_EPOCHS // 2 else "finetune",
            "metrics": {self._assignment.metric: found},
            "seconds": 0.0,
            "value": found if finished else None,
            "best_epoch": self._epoch if finished else None,
            "finished": finished,
            "reason": None,
        }

    def stop(self) -> None:
        """Nothing is held."""


class ShortTrial(Trial):
    """Our trial without its computation."""

    def start_engine(self, assignment: Assignment) -> Engine:
        """Nothing to begin."""
        return Short(assignment)


def ours(num_trials: int, *typed: str, watch: Callable[[Ledger], None] = lambda ledger: None) -> Cost:
    """Run our searcher and scheduler.

    Args:
        num_trials: of the search.
        typed: what else is typed.
        watch: is shown the books whenever they have changed.
    """
    with tempfile.TemporaryDirectory() as folder, ray_instance(Path(folder, "ray.log"), ours=True):
        launch = our_launch(Path(folder, "study"), f"search.num_trials={num_trials}", *TYPED, *typed)
        began, used = time.perf_counter(), time.process_time()
        ledger = open_ledger(launch)
        run_trials(
            ledger,
            launch.cluster,
            store=Path(folder, "store"),  # which no empty trial opens
            metric=launch.search.metric,
            maximize=launch.search.direction == "maximize",
            on_change=lambda: watch(ledger),
            scheduler=launch.scheduler,
            trainable=ShortTrial,
        )
        cost = Cost(
            time.perf_counter() - began,
            time.process_time() - used,
            sum(trial.epoch for trial in ledger.trials.values()),
        )
        states = {trial.state for trial in ledger.trials.values()}
        if ledger.num_ended != num_trials or states - {"COMPLETE", "PRUNED"}:
            raise RuntimeError(f"{num_trials} trials must end COMPLETE or PRUNED, got {ledger.num_ended}, {states}")
    return cost


def both(first: Cost, second: Cost) -> Cost:
    """What two searches took together."""
    return Cost(
        first.seconds + second.seconds,
        first.driver_seconds + second.driver_seconds,
        first.num_results + second.num_results,
    )


def main() -> None:
    """Measure both, twice, and publish them."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__, ("--trials", {"type": int, "default": 1000, "help": "of each search"}))
    number = arguments.trials
    first, mine, last = stock(number), both(ours(number), ours(number)), stock(number)
    theirs = both(first, last)
    number *= 2
    figures = []
    for name, quantity in (
        ("trials_per_second", lambda cost: number / cost.seconds),
        ("results_per_second", lambda cost: cost.num_results / cost.seconds),
    ):
        found, baseline = quantity(mine), quantity(theirs)
        ratio = found / baseline
        figures.append(Figure(name, found, "1/s", baseline=baseline, ratio=ratio, target=1.0, bound="ratio at least"))
    driver, baseline = (1000 * cost.driver_seconds / number for cost in (mine, theirs))
    figures.append(Figure("driver_ms_per_trial", driver, "ms", baseline=baseline, ratio=baseline / driver))
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
