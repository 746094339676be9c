"""What the search cost."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.words import counted, duration

WORDS = {
    "complete": "ran to their end",
    "pruned": "stopped by the scheduler",
    "diverged": "diverged",
    "collapsed": "collapsed",
    "infeasible": "choices that cannot go together",
    "failed": "failed",
    "running": "still running",
    "confirmation": "were trained again with new seeds",
}
LEAST_TOLD = 1e-4
"""Device-hours computed again below which nothing is said: a third of a second."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table, and what it says in words; nothing where no time was written down."""
    found = metrics["cost"]
    if not found["device_hours"]:
        return {"cost": None}
    return {
        "cost": found,
        "words": WORDS,
        "again": duration(3600 * found["again"]) if (found["again"] or 0.0) > LEAST_TOLD else "",
        "device": "one worker" if found["workers_per_trial"] == 1 else counted(found["workers_per_trial"], "worker"),
    }
