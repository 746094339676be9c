"""What the best trial was given, beside the default and beside where all trials lay."""

from __future__ import annotations

from typing import Any

from reports import charts
from reports.folder import Study
from reports.places import without_places


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of parameters, and the configuration as it may be shared."""
    return {
        "parameters": parameter_rows(study),
        "configuration": without_places(study.best.get("run") or study.config),
    }


def parameter_rows(study: Study) -> list[dict[str, Any]]:
    """Every searched parameter: default, best, where it was drawn from, where the trials lay."""
    best = study.best.get("params") or (study.best_trial.params if study.best_trial else {})
    default = study.default_params
    return [
        {
            "name": name,
            "default": default.get(name),
            "best": best.get(name),
            "changed": default.get(name) != best.get(name),
            "range": charts.distribution(study, name),
            "strip": charts.parameter_strip(study, name),
        }
        for name in sorted({name for trial in study.trials for name in trial.params} | best.keys())
    ]
