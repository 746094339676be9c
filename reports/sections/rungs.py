"""What the scheduler did."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis
from reports.folder import Study
from reports.planes import Plane, numbers
from reports.words import counted, duration

SURVIVAL_HEIGHT = 150
RUNG_HEIGHT = 150
MOST_RUNGS = 6
"""Drawn; more are in the table alone."""
NAMES = {
    "asha": "Asynchronous successive halving: at each rung the best of those that came so far go on.",
    "asha_promotion": "Asynchronous successive halving with promotion: at each rung a trial waits, and it goes on once "
    "it is among the best of all that have come there. Stopped are those that still waited when nothing ran any more.",
    "median": "Median rule: stopped is whose best value lies below the median of the others’ means up to that epoch.",
    "pbt": "Population-based training: nobody is stopped; the worst trials go on from the best ones’ weights.",
}


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The decisions; nothing where nobody was stopped and nothing was taken over."""
    found = metrics["scheduling"]
    if not found["stopped"] and not found["exploits"] and not found["rungs"]:
        return {"scheduling": None}
    return {
        "scheduling": found,
        "rule": NAMES.get(found["scheduler"], ""),
        "saved": _saved(found),
        "survival": _survival(found),
        "rungs": [_rung(rung) for rung in found["rungs"] if rung["came"]][:MOST_RUNGS],
        "by_epoch": _stopped_by_epoch(found),
        "promotions": [
            row | {"after": "–" if row["running_hours"] is None else duration(3600 * row["running_hours"])}
            for row in found["promotions"]
        ],
    }


def _saved(found: dict[str, Any]) -> str:
    """What was saved, in words."""
    saved, run = found["saved"]["epochs"], found["saved"]["epochs_run"]
    if not saved:
        return "No epoch was saved."
    hours = found["saved"]["device_hours"]
    about = f", about {duration(3600 * hours)} of device time" if hours is not None else ""
    said = f"The {counted(len(found['stopped']), 'stopped trial')} had {counted(saved, 'epoch')} left{about}:"
    return f"{said} {100 * saved / (saved + run):.0f} % of what the search would have computed without stopping."


def _survival(found: dict[str, Any]) -> dict[str, Any] | None:
    """A bar an epoch: how many trials finished it, and how many of them ended there."""
    epochs = found["epochs"]
    if not epochs:
        return None
    num = max(found["num_epochs"], epochs[-1]["epoch"])
    plane = Plane(Axis(0.0, num, ()), numbers(epochs[0]["finished"], num_ticks=3), SURVIVAL_HEIGHT)
    bars = []
    for row in epochs:
        left, width = 100 * (row["epoch"] - 0.92) / num, 84 / num
        parts, below = [], 0
        goes_on = row["finished"] - row["completed"] - row["stopped"] - row["otherwise"]
        for kind, number in (
            ("goes-on", goes_on),
            ("completed", row["completed"]),
            ("stopped", row["stopped"]),
            ("otherwise", row["otherwise"]),
        ):
            if number:
                top = plane.top(below + number)
                parts.append((kind, top, round(plane.top(below) - top, 1)))
                below += number
        bars.append({"x": f"{left:.2f}%", "width": f"{width:.2f}%", "parts": parts, "row": row})
    stride = -(-num // 6)
    ticks = [(f"{100 * (epoch - 0.5) / num:.2f}%", epoch) for epoch in range(1, num + 1) if (epoch - 1) % stride == 0]
    return {"plane": plane, "bars": bars, "ticks": ticks}


def _rung(rung: dict[str, Any]) -> dict[str, Any]:
    """Those that came in their order, with the threshold that each met."""
    came = list(enumerate(rung["came"], start=1))
    values = [entry["value"] for _, entry in came]
    plane = Plane(numbers(len(came), num_ticks=3), Axis.around(values, num_ticks=3), RUNG_HEIGHT)
    return {
        "epoch": rung["epoch"],
        "plane": plane,
        "passed": plane.dots((at, entry["value"]) for at, entry in came if entry["went_on"]),
        "stopped": plane.dots((at, entry["value"]) for at, entry in came if not entry["went_on"]),
        "default": plane.dots((at, entry["value"]) for at, entry in came if entry["trial"] == 0),
        "threshold": plane.steps((at, entry["threshold"]) for at, entry in came if entry["threshold"] is not None),
    }


def _stopped_by_epoch(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The stopped trials, grouped by the epoch after which they were."""
    epochs = sorted({row["epoch"] for row in found["stopped"]})
    return [
        {"epoch": epoch, "trials": sorted(row["trial"] for row in found["stopped"] if row["epoch"] == epoch)}
        for epoch in epochs
    ]
