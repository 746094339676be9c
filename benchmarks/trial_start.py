"""What a trial costs before it learns anything: wall seconds of a study divided by its trials.

Two trials at a time, Ray already up, loops empty (one result and the end). Figures, in seconds a trial:

    nested       Ray Train inside Tune as the documentation of Ray 2.60 has it: each trial a function trainable that
                 runs a TorchTrainer of one worker, whose reports come back through TuneReportCallback. 4 trials, with
                 the dashboard on: without it the placement groups of ended trials are never given back.
    fresh_actor  a function trainable in a new actor each trial, `reuse_actors=False`. 12 trials.
    in_process   search=stmem_ptbxl as it is shipped: its space, sampler, scheduler and 50 trials, its books written as
                 ever, each trial in an actor that the next one uses again; only the epochs are empty. Target: 0.3 s.

The ratio of a figure is nested / figure. Each study has a Ray of its own that holds two of its trials and no third, and
ours comes last: it sets variables of the environment that would spare the other two their log files.

    python benchmarks/trial_start.py --json FILE
"""

import contextlib
import functools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
import torch
from figures import Figure, parse_arguments, publish
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from rich.console import Console

from search_spaces.compose import compose_choices
from search_spaces.connection import environment_of_trials, start_ray
from search_spaces.distributions import parse, run_with
from search_spaces.ledger import Ledger
from search_spaces.quiet import quiet
from search_spaces.schedulers import make_policy
from search_spaces.schema import Launch, checked
from search_spaces.tuning import run_trials
from trainables.files import write_tensors
from trainables.gang import GangTrial
from trainables.study import StudyFolder
from trainables.trial import Assignment, Engine, Trial

CONCURRENT_TRIALS = 2
NUM_NESTED_TRIALS = 4
NUM_ACTOR_TRIALS = 12
TARGET_S = 0.3


@contextlib.contextmanager
def ray_instance(
    log: Path, *, num_cpus: int = CONCURRENT_TRIALS, ours: bool = False, gangs: bool = False
) -> Iterator[None]:
    """Ray, with its dashboard, for the length of the block; its first worker has answered on entry.

    Args:
        log: where everything goes that Ray and Tune would write to the terminal.
        num_cpus: what the concurrent trials take.
        ours: whether it is started as launch.py starts it, or as Ray's documentation does.
        gangs: whether trials have several workers.
    """
    with quiet(Console(), log), environment_of_trials(gangs=gangs) if ours else contextlib.nullcontext():
        if ours:
            start_ray(num_cpus, include_dashboard=True, preload=not gangs)
        else:
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=True, log_to_driver=False)
        try:
            ray.get(ray.remote(lambda: None).remote())
            yield
        finally:
            ray.shutdown()


def seconds_per_trial(
    trainable: Callable[[dict[str, Any]], None],
    num_trials: int,
    *,
    cpus_per_trial: int = 1,
    concurrent_trials: int = CONCURRENT_TRIALS,
    num_workers: int = 1,
) -> float:
    """Wall seconds of a study over `trainable`, divided by its trials.

    Args:
        trainable: a trial, as Tune's function.
        num_trials: how many.
        cpus_per_trial: what one of them takes, with all that it starts.
        concurrent_trials: how many at a time.
        num_workers: of a trial that starts any.

    Raises:
        RuntimeError: if a trial failed, for then its seconds mean nothing.
    """
    with (
        tempfile.TemporaryDirectory() as storage,
        ray_instance(Path(storage, "ray.log"), num_cpus=cpus_per_trial * concurrent_trials),
    ):
        tuner = ray.tune.Tuner(
            trainable,
            param_space={"x": ray.tune.uniform(0.0, 1.0), "storage": storage, "num_workers": num_workers},
            tune_config=ray.tune.TuneConfig(
                metric="x",
                mode="max",
                num_samples=num_trials,
                max_concurrent_trials=concurrent_trials,
                reuse_actors=False,
            ),
            run_config=ray.tune.RunConfig(storage_path=storage, name="study", verbose=0),
        )
        start = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - start
    if results.num_errors or len(results) != num_trials:
        raise RuntimeError(
            f"{num_trials} trials must end without an error, got {len(results)} with {results.num_errors}"
        )
    return seconds / num_trials


def fresh_actor_trial(choices: dict[str, Any]) -> None:
    """An empty trial in an actor of its own."""
    ray.tune.report({"x": choices["x"]})


