"""When which trial ran where: stays of trials on their workers, side by side, and how much of the time was used.

Time is the search's running time. A study may be interrupted and go on a week later: the time between two sessions of
its driver is cut out. A stay begins when a trial is handed out and lasts until it ends, is interrupted or is paused; in
it the trial starts, computes epochs, and saves. Nodes are numbered in the order in which they appear, so that a report
which is passed on names no machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from reports.folder import Study

BEGINS = ("study_started", "study_resumed")
HAPPENS = {
    **{f"trial_{what}": what for what in ("started", "resumed", "promoted", "paused", "interrupted", "ended")},
    **{f"confirmation_{what}": what for what in ("started", "resumed", "interrupted", "ended", "epoch")},
    "epoch": "epoch",
    "exploit": "exploit",
}
"""Events that only a running search writes, and what happened to a trial or to a run that confirms one; evaluations and
pre-flights also come from commands of their own."""
MOMENT = 0.5
"""Seconds. A stay that is shorter and has no epoch held nothing: its choices could not go together."""


@dataclass
class Stay:
    """One stay of a trial on its workers; times in seconds of running time."""

    trial: int
    begin: float
    run: int | None = None
    """Of the confirmation: the index of the seed under which the trial was trained again."""
    end: float = 0.0
    ended_by: str = "running"
    """ended, paused, interrupted, driver (which stopped or was killed) or running."""
    cause: str | None = None
    """Of an interruption, e.g. node_lost."""
    nodes: tuple[str, ...] = ()
    seconds: float = 0.0
    """Computed in it, as the epochs say."""
    num_epochs: int = 0


@dataclass
class Lane:
    """Stays that did not overlap: what one slot for a trial held, one after the other."""

    node: int | None
    """From 1; None where it is not known, or where trials ran on several nodes at once."""
    stays: list[Stay] = field(default_factory=list)


class Clock:
    """Running time of a search: seconds in which a driver of it ran.

    Args:
        sessions: first and last moment of each session, in seconds since 1970, ascending.
    """

    def __init__(self, sessions: Sequence[tuple[float, float]]) -> None:
        self.sessions = sessions

    @classmethod
    def of(cls, study: Study) -> Clock:
        """From the events; those without a readable time are passed over."""
        sessions: list[list[float]] = []
        for event in study.events:
            at = moment(event)
            if at is None or event.get("event") not in (*BEGINS, *HAPPENS):
                continue
            if event["event"] in BEGINS or not sessions:
                sessions.append([at, at])
            else:
                sessions[-1][1] = max(sessions[-1][1], at)
        return cls([(first, last) for first, last in sessions])

    def __call__(self, at: float) -> float:
        """Running time up to a moment, in seconds."""
        return sum(min(max(at, first), last) - first for first, last in self.sessions)

    @property
    def total(self) -> float:
        """All of it, in seconds."""
        return sum(last - first for first, last in self.sessions)

    @property
    def breaks(self) -> list[float]:
        """Running time at which a later session began, in seconds."""
        return [self(first) for first, _ in self.sessions[1:]]


def moment(event: Mapping[str, Any]) -> float | None:
    """When an event was written, in seconds since 1970; None where it does not say."""
    try:
        return datetime.fromisoformat(str(event["time"])).timestamp()
    except (KeyError, ValueError):
        return None


def timeline(study: Study) -> dict[str, Any]:
    """Lanes of stays and what share of their time was used, as plain JSON values; hours.

    Returns:
        hours of running time; breaks: where a later session began; lanes: node and stays; slots: the most trials that
        ran at once; slot_hours: each session's hours times its own slots; their shares: computing (epochs), holding
        (starting, loading, saving), idle (no trial). A `reason` alone where the events have no times.
    """
    clock = Clock.of(study)
    if clock.total <= 0:
        return {"reason": "the study’s events do not say when trials ran"}
    stays = stays_of(study, clock)
    lanes = in_lanes(stays)
    held = sum(stay.end - stay.begin for stay in stays)
    computed = min(sum(stay.seconds for stay in stays), held)
    slots = slots_of(lanes, clock)
    room = sum(number * seconds for number, seconds in slots)
    return {
        "hours": _hours(clock.total),
        "breaks": [_hours(at) for at in clock.breaks],
        "slots": max(number for number, _ in slots),
        "nodes": len({lane.node for lane in lanes if lane.node is not None}),
        "lanes": [{"node": lane.node, "stays": [_json(stay) for stay in lane.stays]} for lane in lanes],
        "slot_hours": _hours(room),
        "shares": {
            "computing": computed / room if room else None,
            "holding": (held - computed) / room if room else None,
            "idle": max(0.0, 1 - held / room) if room else None,
        },
        "interruptions": sum(stay.ended_by in ("interrupted", "driver") for stay in stays),
    }


def slots_of(lanes: Sequence[Lane], clock: Clock) -> list[tuple[int, float]]:
    """How many lanes each session has used, and its seconds: a later one has other nodes, by name at least."""
    edges = [0.0, *clock.breaks, clock.total]
    return [
        (sum(any(first <= stay.begin < last for stay in lane.stays) for lane in lanes), last - first)
        for first, last in itertools.pairwise(edges)
    ]


def _hours(seconds: float) -> float:
    return round(seconds / 3600, 6)


def _json(stay: Stay) -> dict[str, Any]:
    return {
        "trial": stay.trial,
        "run": stay.run,
        "begin": _hours(stay.begin),
        "end": _hours(stay.end),
        "ended_by": stay.ended_by,
        "cause": stay.cause,
        "epochs": stay.num_epochs,
        "computing": _hours(stay.seconds),
    }


def stays_of(study: Study, clock: Clock) -> list[Stay]:
    """Every stay, in the order in which they began."""
    found: list[Stay] = []
    open_stays: dict[tuple[int, int | None], Stay] = {}
    last = 0.0
    for event in study.events:
        at, kind, trial = moment(event), event.get("event"), event.get("trial")
        if at is None:
            continue
        if kind in BEGINS:
            _close(open_stays.values(), last, "driver")
            open_stays.clear()
            continue
        if kind not in HAPPENS or not isinstance(trial, int):
            continue
        last, what = clock(at), HAPPENS[kind]
        key = trial, event.get("index") if kind.startswith("confirmation_") else None
        if what in ("started", "resumed", "promoted"):
            open_stays[key] = Stay(trial, last, run=key[1])
            found.append(open_stays[key])
        elif key in open_stays:
            _take_in(open_stays[key], event)
            if what in ("interrupted", "paused", "ended"):
                _close([open_stays.pop(key)], last, what)
    _close(open_stays.values(), last, "running")
    return [stay for stay in found if stay.num_epochs or stay.end - stay.begin > MOMENT]


def _take_in(stay: Stay, event: Mapping[str, Any]) -> None:
    stay.cause = event.get("cause") or stay.cause
    stay.nodes = tuple(event.get("nodes") or stay.nodes)
    if HAPPENS[event["event"]] == "epoch":
        stay.num_epochs += 1
        stay.seconds += float(event.get("seconds") or 0.0)


def _close(stays: Iterable[Stay], at: float, by: str) -> None:
    for stay in stays:
        stay.end, stay.ended_by = max(at, stay.begin), by


def in_lanes(stays: Sequence[Stay]) -> list[Lane]:
    """As few lanes as there were trials at once, those of a node together.

    A stay whose node is not known, as it had no epoch, takes any lane that is free.
    """
    numbers = {name: number for number, name in enumerate(_in_order(stays), start=1)}
    alone = all(len(stay.nodes) <= 1 for stay in stays)
    lanes: list[Lane] = []
    for stay in sorted(stays, key=lambda stay: (stay.begin, stay.trial)):
        node = numbers[stay.nodes[0]] if alone and stay.nodes else None
        free = (
            lane
            for lane in lanes
            if (node is None or lane.node == node) and (not lane.stays or lane.stays[-1].end <= stay.begin)
        )
        lane = next(free, None)
        if lane is None:
            lane = Lane(node)
            lanes.append(lane)
        lane.stays.append(stay)
    return sorted(lanes, key=lambda lane: (lane.node is None, lane.node or 0))


def _in_order(stays: Iterable[Stay]) -> list[str]:
    return list(dict.fromkeys(name for stay in stays for name in stay.nodes))
