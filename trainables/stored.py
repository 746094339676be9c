"""A study in an object store: its folder is then a working copy on the driver's machine, and this keeps the two equal.

In the store:

    study.yaml, trials.parquet, report/, encoder/, code/   as in the folder
    batches/                                        both books (trainables.batches); the truth for all else
    models/<trial>/                                 the kept checkpoints, by trial instead of by rank
    checkpoints/confirmed/                          the models of confirmation runs, as in the folder
    running/<trial>/                                states of trials under way, written by the trials themselves
    holder.json                                     the driver that runs now

A step of the books is stored behind the driver's back, by a thread, so that a slow store holds up no trial; at most one
batch is not stored yet, into which the steps that follow go, and a driver that gets `MAX_BEHIND_S` ahead waits. Models
are stored before the batch that says that they are kept; what a step makes superfluous is deleted after its batch.
So whatever is lost with the machine, the rest is what a driver killed a little earlier would have left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from trainables.batches import FOLDER, Batch, bring_up, digest_of, joined, names_of_books
from trainables.checkpoint import DESCRIPTION, WEIGHTS, read_description
from trainables.files import StorageError, copy_atomically, read_bytes
from trainables.remote import RemoteFolder
from trainables.retention import CONFIRMED, OURS, arrange, deliver
from trainables.settings import Run
from trainables.state import ATTEMPT, LAST
from trainables.study import StudyError, StudyFolder, configuration_in

MAX_BEHIND_S = 10.0
"""How far the driver may get ahead of the store before it waits."""
BEAT_S = 15.0
"""How often a driver says that it is alive."""
SILENT_S = 60.0
"""After this long without a word the driver that held a study is taken to be dead."""
OUTBOX = ".to_store"
"""Where the working copy holds models until they are stored."""
HOLDER, MODELS, RUNNING = "holder.json", "models/", "running/"


KEY = re.compile(r"(\d{4,})-[0-9a-f]{12}")
NUMBER = re.compile(rf"{RUNNING}(\d{{4,}})-")
"""What others put beside our objects has other names, and is left alone."""


def key_of(number: int, params: Mapping[str, Any], exploits: Collection[Mapping[str, Any]]) -> str:
    """What a trial's objects lie under: another key for other choices.

    Where the machine is lost with a batch, a number may be given out again with other choices, or a trial may not take
    over another's weights after all: it must not go on from what was computed before that.
    """
    made_of = json.dumps([dict(params), list(exploits)], sort_keys=True)
    return f"{number:04d}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


class States(Protocol):
    """What a study's books ask of the place where trials keep their states and models."""

    def remote_of(self, key: str) -> str | None:
        """URL of the store's folder of a trial's state; None where it lies in the study's folder."""

    def run_of(self, run: Run) -> Run:
        """A run as a trial on any node can begin it."""

    def fetch(self, folder: Path, key: str, name: str) -> None:
        """Bring a file of a trial's state into its folder, if it lies elsewhere."""

    def hand_over(self, folder: Path, key: str) -> None:
        """Let a trial begin from the state in `folder`; done when this returns."""

    def let(self, attempt: int, key: str) -> None:
        """Let this attempt at a trial save, and no earlier one; done when this returns."""

    def drop(self, number: int) -> None:
        """Delete a trial's states, once what was written down before this is safe."""

    def kept(self) -> None:
        """Take note that the study's checkpoints have changed."""

    def tidy(self, waiting: Collection[int], ended: Collection[int]) -> None:
        """Delete the states that a driver before this one left of trials that have ended or that nobody knows."""

    def push(self, folder: Path) -> None:
        """Keep the files of a folder of the study, those that have changed; done when this returns."""


class InFolder:
    """States lie in the study's folder, which every node sees: nothing is left to do."""

    def remote_of(self, key: str) -> str | None:
        """None: it is not elsewhere."""
        return None

    def run_of(self, run: Run) -> Run:
        """The run itself."""
        return run

    def fetch(self, folder: Path, key: str, name: str) -> None:
        """Nothing."""

    def hand_over(self, folder: Path, key: str) -> None:
        """Nothing."""

    def let(self, attempt: int, key: str) -> None:
        """Nothing: the ledger writes it into the trial's folder."""

    def drop(self, number: int) -> None:
        """Nothing: the folder has been deleted."""

    def kept(self) -> None:
        """Nothing."""

    def tidy(self, waiting: Collection[int], ended: Collection[int]) -> None:
        """Nothing."""

    def push(self, folder: Path) -> None:
        """Nothing."""


