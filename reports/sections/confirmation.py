"""How the best trials did under new seeds, and which of them was chosen."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis
from reports.folder import Study


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table, with an axis for its drawings."""
    found = metrics["confirmation"]
    values = [run["value"] for row in found["rows"] for run in row["seeds"]]
    values += [row["estimate"] for row in found["rows"]]
    known = [value for value in values if value is not None]
    return {
        "confirmation": found,
        "axis": Axis.around(known, num_ticks=3) if known else None,
        "failed": [
            (row["trial"], run)
            for row in found["rows"]
            for run in row["seeds"]
            if run["state"] not in ("COMPLETE", "RUNNING")
        ],
        "running": sum(run["state"] == "RUNNING" for row in found["rows"] for run in row["seeds"]),
    }
