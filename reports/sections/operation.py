"""How the study ran."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.search.operation import operation, said_of_reuse


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the events say of machines, interruptions and shared pre-trainings."""
    found = operation(study)
    return {"operation": found | {"said_of_reuse": found["reuse"] and said_of_reuse(found["reuse"])}}
