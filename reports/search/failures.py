"""Why trials ended without a result of their own, grouped by reason; those that the scheduler stopped are left out."""

from __future__ import annotations

import re
from typing import Any

from reports.folder import Study, Trial
from reports.search.cost import ending
from reports.search.operation import CAUSES

SAID = {
    "non_finite": "the loss or the searched metric was not a number",
    "collapsed": "the encoder collapsed: its features no longer tell records apart",
    "infeasible": "the choices cannot go together",
}
"""First word of a reason -> in words."""


def failures(study: Study) -> list[dict[str, Any]]:
    """Rows of outcome, reason, the trials' numbers and one trial's own message, the most frequent first.

    Messages that differ in their numbers only are one reason.
    """
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in study.trials:
        if trial.state not in ("COMPLETE", "RUNNING") and trial.reason != "scheduler":
            groups.setdefault((ending(trial), reason_of(trial)), []).append(trial)
    rows = [
        {
            "outcome": how,
            "reason": reason,
            "trials": [trial.number for trial in trials],
            "message": trials[0].reason or "",
        }
        for (how, reason), trials in groups.items()
    ]
    return sorted(rows, key=lambda row: (-len(row["trials"]), row["outcome"], row["reason"]))


def reason_of(trial: Trial) -> str:
    """A trial's reason as one says it; of an error of its own the kind and the message without its numbers."""
    message = trial.reason or ""
    kind = re.split(r"[:,]", message, maxsplit=1)[0].strip()
    if kind in CAUSES:
        return f"interrupted too often: {CAUSES[kind]}"
    if not message:
        return "no reason was written down"
    return SAID.get(kind) or re.sub(r"\d+(\.\d+)?", "…", message)[:120]
