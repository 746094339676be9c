"""k folds of all records that are not tested: each validates once, by a model that trains on the other folds.

Shapes: n records that are not tested, m marks that are to be spread evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data.labels import Labels
from data.record import DataError
from data.splits import Rows, Split, labelled_rows, split

DEALING = 2  # what a seed sequence is for, beside data.splits.TRAIN and VALID
NEITHER = -1  # number of a row that no model sees
LEAST_SHARE = 0.5  # of an even share: a smaller group of published folds would validate next to nothing


@dataclass(frozen=True)
class Folds:
    """Who trains and validates each of k models.

    Attributes:
        splits: one for each model; no patient validates two of them.
        held_out: all rows of each fold, labelled or not: no stage of its model has seen one of their patients.
        published: the published folds that make up each; None where patients were dealt.
    """

    splits: tuple[Split, ...]
    held_out: tuple[Rows, ...]
    published: tuple[tuple[int, ...], ...] | None

    @property
    def together(self) -> Split:
        """The union over the folds of each part; a record that trains one model validates another."""
        parts = {
            name: np.unique(np.concatenate([getattr(fold, name) for fold in self.splits]))
            for name in ("pretrain", "train", "valid")
        }
        return Split(**parts, test=self.splits[0].test)

    def described(self) -> str:
        """Where the folds come from, who validates and trains in each, and who is only tested."""
        origin = "patients dealt by class"
        if self.published is not None:
            runs = [f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0]) for group in self.published]
            origin = f"published {', '.join(runs)}"
        counts = {name: [len(getattr(fold, name)) for fold in self.splits] for name in ("train", "valid")}
        train, valid = (", ".join(map(str, counts[name])) for name in ("train", "valid"))
        return (
            f"{len(self.splits)} folds ({origin}): {valid} validate where {train} train, "
            f"{len(self.splits[0].test)} test"
        )


def k_folds(
    index: pd.DataFrame,
    labels: Labels,
    *,
    num_folds: int,
    train_folds: Sequence[int],
    valid_folds: Sequence[int],
    test_folds: Sequence[int],
    max_train_patients: int | None,
    max_valid_patients: int | None,
    seed: int,
) -> Folds:
    """Cut the records of `train_folds` and `valid_folds` into k folds by patient; the test folds are not touched.

    Args:
        index: with the columns fold and patient_id.
        labels: of the rows of `index`.
        num_folds: k, two at least.
        train_folds: published folds.
        valid_folds: published folds that are cut together with those to train on.
        test_folds: published folds that the final evaluation alone opens.
        max_train_patients: how many patients each model trains on, drawn as `split` does; all of them where None.
        max_valid_patients: how many patients validate each model, likewise.
        seed: of the draws, and of the dealing where the published folds cannot be used.

    Raises:
        DataError: as `split`, with the number of the fold; or if there are fewer labelled patients than folds.
    """
    for key, chosen in (("train_folds", train_folds), ("valid_folds", valid_folds), ("test_folds", test_folds)):
        labelled_rows(index, labels, key, chosen)  # refuses what is not there
    published_fold = index["fold"].to_numpy(dtype=np.int64)
    rows = np.flatnonzero(np.isin(published_fold, [*train_folds, *valid_folds]))
    patients, labelled = index["patient_id"].to_numpy(dtype=object)[rows], labels.labelled[rows]
    if (found := len(set(patients[labelled].tolist()))) < num_folds:
        raise DataError(f"task.folds must be at most the number of labelled patients, {found}, got {num_folds}")

    groups = grouped(published_fold[rows], patients, labelled, num_folds)
    if groups is None:
        carried = labels.targets[rows] * labelled[:, None]
        marks = np.column_stack([carried, labelled, np.ones(len(rows))]).astype(np.float64)
        fold_of_row = deal(patients, marks, num_folds=num_folds, seed=seed)
    else:
        fold_of_row = np.searchsorted([group[0] for group in groups], published_fold[rows], side="right") - 1

    numbers = np.full(len(index), NEITHER)
    numbers[np.isin(published_fold, list(test_folds))] = num_folds
    numbers[rows] = fold_of_row
    renumbered = index[["patient_id"]].assign(fold=numbers)
    splits = []
    for fold in range(num_folds):
        try:
            part = split(
                renumbered,
                labels,
                train_folds=[other for other in range(num_folds) if other != fold],
                valid_folds=[fold],
                test_folds=[num_folds],
                max_train_patients=max_train_patients,
                max_valid_patients=max_valid_patients,
                seed=seed,
            )
        except DataError as error:
            raise DataError(f"fold {fold + 1} of task.folds={num_folds}: {error}") from error
        splits.append(part)
    held_out = tuple(rows[fold_of_row == fold] for fold in range(num_folds))
    return Folds(tuple(splits), held_out, groups)


def grouped(
    published_fold: NDArray[np.int64], patients: NDArray[np.object_], labelled: NDArray[np.bool_], num_folds: int
) -> tuple[tuple[int, ...], ...] | None:
    """The published folds in k groups of neighbours; None where these would be no folds.

    Args:
        published_fold: (n,) of each record.
        patients: (n,) of each record.
        labelled: (n,) whether each record can validate.
        num_folds: k.

    Returns:
        The numbers of each group, ascending over all groups; None if there are fewer than k, if a patient is in two
        groups, or if a group holds less than half of its even share of the labelled records.
    """
    numbers = np.unique(published_fold)
    if len(numbers) < num_folds:
        return None
    groups = [tuple(group.tolist()) for group in np.array_split(numbers, num_folds)]
    sizes = [int((np.isin(published_fold, group) & labelled).sum()) for group in groups]
    if min(sizes) < LEAST_SHARE * sum(sizes) / num_folds:
        return None
    members = [set(patients[np.isin(published_fold, group)].tolist()) for group in groups]
    return tuple(groups) if sum(map(len, members)) == len(set().union(*members)) else None


def deal(patients: NDArray[np.object_], marks: NDArray[np.float64], *, num_folds: int, seed: int) -> NDArray[np.int64]:
    """Deal whole patients to k folds so that each fold gets an even share of each mark.

    The mark that the fewest waiting patients carry is dealt first, from the patient with most of it to the one with
    least, each to the fold that still lacks most of it; of several to the one that lacks most of the last mark.

    Args:
        patients: (n,) of each record.
        marks: (n, m) what each record carries of each mark; every record carries something of the last one.
        num_folds: k.
        seed: of the order of the patients.

    Returns:
        (n,) the fold of each record, from 0. It does not depend on the order of the records.

    Source: iterative stratification, Sechidis et al. 2011, ECML PKDD (there of records, and ties by chance).
    """
    names = sorted(set(patients.tolist()))
    position = {name: place for place, name in enumerate(names)}
    place_of_record = np.array([position[name] for name in patients.tolist()])
    carried = np.zeros((len(names), marks.shape[1]))
    np.add.at(carried, place_of_record, marks)
    order = np.random.default_rng((seed, DEALING)).permutation(len(names))

    lacking = np.tile(carried.sum(axis=0) / num_folds, (num_folds, 1))  # (k, m)
    fold_of_patient = np.full(len(names), NEITHER, dtype=np.int64)
    waiting = order
    while len(waiting):
        carriers = (carried[waiting] > 0).sum(axis=0)
        mark = int(np.where(carriers > 0, carriers, np.inf).argmin())
        of_mark = waiting[carried[waiting, mark] > 0]
        for patient in of_mark[np.argsort(-carried[of_mark, mark], kind="stable")]:
            fold = max(range(num_folds), key=lambda one: (lacking[one, mark], lacking[one, -1]))
            fold_of_patient[patient] = fold
            lacking[fold] -= carried[patient]
        waiting = waiting[fold_of_patient[waiting] == NEITHER]
    dealt: NDArray[np.int64] = fold_of_patient[place_of_record]
    return dealt
