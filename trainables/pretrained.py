"""Pre-trainings that the joint trials of a study share: one with equal settings goes on where another's states end.

Nothing of a pre-training follows from the settings of fine-tuning or from the trial's number, and its randomness
follows from the seed, which all trials of a study have in common. So equal settings give equal states, bit for bit on
one kind of machine, and a study keeps the last state of each pre-training by a digest of all that it depends on:

    STUDY/pretrained/<digest>/epoch-0005.safetensors

It is a second name (a hard link) of the state that the trial has saved anyway, so that it costs no writing. It holds
what each epoch has reported, which a trial that takes it over reports again without computing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainables.files import StorageError, copy_atomically, read_metadata, writing_to
from trainables.recordings import Recordings, subsample_seed
from trainables.room import files_of, make_room, used
from trainables.settings import Run
from trainables.source import source_digest
from trainables.state import LAST, read_place

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of what is kept; another one is never taken over."""
CODE = ("data", "models", "trainables")
"""The packages that a training's numbers depend on."""
PLACES = {"name", "root", "store_dir", "download", "max_unreadable_share"}
"""Keys of `data` that say where the recordings are; the store's hash says what they are."""
TRIES = 3
"""How often a state is put into a folder that another trial may delete at the same moment."""


def digest_of(run: Run, recordings: Recordings) -> str:
    """A digest of all that the pre-training of a joint run depends on, and of nothing else.

    Args:
        run: a joint one.
        recordings: the run's.
    """
    rows = [(split.pretrain, split.train, split.valid) for split in recordings.splits]
    made_of = {
        "format": FORMAT,
        "code": code_of_this_process(),
        "seed": run.seed,
        "subsample_seed": subsample_seed(run.data, run.seed),
        "model": run.model.model_dump(mode="json", by_alias=True),
        "data": run.data.model_dump(mode="json", by_alias=True, exclude=PLACES),
        "task": run.task.model_dump(mode="json", by_alias=True, exclude={"finetune"}),
        "store": recordings.store.hash,
        "rows": [[hashlib.sha256(part.tobytes()).hexdigest() for part in parts] for parts in rows],
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache  # what a process asks first it has just imported; files that change later it does not run
def code_of_this_process() -> tuple[str, ...]:
    """What the numbers of a training depend on beside its settings: our source, and those who compute for it."""
    return source_digest(CODE), torch.__version__, np.__version__


@dataclass(frozen=True)
class Shelf:
    """The kept states of one pre-training, among those of a study.

    Whatever other trials do meanwhile, on whichever node, a state is whole or not there, and one that is missing is
    computed. A file that cannot be read is deleted.

    Attributes:
        folder: of all pre-trainings of the study, seen by every node.
        digest: of this one.
        max_bytes: of all of them; those that were not used for longest go first.
    """

    folder: Path
    digest: str
    max_bytes: float

    @property
    def path(self) -> Path:
        """Where this pre-training's states are."""
        return self.folder / self.digest

    def take_over(self, target: Path) -> list[dict[str, Any]]:
        """Put the furthest state into a trial's folder, if it is further than the trial's own.

        Args:
            target: the trial's folder.

        Returns:
            What the epochs have reported that the trial need not compute, as in `TrainState.history`; empty where it is
            as far itself, or begins from the beginning.

        Raises:
            StorageError: if the trial's folder cannot be read or written.
        """
        place = read_place(target)
        if place is not None and place["stage"] != "pretrain":
            return []
        own = 0 if place is None else place["epoch"]
        aside = target / f".{LAST}.taken.partial"
        try:
            for path in self._states():
                if not _link(path, aside):
                    continue
                # read under a name of its own: another trial may delete the first at any moment
                kept = _whole(aside)
                if kept is None or kept["stage"] != "pretrain":
                    path.unlink(missing_ok=True)
                    continue
                if kept["epoch"] > own:
                    with writing_to(target / LAST):
                        aside.replace(target / LAST)
                    used(self.path)
                history: list[dict[str, Any]] = kept["history"][own:]
                return history
        finally:
            aside.unlink(missing_ok=True)
        return []

    def put(self, state: Path, epoch: int) -> None:
        """Keep a state that a trial has just saved, and of this pre-training no earlier one.

        Args:
            state: the trial's file.
            epoch: at which it stands.

        Raises:
            StorageError: on a full or read-only disk.
        """
        kept = self.path / f"epoch-{epoch:04d}.safetensors"
        with writing_to(kept):
            for _ in range(TRIES):
                if kept.exists() or _link(state, kept):
                    break
            used(self.path)
        for other in self._states():
            if other.name < kept.name:
                other.unlink(missing_ok=True)
        make_room(self.folder, self.max_bytes)

    def _states(self) -> list[Path]:
        """The kept states, the furthest first; there are two only while one replaces the other."""
        return files_of(self.path)[::-1]


def shelf_of(run: Run, recordings: Recordings, folder: Path, max_bytes: float) -> Shelf | None:
    """The shelf of a run's pre-training; None where its trial does not fine-tune after one.

    Args:
        run: of the trial.
        recordings: the run's.
        folder: of all pre-trainings of the study.
        max_bytes: of all of them.
    """
    return Shelf(folder, digest_of(run, recordings), max_bytes) if run.task.stages == "joint" else None


def _whole(path: Path) -> Mapping[str, Any] | None:
    """Where a kept state stands; None where it is damaged."""
    try:
        place: Mapping[str, Any] = json.loads(read_metadata(path)["state"])
    except (StorageError, KeyError, ValueError) as error:
        logger.warning("a kept pre-training is computed again: %s", error)
        return None
    return place


def _link(source: Path, target: Path) -> bool:
    """Give a file that nobody changes a second name, in the place of what has it.

    Returns:
        False where the file, or the folder that was made for its second name, is gone.

    Raises:
        StorageError: on a full or read-only disk.
    """
    partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}.partial")
    with writing_to(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            os.link(source, partial)
            partial.replace(target)
        except FileNotFoundError:
            return False
        except OSError:  # of a file system without hard links
            if not source.exists():
                return False
            copy_atomically(source, target)
        finally:
            partial.unlink(missing_ok=True)  # where both were names of one file already, the rename has done nothing
    return True
