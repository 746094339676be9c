"""Optuna's study in a folder: a journal that a killed driver or a full disk leaves whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trainables.files import storage_error

STUDY_NAME = "heartsweep"


class Journal(JournalFileBackend):
    """Optuna's journal file, with errors of the disk in one line."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations and flush them to the disk.

        Raises:
            StorageError: on a full or read-only disk.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise storage_error(error, Path(self._file_path)) from error


def open_study(path: Path, direction: Literal["maximize", "minimize"]) -> optuna.Study:
    """The study in the journal at `path`, begun now where there is none.

    Args:
        path: the journal, absolute, in a folder that the caller has locked.
        direction: maximize or minimize.

    Raises:
        StorageError: on a full or read-only disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _repair(path)
        storage = JournalStorage(Journal(str(path)))
    except OSError as error:
        raise storage_error(error, path) from error
    if any(study.study_name == STUDY_NAME for study in storage.get_all_studies()):
        return optuna.load_study(study_name=STUDY_NAME, storage=storage)
    return optuna.create_study(study_name=STUDY_NAME, storage=storage, direction=direction)


def _repair(path: Path) -> None:
    """Put away what a driver that was killed while writing left behind; nobody else writes here now.

    Optuna would wait half a minute for the lock, and for ever once the folder has been moved; it would append to half
    a line, and never read the journal again.
    """
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink()
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