def nested_trial(choices: dict[str, Any]) -> None:
    """An empty trial that starts a Ray Train run."""
    TorchTrainer(
        nested_worker,
        train_loop_config={"x": choices["x"]},
        scaling_config=ray.train.ScalingConfig(num_workers=choices["num_workers"]),
        run_config=ray.train.RunConfig(
            name=f"train-{ray.tune.get_context().get_trial_id()}",
            storage_path=choices["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def nested_worker(choices: dict[str, Any]) -> None:
    """The loop of each worker of a nested trial."""
    ray.train.report({"x": choices["x"]})


def our_seconds_per_trial(
    *typed: str, trainable: type[Trial], store: Path = Path("unopened"), num_cpus: int = CONCURRENT_TRIALS
) -> tuple[float, list[dict[str, Any]]]:
    """Wall seconds of a study of ours with empty epochs, divided by its trials, and the study's events.

    Args:
        typed: what else would be typed for it.
        trainable: a trial without its computation.
        store: what trials are told of the prepared recordings; no empty trial opens them.
        num_cpus: of Ray.

    Raises:
        RuntimeError: if a trial did not end COMPLETE, for then its seconds mean nothing.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ray_instance(Path(folder, "ray.log"), num_cpus=num_cpus, ours=True, gangs=issubclass(trainable, GangTrial)),
    ):
        launch = our_launch(Path(folder, "study"), *typed)
        start = time.perf_counter()
        ledger = open_ledger(launch)
        run_trials(
            ledger,
            launch.cluster,
            store=store,
            metric=launch.search.metric,
            maximize=launch.search.direction == "maximize",
            on_change=lambda: None,
            scheduler=launch.scheduler,
            trainable=trainable,
        )
        seconds = time.perf_counter() - start
        states = [trial.state for trial in ledger.trials.values()]
        events = [json.loads(line) for line in ledger.folder.events.read_text(encoding="utf-8").splitlines()]
    if states != ["COMPLETE"] * launch.search.num_trials:
        raise RuntimeError(f"{launch.search.num_trials} trials must end COMPLETE, got {states}")
    return seconds / len(states), events


def our_launch(study_dir: Path, *typed: str) -> Launch:
    """The main search, two trials at a time; its recordings are never opened."""
    shipped = ("search=stmem_ptbxl", "data=synthetic", f"cluster.max_concurrent_trials={CONCURRENT_TRIALS}")
    return checked(compose_choices([*shipped, f"study_dir={study_dir}", *typed]).tree)


def open_ledger(launch: Launch) -> Ledger:
    """The books of a new study, as launch.py opens them."""
    tree = launch.model_dump(mode="json", by_alias=True)
    space = parse(launch.space)
    folder = StudyFolder(Path(launch.study_dir))
    folder.write_configuration(tree)

    return Ledger(
        folder,
        launch,
        space,
        make_run=functools.partial(run_with, launch),
        first_points=[space.defaults(tree)],
        policy=make_policy(launch.scheduler, launch.task),
        describe=lambda trial, run: {"trial": trial.number, "value": trial.value},
    )


def last_epoch(assignment: Assignment) -> dict[str, Any]:
    """The result of a trial that computes nothing: its last epoch is there at once, with weights of one number."""
    epoch = assignment.run.task.num_epochs
    write_tensors(assignment.folder / f"best-{epoch:04d}.safetensors", {"weight": torch.zeros(1)}, {})
    return {
        "epoch": epoch,
        "stage": "finetune",
        "metrics": {assignment.metric: 0.5},
        "seconds": 0.0,
        "value": 0.5,
        "best_epoch": epoch,
        "finished": True,
        "reason": None,
    }


class Empty:
    """The engine of a trial that computes nothing.

    Like every engine it writes nothing before its first epoch: here all other trials can have ended before a process
    has started, and Tune then gives that process's trial to another one.
    """

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment

    def next_epoch(self) -> dict[str, Any]:
        """The last epoch."""
        return last_epoch(self._assignment)

    def stop(self) -> None:
        """Nothing is held."""


class EmptyTrial(Trial):
    """Our trial without its computation."""

    def start_engine(self, assignment: Assignment) -> Engine:
        """Nothing to begin."""
        return Empty(assignment)


def main() -> None:
    """Measure all three and publish them."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__)
    # a nested trial takes two CPUs: Tune gives its driver one and Train its worker one
    nested = seconds_per_trial(nested_trial, NUM_NESTED_TRIALS, cpus_per_trial=2)
    fresh_actor = seconds_per_trial(fresh_actor_trial, NUM_ACTOR_TRIALS)
    in_process, _ = our_seconds_per_trial(trainable=EmptyTrial)
    figures = [
        Figure("nested", nested, "s/trial"),
        Figure("fresh_actor", fresh_actor, "s/trial", baseline=nested, ratio=nested / fresh_actor),
        Figure(
            "in_process",
            in_process,
            "s/trial",
            baseline=nested,
            ratio=nested / in_process,
            target=TARGET_S,
            bound="at most",
        ),
    ]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
