"""What the search cost: device-hours, what they were spent on, and what they come to at a price.

A device is one worker of a trial: a GPU where workers have one. Counted is the time in which epochs were computed;
starting trials, the pre-flight, the evaluation and idle devices are not in it.
"""

from __future__ import annotations

from typing import Any

from reports.charts import outcome
from reports.folder import Study, Trial

USUAL = ("complete", "pruned", "diverged", "collapsed", "infeasible", "failed", "running")


def cost(study: Study) -> dict[str, Any]:
    """Device-hours in total and by how trials ended, as plain JSON values.

    Returns:
        device_hours, rows of outcome, trials, device_hours and share of the total, runs that confirm the best trials
        in a row of their own; again: device-hours of epochs that
        are no part of a trial's course, as they were computed a second time after an interruption, or failed;
        cost_per_device_hour and currency, with cost in the total and in each row (None without a price).
    """
    workers = int(study.setting("cluster.workers_per_trial", 1) or 1)
    price = study.setting("evaluate.cost_per_device_hour")
    computed = _computed(study)
    hours = {trial.number: workers * _seconds(trial, computed) / 3600 for trial in study.trials}
    confirming = _confirming(study)
    total = sum(hours.values()) + workers * sum(confirming.values()) / 3600
    found = {trial.number: ending(trial) for trial in study.trials}
    names = [*USUAL, *sorted(set(found.values()) - set(USUAL))]
    rows = []
    for name in names:
        numbers = [number for number, of in found.items() if of == name]
        if numbers:
            spent = sum(hours[number] for number in numbers)
            rows.append({"outcome": name, "trials": len(numbers)} | _priced(spent, total, price))
    if confirming:
        spent = workers * sum(confirming.values()) / 3600
        rows.append({"outcome": "confirmation", "trials": len(confirming)} | _priced(spent, total, price))
    again = sum(
        max(0.0, workers * (trial.seconds - computed.get(trial.number, 0.0))) / 3600
        for trial in study.trials
        if trial.seconds is not None and trial.number in computed
    )
    return {
        "workers_per_trial": workers,
        **_priced(total, total, price),
        "rows": rows,
        "again": round(again, 6) if computed else None,
        "cost_per_device_hour": price,
        "currency": study.setting("evaluate.currency", "") if price is not None else None,
    }


def ending(trial: Trial) -> str:
    """How a trial ended, choices that cannot go together apart from what was stopped."""
    return "infeasible" if (trial.reason or "").startswith("infeasible") else outcome(trial)


def _priced(hours: float, total: float, price: float | None) -> dict[str, Any]:
    return {
        "device_hours": round(hours, 6),
        "share": hours / total if total else None,
        "cost": None if price is None else round(hours * price, 4),
    }


def _seconds(trial: Trial, computed: dict[int, float]) -> float:
    return computed.get(trial.number, 0.0) if trial.seconds is None else trial.seconds


def _confirming(study: Study) -> dict[tuple[int, int], float]:
    """Trial and seed -> seconds of the run that trained it again, by its end if that is known, else by its epochs."""
    found: dict[tuple[int, int], float] = {}
    for kind in ("confirmation_epoch", "confirmation_ended"):
        ended = kind == "confirmation_ended"
        for event in study.of_event(kind):
            key = event["trial"], event["index"]
            found[key] = (0.0 if ended else found.get(key, 0.0)) + float(event.get("seconds") or 0.0)
    return found


def _computed(study: Study) -> dict[int, float]:
    """Trial -> seconds of its epochs, each counted once; empty where the events do not say."""
    seconds: dict[int, dict[int, float]] = {}
    for event in study.of_event("epoch"):
        if isinstance(event.get("seconds"), int | float):
            seconds.setdefault(event["trial"], {})[event["epoch"]] = float(event["seconds"])
    return {trial: sum(epochs.values()) for trial, epochs in seconds.items()}
