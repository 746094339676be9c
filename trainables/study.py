"""A study's folder: what lies where, who may write to it, and the log of what happened."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from trainables.files import StorageError, write_atomically, writing_to


class StudyError(ValueError):
    """A study cannot be used as asked; the message is one line: what was found, where, what to type."""


@dataclass(frozen=True)
class StudyFolder:
    """The names in a study's folder. Copy the folder and the study has moved.

    Attributes:
        path: the folder, absolute.
        on_record: called after each event that is recorded here, by the thread that records it.
    """

    path: Path
    on_record: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    @property
    def configuration(self) -> Path:
        """The resolved configuration of the study's last launch."""
        return self.path / "study.yaml"

    @property
    def journal(self) -> Path:
        """Optuna's journal: the truth for states and values."""
        return self.path / "journal.log"

    @property
    def events(self) -> Path:
        """One JSON object a line: the write-ahead log of everything else."""
        return self.path / "events.jsonl"

    @property
    def trials(self) -> Path:
        """One row a trial, for a reader without Optuna."""
        return self.path / "trials.parquet"

    @property
    def checkpoints(self) -> Path:
        """The study's best models and the default configuration's."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """A copy of the checkpoint that all trials start from (task.encoder), where they do."""
        return self.path / "encoder"

    @property
    def pretrained(self) -> Path:
        """The pre-trainings that joint trials share; whatever is deleted there is computed again when it is needed."""
        return self.path / "pretrained"

    @property
    def embeddings(self) -> Path:
        """What frozen encoders give, which trials share; whatever is deleted there is computed again, likewise."""
        return self.path / "embeddings"

    @property
    def code(self) -> Path:
        """What the code had beside its commit when the study was started or resumed."""
        return self.path / "code"

    @property
    def report(self) -> Path:
        """The report, its figures and the predictions behind them."""
        return self.path / "report"

    @property
    def log(self) -> Path:
        """What Ray, its workers and the libraries say while the study runs."""
        return self.path / "ray.log"

    @property
    def scratch(self) -> Path:
        """Tune's own files while a search runs; never read again."""
        return self.path / ".scratch"

    def trial(self, number: int) -> Path:
        """Where a running or interrupted trial keeps its last state and its best weights."""
        return self.path / "running" / f"{number:04d}"

    def read_configuration(self) -> dict[str, Any]:
        """The configuration of the study's last launch.

        Raises:
            StudyError: if there is no study in the folder, or its configuration is damaged.
        """
        try:
            content = self.configuration.read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StudyError(f"{self.path} holds no study (no study.yaml): name one with study_dir=DIR") from error
        except OSError as error:
            raise StudyError(f"{self.configuration} cannot be read ({error}): restore it") from error
        return configuration_in(content, str(self.configuration))

    def write_configuration(self, tree: dict[str, Any]) -> None:
        """Keep the resolved configuration."""
        text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        write_atomically(self.configuration, text.encode())

    def record(self, event: str, **values: Any) -> dict[str, Any]:
        """Append one event and flush it to the disk before returning.

        Raises:
            StorageError: on a full or read-only disk.
        """
        line: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **values}
        content = json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
        with writing_to(self.events):
            self.path.mkdir(parents=True, exist_ok=True)
            with self.events.open("a+b") as file:
                if file.tell() > 0:  # a crash may have cut the last line off: begin a new one
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(content.encode())
                file.flush()
                os.fsync(file.fileno())
        if self.on_record is not None:
            self.on_record()
        return line

    def read_events(self) -> Iterator[dict[str, Any]]:
        """All events in order; a line that a crash has cut off, or that is none, is left out."""
        if not self.events.exists():
            return
        with self.events.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict) and "event" in event:
                    yield event

    def is_in_use(self) -> bool:
        """Whether a process of this machine holds the folder now."""
        if not (self.path / "lock").exists():
            return False
        with (self.path / "lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone; the lock ends with the process, however it ends.

        Raises:
            StudyError: if another process holds it, with its host and process number.
            StorageError: on a full or read-only disk.
        """
        path = self.path / "lock"
        with writing_to(path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = path.open("a+b", buffering=0)
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                raise StudyError(
                    f"{self.path} is in use by {holder}: wait for it, stop it, or type another study_dir=DIR"
                ) from error
            except OSError as error:
                raise StorageError(
                    f"{path} cannot be locked ({error}): choose another folder with study_dir=DIR"
                ) from error
            started = datetime.now(UTC).isoformat(timespec="seconds")
            with writing_to(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {started}".encode())
            try:
                yield
            finally:
                file.truncate(0)


def configuration_in(content: bytes, place: str) -> dict[str, Any]:
    """The configuration in the bytes of a study.yaml.

    Args:
        content: of the file.
        place: where it lies, for the message.

    Raises:
        StudyError: if it is damaged.
    """
    try:
        tree = yaml.safe_load(content.decode())
    except (ValueError, yaml.YAMLError) as error:
        raise StudyError(f"{place} cannot be read ({' '.join(str(error).split())}): restore it") from error
    if not isinstance(tree, dict):
        raise StudyError(f"{place} must hold a configuration, got {tree!r:.50}: restore it")
    return tree
