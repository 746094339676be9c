"""How the search went on: every trial's value and the best so far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reports.charts import Axis
from reports.folder import Study
from reports.planes import Plane, hours, numbers
from reports.words import counted, figure

HEIGHT = 240
MARKS = {"complete": "complete", "pruned": "stopped early", "diverged": "diverged, collapsed or failed"}


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """One drawing for each quantity that can be across."""
    found = metrics["history"]
    rows = [row for row in found["trials"] if row["value"] is not None]
    if not rows:
        return {"history": None}
    y = Axis.around([row["value"] for row in rows], num_ticks=4)
    views = [_view(rows, found, y, "number", "trial", "best_by_number", numbers)]
    if any(row["ended_hours"] is not None for row in rows):
        views.append(_view(rows, found, y, "ended_hours", "hours of running time at its end", "best_by_end", hours))
    if any(row["device_hours"] for row in rows):
        views.append(_view(rows, found, y, "device_hours", "device-hours of all trials by then", "best_by_end", hours))
    return {
        "history": views,
        "default": found["default"],
        "kinds": [name for name in MARKS if any(_mark(row["outcome"]) == name for row in rows)],
        "marks": MARKS,
        "last_gain": _last_gain(study, found),
    }


def _view(
    rows: list[dict[str, Any]],
    found: dict[str, Any],
    y: Axis,
    key: str,
    across: str,
    best: str,
    axis: Callable[[float], Axis],
) -> dict[str, Any]:
    """Trials as dots, the best so far as a line, by one quantity across."""
    placed = [(row | {"number": row["trial"]})[key] for row in rows]
    at = {row["trial"]: place for row, place in zip(rows, placed, strict=True) if place is not None}
    plane = Plane(axis(max(at.values())), y, HEIGHT)
    so_far = sorted((at[row["trial"]], row["trial"], row[best]) for row in rows if row["trial"] in at)
    kinds = {0: "default"} | {found["best"]: "best"} if found["default"] is not None else {found["best"]: "best"}
    dots = [
        (plane.left(at[row["trial"]]), plane.top(row["value"]), kinds.get(row["trial"], _mark(row["outcome"])), row)
        for row in rows
        if row["trial"] in at
    ]
    rank = {"best": 2, "default": 1}
    return {
        "key": key,
        "name": {"number": "trial", "ended_hours": "running time", "device_hours": "device-hours"}[key],
        "across": across,
        "plane": plane,
        "steps": plane.steps((place, value) for place, _, value in so_far if value is not None),
        "dots": sorted(dots, key=lambda dot: rank.get(dot[2], 0)),
    }


def _mark(outcome: str) -> str:
    if outcome in ("complete", "running"):
        return "complete"
    return "pruned" if outcome == "pruned" else "diverged"


def _last_gain(study: Study, found: dict[str, Any]) -> str:
    """When the search last got better, in words."""
    ended = [row for row in found["trials"] if row["outcome"] not in ("running",)]
    completed = [row for row in ended if row["outcome"] == "complete" and row["value"] is not None]
    if not completed:
        return "No trial has run to its end yet."
    sign = 1 if study.maximizes else -1  # a confirmation may have chosen another one than the best
    best = max(completed, key=lambda row: sign * float(row["value"]))
    after = sum(row["trial"] > best["trial"] for row in ended)
    said = f"The best value, {figure(best['value'], 4)}, is trial {best['trial']}’s; {counted(after, 'trial')} after it"
    return f"{said} did not get past it." if after else f"{said.rpartition(';')[0]}, the last one."
