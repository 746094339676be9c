"""A run on k folds as one unit: k models that advance together, an epoch of each an epoch of the unit.

What each model trains on is data.folds' to say; its loop is the one of a run with a single validation split. The unit
reports means over the folds, is saved whole or not at all, and keeps all k models of the epoch with the best mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from data.splits import Rows
from data.store import Store
from models.classifier import Classifier
from models.encoder import Encoder
from models.ensemble import Ensemble, name_of_member
from trainables.collapse import CollapsedError
from trainables.loops import train
from trainables.predict import predict, validate
from trainables.pretrain import probed
from trainables.recordings import Recordings
from trainables.settings import Data, Run
from trainables.state import Best, SavedState, TrainState
from trainables.workers import Workers

SPREAD = "_sd"
"""Added to a metric's name: its standard deviation over the folds."""


@dataclass
class FoldState(TrainState):
    """One fold's: which epoch is best is the unit's to say, so what an epoch offers waits for that."""

    offered: dict[str, Tensor] | None = field(default=None, repr=False)

    def offer(self, metrics: Mapping[str, float], classifier: nn.Module) -> None:
        """Keep the weights of this epoch until the unit has looked at them."""
        self.offered = self.kept_weights(classifier)

    def keep_pretext(self) -> None:
        """Nothing: k models have no reconstructions, and what is kept here nobody would write or free."""


@dataclass
class UnitState(TrainState):
    """Where all folds stand at the end of an epoch, saved in one file; `model` and `optimizer` are the folds'.

    Attributes:
        folds: a state for each fold.
    """

    folds: list[FoldState] = field(default_factory=list)

    def finish_epoch(self, metrics: Mapping[str, float]) -> None:
        """Count an epoch of all folds as done."""
        self.stage, self.stage_epoch = self.folds[0].stage, self.folds[0].stage_epoch - 1
        super().finish_epoch(metrics)

    def offer_all(self, metrics: Mapping[str, float]) -> None:
        """Keep what all folds have offered, if the unit's metric beats all epochs before."""
        offered = [fold.offered for fold in self.folds]
        for fold in self.folds:
            fold.offered = None
        if any(weights is None for weights in offered) or not self.is_better(metrics[self.metric]):
            return
        self.best = Best(self.epoch, metrics[self.metric], dict(metrics))
        self.best_weights = {
            name_of_member(number, name): tensor
            for number, weights in enumerate(offered)
            for name, tensor in (weights or {}).items()
        }

    def place(self) -> dict[str, Any]:
        """Where the unit stands, as JSON."""
        return super().place() | {"fold_histories": [fold.history for fold in self.folds]}

    def tensors(self) -> dict[str, Tensor]:
        """Those of every fold, whole, after `fold.N.`."""
        return {
            f"fold.{number}.{name}": tensor
            for number, fold in enumerate(self.folds)
            for name, tensor in fold.tensors().items()
        }

    def take_up(self, saved: SavedState) -> list[SavedState]:
        """Go on from a saved unit: what is the folds' is handed back, for their loops to restore.

        Raises:
            ValueError: if it is of another number of folds.
        """
        if len(saved.fold_histories) != len(self.folds):
            raise ValueError(f"the saved state must be of {len(self.folds)} folds, got {len(saved.fold_histories)}")
        self.epoch, self.stage, self.stage_epoch = saved.epoch, saved.stage, saved.stage_epoch
        self.best, self.history = saved.best, saved.history
        self.best_weights = saved.best_weights if self.writes else {}
        return [_saved_fold(saved, number) for number in range(len(self.folds))]


def _saved_fold(saved: SavedState, number: int) -> SavedState:
    begin = f"fold.{number}."
    tensors = {name.removeprefix(begin): t for name, t in saved.tensors.items() if name.startswith(begin)}
    history = saved.fold_histories[number]
    return replace(saved, best=None, best_weights={}, history=history, tensors=tensors, fold_histories=[])


def new_state(run: Run, metric: str, maximize: bool, *, writes: bool = True) -> TrainState:
    """The state with which a run begins, of one split or of k folds."""
    if run.task.folds == 1:
        return TrainState(metric, maximize, writes=writes)
    folds = [FoldState(metric, maximize, writes=writes) for _ in range(run.task.folds)]
    return UnitState(metric, maximize, writes=writes, folds=folds)