@dataclass
class Pending:
    """What is to be stored next: first the models, then the books up to here, then what has become superfluous."""

    lengths: dict[str, int]
    models: dict[str, Path] = field(default_factory=dict)
    """Key -> a folder of links to its files, to be deleted then."""
    superfluous: list[str] = field(default_factory=list)
    """What the names of objects to delete begin with."""


class Stored:
    """The store's side of a study, for its one driver.

    Args:
        study: the working copy, locked by the caller.
        remote: the study's folder in the store.
    """

    def __init__(self, study: StudyFolder, remote: RemoteFolder) -> None:
        self.study = study
        self.remote = remote
        self._me: dict[str, Any] = {
            "session": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._books = names_of_books(study)
        self._number, self._previous = 0, ""
        self._lengths = dict.fromkeys(self._books, 0)
        self._models: set[str] = set()
        self._written: dict[str, tuple[int, int]] = {}
        self._changed = threading.Condition()
        self._pending: Pending | None = None
        self._models_to_do: dict[str, Path] = {}
        self._superfluous: list[str] = []
        self._busy_since: float | None = None
        self._error: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)

    def __reduce__(self) -> tuple[type[RemoteFolder], tuple[str]]:
        """Tune pickles all it is given into its scratch folder, which is never read: the URL will do there."""
        return RemoteFolder, (self.remote.url,)

    # -------- opening

    def bring_up(self, *, weights: bool = True) -> None:
        """Make the working copy what the store holds, unless it holds more of the same study.

        Args:
            weights: whether the models' weights are wanted, too.

        Raises:
            StudyError: if the folder holds another study.
            StorageError: if the store cannot be read, or holds no whole study.
        """
        shutil.rmtree(self.study.path / OUTBOX, ignore_errors=True)
        names = self.remote.names()
        batches = [name for name in names if name.startswith(FOLDER)]
        objects = zip(batches, self.remote.get_many(batches), strict=True)
        books, known, self._previous = joined(objects, self._books)
        stood = bring_up(self.study, books, self.remote.url)
        # one that only reads has nothing of its own; a driver that was killed may have evaluated what is not stored yet
        reports_are_stale = stood == "behind" or (stood == "equal" and not weights)
        self._number, self._lengths = len(known), {book: len(content) for book, content in books.items()}
        described = (name.split("/") for name in names if name.startswith(MODELS) and name.endswith(f"/{DESCRIPTION}"))
        self._models = {parts[1] for parts in described if KEY.fullmatch(parts[1])}
        for name in names:
            path = self.study.path / name
            stale = reports_are_stale and (name.startswith("report/") or name == self.study.trials.name)
            wanted = ("report/", "encoder/", "code/", self.study.trials.name, f"{self.study.checkpoints.name}/")
            lacking = name.startswith(wanted) and not path.exists() and (weights or path.name != WEIGHTS)
            if name == self.study.configuration.name or stale or lacking:
                self.remote.download(name, path)
                self._written[name] = _stamp(path)
        self._bring_models(weights=weights)

    def _bring_models(self, *, weights: bool) -> None:
        """The kept checkpoints, into folders that `retention.arrange` then names by rank."""
        ended = [event for event in self.study.read_events() if event["event"] == "trial_ended"]
        complete = {event["trial"] for event in ended if event["state"] == "COMPLETE"}
        here = {key: folder for key, folder in self._kept_here() if (folder / WEIGHTS).exists() or not weights}
        for key in sorted(self._models - here.keys()):
            if int(key.partition("-")[0]) not in complete:  # the machine was lost before its end was stored
                continue
            folder = self.study.checkpoints / f".trial_{key.partition('-')[0]}"
            if weights:
                self.remote.download(f"{MODELS}{key}/{WEIGHTS}", folder / WEIGHTS)
            self.remote.download(f"{MODELS}{key}/{DESCRIPTION}", folder / DESCRIPTION)
            if read_description(folder)["trial"] == 0:
                for name in (WEIGHTS, DESCRIPTION) if weights else (DESCRIPTION,):
                    copy_atomically(folder / name, self.study.checkpoints / "default" / name)

    def _kept_here(self) -> Iterator[tuple[str, Path]]:
        """Keys and folders of the whole checkpoints of the working copy."""
        if not self.study.checkpoints.exists():
            return
        for folder in sorted(self.study.checkpoints.iterdir()):
            ours = OURS.fullmatch(folder.name) or folder.name == "default"
            if ours and (folder / DESCRIPTION).exists():
                told = read_description(folder)
                if CONFIRMED in told:  # these are stored under their own names (push)
                    continue
                yield key_of(told["trial"], told["params"], told.get("exploits", [])), folder

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Claim the study for this driver and store what follows, until the block ends; then all is stored.

        Raises:
            StudyError: if another driver has claimed it since it was read.
            StorageError: if the store does not take what is to be stored.
        """
        self.remote.check_creates_only()
        self._store_books({book: self._lengths[book] for book in self._books}, claim=True)
        self._beat(0)
        self._thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(StorageError, StudyError):
                self.step()
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._thread.join()
            if self._error is None:
                self.remote.delete(HOLDER)
        with self._changed:
            self._raise()

    # -------- the driver's side

    def step(self) -> None:
        """Have all that has been written so far stored; called by the thread that writes the books, between two steps.

        Raises:
            StudyError: if another driver has taken the study over.
            StorageError: if the store did not take what came before.
        """
        with self._changed:
            self._raise()
            lengths = {book: _whole_length(self.study.path / book) for book in self._books}
            self._pending = Pending(lengths, **self._to_do_with(self._pending))
            self._changed.notify_all()
            while self._busy_since is not None and time.monotonic() - self._busy_since > MAX_BEHIND_S:
                self._changed.wait(timeout=1.0)
                self._raise()

    def flush(self) -> None:
        """Have all that has been written so far stored, and wait until it is.

        Raises:
            StudyError, StorageError: as `step`.
        """
        self.step()
        with self._changed:
            while self._pending is not None or self._busy_since is not None:
                self._changed.wait(timeout=1.0)
                self._raise()

    def _to_do_with(self, waiting: Pending | None) -> dict[str, Any]:
        """What goes with the books as they are now, after what already waits."""
        models, superfluous = self._models_to_do, self._superfluous
        self._models_to_do, self._superfluous = {}, []
        if waiting is not None:
            models, superfluous = waiting.models | models, waiting.superfluous + superfluous
        return {"models": models, "superfluous": superfluous}

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def remote_of(self, key: str) -> str | None:
        """URL of a trial's state."""
        return self.remote.under(f"{RUNNING}{key}").url

    def run_of(self, run: Run) -> Run:
        """A run that starts from the store's copy of the encoder, where it starts from one."""
        if run.task.encoder is None:
            return run
        task = run.task.model_copy(update={"encoder": self.remote.under(self.study.encoder.name).url})
        return run.model_copy(update={"task": task})

    def fetch(self, folder: Path, key: str, name: str) -> None:
        """Bring a file of a trial's state into its folder; what the store does not hold is not there either.

        Raises:
            StorageError: if the store does not give it.
        """
        if not self.remote.download(f"{RUNNING}{key}/{name}", folder / name):
            (folder / name).unlink(missing_ok=True)

    def hand_over(self, folder: Path, key: str) -> None:
        """Store the state in `folder` as that of the trial with this key.

        Raises:
            StorageError: if the store does not take it.
        """
        self.remote.upload(folder / LAST, f"{RUNNING}{key}/{LAST}")

    def let(self, attempt: int, key: str) -> None:
        """Let this attempt at a trial save to the store, and no earlier one.

        Raises:
            StorageError: if the store does not take it.
        """
        self.remote.put(f"{RUNNING}{key}/{ATTEMPT}", str(attempt).encode())

    def drop(self, number: int) -> None:
        """Delete a trial's states, after the batch that says that it has ended."""
        with self._changed:
            self._superfluous.append(f"{RUNNING}{number:04d}-")

    def kept(self) -> None:
        """Store the models that are kept now and are not in the store, delete those that are no longer kept."""
        here = dict(self._kept_here())
        with self._changed:
            for key in here.keys() - self._models:
                self._models_to_do[key] = self._linked(key, here[key])
                for waiting in (self._superfluous, [] if self._pending is None else self._pending.superfluous):
                    if f"{MODELS}{key}/" in waiting:  # left by a driver that lost the batch, and made again
                        waiting.remove(f"{MODELS}{key}/")
            self._superfluous += [f"{MODELS}{key}/" for key in self._models - here.keys()]
            self._models = set(here)

    def _linked(self, key: str, folder: Path) -> Path:
        """Links to a checkpoint's files, which stay when the checkpoint is renamed or deleted."""
        linked = self.study.path / OUTBOX / key
        shutil.rmtree(linked, ignore_errors=True)
        linked.mkdir(parents=True)
        for name in (WEIGHTS, DESCRIPTION):
            try:
                os.link(folder / name, linked / name)
            except OSError:  # a file system without links
                copy_atomically(folder / name, linked / name)
        return linked

    def tidy(self, waiting: Collection[int], ended: Collection[int]) -> None:
        """Delete the states that a driver before this one left, but not those of `waiting` trials.

        Of `ended` ones once it is safe that they have ended; of trials that the books have lost now, before their
        numbers are given out again.

        Raises:
            StorageError: if the store does not.
        """
        there = {int(found[1]) for name in self.remote.names(RUNNING) if (found := NUMBER.match(name))}
        for number in sorted(there - set(waiting)):
            if number in ended:
                self.drop(number)
            else:
                self.remote.delete_under(f"{RUNNING}{number:04d}-")

    def push(self, folder: Path) -> None:
        """Store the files of a folder of the study, those that have changed; done when this returns.

        Raises:
            StorageError: if the store does not take them.
        """
        for path in sorted(folder.rglob("*"), key=lambda path: (path.name == DESCRIPTION, path)):
            name = path.relative_to(self.study.path).as_posix()
            if path.is_file() and not path.name.startswith(".") and self._written.get(name) != (stamp := _stamp(path)):
                self.remote.upload(path, name)
                self._written[name] = stamp

    # -------- the thread's side

    def _work(self) -> None:
        beat = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing, timeout=BEAT_S)
                pending, self._pending = self._pending, None
                if pending is None and self._closing:
                    return
                if pending is not None:
                    self._busy_since = time.monotonic()
            try:
                if pending is not None:
                    self._store(pending)
                beat += 1
                self._beat(beat)
            except Exception as error:  # noqa: BLE001  raised again in the driver's thread
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            finally:
                with self._changed:
                    self._busy_since = None
                    self._changed.notify_all()

    def _store(self, pending: Pending) -> None:
        self._push_file(self.study.configuration)
        for key, folder in pending.models.items():
            for name in (WEIGHTS, DESCRIPTION):
                self.remote.upload(folder / name, f"{MODELS}{key}/{name}")
            shutil.rmtree(folder, ignore_errors=True)
        self._store_books(pending.lengths)
        for prefix in pending.superfluous:
            self.remote.delete_under(prefix)
        self._push_file(self.study.trials)

    def _push_file(self, path: Path) -> None:
        """Store a small file of the folder if it has changed."""
        if path.exists() and self._written.get(path.name) != (stamp := _stamp(path)):
            self.remote.put(path.name, read_bytes(path))
            self._written[path.name] = stamp

    def _store_books(self, lengths: Mapping[str, int], *, claim: bool = False) -> None:
        """Store what the books have got since the last batch, as the next one."""
        added = {book: _part(self.study.path / book, self._lengths[book], end) for book, end in lengths.items()}
        if not claim and not any(added.values()):
            return
        batch = Batch(self._number, self._me["session"], self._holder, self._previous, dict(self._lengths), added)
        content = batch.encode()
        if not self.remote.create(batch.name, content):
            other = Batch.decode(batch.name, self.remote.get(batch.name))
            raise self._taken_over(other.holder)
        self._number, self._previous, self._lengths = batch.number + 1, digest_of(content), dict(lengths)

    def _taken_over(self, holder: str) -> StudyError:
        return StudyError(
            f"{self.remote.url} is in use by {holder}, which has taken it over: wait for it, stop it, or type another "
            "storage=URL"
        )

    @property
    def _holder(self) -> str:
        return _words(self._me)

    def _beat(self, number: int) -> None:
        """Say that this driver is alive; hear whether another one is."""
        told = _read_holder(self.remote) if number else None
        if told is not None and told["session"] != self._me["session"]:
            raise self._taken_over(_words(told))
        self.remote.put(HOLDER, json.dumps({**self._me, "beat": number}).encode())


