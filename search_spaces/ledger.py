"""A study's books: which trial is next, what each reported, how it ended, which models are kept.

Optuna's journal is the truth for states and values; `events.jsonl` is written before it and holds all else. A change is
recorded first and carried out then, and what is carried out may be carried out twice: a study whose driver was killed
at any instant is brought up to date when it is opened again, loses no trial and counts none twice.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search_spaces.distributions import Space
from search_spaces.samplers import make_sampler
from search_spaces.schedulers import Policy
from search_spaces.schema import Launch
from trainables import retention
from trainables.files import write_atomically
from trainables.settings import Run
from trainables.state import read_place
from trainables.study import StudyFolder

STUDY_NAME = "heartsweep"


@dataclass
class TrialRecord:
    """What the books say of one trial.

    Attributes:
        number: its number in the study.
        params: its choices by dotted name.
        state: RUNNING, then COMPLETE, PRUNED or FAIL.
        epoch: the last one reported.
        stage: that epoch's.
        metrics: that epoch's.
        value: the best value that counts for the trial so far.
        best_epoch: where that was.
        best_metrics: what else was measured there.
        seconds: computed so far, of this trial's own time.
        reason: why it ended early.
        stopped: whether the policy has said so.
        exploits: when it went on from another trial's weights (population-based training).
    """

    number: int
    params: dict[str, Any]
    state: str = "RUNNING"
    epoch: int = 0
    stage: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    value: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    reason: str | None = None
    stopped: bool = False
    exploits: list[dict[str, Any]] = field(default_factory=list)


class Ledger:
    """The books of one study, kept by its one driver.

    Args:
        folder: the study's, locked by the caller.
        launch: what was typed.
        space: what is searched.
        make_run: a trial's run from its choices.
        default_params: trial 0's choices, as Optuna stores them.
        policy: who is stopped early.
        describe: the checkpoint JSON of a completed trial.
    """

    def __init__(
        self,
        folder: StudyFolder,
        launch: Launch,
        space: Space,
        *,
        make_run: Callable[[Mapping[str, Any]], Run],
        default_params: Mapping[str, Any],
        policy: Policy,
        describe: Callable[[TrialRecord, Run], dict[str, Any]],
    ) -> None:
        self.folder = folder
        self.search = launch.search
        self.trials: dict[int, TrialRecord] = {}
        self.make_run = make_run
        self._sampler, self._seed = launch.sampler, launch.seed
        self._space = space
        self._policy = policy
        self._describe = describe
        self._maximize = launch.search.direction == "maximize"
        self._devices = launch.cluster.workers_per_trial
        self._waiting: list[int] = []
        self._seconds_before = 0.0
        self._opened = time.monotonic()
        storage = JournalStorage(JournalFileBackend(str(folder.journal)))
        self._study = optuna.create_study(
            study_name=STUDY_NAME, storage=storage, direction=self.search.direction, load_if_exists=True
        )
        points = self._points(default_params)
        self.num_trials = len(points) if launch.sampler.name == "grid" else self.search.num_trials
        if not self._study.get_trials(deepcopy=False):
            for point in points:
                self._study.enqueue_trial(dict(point))
        self._bring_up_to_date()

    def _points(self, default_params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What is queued when a study begins: the default, and with `sampler=grid` every other point."""
        if self._sampler.name != "grid":
            return [default_params]
        points = self._space.grid()
        return sorted(points, key=lambda point: point != default_params)  # stable: the default first, if it is there

    # -------- what is asked of the books

    @property
    def num_ended(self) -> int:
        """Trials that ended for their own reason; an interrupted one will go on."""
        return sum(trial.state != "RUNNING" for trial in self.trials.values())

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the best value, the earlier of two equals."""
        complete = [trial for trial in self.trials.values() if trial.state == "COMPLETE"]
        sign = -1 if self._maximize else 1
        return min(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)

    @property
    def device_seconds(self) -> float:
        """Seconds of all workers of all trials."""
        return self._devices * sum(trial.seconds for trial in self.trials.values())

    @property
    def wall_seconds(self) -> float:
        """Seconds in which a driver ran this study."""
        return self._seconds_before + time.monotonic() - self._opened

    @property
    def used_up(self) -> str | None:
        """Which budget is used up, as a sentence; None while there is some left of each."""
        budgets = (
            ("search.max_hours", self.search.max_hours, self.wall_seconds),
            ("search.max_device_hours", self.search.max_device_hours, self.device_seconds),
        )
        for key, hours, seconds in budgets:
            if hours is not None and seconds >= hours * 3600:
                return f"{key}={hours:g} is used up"
        return None

    # -------- what happens to a trial

    def next_trial(self) -> tuple[TrialRecord, Run] | None:
        """The trial to start now: one that was interrupted, else a new one; None when the study has enough.

        Raises:
            StorageError: if it cannot be written down.
        """
        if self._waiting:
            trial = self.trials[self._waiting.pop(0)]
            self.folder.record("trial_resumed", trial=trial.number, epoch=trial.epoch)
            return trial, self.make_run(trial.params)
        if len(self.trials) >= self.num_trials or self.used_up:
            return None
        self._study.sampler = make_sampler(self._sampler, seed=self._seed, number=len(self._study.trials))
        asked = self._study.ask()
        return self._start(asked)

    def _start(self, asked: optuna.Trial) -> tuple[TrialRecord, Run]:
        params = self._space.ask(asked)
        trial = self.trials[asked.number] = TrialRecord(asked.number, params)
        self.folder.record("trial_started", trial=trial.number, params=params)
        return trial, self.make_run(params)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; say whether the trial goes on. What does not go on has ended in the books.

        Args:
            number: the trial.
            result: see trainables.trial.epochs.
        """
        trial = self.trials[number]
        if result["metrics"]:
            self._take_in(trial, result, self._write_epoch(trial, result))
        if result["reason"] is not None:
            self.end(number, "PRUNED", result["reason"])
        elif result["finished"]:
            self._end_finished(trial)
        elif trial.stopped:
            self.end(number, "PRUNED", "scheduler")
        return trial.state == "RUNNING"

    def _end_finished(self, trial: TrialRecord) -> None:
        if trial.value is None:
            self.end(trial.number, "PRUNED", f"non_finite: {self.search.metric} was never finite")
        else:
            self.end(trial.number, "COMPLETE", None)

    def _write_epoch(self, trial: TrialRecord, result: Mapping[str, Any]) -> float:
        finite = {name: value for name, value in result["metrics"].items() if math.isfinite(value)}
        self.folder.record(
            "epoch",
            trial=trial.number,
            epoch=result["epoch"],
            stage=result["stage"],
            metrics=finite,
            seconds=round(result["seconds"], 3),
            value=result["value"],
            best_epoch=result["best_epoch"],
        )
        return float(result["seconds"])

    def _take_in(self, trial: TrialRecord, result: Mapping[str, Any], seconds: float) -> None:
        """An epoch that is written down: into the journal, the books and the policy."""
        trial.epoch, trial.stage, trial.metrics = result["epoch"], result["stage"], dict(result["metrics"])
        trial.value, trial.best_epoch = result["value"], result["best_epoch"]
        trial.seconds += seconds
        value = trial.metrics.get(self.search.metric, math.nan)
        if not math.isfinite(value):
            return
        in_journal = self._study.get_trials(deepcopy=False)[trial.number]
        if not in_journal.state.is_finished() and trial.epoch not in in_journal.intermediate_values:
            optuna.trial.Trial(self._study, in_journal._trial_id).report(value, trial.epoch)
        trial.stopped = not self._policy.report(trial.number, trial.epoch, value if self._maximize else -value)

    def end(self, number: int, state: str, reason: str | None) -> None:
        """Write down how a trial ended, tell Optuna, keep its weights if they are among the best."""
        trial = self.trials[number]
        self.folder.record(
            "trial_ended",
            trial=number,
            state=state,
            value=trial.value,
            reason=reason,
            epochs=trial.epoch,
            seconds=round(trial.seconds, 3),
        )
        trial.state, trial.reason = state, reason
        self._carry_out_end(trial)

    def _carry_out_end(self, trial: TrialRecord) -> None:
        """Everything that follows from `trial_ended`; done again after a crash, it changes nothing that was done."""
        running = self.folder.trial(trial.number)
        if trial.state == "COMPLETE" and running.exists():
            assert trial.best_epoch is not None
            retention.keep(
                self.folder,
                running / f"best-{trial.best_epoch:04d}.safetensors",
                self._describe(trial, self.make_run(trial.params)),
                keep_best=self.search.keep_best,
                maximize=self._maximize,
            )
        in_journal = self._study.get_trials(deepcopy=False)[trial.number]
        if not in_journal.state.is_finished():
            told = optuna.trial.Trial(self._study, in_journal._trial_id)
            told.set_user_attr("epochs", trial.epoch)
            if trial.reason is not None:
                told.set_user_attr("reason", trial.reason)
            values = trial.value if trial.state == "COMPLETE" else None
            self._study.tell(trial.number, values, state=TrialState[trial.state])
        shutil.rmtree(running, ignore_errors=True)
        self._write_table()

    def _write_table(self) -> None:
        """trials.parquet: one row a trial."""
        journal = {trial.number: trial for trial in self._study.get_trials(deepcopy=False)}
        rows = [
            {
                "number": trial.number,
                "state": trial.state,
                "value": journal[trial.number].value if trial.state != "FAIL" else None,
                "epochs": trial.epoch,
                "seconds": round(trial.seconds, 3),
                "reason": trial.reason,
                **trial.params,
            }
            for trial in sorted(self.trials.values(), key=lambda trial: trial.number)
        ]
        write_atomically(self.folder.trials, pd.DataFrame(rows).to_parquet(index=False))

    # -------- after a crash

    def _bring_up_to_date(self) -> None:
        """Put the events through the books and the policy again, then finish what was begun."""
        for event in self.folder.read_events():
            self._replay(event)
        self._seconds_before = session_seconds(self.folder)
        for in_journal in self._study.get_trials(deepcopy=False):
            if in_journal.state == TrialState.WAITING:
                continue
            trial = self.trials.get(in_journal.number)
            if trial is None:  # asked for, but the driver died before it was written down
                trial, _ = self._start(optuna.trial.Trial(self._study, in_journal._trial_id))
            if trial.state != "RUNNING":
                if not in_journal.state.is_finished() or self.folder.trial(trial.number).exists():
                    self._carry_out_end(trial)
                continue
            self._catch_up(trial)
        retention.arrange(self.folder, keep_best=self.search.keep_best, maximize=self._maximize)

    def _replay(self, event: Mapping[str, Any]) -> None:
        kind, number = event["event"], event.get("trial")
        if kind == "trial_started" and number is not None:
            self.trials[number] = TrialRecord(number, event["params"])
        elif kind == "epoch" and number is not None and event["epoch"] > self.trials[number].epoch:
            self._take_in(self.trials[number], event, event["seconds"])
        elif kind == "trial_ended" and number is not None:
            self.trials[number].state, self.trials[number].reason = event["state"], event["reason"]

    def _catch_up(self, trial: TrialRecord) -> None:
        """Write down the epochs that an interrupted trial saved but nobody took in; then let it go on, or end it."""
        place = read_place(self.folder.trial(trial.number))
        best = (place or {}).get("best") or {}
        for epoch in (place or {}).get("history", [])[trial.epoch :]:
            counted = bool(best) and epoch["epoch"] >= best["epoch"]
            result = {
                **epoch,
                "seconds": 0.0,
                "value": best["value"] if counted else trial.value,
                "best_epoch": best["epoch"] if counted else trial.best_epoch,
            }
            self._take_in(trial, result, self._write_epoch(trial, result))
        if trial.epoch == self.make_run(trial.params).task.num_epochs:
            self._end_finished(trial)
        elif trial.stopped:
            self.end(trial.number, "PRUNED", "scheduler")
        else:
            self._waiting.append(trial.number)


def session_seconds(folder: StudyFolder) -> float:
    """Seconds in which drivers ran a study, by its events: from each one's start to its last event."""
    total, first, last = 0.0, None, None
    for event in folder.read_events():
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] in ("study_started", "study_resumed"):
            total += (last - first) if first is not None and last is not None else 0.0
            first = at
        last = at
    return total + ((last - first) if first is not None and last is not None else 0.0)
