"""What a search may cost: a few timed steps of its default run, times its steps."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.labels import read_labels
from data.record import DataError
from models.classifier import Classifier
from models.pretext import PretextTask
from search_spaces.distributions import parse
from search_spaces.schema import Launch
from trainables.classify import pooled
from trainables.pretrain import build_pretext, fresh_encoder
from trainables.recordings import reader_of
from trainables.settings import Cluster, Run, Stage
from trainables.steps import autocast

TIMED_STEPS = 2  # after one that warms up


@dataclass(frozen=True)
class Estimate:
    """The cost of a search of which no trial is stopped early."""

    num_records: int  # to train on, labelled or not
    trial_seconds: float
    num_trials: int
    search_seconds: float
    device_hours: float
    at_a_time: int


def estimate(launch: Launch) -> Estimate | None:
    """Time a few steps here and multiply; None where the recordings cannot be counted yet."""
    counted = _training_records(launch)
    if counted is None:
        return None
    run, cluster = launch.run, launch.cluster
    device = torch.device("cuda" if _gpus_per_worker(cluster) > 0 else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(cluster.cpus_per_worker)
    try:
        alone = sum(_stages(run, *counted, device))
    finally:
        torch.set_num_threads(threads)
    at_a_time = _at_a_time(cluster)
    trial_seconds = alone / cluster.workers_per_trial
    trials = len(parse(launch.space).grid()) if launch.sampler.name == "grid" else launch.search.num_trials
    return Estimate(
        num_records=counted[0],
        trial_seconds=trial_seconds,
        num_trials=trials,
        search_seconds=trial_seconds * -(-trials // at_a_time),
        device_hours=alone * trials / 3600,
        at_a_time=at_a_time,
    )


def _gpus_per_worker(cluster: Cluster) -> float:
    """GPUs of each worker that this machine can stand in for."""
    return cluster.gpus_of_worker(torch.cuda.device_count()) if torch.cuda.is_available() else 0.0


def _at_a_time(cluster: Cluster) -> int:
    """Trials that this machine runs at a time; one where it holds none, as a larger cluster then must."""
    workers, num_gpus = cluster.workers_per_trial, _gpus_per_worker(cluster)
    room = (cluster.num_cpus or os.cpu_count() or 1) / (workers * cluster.cpus_per_worker)
    if num_gpus > 0:
        room = min(room, torch.cuda.device_count() / (workers * num_gpus))
    if cluster.max_concurrent_trials != "auto":
        room = min(room, cluster.max_concurrent_trials)
    return max(1, int(room + 1e-9))


def _training_records(launch: Launch) -> tuple[int, int] | None:
    """Training records, and the labelled ones among them."""
    data, task = launch.data, launch.task
    try:
        reader = reader_of(data)
        table, protocol = reader.table(), reader.protocols()[task.labels]
    except (DataError, KeyError):
        return None
    train = table[table["fold"].isin(data.train_folds)]
    patients = train["patient_id"].nunique()
    share = 1.0 if data.max_train_patients is None else min(1.0, data.max_train_patients / max(patients, 1))
    labelled = read_labels(train["codes"].tolist(), protocol, task.classes).labelled.sum()
    return round(len(train) * share), round(float(labelled) * share)


def _stages(run: Run, num_records: int, num_labelled: int, device: torch.device) -> Iterator[float]:
    """Seconds of each stage; the probe and the validation are within the error of this estimate."""
    if run.task.stages != "finetune":
        first = run.task.pretrain
        pretext = build_pretext(run).to(device)
        batch_size = _batch_size(first, num_records)
        draws = pretext.draw(batch_size, torch.Generator().manual_seed(0))
        given = {name: draw.to(device) for name, draw in draws.items()}
        known = {name: fact.to(device) for name, fact in _made_up_facts(pretext, batch_size).items()}
        yield first.num_epochs * _seconds(
            run, first, num_records, device, lambda signal: pretext(signal, given, **known), num_views=pretext.num_views
        )
    if run.task.stages != "pretrain":
        second = run.task.finetune
        encoder = pooled(fresh_encoder(run), run)
        classifier = Classifier(encoder, 1, drop_path=0.0, head_init_std=0.01).to(device)
        frozen = second.mode == "linprobe"  # every record goes through the encoder once; the head costs nothing
        classifier.encoder.requires_grad_(not frozen)
        epochs = 1 if frozen else second.num_epochs
        yield _seconds(run, second, num_labelled, device, lambda signal: classifier(signal).square().mean()) * epochs


def _made_up_facts(pretext: PretextTask, batch_size: int) -> dict[str, Tensor]:
    """What a task may read of records, all different, with reports of usual length."""
    reports = ["a report of ten words or so as most of them are"] * batch_size
    return {
        name: pretext.report_tokens(reports) if name == "reports" else torch.arange(batch_size)
        for name in pretext.reads
    }


def _batch_size(stage: Stage, num_records: int) -> int:
    return max(1, min(stage.batch_size, num_records))


def _seconds(
    run: Run,
    stage: Stage,
    num_records: int,
    device: torch.device,
    loss: Callable[[Tensor], Tensor],
    *,
    num_views: int = 1,
) -> float:
    """Seconds of one epoch of a stage."""
    batch_size = _batch_size(stage, num_records)
    views = (num_views,) if num_views > 1 else ()
    shape = (batch_size, *views, len(run.data.leads), run.data.window_samples)
    signal = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    laps = []
    for _ in itertools.repeat(None, TIMED_STEPS + 1):
        started = time.perf_counter()
        with autocast(stage, device):
            value = loss(signal)
        value.backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize()
        laps.append(time.perf_counter() - started)
    return min(laps[1:]) * max(1, num_records // batch_size)
