"""How a study ran: what interrupted its trials, on how many nodes they ran, and whether any left something behind."""

from __future__ import annotations

from collections import Counter
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
        seconds, and what was left; None where nothing was looked after, e.g. in a study of an earlier version.
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
    }
