"""All trials in one table."""

from __future__ import annotations

from collections import Counter
from typing import Any

from reports import charts
from reports.folder import Study


def view(study: Study, metrics: dict[str, Any]) -> dict[str, Any]:
    """The table of all trials."""
    return {"trials": trial_rows(study), "outcomes": outcomes(study)}


def outcomes(study: Study) -> dict[str, int]:
    """How many trials ended in which way, the usual ways first."""
    found = Counter(charts.outcome(trial) for trial in study.trials)
    usual = [name for name in ("complete", "pruned", "diverged", "collapsed", "failed", "running") if name in found]
    return {name: found[name] for name in [*usual, *sorted(found.keys() - set(usual))]}


def trial_rows(study: Study) -> dict[str, Any]:
    """The table of all trials: the parameters that any of them has are its last columns."""
    names = sorted({name for trial in study.trials for name in trial.params})
    marks = {0: "default"} | ({study.best_trial.number: "best"} if study.best_trial else {})
    rows = [
        {"trial": trial, "outcome": charts.outcome(trial), "mark": marks.get(trial.number)} for trial in study.trials
    ]
    return {"names": names, "short_names": _short_names(names), "rows": rows}


def _short_names(names: list[str]) -> list[str]:
    """Dotted names without their first parts, as far as they stay distinct."""
    parts = [name.split(".") for name in names]
    for num in range(1, max(map(len, parts), default=1) + 1):
        shortened = [".".join(part[-num:]) for part in parts]
        if len(set(shortened)) == len(names):
            return shortened
    return names
