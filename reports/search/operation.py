"""How a study ran: what interrupted its trials, on how many nodes they ran, and whether any left something behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from reports.folder import Study

CAUSES = {
    "node_lost": "a machine was lost",
    "node_draining": "a machine was about to go (drain notice)",
    "process_died": "a process died",
    "storage": "a disk could not be written",
}
"""Cause of an interruption, as the events have it -> in words."""


def operation(study: Study) -> dict[str, Any]:
    """The figures of the section; all follow from the study's events.

    Returns:
        sessions: how often a driver began or went on. nodes: distinct ones that computed an epoch. interruptions: rows
        of cause, number, trials and how many of them count as a trial's failure. gave_up: trials that failed because
        they were interrupted once too often. released: stops looked after, things gone, the longest that one took in
        seconds, and what was left; None where nothing was looked after, e.g. in a study of an earlier version. reuse:
        see `reuse_of`.
    """
    interruptions = study.of_event("trial_interrupted") + study.of_event("confirmation_interrupted")
    by_cause = Counter(event.get("cause") for event in interruptions)
    found = study.of_event("released")
    return {
        "sessions": sum(event.get("event") in ("study_started", "study_resumed") for event in study.events),
        "nodes": len(
            {
                node
                for kind in ("epoch", "confirmation_epoch")
                for event in study.of_event(kind)
                for node in event.get("nodes") or ()
            }
        ),
        "interruptions": [
            {
                "cause": CAUSES.get(str(cause), str(cause)),
                "number": number,
                "trials": sorted({event["trial"] for event in interruptions if event.get("cause") == cause}),
                "counted": sum(bool(event.get("counts")) for event in interruptions if event.get("cause") == cause),
            }
            for cause, number in by_cause.most_common()
        ],
        "gave_up": [
            trial.number
            for trial in study.trials
            if trial.state == "FAIL" and (trial.reason or "").partition(",")[0] in CAUSES
        ],
        "released": {
            "stops": sum(event["stops"] for event in found),
            "gone": sum(event["gone"] for event in found),
            "longest_s": max(event["longest_s"] for event in found),
            "left": [thing for event in found for thing in event["left"]],
        }
        if found
        else None,
        "reuse": reuse_of(study.events),
    }


def reuse_of(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How often a joint trial took a pre-training over from another one.

    Args:
        events: of a study.

    Returns:
        trials: that pre-trained; hits: those of them that took epochs over. epochs: of pre-training; reused: those of
        them that were taken over. seconds: what these would have taken, if as long as the others did on the average.
        None where trials share none.
    """
    shared = [event for event in events if event.get("event") == "epoch" and event.get("reused") is not None]
    if not shared:
        return None
    computed = [event["seconds"] for event in shared if not event["reused"]]
    reused = [event for event in shared if event["reused"]]
    return {
        "trials": len({event["trial"] for event in shared}),
        "hits": len({event["trial"] for event in reused}),
        "epochs": len(shared),
        "reused": len(reused),
        "seconds": len(reused) * sum(computed) / max(len(computed), 1),
    }


def said_of_reuse(found: Mapping[str, Any]) -> str:
    """What `reuse_of` found, in a sentence."""
    return (
        f"{found['hits']} of {found['trials']} trials went on from a pre-training that another had made; "
        f"{found['reused']} of {found['epochs']} pre-training epochs were not computed again"
        + (f", about {found['seconds'] / 3600:.2g} hours of computing" if found["reused"] else "")
    )
