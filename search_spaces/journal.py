"""Optuna's study in a folder: a journal that a killed driver or a full disk leaves whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import get_lock_file

from trainables.files import storage_error
from trainables.study import StudyError

STUDY_NAME = "heartsweep"


class Journal(JournalFileBackend):
    """Optuna's journal file, flushed to the disk once a step of the books, with errors of the disk in one line.

    Optuna would flush every line: a trial that is asked for writes one a parameter. What a step wrote before a crash of
    the machine is a beginning of it, as after a kill, and the books cope with any.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._step_is_open = False
        self._written = False

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations; outside a step, flush them to the disk.

        Raises:
            StorageError: on a full or read-only disk.
        """
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        try:
            self._write(lines.encode())
        except OSError as error:
            raise storage_error(error, Path(self._file_path)) from error
        self._written = True
        if not self._step_is_open:
            self.flush()

    def _write(self, lines: bytes) -> None:
        with get_lock_file(self._lock), open(self._file_path, "ab") as file:
            file.write(lines)

    def flush(self) -> None:
        """Have what was appended on the disk.

        Raises:
            StorageError: on a full or read-only disk.
        """
        if not self._written:
            return
        try:
            with open(self._file_path, "ab") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(error, Path(self._file_path)) from error
        self._written = False

    @contextmanager
    def step(self, *, flush: bool = True) -> Iterator[None]:
        """Flush once, at the end; a step within a step is part of it.

        Args:
            flush: whether at all; else what the step writes reaches the disk with the next one that does.
        """
        if self._step_is_open:
            yield
            return
        self._step_is_open = True
        try:
            yield
        finally:
            self._step_is_open = False
            if flush:
                self.flush()


def open_study(path: Path, direction: Literal["maximize", "minimize"]) -> optuna.Study:
    """The study in the journal at `path`, begun now where there is none.

    Args:
        path: the journal, absolute, in a folder that the caller has locked.
        direction: maximize or minimize.

    Raises:
        StorageError: on a full or read-only disk.
        StudyError: if the file is no journal.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _repair(path)
        storage = JournalStorage(Journal(str(path)))
    except OSError as error:
        raise storage_error(error, path) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # of lines that are no operations
        reason = " ".join(str(error).split())
        raise StudyError(
            f"{path} must be a journal of Optuna's, it cannot be read as one ({type(error).__name__}: {reason}): "
            "restore it, or type study_dir=DIR for a new study"
        ) from error
    if any(study.study_name == STUDY_NAME for study in storage.get_all_studies()):
        return optuna.load_study(study_name=STUDY_NAME, storage=storage)
    return optuna.create_study(study_name=STUDY_NAME, storage=storage, direction=direction)


def journal_of(study: optuna.Study) -> Journal:
    """The journal of a study that `open_study` has opened."""
    journal = study._storage._backend  # type: ignore[attr-defined]
    assert isinstance(journal, Journal)
    return journal


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
