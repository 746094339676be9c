"""The lines that make everything again."""

from __future__ import annotations

from typing import Any

from reports.folder import Study


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """Whether the best trial can be trained alone."""
    return {
        "repeatable": repeatable(study),
        "workers": int(study.setting("cluster.workers_per_trial", 1) or 1),
        "seed": (study.best.get("confirmed") or {}).get("index"),
    }


def repeatable(study: Study) -> bool:
    """Whether the best trial, or trial 0 where there is none, can be trained alone: on no other trial's weights."""
    taken_over = {event.get("trial") for event in study.of_event("exploit")}
    if study.best.get("exploits"):
        taken_over.add(study.best.get("trial"))
    return (study.best_trial.number if study.best_trial else 0) not in taken_over
