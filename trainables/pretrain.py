"""Self-supervised pre-training: the pretext loss trains, a linear probe on validation is what a search sees."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loaders import TrainBatches
from data.record import DataError
from models.classifier import Classifier
from models.encoder import Encoder
from models.pretext import PretextTask
from trainables.collapse import refuse_collapsed, spread
from trainables.components import build, build_encoder, build_pretext_on
from trainables.optimizers import build_optimizer, parameter_groups
from trainables.predict import validate
from trainables.probe import crop_embeddings, probe_head
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
        return build_pretext_on(run.model, build_encoder(run))


def fresh_encoder(run: Run) -> Encoder:
    """The run's encoder as pre-training would begin with it: for `scratch`, and the report's random baseline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(run.seed, INITIALISATION, PRETRAIN))
        return build_encoder(run)  # the first to draw in `build_pretext`, too


def enter_pretrain(run: Run, state: TrainState, workers: Workers) -> None:
    """Put a fresh pretext task and its optimiser into `state`."""
    pretext = build_pretext(run).to(workers.device)
    form = workers.shared_out(pretext)
    stage = run.task.pretrain
    groups = parameter_groups(
        pretext, weight_decay=stage.weight_decay, decay_biases_and_norms=stage.optimizer.decay_biases_and_norms
    )
    state.enter("pretrain", pretext, build_optimizer(stage, groups), form)


def pretrain(run: Run, state: TrainState, recordings: Recordings, workers: Workers) -> Iterator[dict[str, float]]:
    """Train the pretext task in `state` until the stage's end; yield each epoch's metrics.

    Yields:
        train/loss and train/lr of the pretext task, the probe's metrics on the validation rows, and how differently
        these rows are embedded (trainables.collapse). Where the run ends with this stage, the best epoch's encoder is
        kept in `state` with the probe as its head.

    Raises:
        CollapsedError: in the place of an epoch after which the encoder tells no records apart; `state` counts it.
        FloatingPointError: if a loss, a gradient or an embedding is not finite.
        DataError: if the task reads reports and no recording has one.
    """
    pretext = state.model
    assert isinstance(pretext, PretextTask)
    assert state.optimizer is not None
    stage = run.task.pretrain
    rows = rows_of(pretext, recordings)
    facts = facts_of(pretext, recordings, rows)
    batches = TrainBatches(
        recordings.store,
        rows,
        targets=None,
        window=window_of(run.data),
        batch_size=stage.batch_size,
        transforms=[build(transform) for transform in run.model.transforms],
        seed=seed_of(run.seed, PRETRAIN),
        device=workers.device,
        num_views=pretext.num_views,
        rank=workers.rank,
        world_size=workers.world_size,
    )
    module = workers.together(pretext)

    def shares(epoch: int) -> Iterator[Share]:
        for number, batch in enumerate(batches.epoch(epoch)):
            draws = pretext.draw(batch.global_size, generator_of(run.seed, PRETRAIN, epoch, number))
            mine = slice(batch.start, batch.start + len(batch.rows))
            own = {name: draw[mine].to(workers.device) for name, draw in draws.items()}
            known = {name: fact[batch.positions].to(workers.device) for name, fact in facts.items()}
            loss = functools.partial(module, batch.signal, own, **known)
            yield Share(loss, len(batch.rows), batch.global_size)

    while state.stage_epoch < stage.num_epochs:
        metrics = train_epoch(
            shares(state.stage_epoch),
            num_batches=batches.num_batches,
            module=module,
            optimizer=state.optimizer,
            stage=stage,
            stage_epoch=state.stage_epoch,
            workers=workers,
            after_step=pretext.after_step,
        )
        encoder = state.copied("encoder")
        assert isinstance(encoder, Encoder)
        classifier = probed(run, encoder, recordings, workers)
        valid = recordings.split.valid
        embeddings = list(crop_embeddings(classifier.encoder, recordings.store, valid, window_of(run.data), workers))
        metrics |= validate(classifier, recordings, run.data, run.task, workers, embeddings=embeddings)
        metrics |= spread(middle_of(embeddings, pretext.encoder.width, workers))
        state.finish_epoch(metrics)
        refuse_collapsed(metrics, run.task.collapse, num_records=len(valid))
        if run.task.stages == "pretrain":
            state.offer(metrics, classifier)
            if state.best is not None and state.best.epoch == state.epoch:
                state.keep_pretext()
        yield metrics


def rows_of(pretext: PretextTask, recordings: Recordings) -> NDArray[np.int64]:
    """The rows to pre-train on: all of the training patients, or those with a report where the task reads it.

    Raises:
        DataError: if no recording has a report.
    """
    rows = recordings.split.pretrain
    if not {"reports", "same_report"} & set(pretext.reads):
        return rows
    told = rows[[report is not None for report in recordings.store.reports(rows)]]
    if not len(told):
        raise DataError(
            f"{type(pretext).__name__} reads reports, and none of the {len(rows)} recordings to pre-train on has one: "
            "choose another model=NAME, or name the reports' column (data.reader.report_column of data=index_csv)"
        )
    return told


def facts_of(pretext: PretextTask, recordings: Recordings, rows: NDArray[np.int64]) -> dict[str, Tensor]:
    """What the task reads of each row beside its signal, (n, ...) by name."""
    store = recordings.store

    def fact(name: str) -> Tensor:
        if name == "reports":
            return pretext.report_tokens([report or "" for report in store.reports(rows)])
        if name == "same_report":
            return _numbered([" ".join((report or "").casefold().split()) for report in store.reports(rows)])
        if name == "same_codes":
            codes = ["\n".join(sorted(codes)) for codes in store.index["codes"].iloc[rows]]
            # without a code a record has no diagnosis that is known, so it shares none
            return _numbered([found or f"no code {row}" for found, row in zip(codes, rows, strict=True)])
        assert name == "patients", name
        return _numbered(store.index["patient_id"].iloc[rows].tolist())

    return {name: fact(name) for name in pretext.reads}


def _numbered(names: list[str]) -> Tensor:
    """(n,) int64: equal names have equal numbers."""
    return torch.from_numpy(np.unique(np.array(names, dtype=np.str_), return_inverse=True)[1].astype(np.int64))


def middle_of(embeddings: list[Tensor], width: int, workers: Workers) -> Tensor:
    """(n, D) embeddings of each record's middle crop, of all workers' records."""
    shares = [crops[:, crops.shape[1] // 2].cpu().numpy() for crops in embeddings]
    mine = np.concatenate(shares) if shares else np.empty((0, width), np.float32)
    return torch.from_numpy(workers.joined(mine))


def probed(run: Run, encoder: Encoder, recordings: Recordings, workers: Workers) -> Classifier:
    """An encoder, taken as it is and made trainable, with a linear probe on the training records as its head."""
    classifier = Classifier(encoder, len(recordings.labels.classes), drop_path=0.0, head_init_std=0.0)
    classifier.to(workers.device)
    probe_head(classifier, recordings, run.data, run.task.probe, workers)
    return classifier
