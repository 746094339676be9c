"""The search itself in figures: how it went on, where it looked, what was stopped, what it cost, when trials ran."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.folder import Study
from reports.search.choices import Unknown, compare
from reports.search.cost import cost
from reports.search.failures import failures
from reports.search.history import history
from reports.search.rungs import scheduling
from reports.search.space import searched
from reports.search.timeline import timeline


def searching(study: Study, importance: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of these sections, each under its own key of metrics.json.

    Args:
        study: a study's folder, read.
        importance: as metrics.json has it.
    """
    try:
        space = searched(study, compare(study), importance)
    except Unknown as error:
        space = {"reason": str(error)}
    return {
        "history": history(study),
        "space": space,
        "scheduling": scheduling(study),
        "failures": failures(study),
        "cost": cost(study),
        "timeline": timeline(study),
    }
