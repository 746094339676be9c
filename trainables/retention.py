"""Which models stay on disk: a study's best few across all its trials, and the default configuration's.

Everything here may be interrupted anywhere and done again: a checkpoint is whole once its JSON is there, and its JSON
says its trial and value, so that the folders can be put in order from what is found in them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainables.checkpoint import DESCRIPTION, WEIGHTS, copy_weights, describe, read_description
from trainables.files import writing_to
from trainables.study import StudyError, StudyFolder

DEFAULT_TRIAL = 0
OURS = re.compile(r"best_\d+|\.trial_\d+|\.delivered")
"""Names of the folders that are put in order; whatever else lies beside them is a user's."""
CONFIRMED = "confirmed"
"""Key of the description of a confirmation run's checkpoint, and the folder under checkpoints/ that holds them all."""


def keep(study: StudyFolder, weights: Path, description: dict[str, Any], *, keep_best: int, maximize: bool) -> None:
    """Take a completed trial's best weights into the study's checkpoints, if they belong to its best.

    Args:
        study: whose `checkpoints/` is put in order: best_1, best_2, ..., and default (trial 0's).
        weights: a classifier's safetensors file; it is copied.
        description: of the checkpoint; its "trial" and "value" decide.
        keep_best: how many of the best stay.
        maximize: whether more value is better.

    Raises:
        StorageError: if the weights cannot be read, or on a full or read-only disk.
    """
    trial = description["trial"]
    _write(study.checkpoints / f".trial_{trial:04d}", weights, description)
    if trial == DEFAULT_TRIAL:
        _write(study.checkpoints / "default", weights, description)
    arrange(study, keep_best=keep_best, maximize=maximize)


def confirmed_path(study: StudyFolder, trial: int, index: int) -> Path:
    """Where the model of a confirmation run stays.

    Args:
        study: its study.
        trial: that was trained again.
        index: of its seed, from 1 on.
    """
    return study.checkpoints / CONFIRMED / f"trial_{trial:04d}_seed_{index}"


def deliver(
    study: StudyFolder, chosen: Mapping[str, Any], *, keep_best: int, maximize: bool, weights: bool = True
) -> None:
    """Make the model that a confirmation chose the study's best_1, unless it is; the search's own models follow it.

    Args:
        study: whose `checkpoints/` is put in order.
        chosen: the event `confirmation_chosen`.
        keep_best: how many checkpoints have a rank, this one among them.
        maximize: whether more value is better.
        weights: whether they are wanted, too; a copy to be read does without.

    Raises:
        StudyError: if the model is gone.
        StorageError: if a checkpoint cannot be read, or on a full or read-only disk.
    """
    first = study.checkpoints / "best_1"
    confirmed = {key: chosen[key] for key in ("index", "seed", "mean", "sd", "seeds", "estimate")}
    described = read_description(first) if (first / DESCRIPTION).exists() else {}
    is_there = not weights or (first / WEIGHTS).exists()  # a copy that was made to be read has brought none
    if is_there and (described.get("trial"), described.get(CONFIRMED)) == (chosen["trial"], confirmed):
        return
    source = confirmed_path(study, chosen["trial"], chosen["index"])
    if not (source / DESCRIPTION).exists() or (weights and not (source / WEIGHTS).exists()):
        raise StudyError(f"{source} holds the model that was chosen and is gone: restore it")
    description = read_description(source) | {CONFIRMED: confirmed}
    _write(study.checkpoints / ".delivered", source / WEIGHTS if weights else None, description)
    arrange(study, keep_best=keep_best, maximize=maximize)


def _write(folder: Path, weights: Path | None, description: dict[str, Any]) -> None:
    with writing_to(folder):
        _remove(folder)
    if weights is not None:
        copy_weights(weights, folder)
    describe(folder, description)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, the JSON first: what a crash leaves of it is then no checkpoint."""
    if folder.exists():
        (folder / DESCRIPTION).unlink(missing_ok=True)
        shutil.rmtree(folder)


def arrange(study: StudyFolder, *, keep_best: int, maximize: bool) -> None:
    """Name the study's checkpoints by rank and delete those beyond `keep_best` and those never finished.

    A confirmed model that was delivered has the first rank. The search's best models stay, but one of them has no rank
    then, that of the same trial: it waits as .trial_N until another one is delivered.

    Raises:
        StorageError: if one cannot be read, or on a read-only disk.
    """
    if not study.checkpoints.exists():
        return
    with writing_to(study.checkpoints):
        found, delivered = _found(study.checkpoints)
        sign = -1 if maximize else 1
        ranked = sorted(found, key=lambda trial: (sign * found[trial][0], trial))
        # all leave their ranks before one takes a rank: no name is taken twice
        waiting = {trial: study.checkpoints / f".trial_{trial:04d}" for trial in ranked}
        for trial in ranked:
            if found[trial][1] != waiting[trial]:
                found[trial][1].rename(waiting[trial])
        for trial in ranked[keep_best:]:
            _remove(waiting[trial])
        named, first = ranked[:keep_best], 1
        if delivered is not None:
            chosen, first = read_description(delivered)["trial"], 2
            named = [trial for trial in named if trial != chosen][: keep_best - 1]
            if delivered.name != "best_1":
                delivered.rename(study.checkpoints / "best_1")
        for rank, trial in enumerate(named, start=first):
            waiting[trial].rename(study.checkpoints / f"best_{rank}")


def _found(checkpoints: Path) -> tuple[dict[int, tuple[float, Path]], Path | None]:
    """Value and folder of every trial that is kept, and the delivered model's folder, where one has been.

    What is not whole and what is there twice is deleted.
    """
    found: dict[int, tuple[float, Path]] = {}
    delivered = None
    for folder in sorted(checkpoints.iterdir()):  # .delivered and .trial_N, the newer copies, come before best_K
        if not OURS.fullmatch(folder.name) or not folder.is_dir():
            continue
        if not (folder / DESCRIPTION).exists():
            _remove(folder)
            continue
        description = read_description(folder)
        # a crash between the copy and the order left it twice, or another model has been delivered
        if delivered is not None if CONFIRMED in description else description["trial"] in found:
            _remove(folder)
        elif CONFIRMED in description:
            delivered = folder
        else:
            found[description["trial"]] = (description["value"], folder)
    return found, delivered
