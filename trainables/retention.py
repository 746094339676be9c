"""Which models stay on disk: a study's best few across all its trials, and the default configuration's.

Everything here may be interrupted anywhere and done again: a checkpoint is whole once its JSON is there, and its JSON
says its trial and value, so that the folders can be put in order from what is found in them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from trainables.checkpoint import DESCRIPTION, copy_weights, describe, read_description
from trainables.files import writing_to
from trainables.study import StudyFolder

DEFAULT_TRIAL = 0
OURS = re.compile(r"best_\d+|\.trial_\d+")
"""Names of the folders that are put in order; whatever else lies beside them is a user's."""


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


def _write(folder: Path, weights: Path, description: dict[str, Any]) -> None:
    with writing_to(folder):
        _remove(folder)
    copy_weights(weights, folder)
    describe(folder, description)


def _remove(folder: Path) -> None:
    """Delete a checkpoint, the JSON first: what a crash leaves of it is then no checkpoint."""
    if folder.exists():
        (folder / DESCRIPTION).unlink(missing_ok=True)
        shutil.rmtree(folder)


def arrange(study: StudyFolder, *, keep_best: int, maximize: bool) -> None:
    """Name the study's checkpoints by rank and delete those beyond `keep_best` and those never finished.

    Raises:
        StorageError: if one cannot be read, or on a read-only disk.
    """
    if not study.checkpoints.exists():
        return
    with writing_to(study.checkpoints):
        found = _found(study.checkpoints)
        sign = -1 if maximize else 1
        ranked = sorted(found, key=lambda trial: (sign * found[trial][0], trial))
        # all leave their ranks before one takes a rank: no name is taken twice
        waiting = {trial: study.checkpoints / f".trial_{trial:04d}" for trial in ranked}
        for trial in ranked:
            if found[trial][1] != waiting[trial]:
                found[trial][1].rename(waiting[trial])
        for trial in ranked[keep_best:]:
            _remove(waiting[trial])
        for rank, trial in enumerate(ranked[:keep_best], start=1):
            waiting[trial].rename(study.checkpoints / f"best_{rank}")


def _found(checkpoints: Path) -> dict[int, tuple[float, Path]]:
    """Value and folder of every trial that is kept; what is not whole and what is there twice is deleted."""
    found: dict[int, tuple[float, Path]] = {}
    for folder in sorted(checkpoints.iterdir()):  # .trial_N, the newer copy, comes before best_K
        if not OURS.fullmatch(folder.name) or not folder.is_dir():
            continue
        if not (folder / DESCRIPTION).exists():
            _remove(folder)
            continue
        description = read_description(folder)
        if description["trial"] in found:  # a crash between the copy and the order left it twice
            _remove(folder)
            continue
        found[description["trial"]] = (description["value"], folder)
    return found
