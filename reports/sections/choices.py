"""One table for every searched choice."""

from __future__ import annotations

from typing import Any

from reports.charts import Axis
from reports.folder import Study
from reports.search.choices import METHODS
from reports.words import epoch_compared


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The tables."""
    return {"choices": choice_tables(metrics)}


def choice_tables(metrics: dict[str, Any]) -> dict[str, Any]:
    """One table for every searched choice; those of what learns with a drawing of best and untrained probes."""
    tables = []
    for name, rows in metrics["choices"].items():
        probes = [row["best_probe"]["value"] for row in rows if row["best_probe"]]
        untrained = [row["untrained"] for row in rows if row["untrained"] is not None]
        tables.append(
            {
                "name": name,
                "rows": rows,
                "probed": bool(probes),
                "against_untrained": bool(untrained),
                "awaits_untrained": name in METHODS and bool(probes) and len(untrained) < len(probes),
                "axis": Axis.around([*probes, *untrained], num_ticks=2),
            }
        )
    return {"tables": tables, "where": epoch_compared(metrics) if tables else ""}
