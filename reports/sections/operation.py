"""How the study ran."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.search.operation import operation


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the events say of machines and interruptions."""
    return {"operation": operation(study)}
