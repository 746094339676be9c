"""What the scheduler did: where it decided, whom it stopped or promoted, against what threshold, and what that saved.

That a trial was stopped is in the books. The thresholds are not: the events are put through the scheduler's rule again,
in the order in which they came.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from reports.folder import Study, Trial
from reports.search.history import ends
from reports.search.timeline import Clock, moment

Results = Iterable[tuple[int, int, float]]
"""(trial, epoch, value) as they came, greater values being better."""
WAITS = ("trial_paused", "trial_promoted")
"""Events of a trial at a rung: it begins to wait there, and it goes on."""


def scheduling(study: Study) -> dict[str, Any]:
    """What became of trials epoch by epoch, and the scheduler's decisions, as plain JSON values.

    Returns:
        scheduler: its name; num_epochs of a whole trial; epochs: how many trials finished each epoch, and how many
        ended there (completed, stopped by the scheduler, otherwise); stopped: each stopped trial with its epoch, its
        value there, what it would have needed (None where that cannot be told) and when; rungs: see `asha`;
        promotions (asha_promotion): each paused trial that went on, with its epoch and when; saved: epochs
        that stopped trials had left, and about how many device-hours; exploits (pbt): takeovers by epoch.
    """
    total = num_epochs(study)
    stopped = [trial for trial in study.trials if was_stopped(trial) and trial.epochs]
    results = list(results_of(study))
    name = str(study.setting("scheduler.name", ""))
    rungs = asha(study, results) if name in ("asha", "asha_promotion") else []
    needed = _needed(study, results, rungs)
    ended = ends(study)
    found: dict[str, Any] = {
        "scheduler": name,
        "num_epochs": total,
        "epochs": _by_epoch(study),
        "rungs": rungs,
        "stopped": [
            _decision(trial, needed.get(trial.number), maximizes=study.maximizes)
            | {"running_hours": ended.get(trial.number)}
            for trial in stopped
        ],
        "promotions": _promotions(study),
        "saved": _saved(study, stopped, total),
    }
    exploits = Counter(event.get("epoch") for event in study.of_event("exploit"))
    return found | {"exploits": [{"epoch": epoch, "trials": exploits[epoch]} for epoch in sorted(exploits, key=str)]}


def was_stopped(trial: Trial) -> bool:
    """Whether the scheduler ended it."""
    return trial.state == "PRUNED" and trial.reason == "scheduler"


def num_epochs(study: Study) -> int:
    """Epochs of a trial that runs to its end: the configuration's, else the most that any has had."""
    stages = study.setting("task.stages")
    parts = {"joint": ("pretrain", "finetune"), "pretrain": ("pretrain",), "finetune": ("finetune",)}.get(stages, ())
    planned = [study.setting(f"task.{part}.num_epochs") for part in parts]
    if planned and all(isinstance(number, int) for number in planned):
        return sum(planned)
    return max((trial.epochs or 0 for trial in study.trials), default=0)


def results_of(study: Study) -> Iterator[tuple[int, int, float]]:
    """What the scheduler was told, in its order."""
    sign = 1.0 if study.maximizes else -1.0
    for event in study.of_event("epoch"):
        value = (event.get("metrics") or {}).get(study.metric)
        if isinstance(value, int | float) and math.isfinite(value):
            yield event["trial"], event["epoch"], sign * value


def rungs_of(study: Study) -> list[int]:
    """The epochs at whose end asha decides: grace_epochs * reduction_factor ** k before the last.

    One that falls on a joint trial's first fine-tuning epoch is moved one on, as a head just put on says little.
    """
    rung, factor = study.setting("scheduler.grace_epochs"), study.setting("scheduler.reduction_factor")
    total = num_epochs(study)
    if not isinstance(rung, int) or not isinstance(factor, int) or rung < 1 or factor < 2:
        return []
    joint = study.setting("task.stages") == "joint"
    unsettled = int(study.setting("task.pretrain.num_epochs", 0)) + 1 if joint else 0
    found: list[int] = []
    while rung < total:
        moved = rung + 1 if rung == unsettled else rung
        if moved < total and moved not in found:
            found.append(moved)
        rung *= factor
    return found


def asha(study: Study, results: Results) -> list[dict[str, Any]]:
    """Every rung: its epoch, how many came, went on and were stopped, and each that came with the threshold it met.

    Of the results at a rung so far, this one included, the best 1 / reduction_factor go on, at least one; the first
    reduction_factor - 1 meet no threshold (asynchronous successive halving, Li et al. 2020, arXiv:1810.05934). With
    promotion one that does not may still go on later, when others have come that are worse.
    """
    factor = int(study.setting("scheduler.reduction_factor", 0))
    sign = 1.0 if study.maximizes else -1.0
    ended = {trial.number: trial.epochs for trial in study.trials if was_stopped(trial)}
    places = {kind: {(event.get("trial"), event.get("epoch")) for event in study.of_event(kind)} for kind in WAITS}
    waits = places["trial_paused"] - places["trial_promoted"]
    rungs = {rung: _Rung() for rung in rungs_of(study)}
    for trial, epoch, value in results:
        if epoch in rungs:
            threshold = rungs[epoch].met(value, factor)
            rungs[epoch].came.append(
                {
                    "trial": trial,
                    "value": sign * value,
                    "threshold": None if threshold is None else sign * threshold,
                    "stopped": ended.get(trial) == epoch,
                    "went_on": ended.get(trial) != epoch and (trial, epoch) not in waits,
                }
            )
    return [rung.as_json(epoch) for epoch, rung in rungs.items()]


