"""Where a trial keeps its state: in the study's folder, or on its own node with a copy in an object store.

With an object store no folder is shared. Each process of a trial then has one of its own on its node, begins with what
the store holds, and the first of them uploads what an epoch has changed before the epoch is reported: the best weights
first, the state last, and only then are weights that are no longer the best deleted, as on a disk.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trainables.checkpoint import DESCRIPTION, WEIGHTS
from trainables.files import StorageError, write_atomically, writing_to
from trainables.remote import RemoteFolder
from trainables.settings import Run
from trainables.state import ATTEMPT, LAST, best_path, read_attempt, read_place

PREFIX = "heartsweep-trial-"


@dataclass
class StateFolder:
    """A trial's folder as one of its processes sees it.

    Attributes:
        path: where the state is read and written.
        remote: its copy in an object store; None where every process sees `path` itself.
        uploaded: what of the files there the store holds: name -> when it was written, and as which inode.
    """

    path: Path
    remote: RemoteFolder | None = None
    uploaded: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pull(self) -> None:
        """Bring the state here that the store holds, if it holds one.

        Raises:
            StorageError: if the store does not give it, or holds only a part of it.
        """
        assert self.remote is not None
        if not self.remote.download(LAST, self.path / LAST):
            return
        place = read_place(self.path)
        assert place is not None
        if place["best"] is not None:
            best = best_path(self.path, place["best"]["epoch"])
            if not self.remote.download(best.name, best):
                raise StorageError(f"{self.remote.url} must hold {best.name}, of which its {LAST} tells: restore it")
            self.uploaded[best.name] = _stamp(best)
        self.uploaded[LAST] = _stamp(self.path / LAST)

    def saved(self) -> None:
        """Take note that a state was saved in `path`: with a store, what it lacks is there when this returns.

        Raises:
            StorageError: if the store does not take it; it still holds the state before.
        """
        if self.remote is None:
            return
        files = {path.name: path for path in sorted(self.path.glob("best-*.safetensors"))}
        files[LAST] = self.path / LAST
        for name, path in files.items():
            if self.uploaded.get(name) != (stamp := _stamp(path)):
                self.remote.upload(path, name)
                self.uploaded[name] = stamp
        for stale in self.uploaded.keys() - files.keys():
            self.remote.delete(stale)
            del self.uploaded[stale]

    def latest_attempt(self) -> int | None:
        """Which attempt at the trial may save; None where the trial has ended.

        Raises:
            StorageError: if it cannot be read.
        """
        if self.remote is None:
            return read_attempt(self.path)
        if (content := self.remote.get(ATTEMPT)) is not None:
            write_atomically(self.path / ATTEMPT, content)
            return read_attempt(self.path)
        return None

    def with_encoder(self, run: Run) -> Run:
        """The run with the encoder that it starts from at hand, where that lies in the store."""
        if self.remote is None or run.task.encoder is None or not run.task.encoder.startswith("s3://"):
            return run
        source, target = RemoteFolder(run.task.encoder), self.path / "encoder"
        for name in (WEIGHTS, DESCRIPTION):
            if not source.download(name, target / name):
                raise StorageError(f"{source.url} must hold {name} of the encoder to start from: type the search again")
        return run.model_copy(update={"task": run.task.model_copy(update={"encoder": str(target)})})


@contextmanager
def state_folder(folder: Path, remote: str | None) -> Iterator[StateFolder]:
    """A trial's folder while this process computes its epochs.

    Args:
        folder: in the study's folder; used where there is no `remote`.
        remote: URL of the trial's folder in an object store.

    Raises:
        StorageError: if what the store holds cannot be brought here.
    """
    if remote is None:
        yield StateFolder(folder)
        return
    own = own_folder()
    try:
        place = StateFolder(own, RemoteFolder(remote))
        place.pull()
        yield place
    finally:
        shutil.rmtree(own, ignore_errors=True)


@dataclass(frozen=True)
class Scratch:
    """Where Ray Train keeps what nobody reads again, seen by every worker of a gang.

    Attributes:
        place: a path, or the URL of a folder in an object store.
    """

    place: str

    @classmethod
    def of(cls, folder: Path, remote: str | None, attempt: int | None) -> Scratch:
        """In the trial's folder, or beside its state in the store; the gang of a paused attempt may still clear its."""
        name = f"train-{attempt}"
        return cls(str(folder / name) if remote is None else f"{remote}/{name}")

    def clear(self) -> None:
        """Delete what is there.

        Raises:
            StorageError: if a store does not answer.
        """
        if self.place.startswith("s3://"):
            RemoteFolder(self.place).delete_under("")
        else:
            shutil.rmtree(self.place, ignore_errors=True)


def folder_held(remote: str | None) -> dict[str, str]:
    """What `trainables.nodes.holding` says besides, of a trial whose state is in a store: this process's folder."""
    if remote is None:
        return {}
    mine = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}{socket.gethostname()}-{os.getpid()}-*"))
    return {"folder": str(mine[0])} if mine else {}


def own_folder() -> Path:
    """A new folder of this process on this machine; those of processes that were killed are deleted."""
    root, mine = Path(tempfile.gettempdir()), f"{PREFIX}{socket.gethostname()}-"
    for left in root.glob(f"{mine}*"):
        pid = left.name.removeprefix(mine).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)  # another user's stays: it cannot be deleted
    with writing_to(root):
        return Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=root))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino
