"""What a trial costs before it learns anything: wall seconds of a study divided by its trials.

Two trials at a time, Ray already up, loops empty (one report and the end). Figures, in seconds a trial:

    nested       Ray Train inside Tune as the documentation of Ray 2.60 has it: each trial a function trainable that
                 runs a TorchTrainer of one worker, whose reports come back through TuneReportCallback. 4 trials, with
                 the dashboard on: without it the placement groups of ended trials are never given back.
    fresh_actor  a function trainable in a new actor each trial, `reuse_actors=False`.

The ratio of a figure is nested / figure.

    python benchmarks/trial_start.py --json FILE
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import ray.train
import ray.tune
from figures import Figure, parse_arguments, publish
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

CONCURRENT_TRIALS = 2
NUM_CPUS = 4
"""Two nested trials at a time take four: Tune gives each driver one CPU, Train each worker one."""
NUM_NESTED_TRIALS = 4
NUM_ACTOR_TRIALS = 12


@contextlib.contextmanager
def ray_instance() -> Iterator[None]:
    """Ray, with its dashboard, for the length of the block; its first worker has answered on entry."""
    ray.init(address="local", num_cpus=NUM_CPUS, num_gpus=0, include_dashboard=True, log_to_driver=False)
    try:
        ray.get(ray.remote(lambda: None).remote())
        yield
    finally:
        ray.shutdown()


def seconds_per_trial(trainable: Callable[[dict[str, Any]], None], num_trials: int) -> float:
    """Wall seconds of a study over `trainable`, divided by its trials.

    Raises:
        RuntimeError: if a trial failed, for then its seconds mean nothing.
    """
    with tempfile.TemporaryDirectory() as storage:
        tuner = ray.tune.Tuner(
            trainable,
            param_space={"x": ray.tune.uniform(0.0, 1.0), "storage": storage},
            tune_config=ray.tune.TuneConfig(
                metric="x",
                mode="max",
                num_samples=num_trials,
                max_concurrent_trials=CONCURRENT_TRIALS,
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
    """An empty trial that starts a Ray Train run of one worker."""
    TorchTrainer(
        nested_worker,
        train_loop_config={"x": choices["x"]},
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=f"train-{ray.tune.get_context().get_trial_id()}",
            storage_path=choices["storage"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def nested_worker(choices: dict[str, Any]) -> None:
    """The loop of a nested trial's only worker."""
    ray.train.report({"x": choices["x"]})


def main() -> None:
    """Measure both and publish them."""
    assert __doc__ is not None
    arguments = parse_arguments(__doc__)
    with ray_instance():
        fresh_actor = seconds_per_trial(fresh_actor_trial, NUM_ACTOR_TRIALS)
        nested = seconds_per_trial(nested_trial, NUM_NESTED_TRIALS)
    figures = [
        Figure("nested", nested, "s/trial"),
        Figure("fresh_actor", fresh_actor, "s/trial", baseline=nested, ratio=nested / fresh_actor),
    ]
    publish(figures, arguments.json)


if __name__ == "__main__":
    main()