def _promotions(study: Study) -> list[dict[str, Any]]:
    """Each paused trial that went on, in their order, with the running hours at which it did."""
    clock = Clock.of(study)
    return [
        {
            "trial": event.get("trial"),
            "epoch": event.get("epoch"),
            "running_hours": None if (at := moment(event)) is None else round(clock(at) / 3600, 6),
        }
        for event in study.of_event("trial_promoted")
    ]


class _Rung:
    """One rung while events are put through it."""

    def __init__(self) -> None:
        self.came: list[dict[str, Any]] = []
        self._values: list[float] = []

    def met(self, value: float, factor: int) -> float | None:
        """Take a value in; the least that goes on at this moment."""
        self._values.append(value)
        if len(self._values) < factor:
            return None
        self._values.sort(reverse=True)
        return self._values[max(1, len(self._values) // factor) - 1]

    def as_json(self, epoch: int) -> dict[str, Any]:
        thresholds = [entry["threshold"] for entry in self.came if entry["threshold"] is not None]
        return {
            "epoch": epoch,
            "reached": len(self.came),
            "went_on": sum(entry["went_on"] for entry in self.came),
            "stopped": sum(entry["stopped"] for entry in self.came),
            "undecided": len(self.came) - len(thresholds),
            "first_threshold": thresholds[0] if thresholds else None,
            "last_threshold": thresholds[-1] if thresholds else None,
            "came": self.came,
        }


def _needed(study: Study, results: Results, found_rungs: list[dict[str, Any]]) -> dict[int, tuple[float, float | None]]:
    """Stopped trial -> the value it was judged by and the least that would have gone on, greater being better."""
    name = study.setting("scheduler.name")
    sign = 1.0 if study.maximizes else -1.0
    in_the_end = {rung["epoch"]: rung["last_threshold"] for rung in found_rungs}
    last = {trial.number: trial.epochs for trial in study.trials if was_stopped(trial)}
    found: dict[int, tuple[float, float | None]] = {}
    rungs = {rung: _Rung() for rung in rungs_of(study)}
    factor = int(study.setting("scheduler.reduction_factor", 0) or 0)
    seen: dict[int, dict[int, float]] = {}
    for trial, epoch, value in results:
        seen.setdefault(trial, {})[epoch] = value
        met = rungs[epoch].met(value, factor) if name == "asha" and epoch in rungs else None
        if last.get(trial) == epoch:
            found[trial] = value, met
            if name == "median":
                found[trial] = max(seen[trial].values()), _median_of_others(seen, trial, epoch)
            elif name == "asha_promotion" and in_the_end.get(epoch) is not None:
                found[trial] = value, sign * in_the_end[epoch]
    return found


def _median_of_others(seen: dict[int, dict[int, float]], trial: int, epoch: int) -> float | None:
    """The median of the others' running means up to an epoch that they have reached (Golovin et al. 2017, 3.2.2)."""
    others = [values for other, values in seen.items() if other != trial and max(values) >= epoch]
    so_far = [[value for at, value in values.items() if at <= epoch] for values in others]
    means = [statistics.fmean(values) for values in so_far if values]
    return statistics.median(means) if means else None


def _decision(trial: Trial, met: tuple[float, float | None] | None, *, maximizes: bool) -> dict[str, Any]:
    sign = 1.0 if maximizes else -1.0
    value, needed = met or (None, None)
    return {
        "trial": trial.number,
        "epoch": trial.epochs,
        "value": trial.value if value is None else sign * value,
        "needed": None if needed is None else sign * needed,
    }


def _by_epoch(study: Study) -> list[dict[str, Any]]:
    """How many trials finished each epoch, and how many ended at it and why."""
    last = max((trial.epochs or 0 for trial in study.trials), default=0)
    ended = Counter((trial.epochs or 0, _how(trial)) for trial in study.trials)
    return [
        {
            "epoch": epoch,
            "finished": sum((trial.epochs or 0) >= epoch for trial in study.trials),
            "completed": ended[epoch, "completed"],
            "stopped": ended[epoch, "stopped"],
            "otherwise": ended[epoch, "otherwise"],
        }
        for epoch in range(1, last + 1)
    ]


def _how(trial: Trial) -> str:
    if trial.state == "COMPLETE":
        return "completed"
    if trial.state == "RUNNING":
        return "running"
    return "stopped" if was_stopped(trial) else "otherwise"


def _saved(study: Study, stopped: list[Trial], total: int) -> dict[str, Any]:
    """Epochs that stopped trials had left, and the hours of them at each epoch's median time over all trials."""
    seconds: dict[int, list[float]] = {}
    for event in study.of_event("epoch"):
        if isinstance(event.get("seconds"), int | float):
            seconds.setdefault(event["epoch"], []).append(float(event["seconds"]))
    usual = {epoch: statistics.median(found) for epoch, found in seconds.items()}
    left = Counter(epoch for trial in stopped for epoch in range((trial.epochs or 0) + 1, total + 1))
    run = sum(trial.epochs or 0 for trial in study.trials)
    workers = int(study.setting("cluster.workers_per_trial", 1) or 1)
    known = bool(left) and left.keys() <= usual.keys()
    return {
        "epochs": sum(left.values()),
        "epochs_run": run,
        "device_hours": workers * sum(usual[epoch] * num for epoch, num in left.items()) / 3600 if known else None,
    }