def train_unit(
    run: Run, state: TrainState, recordings: Recordings, workers: Workers, *, saved: SavedState | None = None
) -> Iterator[dict[str, Any]]:
    """Train a run on one split or on k folds, from its beginning or from a saved state on.

    Args:
        run: what to train.
        state: from `new_state`; it may be saved after every epoch that was yielded.
        recordings: the run's.
        workers: this worker's place.
        saved: where to go on.

    Yields:
        What `trainables.loops.train` does; of k folds the means, and beside each `val/` metric its spread.

    Raises:
        FloatingPointError: as there, with the fold; no fold after it has computed the epoch.
        CollapsedError: as there, with the fold; all folds have computed the epoch, and `state` counts it.
    """
    if not isinstance(state, UnitState):
        yield from train(run, state, recordings, workers, saved=saved)
        return
    begins: Sequence[SavedState | None] = [None] * len(state.folds) if saved is None else state.take_up(saved)
    loops = [
        train(run, fold, recordings.of_fold(number), workers, saved=begin)
        for number, (fold, begin) in enumerate(zip(state.folds, begins, strict=True))
    ]
    del saved, begins  # its tensors are copied into the models and need not stay
    while state.epoch < run.task.num_epochs:
        collapsed = _advance(loops)
        metrics = over_folds([fold.history[-1]["metrics"] for fold in state.folds])
        state.finish_epoch(metrics)
        if collapsed is not None:
            raise collapsed
        state.offer_all(metrics)
        yield {"epoch": state.epoch, "stage": state.stage, **metrics}


def _advance(loops: Sequence[Iterator[dict[str, Any]]]) -> CollapsedError | None:
    """An epoch of every fold; what the first one that collapsed says."""
    collapsed = None
    for number, loop in enumerate(loops, start=1):
        try:
            next(loop)
        except FloatingPointError as error:
            raise FloatingPointError(f"fold {number} of {len(loops)}: {error}") from error
        except CollapsedError as error:
            collapsed = collapsed or CollapsedError(f"fold {number} of {len(loops)}: {error}")
    return collapsed


def over_folds(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over the folds of each metric, and of each `val/` metric the sample standard deviation beside it.

    Args:
        metrics: of each of k folds, with the same names.
    """
    together = {}
    for name in metrics[0]:
        values = np.array([fold[name] for fold in metrics])
        together[name] = float(values.mean())
        if name.startswith("val/"):
            together[f"{name}{SPREAD}"] = float(values.std(ddof=1))
    return together


# -------- what the k models answer


def probed_unit(run: Run, encoder: Encoder, recordings: Recordings, workers: Workers) -> Classifier:
    """An encoder with a linear probe as its head; of k folds, with the probes of all of them."""
    if recordings.folds is None:
        return probed(run, encoder, recordings, workers)
    probes = [probed(run, encoder, recordings.of_fold(number), workers) for number in range(run.task.folds)]
    return Ensemble(probes, recordings.labels.kind).to(workers.device)


def validate_unit(classifier: Classifier, recordings: Recordings, run: Run, workers: Workers) -> dict[str, float]:
    """The task's metrics on the validation rows; of k folds, each model's on its own fold, and their means."""
    if recordings.folds is None:
        return validate(classifier, recordings, run.data, run.task, workers)
    assert isinstance(classifier, Ensemble)
    return over_folds(
        [
            validate(classifier.member(number), recordings.of_fold(number), run.data, run.task, workers)
            for number in range(run.task.folds)
        ]
    )


def predict_unseen(
    classifier: Classifier,
    store: Store,
    rows: NDArray[np.int64],
    data: Data,
    workers: Workers,
    *,
    kind: str,
    held_out: Sequence[Rows] = (),
) -> NDArray[np.float32]:
    """(n, K) probabilities of `rows`, none of them from a model that was trained on the row's patient.

    Args:
        classifier: answers; an ensemble's members are those of the folds.
        store: the prepared recordings.
        rows: which.
        data: window and crops.
        workers: this worker's place.
        kind: of the labels.
        held_out: rows of the store that each member was not trained on (data.folds.Folds.held_out); what is in none of
            them all members answer together, and so they do on the recordings of another store.
    """
    if not isinstance(classifier, Ensemble) or not held_out:
        return predict(classifier, store, rows, data, workers, kind=kind)
    answers = np.empty((len(rows), classifier.head.out_features), np.float32)
    answering = answering_model(rows, held_out)
    for number in np.unique(answering):
        model = classifier if number == 0 else classifier.member(int(number) - 1)
        part = answering == number
        answers[part] = predict(model, store, rows[part], data, workers, kind=kind)
    return answers


def answering_model(rows: NDArray[np.int64], held_out: Sequence[Rows]) -> NDArray[np.int64]:
    """(n,) which of k models answers each of `rows`: 1 to k, the one that has not seen it, or 0, all together."""
    answering = np.zeros(len(rows), np.int64)
    for number, fold in enumerate(held_out, start=1):
        answering[np.isin(rows, fold)] = number
    return answering
