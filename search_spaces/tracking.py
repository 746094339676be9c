"""Weights & Biases beside a search: one run a trial, told what the study's events say.

A thread of its own reads the events and talks to W&B, so that neither a slow network nor a failure of W&B holds up the
search. The events stay the truth: what W&B never got is told to it by the next launch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import netrc
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from search_spaces.schema import NoTracking, Tracking, WandbTracking
from trainables.files import write_atomically
from trainables.study import StudyFolder

logger = logging.getLogger(__name__)

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 30, 60  # of W&B's server, for a run's beginning and for its last data
INTERRUPTED = 255  # W&B's exit code for Ctrl-C: the trial goes on with the next launch
FORMER_HOST = {"api.forge.coreweave.com": "api.wandb.ai"}  # a key for W&B's former host serves its present one


@contextlib.contextmanager
def make_tracker(tracking: Tracking, folder: StudyFolder) -> Iterator[Callable[[], None]]:
    """What to call after every change of a study, for as long as the search runs.

    Args:
        tracking: where to; W&B is imported only if it is asked for.
        folder: the study's.

    Yields:
        A function that returns at once and never raises.
    """
    if isinstance(tracking, NoTracking):
        yield lambda: None
        return
    try:
        runs = WandbRuns(tracking, folder)
    except Exception as error:  # noqa: BLE001  a broken W&B is no reason not to search
        _give_up(error)
        yield lambda: None
        return
    with Tracker(runs, folder.events) as tracker:
        yield tracker


def _give_up(error: BaseException) -> None:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    logger.warning("tracking stopped, the search goes on: %s", said)


class Tracker:
    """Passes a study's events on from a thread; call it after every change.

    Args:
        runs: takes them in.
        events: the study's log.
    """

    def __init__(self, runs: WandbRuns, events: Path) -> None:
        self._runs = runs
        self._events = NewEvents(events)
        self._changed = threading.Event()
        self._closing = False
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
        self._closing = True
        self._changed.set()
        self._thread.join(timeout=5)
        if self._thread.is_alive():
            patience = INIT_TIMEOUT_S + 2 * FINISH_TIMEOUT_S
            logger.warning("waiting for W&B to take in what is left, at most %d s", patience)
            self._thread.join(timeout=patience)

    def _work(self) -> None:
        try:
            self._runs.connect()
            closing = False
            while not closing:
                self._changed.wait()
                self._changed.clear()
                closing = self._closing  # read before the events, so that none comes in between
                for event in self._events():
                    self._runs.take_in(event)
        except Exception as error:  # noqa: BLE001  whatever W&B does, the search goes on
            _give_up(error)
        self._runs.close()


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
                    yield json.loads(line)


class WandbRuns:
    """The W&B runs of the trials that have not ended.

    A run's id follows from the study's first event and the trial's number: a study that goes on, or has moved, finds
    its runs again, and a new study in an old one's place does not. Trials that W&B has been told all of are listed in
    `wandb/told.json`; the others are told from their beginning, since W&B's own file of a killed process is empty.

    Args:
        tracking: project, entity and mode.
        folder: the study's; W&B's files go to its subfolder `wandb`.
    """

    def __init__(self, tracking: WandbTracking, folder: StudyFolder) -> None:
        # else W&B reports its own troubles over the network, in offline mode too; it is read when W&B is imported
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._tracking = tracking
        self._folder = folder
        self._mode: Literal["online", "offline"] = tracking.mode
        self._list = folder.path / "wandb" / "told.json"
        self._told: set[int] = set(json.loads(self._list.read_bytes())) if self._list.exists() else set()
        self._study: str | None = None
        self._runs: dict[int, Any] = {}

    def connect(self) -> None:
        """Start W&B's process, which writes nothing to the terminal; without a key, stay offline."""
        base_url = self._wandb.setup(settings=self._wandb.Settings(silent=True)).settings.base_url
        if self._mode == "online" and not has_key(base_url):
            self._mode = "offline"
            logger.warning(
                "tracking offline, no key for %s in WANDB_API_KEY or ~/.netrc: log in with `wandb login`, then send "
                "the runs with `wandb sync %s`",
                base_url,
                self._list.parent / "offline-run-*",
            )

    def take_in(self, event: Mapping[str, Any]) -> None:
        """Tell W&B of one event of the study; they come in order, from the first one on."""
        if self._study is None:
            self._study = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()[:12]
        number, kind = event.get("trial"), event["event"]
        if number is None or number in self._told:
            return
        if kind == "trial_started":
            self._runs[number] = self._open(number, event["params"])
        elif kind == "epoch" and event["epoch"] >= self._runs[number].starting_step:  # else W&B has it from before
            self._runs[number].log(event["metrics"], step=event["epoch"], commit=True)
        elif kind == "exploit":
            self._runs[number].config.update(event["params"], allow_val_change=True)
        elif kind == "trial_ended":
            self._end(number, event)

    def _open(self, number: int, params: Mapping[str, Any]) -> Any:
        return self._wandb.init(
            project=self._tracking.project,
            entity=self._tracking.entity,
            group=self._folder.path.name,
            name=f"trial {number}",
            id=f"{self._study}-{number:04d}",
            config=dict(params),
            dir=self._folder.path,
            mode=self._mode,
            reinit="create_new",  # several trials run at a time
            # offline there is nothing to resume: `wandb sync` lets a later run replace an earlier one of the same id
            resume="allow" if self._mode == "online" else None,
            settings=self._settings(),
        )

    def _settings(self) -> Any:
        """Nothing of the driver's: its output, load and packages say nothing of a trial, and the study records them."""
        return self._wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=INIT_TIMEOUT_S,
            finish_timeout=FINISH_TIMEOUT_S,
            finish_timeout_raises=True,
        )

    def _end(self, number: int, event: Mapping[str, Any]) -> None:
        run = self._runs.pop(number)
        run.summary.update({key: event[key] for key in ("state", "value", "reason", "epochs", "seconds")})
        run.finish(exit_code=1 if event["state"] == "FAIL" else 0)
        self._told.add(number)
        write_atomically(self._list, json.dumps(sorted(self._told)).encode())

    def close(self) -> None:
        """End what is open as interrupted, and W&B's process; never raises."""
        with contextlib.suppress(Exception, SystemExit):  # the latter where W&B's process has died
            self._wandb.teardown(exit_code=INTERRUPTED)


def has_key(base_url: str) -> bool:
    """Whether W&B would find a key for its server, so that it never comes to ask for one.

    Args:
        base_url: the server's.
    """
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    path = next(filter(os.path.exists, map(os.path.expanduser, names)), None)
    return path is not None and any(_has_entry(path, known) for known in (host, FORMER_HOST.get(host, host)))


def _has_entry(path: str, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
