"""Supervised training of an encoder with a linear head: fine-tuning, from scratch, or a linear probe by steps."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import Batch, TrainBatches, worker_share
from models.attention_pool import AttentionPooled
from models.classifier import Classifier
from models.encoder import Encoder
from models.losses import multilabel_loss, single_label_loss
from models.pretext import Draws
from trainables.components import build
from trainables.frozen import frozen_embeddings, in_batches
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.predict import validate
from trainables.probe import probe_head, probed_rows
from trainables.recordings import Recordings, window_of
from trainables.seeds import FINETUNE, INITIALISATION, generator_of, seed_of
from trainables.settings import Run
from trainables.state import TrainState
from trainables.steps import Share, train_epoch
from trainables.workers import Workers


def enter_finetune(
    run: Run, state: TrainState, encoder: Encoder, recordings: Recordings, workers: Workers, *, resumed: bool = False
) -> None:
    """Put a classifier on a copy of `encoder`, and its optimiser, into `state`.

    Args:
        run: whose fine-tuning begins.
        state: enters the stage.
        encoder: begins it; it stays as it is.
        recordings: the run's; a probe is fitted on the training records where the head begins as one.
        workers: this worker's place.
        resumed: saved weights will replace these, so none need be fitted.

    Source: a head that begins as the linear probe, Kumar et al. 2022, arXiv:2202.10054.
    """
    stage = run.task.finetune
    num_classes = len(recordings.labels.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, INITIALISATION, FINETUNE))
        classifier = Classifier(
            pooled(copy.deepcopy(encoder).cpu(), run),
            num_classes,
            drop_path=stage.drop_path,
            head_init_std=stage.head_init_std,
            mask_c_ratio=stage.mask_c_ratio,
            mask_t_ratio=stage.mask_t_ratio,
        )
    classifier.to(workers.device)
    if stage.head_init == "probe" and not resumed:
        features = _frozen_middles(
            run, classifier.encoder, recordings, probed_rows(recordings, run.task.probe), workers
        )
        probe_head(classifier, recordings, run.data, run.task.probe, workers, features=features)
    if stage.mode == "linprobe":
        classifier.encoder.requires_grad_(False)
    # a linear probe's frozen encoder embeds each record once, which takes a whole one; its head is small
    form = workers.shared_out(classifier) if stage.mode != "linprobe" else None
    groups = parameter_groups(
        classifier,
        weight_decay=stage.weight_decay,
        decay_biases_and_norms=stage.optimizer.decay_biases_and_norms,
        layer_decay=stage.layer_decay,
        num_layers=classifier.encoder.depth + 1,
        layer_of=classifier.layer_of,
    )
    state.enter("finetune", classifier, build_optimizer(stage, groups), form)


def pooled(encoder: Encoder, run: Run) -> Encoder:
    """An encoder as the run's classifier uses it."""
    return AttentionPooled(encoder) if run.task.finetune.pool == "attention" else encoder


def classify(run: Run, state: TrainState, recordings: Recordings, workers: Workers) -> Iterator[dict[str, float]]:
    """Train the classifier in `state` until the stage's end; yield each epoch's metrics.

    Yields:
        train/loss, train/lr and the task's metrics on the validation rows; the best epoch is kept in `state`.

    Raises:
        FloatingPointError: if a loss, a gradient or a probability is not finite.
    """
    classifier = state.model
    assert isinstance(classifier, Classifier)
    assert state.optimizer is not None
    stage = run.task.finetune
    batches = _FrozenBatches if stage.mode == "linprobe" else _WholeBatches
    shares = batches(run, classifier, recordings, workers)
    while state.stage_epoch < stage.num_epochs:
        metrics = train_epoch(
            shares.epoch(state.stage_epoch),
            num_batches=shares.num_batches,
            module=shares.module,
            optimizer=state.optimizer,
            stage=stage,
            stage_epoch=state.stage_epoch,
            workers=workers,
        )
        answering = state.whole()
        assert isinstance(answering, Classifier)
        metrics |= validate(answering, recordings, run.data, run.task, workers, embeddings=shares.valid_embeddings)
        state.finish_epoch(metrics)
        state.offer(metrics, answering)
        del answering  # where weights are sharded, it holds a whole copy of them
        yield metrics


