"""The recordings of a run as its loops need them: the opened store, its labels and who trains, validates and tests."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.folds import Folds, k_folds
from data.labels import Labels
from data.loaders import Window
from data.record import DataError, Reader
from data.splits import Split, absent_classes, labelled_rows, split, valid_rows
from data.store import Preparation, Store
from trainables.components import build
from trainables.settings import Data, Run


@dataclass(frozen=True)
class KeptEmbeddings:
    """Where a study keeps embeddings of encoders that its trials do not change (trainables.frozen).

    Attributes:
        folder: seen by every node.
        max_bytes: of all of them.
    """

    folder: Path
    max_bytes: float


@dataclass(frozen=True)
class Recordings:
    """What one study trains on.

    Attributes:
        store: the prepared signals.
        labels: targets of every row of the store under the task's protocol.
        split: rows for training, validation and test; of a run on k folds, those of all its folds together.
        valid_classes: positions of the classes that the validation rows hold both ways, in each fold where there are
            several; metrics average over these.
        folds: of a run on k folds; None where there is one validation split.
        embeddings: where those of a frozen encoder are kept; None where each trial computes its own.
    """

    store: Store
    labels: Labels
    split: Split
    valid_classes: NDArray[np.int64]
    folds: Folds | None = None
    embeddings: KeptEmbeddings | None = None

    def targets(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, K) targets of `rows`."""
        return self.labels.targets[rows]

    @property
    def splits(self) -> tuple[Split, ...]:
        """What each model of the run trains and validates on: one split, or one for each fold."""
        return (self.split,) if self.folds is None else self.folds.splits

    def of_fold(self, number: int) -> Recordings:
        """The recordings as one of k models knows them."""
        return replace(self, split=self.splits[number], folds=None)


def preparation_of(data: Data) -> Preparation:
    """How `data` asks its store to be prepared."""
    return Preparation(
        sampling_rate_hz=data.sampling_rate_hz,
        leads=tuple(data.leads),
        highpass_hz=data.highpass_hz,
        lowpass_hz=data.lowpass_hz,
        filter_order=data.filter_order,
        min_duration_s=data.window_s,
    )


def window_of(data: Data) -> Window:
    """The crop that a model sees under `data`."""
    return Window(num_samples=data.window_samples, standardize=data.standardize, num_crops=data.eval_crops)


def open_recordings(run: Run, store: Path) -> Recordings:
    """The recordings of `run` in the store at `store`; opened once a process, whatever the trial.

    Raises:
        DataError: if the store, the labels or the split cannot serve the run.
    """
    classes = None if run.task.classes is None else tuple(run.task.classes)
    seed = subsample_seed(run.data, run.seed)
    return _opened(store, run.data.model_dump_json(), run.task.labels, classes, seed, run.task.folds)


@functools.lru_cache(maxsize=2)
def _opened(
    path: Path, data_json: str, protocol: str, classes: tuple[str, ...] | None, seed: int, num_folds: int
) -> Recordings:
    data = Data.model_validate_json(data_json)
    store = Store.open(path)
    labels = store.labels(protocol, classes)
    choose = functools.partial(
        split if num_folds == 1 else functools.partial(k_folds, num_folds=num_folds),
        store.index,
        labels,
        train_folds=data.train_folds,
        valid_folds=data.valid_folds,
        test_folds=data.test_folds,
        max_train_patients=data.max_train_patients,
        max_valid_patients=data.max_valid_patients,
        seed=seed,
    )
    chosen = choose()
    folds = chosen if isinstance(chosen, Folds) else None
    rows = chosen if isinstance(chosen, Split) else chosen.together
    present = _measurable(labels, rows, folds, data)
    return Recordings(store, labels, rows, np.array(present, dtype=np.int64), folds)


def _measurable(labels: Labels, rows: Split, folds: Folds | None, data: Data) -> list[int]:
    """Positions of the classes that metrics average over.

    Raises:
        DataError: if there is none.
    """
    splits = (rows,) if folds is None else folds.splits
    absent = {name for part in splits for name in absent_classes(labels, part.valid)}
    present = [position for position, name in enumerate(labels.classes) if name not in absent]
    if not present:
        cure = "widen data.valid_folds or data.max_valid_patients"
        raise DataError(
            f"nothing can be measured on the {len(rows.valid)} validation records: each class of {labels.protocol} is "
            f"carried by none or by all of them"
            + (f"; {cure}" if folds is None else f" in one of task.folds={len(splits)}; lower task.folds, {cure}")
            + f" (now {data.max_valid_patients})"
        )
    return present


def rows_of_fold(
    index: pd.DataFrame, labels: Labels, data: Data, fold: str | int, *, seed: int
) -> tuple[str, NDArray[np.int64]]:
    """The labelled rows that an evaluation is made on; nothing need be there to train on.

    Args:
        index: of a store.
        labels: of its rows.
        data: says which folds are for what.
        fold: "valid" (as subsampled for a search), "test", or the number of one.
        seed: of the subsample.

    Returns:
        "valid" or "test", what the rows count as, and the rows. A fold by number is taken whole; it counts as test
        where it is one of the test folds.

    Raises:
        DataError: if no labelled recording is in it.
    """
    if fold == "valid":
        seed, patients = subsample_seed(data, seed), data.max_valid_patients
        return "valid", valid_rows(index, labels, data.valid_folds, max_patients=patients, seed=seed)
    if fold == "test":
        return "test", labelled_rows(index, labels, "test_folds", data.test_folds)
    numbers = index["fold"].to_numpy()
    rows = np.flatnonzero((numbers == fold) & labels.labelled)
    if not len(rows):
        known = ", ".join(map(str, np.unique(numbers)))
        raise DataError(f"evaluate.fold must be valid, test or a fold with labels, one of {known}, got {fold}")
    return "test" if fold in data.test_folds else "valid", rows.astype(np.int64)


def subsample_seed(data: Data, seed: int) -> int:
    """What draws the patients of a subsample: `data.subsample_seed`, or the run's own seed."""
    return seed if data.subsample_seed is None else data.subsample_seed


def reader_of(data: Data) -> Reader:
    """The reader of the configured source.

    Raises:
        DataError: if it cannot read what is at `data.root`.
    """
    root = None if data.root is None else Path(data.root)
    reader: Reader = build(data.reader, root=root, source_rate_hz=data.source_rate_hz)
    return reader
