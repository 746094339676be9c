"""What a search may cost: a few timed steps of its default run, times its steps."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
FEW_RECORDS = 2  # with which a budgeted timing begins; a contrastive task needs two

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """The cost of a search of which no trial is stopped early."""

    num_records: int  # to train a model on, labelled or not
    trial_seconds: float
    num_trials: int
    search_seconds: float
    device_hours: float
    at_a_time: int
    num_confirmation_runs: int = 0  # as long as a trial each, after the last of them

    @property
    def runs(self) -> str:
        """What is counted, in words."""
        more = self.num_confirmation_runs
        return f"{self.num_trials} trials" + (f" and {more} confirmation runs" if more else "")


def estimate(launch: Launch) -> Estimate | None:
    """Time a few steps here and multiply; None where the recordings cannot be counted yet."""
    counted = _training_records(launch)
    if counted is None:
        return None
    cluster = launch.cluster
    alone = seconds_alone(
        launch.run, *counted, num_gpus=_gpus_per_worker(cluster), num_threads=cluster.cpus_per_worker, budget_s=None
    )
    return cost_of(launch, alone, num_records=counted[0], at_a_time=_at_a_time(cluster))


def seconds_alone(
    run: Run, num_records: int, num_labelled: int, *, num_gpus: float, num_threads: int, budget_s: float | None
) -> float:
    """What one worker alone would compute at a trial, in seconds, from a few steps timed in this process.

    Args:
        run: the trial's; with k folds it trains k models.
        num_records: to pre-train a model on.
        num_labelled: to train a model on with labels.
        num_gpus: of a worker; above 0, the steps are timed on one.
        num_threads: of a worker.
        budget_s: how long to time each stage at most; whole batches are timed, however long they take, where None.
    """
    device = torch.device("cuda" if num_gpus > 0 else "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return run.task.folds * sum(_stages(run, num_records, num_labelled, device, budget_s))
    finally:
        torch.set_num_threads(threads)


def cost_of(launch: Launch, alone: float, *, num_records: int, at_a_time: int) -> Estimate:
    """The search's cost where one worker alone would take `alone` seconds for a trial."""
    trial_seconds = alone / launch.cluster.workers_per_trial
    trials = len(parse(launch.space).grid()) if launch.sampler.name == "grid" else launch.search.num_trials
    confirm = launch.search.confirm
    again = min(confirm.top_k, trials) * confirm.seeds
    return Estimate(
        num_records=num_records,
        trial_seconds=trial_seconds,
        num_trials=trials,
        search_seconds=trial_seconds * (-(-trials // at_a_time) - (-again // at_a_time)),
        device_hours=alone * (trials + again) / 3600,
        at_a_time=at_a_time,
        num_confirmation_runs=again,
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
    """Training records of a model, and the labelled ones among them."""
    data, task = launch.data, launch.task
    try:
        reader = reader_of(data)
        table, protocol = reader.table(), reader.protocols()[task.labels]
    except (DataError, KeyError):
        return None
    several = task.folds > 1  # all but one of them train, of all that is not tested
    train = table[table["fold"].isin([*data.train_folds, *(data.valid_folds if several else [])])]
    share = (task.folds - 1) / task.folds if several else 1.0
    if data.max_train_patients is not None:
        share = min(share, data.max_train_patients / max(train["patient_id"].nunique(), 1))
    labelled = read_labels(train["codes"].tolist(), protocol, task.classes).labelled.sum()
    return round(len(train) * share), round(float(labelled) * share)


@dataclass(frozen=True)
class StageSteps:
    """What the steps of a stage compute.

    Attributes:
        stage: its settings.
        model: that is trained.
        num_views: of each record.
        loss_of: the loss of a batch of so many made-up records, from their signals.
        num_epochs: in which every record goes through the whole model.
        labelled: whether it trains on labelled records alone.
    """

    stage: Stage
    model: nn.Module
    num_views: int
    loss_of: Callable[[int], Loss]
    num_epochs: int
    labelled: bool


def _stages(
    run: Run, num_records: int, num_labelled: int, device: torch.device, budget_s: float | None
) -> Iterator[float]:
    """Seconds of each stage; the probe and the validation are within the error of this estimate."""
    for steps in steps_of(run, device):
        number = num_labelled if steps.labelled else num_records
        yield steps.num_epochs * _seconds(
            run, steps.stage, number, device, steps.loss_of, budget_s, num_views=steps.num_views
        )


def steps_of(run: Run, device: torch.device) -> Iterator[StageSteps]:
    """What each stage of a run computes in its steps."""
    if run.task.stages != "finetune":
        pretext = build_pretext(run).to(device)

        def pretext_loss(batch_size: int) -> Loss:
            draws = pretext.draw(batch_size, torch.Generator().manual_seed(0))
            given = {name: draw.to(device) for name, draw in draws.items()}
            known = {name: fact.to(device) for name, fact in _made_up_facts(pretext, batch_size).items()}
            return lambda signal: pretext(signal, given, **known)

        first = run.task.pretrain
        yield StageSteps(first, pretext, pretext.num_views, pretext_loss, first.num_epochs, labelled=False)
    if run.task.stages != "pretrain":
        second = run.task.finetune
        encoder = pooled(fresh_encoder(run), run)
        classifier = Classifier(encoder, 1, drop_path=0.0, head_init_std=0.01).to(device)
        frozen = second.mode == "linprobe"  # every record goes through the encoder once; the head costs nothing
        classifier.encoder.requires_grad_(not frozen)
        epochs = 1 if frozen else second.num_epochs

        def class_loss(batch_size: int) -> Loss:
            return lambda signal: classifier(signal).square().mean()

        yield StageSteps(second, classifier, 1, class_loss, epochs, labelled=True)


def _made_up_facts(pretext: PretextTask, batch_size: int) -> dict[str, Tensor]:
    """What a task may read of records, all different, with reports of usual length."""
    reports = ["a report of ten words or so as most of them are"] * batch_size
    return {
        name: pretext.report_tokens(reports) if name == "reports" else torch.arange(batch_size)
        for name in pretext.reads
    }


def _seconds(
    run: Run,
    stage: Stage,
    num_records: int,
    device: torch.device,
    loss_of: Callable[[int], Loss],
    budget_s: float | None,
    *,
    num_views: int = 1,
) -> float:
    """Seconds of one epoch of a stage; where whole batches would break the budget, from smaller ones."""
    batch_size = max(1, min(stage.batch_size, num_records))
    signals = made_up_signals(run, batch_size, num_views).to(device)
    num_batches = max(1, num_records // batch_size)

    def lap(size: int) -> float:
        return _lap(stage, device, signals[:size], loss_of(size))

    size = batch_size if budget_s is None else min(batch_size, FEW_RECORDS)
    lap(size)  # warms up
    began, took = time.perf_counter(), lap(size)
    while size < batch_size:
        larger = min(batch_size, 2 * size)
        assert budget_s is not None
        if time.perf_counter() - began + took * (larger / size) > budget_s:
            return took * (batch_size / size) * num_batches
        size, took = larger, lap(larger)
    return min(took, *(lap(size) for _ in range(TIMED_STEPS - 1))) * num_batches


def made_up_signals(run: Run, batch_size: int, num_views: int) -> Tensor:
    """(B, C, T) noise, or (B, V, C, T) where a task asks for several views."""
    views = (num_views,) if num_views > 1 else ()
    shape = (batch_size, *views, len(run.data.leads), run.data.window_samples)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _lap(stage: Stage, device: torch.device, signal: Tensor, loss: Loss) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    with autocast(stage, device):
        value = loss(signal)
    value.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
