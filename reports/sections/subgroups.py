"""How the best trial does on parts of the test fold."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis, interval_axis
from reports.folder import Study

TITLES = {"sex": "Sex", "age": "Age in years", "device": "Device", "site": "Site", "quality": "Signal quality"}
LONG = 12
"""Groups beyond which a table scrolls in a window of its own."""


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the section shows; nothing where the best trial was not evaluated."""
    content = metrics.get("subgroups") or {}
    overall = (metrics["best"].get("test") or {}).get("auroc_macro", {}).get("value")
    tables = [
        _table(name, found["groups"]) | {"reason": found.get("reason")}
        for name, found in (content.get("dimensions") or {}).items()
    ]
    return {
        "content": content,
        "shown": bool(content) and "best" in study.predictions,
        "overall": overall,
        "tables": tables,
        "any_small": any(group["small"] for table in tables for group in table["groups"]),
        "most_classes": max((group["num_classes"] for table in tables for group in table["groups"]), default=0),
        "expected": 0.05 * content.get("num_differences", 0),
    }


def _table(dimension: str, groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The groups of one dimension with the axes that they share."""
    shown = [dict(group) | {"label": group["name"].replace("_", " ")} for group in groups]
    differences = [group["difference"] for group in groups]
    ends = [end for found in differences for end in (found["value"], found["low"], found["high"]) if end is not None]
    # a group of five reaches from 0 to 1 and would leave the others a point each: its line ends where the drawing does
    drawn = [
        group["auroc_macro"] if not group["small"] else {"value": group["auroc_macro"]["value"]} for group in groups
    ]
    names = dict.fromkeys(name for group in groups for name in group["classes"])
    return {
        "name": dimension,
        "title": TITLES[dimension],
        "groups": shown,
        "long": len(groups) > LONG,
        "axis": interval_axis(
            drawn if any(not group["small"] for group in groups) else [g["auroc_macro"] for g in groups]
        ),
        "difference_axis": Axis.around([0.0, *ends], num_ticks=2),
        "any_difference": bool(ends),
        "classes": list(names),
    }
