"""Self-supervised pre-training: the pretext loss trains, a linear probe on validation is what a search sees."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch

from data.loaders import TrainBatches
from models.classifier import Classifier
from models.encoder import Encoder
from models.pretext import PretextTask
from trainables.components import build, model_inputs
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.predict import validate
from trainables.probe import probe_head
from trainables.recordings import Recordings, window_of
from trainables.seeds import INITIALISATION, PRETRAIN, generator_of, seed_of
from trainables.settings import Run
from trainables.state import TrainState
from trainables.steps import Share, train_epoch
from trainables.workers import Workers


def build_pretext(run: Run) -> PretextTask:
    """The run's pretext task, initialised from its seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, INITIALISATION, PRETRAIN))
        pretext = build(run.model, **model_inputs(run.data))
    assert isinstance(pretext, PretextTask)
    return pretext


def enter_pretrain(run: Run, state: TrainState, workers: Workers) -> None:
    """Put a fresh pretext task and its optimiser into `state`."""
    pretext = build_pretext(run).to(workers.device)
    stage = run.task.pretrain
    groups = parameter_groups(
        pretext, weight_decay=stage.weight_decay, decay_biases_and_norms=stage.optimizer.decay_biases_and_norms
    )
    state.enter("pretrain", pretext, build_optimizer(stage, groups))


def pretrain(run: Run, state: TrainState, recordings: Recordings, workers: Workers) -> Iterator[dict[str, float]]:
    """Train the pretext task in `state` until the stage's end; yield each epoch's metrics.

    Yields:
        train/loss and train/lr of the pretext task and the probe's metrics on the validation rows. Where the run ends
        with this stage, the best epoch's encoder is kept in `state` with the probe as its head.

    Raises:
        FloatingPointError: if a loss, a gradient or an embedding is not finite.
    """
    pretext = state.model
    assert isinstance(pretext, PretextTask)
    assert state.optimizer is not None
    stage = run.task.pretrain
    batches = TrainBatches(
        recordings.store,
        recordings.split.pretrain,
        targets=None,
        window=window_of(run.data),
        batch_size=stage.batch_size,
        transforms=[build(transform) for transform in stage.transforms],
        seed=seed_of(run.seed, PRETRAIN),
        device=workers.device,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    module = workers.together(pretext)

    def shares(epoch: int) -> Iterator[Share]:
        for number, batch in enumerate(batches.epoch(epoch)):
            draws = pretext.draw(batch.global_size, generator_of(run.seed, PRETRAIN, epoch, number))
            mine = draws[batch.start : batch.start + len(batch.signal)].to(workers.device)
            yield Share(functools.partial(module, batch.signal, mine), len(batch.signal), batch.global_size)

    while state.stage_epoch < stage.num_epochs:
        metrics = train_epoch(
            shares(state.stage_epoch),
            num_batches=batches.num_batches,
            module=module,
            optimizer=state.optimizer,
            stage=stage,
            stage_epoch=state.stage_epoch,
            workers=workers,
        )
        classifier = probed(run, pretext.encoder, recordings, workers)
        metrics |= validate(classifier, recordings, run.data, run.task, workers)
        state.finish_epoch(metrics)
        if run.task.stages == "pretrain":
            state.offer(metrics, classifier)
        yield metrics


def probed(run: Run, encoder: Encoder, recordings: Recordings, workers: Workers) -> Classifier:
    """A copy of an encoder with a linear probe on the training records as its head."""
    copied = copy.deepcopy(encoder)  # a classifier makes its encoder's parameters trainable
    classifier = Classifier(copied, len(recordings.labels.classes), drop_path=0.0, head_init_std=0.0)
    classifier.to(workers.device)
    probe_head(classifier, recordings, run.data, run.task.probe, workers)
    return classifier
