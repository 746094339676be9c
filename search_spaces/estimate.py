"""What a search may cost: a few timed steps of its default run, times its steps."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.record import DataError
from models.classifier import Classifier
from search_spaces.schema import Launch
from trainables.pretrain import build_pretext
from trainables.recordings import reader_of
from trainables.settings import Run, Stage

TIMED_STEPS = 2  # after one that warms up


@dataclass(frozen=True)
class Estimate:
    """The cost of a search of which no trial is stopped early."""

    num_records: int
    trial_seconds: float
    search_seconds: float
    device_hours: float
    at_a_time: int


def estimate(launch: Launch) -> Estimate | None:
    """Time a few steps here and multiply; None where the recordings cannot be counted yet."""
    num_records = _training_records(launch)
    if num_records is None:
        return None
    run, cluster = launch.run, launch.cluster
    threads = torch.get_num_threads()
    torch.set_num_threads(cluster.cpus_per_worker)
    try:
        alone = sum(_stages(run, num_records))
    finally:
        torch.set_num_threads(threads)
    num_cpus = cluster.num_cpus or os.cpu_count() or 1
    at_a_time = max(1, num_cpus // (cluster.workers_per_trial * cluster.cpus_per_worker))
    if cluster.max_concurrent_trials != "auto":
        at_a_time = min(at_a_time, cluster.max_concurrent_trials)
    trial_seconds = alone / cluster.workers_per_trial
    trials = launch.search.num_trials
    return Estimate(
        num_records=num_records,
        trial_seconds=trial_seconds,
        search_seconds=trial_seconds * -(-trials // at_a_time),
        device_hours=alone * trials / 3600,
        at_a_time=at_a_time,
    )


def _training_records(launch: Launch) -> int | None:
    data = launch.data
    try:
        table = reader_of(data).table()
    except DataError:
        return None
    train = table[table["fold"].isin(data.train_folds)]
    patients = train["patient_id"].nunique()
    share = 1.0 if data.max_train_patients is None else min(1.0, data.max_train_patients / max(patients, 1))
    return round(len(train) * share)


def _stages(run: Run, num_records: int) -> Iterator[float]:
    """Seconds of each stage; the probe and the validation are within the error of this estimate."""
    pretext = build_pretext(run)
    if run.task.stages != "finetune":
        draws = pretext.draw(run.task.pretrain.batch_size, torch.Generator().manual_seed(0))
        yield _seconds(run, run.task.pretrain, num_records, lambda signal: pretext(signal, draws))
    if run.task.stages != "pretrain":
        classifier = Classifier(pretext.encoder, 1, drop_path=0.0, head_init_std=0.01)
        yield _seconds(run, run.task.finetune, num_records, lambda signal: classifier(signal).square().mean())


def _seconds(run: Run, stage: Stage, num_records: int, loss: Callable[[Tensor], Tensor]) -> float:
    signal = torch.randn(stage.batch_size, len(run.data.leads), run.data.window_samples)
    laps = []
    for _ in itertools.repeat(None, TIMED_STEPS + 1):
        started = time.perf_counter()
        loss(signal).backward()  # type: ignore[no-untyped-call]
        laps.append(time.perf_counter() - started)
    return min(laps[1:]) * max(1, num_records // stage.batch_size) * stage.num_epochs
