"""How the search went on: every trial's value as it ended, and the best one so far."""

from __future__ import annotations

from typing import Any

from reports.charts import outcome
from reports.folder import Study
from reports.search.timeline import Clock, moment


def history(study: Study) -> dict[str, Any]:
    """Every trial in the order of its number, as plain JSON values.

    Returns:
        trials: number, outcome, value (a stopped one's is the last it reported, after fewer epochs), the running hours
        at which it ended, the device-hours that all trials had taken by then, and the best value of the completed ones
        so far, by number and by end; default: the default configuration's value; best: the trial's number.
    """
    ended_at = ends(study)
    by_number = _best_so_far(study, [trial.number for trial in study.trials])
    order = sorted(ended_at, key=lambda number: (ended_at[number], number))
    by_end, device_hours = _best_so_far(study, order), _device_hours(study) if ended_at else {}
    first = study.trials[0] if study.trials else None
    return {
        "trials": [
            {
                "trial": trial.number,
                "outcome": outcome(trial),
                "value": trial.value,
                "ended_hours": ended_at.get(trial.number),
                "device_hours": device_hours.get(trial.number),
                "best_by_number": by_number[trial.number],
                "best_by_end": by_end.get(trial.number),
            }
            for trial in study.trials
        ],
        "default": first.value if first and first.number == 0 and first.state == "COMPLETE" else None,
        "best": study.best_trial.number if study.best_trial else None,
    }


def ends(study: Study) -> dict[int, float]:
    """Trial -> the running hours at which it ended; without those that run, or whose events have no times."""
    clock = Clock.of(study)
    found = {event.get("trial"): moment(event) for event in study.of_event("trial_ended")}
    ended = {trial.number: found.get(trial.number) for trial in study.trials}
    return {number: round(clock(at) / 3600, 6) for number, at in ended.items() if at is not None}


def _best_so_far(study: Study, order: list[int]) -> dict[int, float | None]:
    """Trial -> the best value of completed trials up to it, in the order given."""
    trials = {trial.number: trial for trial in study.trials}
    better = max if study.maximizes else min
    found: dict[int, float | None] = {}
    best: float | None = None
    for number in order:
        trial = trials[number]
        if trial.state == "COMPLETE" and trial.value is not None:
            best = trial.value if best is None else better(best, trial.value)
        found[number] = best
    return found


def _device_hours(study: Study) -> dict[int, float]:
    """Trial -> what all trials had taken when it ended, those under way or paused up to their last epoch."""
    whole = {trial.number: trial.seconds or 0.0 for trial in study.trials}
    workers = int(study.setting("cluster.workers_per_trial", 1) or 1)
    taken: dict[int, float] = {}
    found, total = {}, 0.0
    for event in study.events:
        number, before = event.get("trial"), taken.get(event.get("trial", -1), 0.0)
        if number not in whole or event.get("event") not in ("epoch", "trial_ended"):
            continue
        ended = event["event"] == "trial_ended"
        # a trial's own seconds are also those of epochs that failed
        taken[number] = whole[number] if ended else before + float(event.get("seconds") or 0.0)
        total += taken[number] - before
        if ended:
            found[number] = round(total * workers / 3600, 6)
    return found
