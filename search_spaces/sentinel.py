"""Watches that a stopped trial leaves nothing behind: no actor, no process, no placement group, no folder.

Each process of a trial says what it holds (trainables.nodes.holding). After a stop all of it must be gone within
`GRACE_S`; what is not is said at once, written to the study's events, and shown by the report.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.exceptions import RayError

from trainables.nodes import free_orphaned_groups, hosts, living, placement_groups
from trainables.study import StudyFolder

GRACE_S = 30.0
LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thing:
    """Something that a trial holds.

    Attributes:
        kind: actor, process, placement_group or folder.
        name: its id, its path, or a process's number and when it began.
        node: where it is.
    """

    kind: str
    name: str
    node: str


def things_of(held: Mapping[str, Any]) -> set[Thing]:
    """All that a process of a trial has said that it holds (trainables.nodes.holding)."""
    names = {
        "actor": held["actor"],
        "process": f"{held['pid']} {held['began']!r}",
        "placement_group": held["placement_group"],
        "folder": held["folder"],
    }
    return {Thing(kind, name, held["node"]) for kind, name in names.items() if name is not None}


class Sentinel:
    """Knows what every trial holds, and looks after its stop until it is gone.

    Args:
        study: in whose events the outcome is written down.
        gangs: whether trials are gangs, whose placement groups can outlive a killed process.
    """

    def __init__(self, study: StudyFolder, *, gangs: bool = False) -> None:
        self._study = study
        self._gangs = gangs
        self._lock = threading.Lock()
        self._held: dict[int, set[Thing]] = {}
        self._own: dict[int, set[Thing]] = {}  # of these, what the trial's own process holds
        self._kept: set[Thing] = set()
        self._going: dict[Thing, float] = {}  # since when each should be gone
        self._left: set[Thing] = set()
        self._stops, self._gone, self._longest = 0, 0, 0.0
        self._hosts: dict[str, str] = {}

    def holds(self, number: int, held: Sequence[Mapping[str, Any]]) -> None:
        """Take in what a running trial holds now: first its own process, then the workers of its gang."""
        with self._lock:
            self._own[number] = things_of(held[0])
            self._held.setdefault(number, set()).update(*map(things_of, held))

    def nodes_of(self, number: int) -> set[str]:
        """Where a running trial has said that it runs."""
        with self._lock:
            return {thing.node for thing in self._held.get(number, ())}

    def stopped(self, number: int, *, kept: bool = False, paused: bool = False) -> None:
        """From now on look for what is left of a trial.

        Args:
            number: the trial.
            kept: whether its process is used again by the next one: it then has until the search ends.
            paused: whether it may go on, so that its state stays.
        """
        with self._lock:
            self._stops += 1
            things, own = self._held.pop(number, set()), self._own.pop(number, set())
            if kept:
                self._kept |= {thing for thing in own if thing.kind != "folder"}
                things -= self._kept
            self._expect(things)
        folder = self._study.trial(number)
        if not paused and (kept or not folder.exists()):  # an interrupted one's state stays for its next attempt, too
            with self._lock:
                self._expect({Thing("folder", str(folder), "")})

    def _expect(self, things: Iterable[Thing]) -> None:
        now = time.monotonic()
        for thing in things:
            self._going.setdefault(thing, now)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at intervals while trials run; in the end all must go, and what was found is written down."""
        ended = threading.Event()

        def look_at_intervals() -> None:
            while not ended.wait(LOOK_EVERY_S):
                self.look()

        thread = threading.Thread(target=look_at_intervals, name="sentinel", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._lock:
                for things in (*self._held.values(), self._kept):
                    self._expect(things)
            self._held.clear()
            self._wait()
            ended.set()
            thread.join()
            self._study.record("released", **self.summary())

    def _wait(self) -> None:
        """Until all is gone, or has had its time."""
        while self.look():
            time.sleep(0.1)

    def look(self) -> bool:
        """Look once for everything that should be gone; say whether something still has time to go."""
        with self._lock:
            wanted = set(self._going) - self._left
        try:
            if self._gangs and (freed := free_orphaned_groups()):
                logger.info("freed what killed processes of gangs had reserved: placement groups %s", sorted(freed))
            there = self._there(wanted)
        except RayError:  # the cluster does not answer now
            there = wanted
        now = time.monotonic()
        with self._lock:
            # another thread may have looked, too
            wanted, there = wanted & self._going.keys(), there & self._going.keys()
            for thing in wanted - there:
                self._longest = max(self._longest, now - self._going.pop(thing))
                self._gone += 1
            late = {thing for thing in there if now - self._going[thing] > GRACE_S}
            self._left |= late
            waiting = bool(there - late)
        for thing in sorted(late, key=str):
            logger.warning("%s %s on node %s is still there %g s after its trial has stopped", *_words(thing), GRACE_S)
        return waiting

    def _there(self, wanted: set[Thing]) -> set[Thing]:
        """Those that are still there, as far as can be seen from here."""
        actors = {thing.name for thing in wanted if thing.kind == "actor"}
        there = living(actors) | (placement_groups() if wanted else set())
        return {thing for thing in wanted if thing.name in there or self._is_seen(thing)}

    def _is_seen(self, thing: Thing) -> bool:
        if thing.kind not in ("process", "folder") or not self._is_here(thing.node):
            return False
        return _runs(thing.name) if thing.kind == "process" else Path(thing.name).exists()

    def _is_here(self, node: str) -> bool:
        """Whether a node is on this machine; another machine's processes are seen by their actors alone."""
        if node and node not in self._hosts:
            self._hosts = hosts()
        return not node or self._hosts.get(node) == socket.gethostname()

    def summary(self) -> dict[str, Any]:
        """What was found: stops looked after, things gone, the longest that one took, and what is left."""
        with self._lock:
            return {
                "stops": self._stops,
                "gone": self._gone,
                "longest_s": round(self._longest, 1),
                "left": [" ".join(_words(thing)) for thing in sorted(self._left, key=str)],
            }


def _words(thing: Thing) -> tuple[str, str, str]:
    return thing.kind, thing.name, thing.node or "of the driver"


def _runs(name: str) -> bool:
    """Whether a process of this machine still runs; another one may have its number."""
    pid, began = name.split()
    try:
        process = psutil.Process(int(pid))
        return repr(process.create_time()) == began and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
