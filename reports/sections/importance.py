"""Which searched parameters mattered, and how far that could be chance."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis
from reports.folder import Study
from reports.sections.configuration import parameter_rows
from reports.words import epoch_compared

BELIEVED = 0.25
"""Where a forest predicts less than this part of the variance, its figures are said not to be gone by."""
CHANCE = 0.05
"""A parameter to which shuffled values give as much importance more often than this is said to have it by chance."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of importances."""
    return {
        "importance": importance_rows(metrics),
        "parameters": parameter_rows(study),
        "chance": CHANCE,
        "believed": BELIEVED,
    }


def importance_rows(metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of importances: first what all compared trials have, then what some have, the largest first."""
    found = metrics["importance"]
    reason = found.get("reason") or found["at_epoch"].get("reason")
    if reason:
        return {"reason": reason, "rows": []}
    at_epoch, completed = found["at_epoch"], found["completed"]
    rows = [
        {
            "name": name,
            "num_trials": entry["num_trials"],
            "conditional": entry["num_trials"] < at_epoch["num_trials"],
            "few": entry["share"] is not None and entry["num_trials"] < found["few_trials"],
            "at_epoch": _interval_of(entry),
            "completed": _interval_of(completed["parameters"].get(name)),
            "fanova": entry.get("fanova"),
            "explained": entry.get("explained"),
        }
        for name, entry in at_epoch["parameters"].items()
    ]
    return {
        "reason": None,
        "where": epoch_compared(metrics),
        "few": at_epoch["num_trials"] < found["few_trials"],
        "fanova": any(row["fanova"] is not None for row in rows),
        "explained": next((row["explained"] for row in rows if not row["conditional"]), None),
        "rows": sorted(rows, key=lambda row: (row["conditional"], -(row["at_epoch"]["value"] or 0.0), row["name"])),
        "axis": Axis.around([0.0, 1.0], num_ticks=2),
    }


def _interval_of(entry: dict[str, Any] | None) -> dict[str, Any]:
    """A share as the drawings and `share` take it, with what the shufflings say of it in words."""
    if entry is None:
        return {"value": None, "low": None, "high": None, "reason": "no trial has it", "verdict": ""}
    verdict = ""
    if entry["share"] is not None:
        chance = "could be chance" if entry["by_chance"] > CHANCE else "hardly chance"
        verdict = f"{chance} ({entry['by_chance']:.0%})".replace("%", " %")
    return {
        "value": entry["share"],
        "low": entry["low"],
        "high": entry["high"],
        "reason": entry.get("reason", ""),
        "verdict": verdict,
    }
