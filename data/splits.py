"""Who trains, who validates and who is only tested: whole patients, by published folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.labels import Labels
from data.record import DataError

TRAIN, VALID = 0, 1  # what a seed sequence is for: no two subsamples share a stream

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of a store's index, ascending; no patient is in two of train, valid and test.

    Attributes:
        pretrain: all records of the training patients, for what learns without labels.
        train: those of them that are labelled.
        valid: labelled records of the validation patients.
        test: labelled records of the test patients.
    """

    pretrain: Rows
    train: Rows
    valid: Rows
    test: Rows


def split(
    index: pd.DataFrame,
    labels: Labels,
    *,
    train_folds: Sequence[int],
    valid_folds: Sequence[int],
    test_folds: Sequence[int],
    max_train_patients: int | None,
    max_valid_patients: int | None,
    seed: int,
) -> Split:
    """Choose the rows of each part by fold; the test part is never subsampled.

    Args:
        index: with the columns fold and patient_id.
        labels: of the rows of `index`; rows that are not labelled are for pre-training alone.
        train_folds: folds to train on.
        valid_folds: folds to validate on.
        test_folds: folds that the final evaluation alone opens.
        max_train_patients: how many training patients to keep, labelled or not, drawn by `seed`; all of them where
            None. A larger number keeps every patient that a smaller one keeps.
        max_valid_patients: the same for validation, among those with a labelled record.
        seed: of the two draws.

    Raises:
        DataError: if a fold does not exist, a part is empty, a patient is in two parts, or a class is carried by
            none or by all of the training records.
    """
    folds = {"train_folds": train_folds, "valid_folds": valid_folds, "test_folds": test_folds}
    rows = {key: _rows_of_folds(index, labels, key, chosen) for key, chosen in folds.items()}
    patients = index["patient_id"].to_numpy(dtype=object)
    _check_disjoint(patients, rows)
    pretrain = _subsample(patients, rows["train_folds"], max_train_patients, (seed, TRAIN))
    train = pretrain[labels.labelled[pretrain]]
    if absent := absent_classes(labels, train):
        raise DataError(
            f"{len(absent)} of {len(labels.classes)} classes of {labels.protocol} cannot be learnt, none or all of the "
            f"{len(train)} training records carry them: {', '.join(absent)}; leave them out with task.classes, or "
            f"widen data.train_folds or data.max_train_patients (now {max_train_patients})"
        )
    valid = valid_rows(index, labels, valid_folds, max_patients=max_valid_patients, seed=seed)
    return Split(pretrain, train, valid, labelled_rows(index, labels, "test_folds", test_folds))


def labelled_rows(index: pd.DataFrame, labels: Labels, key: str, folds: Sequence[int]) -> Rows:
    """The labelled rows of some folds, ascending.

    Args:
        index: with the column fold.
        labels: of its rows.
        key: of `data`, for messages.
        folds: which.

    Raises:
        DataError: if a fold does not exist, or none of its records is labelled.
    """
    rows = _rows_of_folds(index, labels, key, folds)
    return rows[labels.labelled[rows]]


def valid_rows(
    index: pd.DataFrame, labels: Labels, folds: Sequence[int], *, max_patients: int | None, seed: int
) -> Rows:
    """The rows to validate on, as `split` chooses them.

    Raises:
        DataError: as `labelled_rows`.
    """
    rows = labelled_rows(index, labels, "valid_folds", folds)
    return _subsample(index["patient_id"].to_numpy(dtype=object), rows, max_patients, (seed, VALID))


def absent_classes(labels: Labels, rows: Rows) -> list[str]:
    """The classes that none or all of `rows` carry: nothing can be learnt or measured about them there."""
    positives = labels.targets[rows].sum(axis=0)
    return [name for name, count in zip(labels.classes, positives, strict=True) if count in (0, len(rows))]


def _rows_of_folds(index: pd.DataFrame, labels: Labels, key: str, folds: Sequence[int]) -> Rows:
    """All rows of some folds, of which one at least is labelled."""
    assert len(labels.labelled) == len(index), "labels must be those of the index"
    fold_of_row = index["fold"].to_numpy(dtype=np.int64)
    existing = np.unique(fold_of_row).tolist()
    if unknown := sorted(set(folds) - set(existing)):
        raise DataError(f"data.{key} names folds that no record is in: {unknown}; the folds that exist are {existing}")
    chosen = np.isin(fold_of_row, list(folds))
    if not (chosen & labels.labelled).any():
        raise DataError(
            f"data.{key}={list(folds)} must hold at least one record that is labelled under {labels.protocol}, got "
            f"{chosen.sum()} without: choose other folds (there are {existing}) or another task.labels"
        )
    return np.flatnonzero(chosen)


def _check_disjoint(patients: NDArray[np.object_], rows: dict[str, Rows]) -> None:
    members = {key: set(patients[chosen].tolist()) for key, chosen in rows.items()}
    for first, second in (("train_folds", "valid_folds"), ("train_folds", "test_folds"), ("valid_folds", "test_folds")):
        if shared := sorted(members[first] & members[second]):
            raise DataError(
                f"no patient may be in two parts of a split, {len(shared)} are in both data.{first} and "
                f"data.{second} (the first: {', '.join(shared[:3])}): give each patient one fold in the source's table"
            )


def _subsample(patients: NDArray[np.object_], rows: Rows, max_patients: int | None, seed: tuple[int, int]) -> Rows:
    """The rows of at most `max_patients` patients; who they are does not depend on the order of the rows."""
    if max_patients is None:
        return rows
    members = np.array(sorted(set(patients[rows].tolist())), dtype=object)
    order = np.random.default_rng(seed).permutation(len(members))
    kept = set(members[order[:max_patients]].tolist())
    return rows[[patient in kept for patient in patients[rows]]]
