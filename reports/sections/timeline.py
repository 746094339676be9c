"""When which trial ran where."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis, kind_of
from reports.folder import Study
from reports.planes import Plane, hours
from reports.search.operation import CAUSES
from reports.words import duration

HEIGHTS = ((12, 16), (40, 9), (10**9, 4))
"""Up to how many lanes one is how many pixels high."""
MOST_NAMED = 24
"""Lanes whose node is written beside them."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """Lanes with their stays."""
    found = metrics["timeline"]
    if found.get("reason") or not found["lanes"]:
        return {"timeline": None}
    pitch = next(pixels for most, pixels in HEIGHTS if len(found["lanes"]) <= most)
    seconds = 3600 * found["hours"]  # a short search is told in minutes
    unit, name = (3600.0, "hours") if seconds >= 5400 else (60.0, "minutes")
    axis = hours(seconds / unit)
    kinds = {trial.number: _kind(kind_of(trial, study)) for trial in study.trials}
    lanes = [
        {"node": lane["node"], "y": at * pitch, "stays": [_stay(stay, kinds, axis, unit) for stay in lane["stays"]]}
        for at, lane in enumerate(found["lanes"])
    ]
    return {
        "timeline": found,
        "across": f"{name} of running time",
        "pitch": pitch,
        "lanes": lanes,
        "named": len(lanes) <= MOST_NAMED,
        "plane": Plane(axis, Axis(0.0, 1.0, ()), pitch * len(lanes)),
        "breaks": [axis.percent(3600 * at / unit) for at in found["breaks"]],
        "length": duration(seconds),
        "shares": {key: f"{100 * share:.0f} %" for key, share in found["shares"].items() if share is not None},
        "kinds": {stay["kind"] for lane in lanes for stay in lane["stays"]},
    }


def _kind(kind: str) -> str:
    return "diverged" if kind in ("diverged", "collapsed", "failed") else kind


def _stay(stay: dict[str, Any], kinds: dict[int, str], axis: Axis, unit: float) -> dict[str, Any]:
    begin, end = (3600 * stay[key] / unit for key in ("begin", "end"))
    said = {"interrupted": CAUSES.get(str(stay["cause"]), str(stay["cause"])), "driver": "the driver ended"}
    why = said.get(stay["ended_by"])
    again = "" if stay["run"] is None else f" again, seed {stay['run']}"
    return {
        "trial": stay["trial"],
        "kind": kinds.get(stay["trial"], "complete") if stay["run"] is None else "confirmation",
        "x": axis.percent(begin),
        "width": f"{max(0.05, 100 * (axis.share(end) - axis.share(begin))):.2f}%",
        "end": axis.percent(end),
        "interrupted": why is not None,
        "said": f"trial {stay['trial']}{again}, {duration(3600 * (stay['end'] - stay['begin']))}"
        + (f", interrupted: {why}" if why else "")
        + (", then paused" if stay["ended_by"] == "paused" else ""),
    }