def refuse_if_held(remote: RemoteFolder, say: Callable[[str], None], *, silent_s: float = SILENT_S) -> None:
    """Refuse a study whose driver is alive; one that is silent for `silent_s`, or was of this machine, is not.

    Clocks of two machines are never compared: a driver is alive if what it says of itself changes.

    Raises:
        StudyError: with who holds it.
        StorageError: if the store does not answer.
    """
    first = _read_holder(remote)
    if first is None or _is_dead(first):
        return
    holder = _words(first)
    say(f"{remote.url} was last held by {holder}: looking for up to {silent_s:g} s whether it still runs")
    until = time.monotonic() + silent_s
    while time.monotonic() < until:
        time.sleep(min(1.0, silent_s / 10))
        now = _read_holder(remote)
        if now is None:
            return
        if now != first:
            raise StudyError(f"{remote.url} is in use by {holder}: wait for it, stop it, or type another storage=URL")


def _words(holder: Mapping[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _read_holder(remote: RemoteFolder) -> dict[str, Any] | None:
    content = remote.get(HOLDER)
    if content is None:
        return None
    try:
        told = json.loads(content)
        return {"session": str(told["session"]), "host": str(told["host"]), "pid": int(told["pid"])} | {
            "since": str(told["since"]),
            "beat": int(told["beat"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{remote.url}/{HOLDER} must say who runs the study, it is damaged ({error!r}): delete it if nobody does"
        ) from error


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether a driver was of this machine and is gone."""
    return holder["host"] == socket.gethostname() and not psutil.pid_exists(holder["pid"])


@contextlib.contextmanager
def stored_study(
    study: StudyFolder, url: str | None, say: Callable[[str], None]
) -> Iterator[tuple[StudyFolder, States]]:
    """A study as its one driver writes it: its folder alone, or a working copy of what the store at `url` holds.

    Args:
        study: its folder, locked by the caller.
        url: of its folder in an object store; None for none.
        say: told what takes long.

    Yields:
        The folder, whose events are followed into the store, and where trials keep their states.

    Raises:
        StudyError: if another driver holds the study, or the folder holds another one.
        StorageError: if the store cannot be read or written.
    """
    if url is None:
        yield study, InFolder()
        return
    remote = RemoteFolder(url)
    refuse_if_held(remote, say)
    stored = Stored(study, remote)
    stored.bring_up()
    followed = StudyFolder(study.path, on_record=stored.step)
    with stored.held():
        yield followed, stored
        stored.push(study.report)


def copy_of_stored(study: StudyFolder, url: str) -> dict[str, Any]:
    """Bring a study's working copy up to date to be read; weights stay in the store, and nothing is claimed there.

    The copy stays as it is while a driver of this machine writes it: it then has all there is.

    Args:
        study: the folder.
        url: of its folder in the store.

    Returns:
        The study's configuration.

    Raises:
        StudyError: if the store holds no study, or the folder another one.
        StorageError: if the store cannot be read.
    """
    tree = configuration_of_stored(url)
    if tree is None:
        raise StudyError(f"{url} holds no study (no study.yaml): check storage=URL")
    if not study.is_in_use():
        with study.locked():
            Stored(study, RemoteFolder(url)).bring_up(weights=False)
            keep_best, maximize = tree["search"]["keep_best"], tree["search"]["direction"] == "maximize"
            arrange(study, keep_best=keep_best, maximize=maximize)
            chosen = [event for event in study.read_events() if event["event"] == "confirmation_chosen"]
            if chosen:
                deliver(study, chosen[-1], keep_best=keep_best, maximize=maximize, weights=False)
    return tree


def configuration_of_stored(url: str) -> dict[str, Any] | None:
    """The configuration of the study in a store; None where there is no study yet.

    Raises:
        StudyError: if it is damaged.
        StorageError: if the store cannot be read.
    """
    content = RemoteFolder(url).get("study.yaml")
    return None if content is None else configuration_in(content, f"{url}/study.yaml")


def _part(path: Path, begin: int, end: int) -> bytes:
    """The bytes of a file between two places in it."""
    if begin == end:
        return b""
    with path.open("rb") as file:
        file.seek(begin)
        return file.read(end - begin)


def _whole_length(path: Path) -> int:
    """How long a book is without a line that a failed write has cut off; that is mended when it is opened again."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end > 0:
                file.seek(max(0, end - 4096))
                tail = file.read(min(end, 4096))
                if (at := tail.rfind(b"\n")) >= 0:
                    return end - len(tail) + at + 1
                end -= len(tail)
    except FileNotFoundError:
        pass
    return 0


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_ino
