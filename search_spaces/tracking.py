"""What keeps the runs of a search beside its own folder: Weights & Biases, TensorBoard or MLflow.

A thread of its own reads the study's events and tells them to the tracker, so that neither a slow network nor a failure
holds up the search. The events stay the truth, and every tracker is told them from the first one on: what it never got,
because it was down or switched on later, it gets when it answers again or with the next launch. What it has, it keeps.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from search_spaces.schema import ChoiceError, MlflowTracking, NoTracking, TensorboardTracking, Tracking, WandbTracking
from trainables.files import write_atomically
from trainables.study import StudyFolder

logger = logging.getLogger(__name__)

PATIENCE_S = 150  # at the end of a search, with a tracker that takes nothing in
LONGEST_WAIT_S = 600  # and with one that gets on, slowly
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 1800.0  # after a failure, before all is told again
PACKAGES = {
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
"""What each tracker is imported as, and what it is installed as."""


class Runs(Protocol):
    """A tracker's runs, one a trial. All is called from one thread; what raises is tried again with new runs."""

    def connect(self) -> None:
        """Reach what keeps the runs; called once, first."""

    def take_in(self, event: Mapping[str, Any]) -> None:
        """Tell it one event of the study; they come in order, from the first one on, and what it has is left out."""

    def settle(self) -> None:
        """All events that there are have been taken in."""

    def close(self) -> None:
        """Let go of everything; trials that have not ended are interrupted. Never raises."""


def check_tracker(tracking: Tracking) -> None:
    """Refuse a tracker whose package is not installed, before anything is trained.

    Raises:
        ChoiceError: naming the package.
    """
    if isinstance(tracking, NoTracking):
        return
    module, package = PACKAGES[tracking.name]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name is none
        raise ChoiceError(f"tracking={tracking.name} needs the package {package}: install it, or type tracking=none")


def make_runs(tracking: Tracking, folder: StudyFolder, *, maximize: bool) -> Runs:
    """The runs of a tracker, whose package is imported only here."""
    if isinstance(tracking, WandbTracking):
        from search_spaces.tracking_wandb import WandbRuns

        return WandbRuns(tracking, folder)
    if isinstance(tracking, TensorboardTracking):
        from search_spaces.tracking_tensorboard import TensorboardRuns

        return TensorboardRuns(folder)
    assert isinstance(tracking, MlflowTracking)
    from search_spaces.tracking_mlflow import MlflowRuns

    return MlflowRuns(tracking, folder, maximize=maximize)


@contextlib.contextmanager
def make_tracker(tracking: Tracking, folder: StudyFolder, *, maximize: bool = True) -> Iterator[Callable[[], None]]:
    """What to call after every change of a study, for as long as the search runs.

    Args:
        tracking: where to.
        folder: the study's.
        maximize: whether the largest value is the best.

    Yields:
        A function that returns at once and never raises.
    """
    if isinstance(tracking, NoTracking):
        yield lambda: None
        return
    with Tracker(lambda: make_runs(tracking, folder, maximize=maximize), folder.events) as tracker:
        yield tracker


class Tracker:
    """Passes a study's events on from a thread; call it after every change.

    Args:
        make: the runs that take them in; called in the thread, and again after a failure.
        events: the study's log.
    """

    def __init__(self, make: Callable[[], Runs], events: Path) -> None:
        self._make = make
        self._events = events
        self._changed = threading.Event()
        self._closing = threading.Event()
        self._num_told = 0
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def __enter__(self) -> Self:
        self._changed.set()  # a study that goes on has events already
        self._thread.start()
        return self

    def __call__(self) -> None:
        """Say that there may be new events."""
        self._changed.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout=5)
        told, until = -1, time.monotonic() + LONGEST_WAIT_S
        while self._thread.is_alive() and told < self._num_told and time.monotonic() < until:  # as long as it gets on
            told = self._num_told
            logger.warning("waiting for the tracker to take in the rest, given up after %d s of nothing", PATIENCE_S)
            self._thread.join(timeout=PATIENCE_S)
        if self._thread.is_alive():
            logger.warning("not all is told to the tracker: the rest is when the same line is typed again")

    def _work(self) -> None:
        """Tell all events; after a failure tell all again, later and later, and once at the end of the search."""
        pause, warned = FIRST_PAUSE_S, False
        while True:
            closing = self._closing.is_set()
            failure = self._tell()
            if failure is None:
                return
            logger.log(logging.INFO if warned else logging.WARNING, "tracking stopped, the search goes on: %s", failure)
            warned = True
            if closing:
                return
            self._closing.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _tell(self) -> str | None:
        """Pass events on until the search ends; what went wrong, if something did."""
        runs, failure = None, None
        try:
            runs = self._make()
            runs.connect()
            new_events = NewEvents(self._events)
            closing = False
            while not closing:
                self._changed.wait()
                self._changed.clear()
                closing = self._closing.is_set()  # read before the events, so that none comes in between
                for event in new_events():
                    runs.take_in(event)
                    self._num_told += 1
                runs.settle()
        except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a tracker does, the search goes on
            failure = " ".join(str(error).split())[:300] or type(error).__name__
        self._changed.set()
        if runs is not None:
            runs.close()
        return failure


class NewEvents:
    """What was appended to a log of JSON lines since the last call.

    Args:
        path: the log; it may not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The new events in order.

        A line without an end is being written: it is for the next call. One that a crash has cut off is left out.
        """
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        yield event


class ToldTrials:
    """The trials that a tracker has been told all of, kept in a file of the study.

    Args:
        path: `told.json` in the tracker's folder.

    Raises:
        ValueError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._numbers: set[int] = set(json.loads(path.read_bytes())) if path.exists() else set()
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: remove it, and all trials are told again") from error

    def __contains__(self, number: object) -> bool:
        return number in self._numbers

    def add(self, number: int) -> None:
        """Keep one more."""
        self._numbers.add(number)
        write_atomically(self._path, json.dumps(sorted(self._numbers)).encode())


def study_id(first_event: Mapping[str, Any]) -> str:
    """A name for a study that it keeps wherever its folder moves, and that no other study has."""
    return hashlib.sha256(json.dumps(first_event, sort_keys=True).encode()).hexdigest()[:12]
