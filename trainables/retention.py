"""Which models stay on disk: a study's best few across all its trials, and the default configuration's.

Everything here may be interrupted anywhere and done again: a checkpoint is whole once its JSON is there, and its JSON
says its trial and value, so that the folders can be put in order from what is found in them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trainables.checkpoint import DESCRIPTION, WEIGHTS, describe, read_description
from trainables.files import storage_error, write_atomically
from trainables.study import StudyFolder

DEFAULT_TRIAL = 0


def keep(study: StudyFolder, weights: Path, description: dict[str, Any], *, keep_best: int, maximize: bool) -> None:
    """Take a completed trial's best weights into the study's checkpoints, if they belong to its best.

    Args:
        study: whose `checkpoints/` is put in order: best_1, best_2, ..., and default (trial 0's).
        weights: a classifier's safetensors file; it is copied.
        description: of the checkpoint; its "trial" and "value" decide.
        keep_best: how many of the best stay.
        maximize: whether more value is better.

    Raises:
        StorageError: on a full or read-only disk.
    """
    trial = description["trial"]
    _write(study.checkpoints / f".trial_{trial:04d}", weights, description)
    if trial == DEFAULT_TRIAL:
        _write(study.checkpoints / "default", weights, description)
    arrange(study, keep_best=keep_best, maximize=maximize)


def _write(folder: Path, weights: Path, description: dict[str, Any]) -> None:
    (folder / DESCRIPTION).unlink(missing_ok=True)  # not whole until the JSON is back
    try:
        content = weights.read_bytes()
    except OSError as error:
        raise storage_error(error, weights) from error
    write_atomically(folder / WEIGHTS, content)
    describe(folder, description)


def arrange(study: StudyFolder, *, keep_best: int, maximize: bool) -> None:
    """Name the study's checkpoints by rank and delete those beyond `keep_best` and those never finished."""
    if not study.checkpoints.exists():
        return
    found: dict[int, tuple[float, Path]] = {}
    for folder in sorted(study.checkpoints.iterdir()):
        if folder.name == "default" or not folder.is_dir():
            continue
        if not (folder / DESCRIPTION).exists():
            shutil.rmtree(folder)
            continue
        description = read_description(folder)
        if description["trial"] in found:  # a crash between the copy and the order left it twice
            shutil.rmtree(folder)
            continue
        found[description["trial"]] = (description["value"], folder)
    sign = -1 if maximize else 1
    ranked = sorted(found, key=lambda trial: (sign * found[trial][0], trial))
    for trial in ranked:
        waiting = study.checkpoints / f".trial_{trial:04d}"
        if found[trial][1] != waiting:
            found[trial][1].rename(waiting)
    for rank, trial in enumerate(ranked, start=1):
        waiting = study.checkpoints / f".trial_{trial:04d}"
        if rank <= keep_best:
            waiting.rename(study.checkpoints / f"best_{rank}")
        else:
            shutil.rmtree(waiting)