def _frozen_middles(
    run: Run, encoder: Encoder, recordings: Recordings, rows: NDArray[np.int64], workers: Workers
) -> Tensor:
    """(n, D) embeddings of the middle crop of `rows`, of all workers' records, on the CPU."""
    mine = frozen_embeddings(run, encoder, recordings, rows, workers, num_crops=1)[:, 0]
    return mine if workers.world_size == 1 else torch.from_numpy(workers.joined(mine.numpy()))


def _loss_of(recordings: Recordings) -> Callable[..., Tensor]:
    return multilabel_loss if recordings.labels.kind == "multilabel" else single_label_loss


class _WholeBatches:
    """Augmented crops through the whole classifier."""

    valid_embeddings = None  # they change with the encoder

    def __init__(self, run: Run, classifier: Classifier, recordings: Recordings, workers: Workers) -> None:
        stage = run.task.finetune
        self._batches = TrainBatches(
            recordings.store,
            recordings.split.train,
            targets=recordings.targets(recordings.split.train),
            window=window_of(run.data),
            batch_size=stage.batch_size,
            transforms=[build(transform) for transform in stage.transforms],
            seed=seed_of(run.seed, FINETUNE),
            device=workers.device,
            rank=workers.rank,
            world_size=workers.world_size,
        )
        self.num_batches = self._batches.num_batches
        self.module = workers.together(classifier)
        self._classifier, self._seed, self._workers = classifier, run.seed, workers
        self._loss = functools.partial(_loss_of(recordings), label_smoothing=stage.label_smoothing)

    def epoch(self, epoch: int) -> Iterator[Share]:
        for number, batch in enumerate(self._batches.epoch(epoch)):
            generator = generator_of(self._seed, FINETUNE, epoch, number)
            draws = self._classifier.draw(batch.global_size, generator)
            mine = slice(batch.start, batch.start + len(batch.rows))
            own = {name: draw[mine].to(self._workers.device) for name, draw in draws.items()}
            yield Share(functools.partial(self._compute, batch, own), len(batch.rows), batch.global_size)

    def _compute(self, batch: Batch, draws: Draws) -> Tensor:
        return self._loss(self.module(batch.signal, draws), batch.targets)


class _FrozenBatches:
    """Embeddings that are computed once, through the head alone; augmentation has no part in a linear probe."""

    def __init__(self, run: Run, classifier: Classifier, recordings: Recordings, workers: Workers) -> None:
        stage, encoder = run.task.finetune, classifier.encoder
        rows = recordings.split.train
        self._batch_size = min(stage.batch_size, len(rows))
        if self._batch_size < workers.world_size:
            raise ValueError(
                f"each of {workers.world_size} workers needs a record of every batch, got batches of "
                f"{self._batch_size}: lower cluster.workers_per_trial or raise task.finetune.batch_size"
            )
        self._features = _frozen_middles(run, encoder, recordings, rows, workers).to(workers.device)
        self._targets = torch.from_numpy(recordings.targets(rows)).to(workers.device)
        valid = recordings.split.valid
        crops = frozen_embeddings(run, encoder, recordings, valid, workers, num_crops=run.data.eval_crops)
        self.valid_embeddings = in_batches(crops, workers)
        self.num_batches = len(rows) // self._batch_size
        self.module = workers.together(classifier.head)
        self._seed = seed_of(run.seed, FINETUNE)
        self._share = worker_share(self._batch_size, workers.rank, workers.world_size)
        self._loss = functools.partial(_loss_of(recordings), label_smoothing=stage.label_smoothing)

    def epoch(self, epoch: int) -> Iterator[Share]:
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._features))
        for number in range(self.num_batches):
            first = number * self._batch_size
            mine = torch.from_numpy(order[first + self._share.start : first + self._share.stop])
            yield Share(functools.partial(self._compute, mine), len(mine), self._batch_size)

    def _compute(self, rows: Tensor) -> Tensor:
        return self._loss(self.module(self._features[rows]), self._targets[rows])
