"""How the options of every searched choice did, side by side: at one epoch, as a probe, at the end.

A scheduler stops most trials after a few epochs, so the last values of trials come from trainings of different lengths:
they would say as much about the scheduler as about what had been chosen. Trials are compared at one epoch that nearly
all of them reached.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reports.folder import Study, Trial

REACHED = 0.8
"""Share of the trials with a value that must have one at the epoch of the comparison. Were all of them needed, one that
diverged early would fix the epoch; were half enough, those that the scheduler stopped first, the worst, would not be
in the comparison."""
METHODS = ("model", "model.encoder")
"""Choices of what learns: each of their options is held against its own untrained encoder."""


class Unknown(ValueError):
    """What a study cannot tell; the message says why, for the report to say it."""


@dataclass(frozen=True)
class Comparison:
    """The epoch at which trials are compared, and their values there."""

    epoch: int
    stage: str
    """pretrain or finetune: whose value it is, the linear probe's or the trained head's."""
    values: Mapping[int, float]
    """Trial -> the objective after that epoch."""
    num_with_value: int
    """Trials that have a value at any epoch."""
    num_without_value: int
    """Trials that have none, as they failed, diverged in their first epoch or have just begun."""

    def as_json(self) -> dict[str, Any]:
        """The comparison as metrics.json holds it."""
        return {
            "epoch": self.epoch,
            "stage": self.stage,
            "num_trials": len(self.values),
            "num_with_value": self.num_with_value,
            "num_without_value": self.num_without_value,
            "needed_share": REACHED,
        }


def compare(study: Study) -> Comparison:
    """The trials' values at the last epoch that at least REACHED of those with a value have reached.

    Raises:
        Unknown: if there is no such epoch, or no value follows from one set of choices.
    """
    if study.of_event("exploit"):
        raise Unknown(
            "trials took over other trials’ weights and changed their parameters on the way (population-based"
            " training), so that no value follows from one choice"
        )
    curves = {trial.number: {point.epoch: point for point in trial.curve} for trial in study.trials if trial.curve}
    if not curves:
        raise Unknown(f"no trial has reported {study.metric} yet")
    counts = Counter(epoch for curve in curves.values() for epoch in curve)
    reached = [epoch for epoch, number in counts.items() if number >= REACHED * len(curves) - 1e-9]
    if not reached:
        raise Unknown(f"no epoch was reported by {REACHED:.0%} of the {len(curves)} trials with a value")
    points = {number: curve[max(reached)] for number, curve in curves.items() if max(reached) in curve}
    return Comparison(
        epoch=max(reached),
        stage=next(iter(points.values())).stage,
        values={number: point.value for number, point in points.items()},
        num_with_value=len(curves),
        num_without_value=len(study.trials) - len(curves),
    )


def tables(study: Study, comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """One table for every searched choice, METHODS first: its options, the best at the epoch of the comparison first.

    A trial in whose branch of the space a choice does not exist is in none of its rows; an option that no trial took
    has a row that says so.
    """
    searched = [name for name in study.setting("space") or {} if study.distribution_of(name)[0] == "choice"]
    ranks = {name: rank for rank, name in enumerate(METHODS)}
    names = sorted(searched, key=lambda name: (ranks.get(name, len(METHODS)), name))
    return {name: _table(study, comparison, name) for name in names}


def probed_trials(study: Study) -> dict[str, dict[str, int]]:
    """For each of METHODS that is searched: option -> the trial with its best probe in pre-training."""
    try:
        found = tables(study, compare(study))
    except Unknown:
        return {}
    probed = {
        name: {row["option"]: row["best_probe"]["trial"] for row in found[name] if row["best_probe"]}
        for name in METHODS
        if name in found
    }
    return {name: trials for name, trials in probed.items() if trials}


def _table(study: Study, comparison: Comparison, name: str) -> list[dict[str, Any]]:
    untrained = study.untrained.get(name) or {}
    rows = [
        _row(study, comparison, written(option), trials, untrained.get(written(option)) or {})
        for option, trials in _by_option(study, name)
    ]
    sign = -1 if study.maximizes else 1
    return sorted(rows, key=lambda row: (row["best_at_epoch"] is None, sign * (row["best_at_epoch"] or 0.0)))


def _by_option(study: Study, name: str) -> list[tuple[Any, list[Trial]]]:
    """The options of a choice in the order of the space, each with the trials that took it."""
    groups: list[tuple[Any, list[Trial]]] = [(option, []) for option in study.distribution_of(name)[1]]
    # from the events: a table holds neither lists nor an option that is null
    chosen = {event["trial"]: event.get("params") or {} for event in study.of_event("trial_started")}
    for trial in study.trials:
        params = chosen.get(trial.number, {})
        if name not in params:
            continue
        taken = next((trials for option, trials in groups if same(option, params[name])), None)
        if taken is None:
            groups.append((params[name], [trial]))
        else:
            taken.append(trial)
    return groups


def same(option: Any, value: Any) -> bool:
    """Whether two values are one option: 1 and 1.0 are, 1 and true are not."""
    return bool(option == value) and isinstance(option, bool) == isinstance(value, bool)


def written(option: Any) -> str:
    """An option as it is typed."""
    return json.dumps(option) if option is None or isinstance(option, bool | list | dict) else str(option)


def _row(
    study: Study, comparison: Comparison, option: str, trials: list[Trial], untrained: Mapping[str, Any]
) -> dict[str, Any]:
    at_epoch = [comparison.values[trial.number] for trial in trials if trial.number in comparison.values]
    completed = [trial for trial in trials if trial.state == "COMPLETE"]
    probes = [
        {"value": point.value, "trial": trial.number, "epoch": point.epoch}
        for trial in trials
        for point in trial.curve
        if point.stage == "pretrain"
    ]
    ends = [{"value": trial.value, "trial": trial.number} for trial in completed if trial.value is not None]
    best_probe = _best(study, probes)
    before = None
    if best_probe and untrained.get("trial") == best_probe["trial"]:  # never another trial's encoder
        before = (untrained.get("metrics") or {}).get(study.metric)
    return {
        "option": option,
        "num_trials": len(trials),
        "num_completed": len(completed),
        "num_at_epoch": len(at_epoch),
        "best_at_epoch": (max if study.maximizes else min)(at_epoch, default=None),
        "median_at_epoch": statistics.median(at_epoch) if at_epoch else None,
        "best_probe": best_probe,
        "untrained": before,
        "best_less_untrained": best_probe["value"] - before if best_probe and before is not None else None,
        "best_completed": _best(study, ends),
    }


def _best(study: Study, found: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The entry with the best value, the earliest of equals."""
    sign = 1 if study.maximizes else -1
    return max(found, key=lambda entry: sign * float(entry["value"]), default=None)
