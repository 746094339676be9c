"""How the figures were made, and what they do not say."""

from __future__ import annotations

from typing import Any

from reports.folder import Study
from reports.sections.choices import choice_tables
from reports.words import compared


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """What the small print depends on."""
    return {"choices": choice_tables(metrics), "compared": compared(metrics)}
