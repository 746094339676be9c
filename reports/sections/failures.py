"""Which trials ended without a result of their own, and why."""

from __future__ import annotations

from typing import Any

from reports.folder import Study


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table."""
    rows = metrics["failures"]
    return {"failures": rows, "num_failures": sum(len(row["trials"]) for row in rows)}
