"""A whole run as one generator: an epoch a step, over one stage or two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.encoder import Encoder
from trainables.checkpoint import check_encoder, check_unseen, load_encoder_weights
from trainables.classify import classify, enter_finetune
from trainables.pretrain import enter_pretrain, fresh_encoder, pretrain
from trainables.recordings import Recordings
from trainables.settings import Run
from trainables.state import SavedState, TrainState
from trainables.workers import Workers


def train(
    run: Run, state: TrainState, recordings: Recordings, workers: Workers, *, saved: SavedState | None = None
) -> Iterator[dict[str, Any]]:
    """Train a run from its beginning, or from a saved state on.

    Args:
        run: what to train.
        state: a new one; it follows the run and may be saved after every epoch that was yielded.
        recordings: the run's.
        workers: this worker's place.
        saved: where to go on.

    Yields:
        {"epoch", "stage"} and the stage's metrics, after each epoch.

    Raises:
        FloatingPointError: if something is not finite; `state` then holds what was good before.
        CollapsedError: if pre-training no longer tells records apart.
    """
    assert recordings.folds is None, "of k folds, each has a loop of its own (trainables.folds)"
    if saved is not None and saved.stage == "finetune":
        enter_finetune(run, state, fresh_encoder(run), recordings, workers, resumed=True)
        saved.restore(state)
        saved = None  # its tensors have been copied
    elif run.task.stages == "finetune":
        enter_finetune(run, state, first_encoder(run), recordings, workers)
    else:
        enter_pretrain(run, state, workers)
        if saved is not None:
            saved.restore(state)
            saved = None
        for metrics in pretrain(run, state, recordings, workers):
            yield {"epoch": state.epoch, "stage": "pretrain", **metrics}
        if run.task.stages == "pretrain":
            return
        state.keep_pretext()
        encoder = state.whole("encoder")
        assert isinstance(encoder, Encoder)
        enter_finetune(run, state, encoder, recordings, workers)
        del encoder
    for metrics in classify(run, state, recordings, workers):
        yield {"epoch": state.epoch, "stage": "finetune", **metrics}


def first_encoder(run: Run, *, whole_history: bool = False) -> Encoder:
    """What a fine-tuning without pre-training begins with: a checkpoint's encoder, or a fresh one for `scratch`.

    Args:
        run: that begins.
        whole_history: also refuse, for k folds, a checkpoint of which it cannot be told what it was begun from; where
            the user is, as another node need not reach the folders of earlier studies.

    Raises:
        DataError, StorageError: if the checkpoint cannot be read, is of another model or other recordings, or has seen
            what k folds hold out in turn.
    """
    encoder = fresh_encoder(run)
    if run.task.finetune.mode != "scratch":
        assert run.task.encoder is not None
        description = check_encoder(Path(run.task.encoder), run.data)
        if run.task.folds > 1:
            check_unseen(description, run, whole_history=whole_history)
        load_encoder_weights(encoder, Path(run.task.encoder))
    return encoder
