"""A study's books: which trial is next, what each reported, how it ended, which models are kept.

Optuna's journal is the truth for states and values; `events.jsonl` is written before it and holds all else. A change is
recorded first and carried out then, and what is carried out may be carried out twice: a study whose driver was killed
at any instant is brought up to date when it is opened again, loses no trial and counts none twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.trial import FrozenTrial, TrialState

from search_spaces.distributions import Space, encoded, written
from search_spaces.history import PausingStudy
from search_spaces.journal import journal_of, open_study
from search_spaces.population import donor_for, explored
from search_spaces.samplers import make_sampler
from search_spaces.schedulers import Decision, Policy, exploit_epochs
from search_spaces.schema import Launch
from trainables import retention
from trainables.failures import COUNTS, MAX_REASON, InterruptedTrial
from trainables.files import write_atomically
from trainables.settings import Run
from trainables.state import LAST, best_path, copy_state, drop_state, read_place, write_attempt
from trainables.stored import InFolder, States, key_of
from trainables.study import StudyError, StudyFolder

FIRST_RUN = 1_000_000
"""Numbers from here on are of confirmation runs."""


@dataclass
class TrialRecord:
    """What the books say of one trial.

    Attributes:
        number: its number in the study.
        params: its choices by dotted name.
        state: RUNNING, then COMPLETE, PRUNED or FAIL.
        epoch: the last one reported.
        stage: that epoch's.
        metrics: that epoch's, the finite ones.
        objective: the searched metric where it was last finite.
        value: the best value that counts for the trial so far.
        best_epoch: where that was.
        best_metrics: what was measured there.
        seconds: computed so far, of this trial's own time.
        reason: why it ended early.
        decision: what the policy has last said of it.
        attempt: how often it was begun or gone on with.
        failures: interruptions that count (trainables.failures).
        lost_at: the epoch at which its machine was last lost without a notice.
        exploits: when it went on from another trial's weights (population-based training).
    """

    number: int
    params: dict[str, Any]
    state: str = "RUNNING"
    epoch: int = 0
    stage: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    objective: float | None = None
    value: float | None = None
    best_epoch: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None
    decision: Decision = "go_on"
    attempt: int = 1
    failures: int = 0
    lost_at: int | None = None
    exploits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called where it is shown."""
        return f"trial {self.number}"

    @property
    def is_paused(self) -> bool:
        """Whether it waits to be promoted."""
        return self.state == "RUNNING" and self.decision == "pause"

    @property
    def told(self) -> float | None:
        """The value under which Optuna keeps it: its own of a completed trial, the last reported of a pruned one."""
        return {"COMPLETE": self.value, "PRUNED": self.objective}.get(self.state)

    @property
    def key(self) -> str:
        """What its state lies under in an object store."""
        return key_of(self.number, self.params, self.exploits)


class Ledger:
    """The books of one study, kept by its one driver.

    Args:
        folder: the study's, locked by the caller.
        launch: what was typed.
        space: what is searched.
        make_run: a trial's run from its choices.
        first_points: choices of the first trials, as Optuna stores them; trial 0 takes the default configuration's.
        policy: who is stopped early; it has seen nothing yet.
        describe: the checkpoint JSON of a completed trial.
        states: where trials keep their states, if not in the study's folder.

    Attributes:
        things: what is counted here, in words.
        has_fixed_points: whether the sampler says how many trials there are, and not search.num_trials.
        confirmed_seconds: computed by the confirmation's runs (search_spaces.confirmation), by their numbers.

    Raises:
        StorageError: if the books cannot be read or written.
        StudyError: if the journal and the events are not of one study.
    """

    things = "trials"

    def __init__(
        self,
        folder: StudyFolder,
        launch: Launch,
        space: Space,
        *,
        make_run: Callable[[Mapping[str, Any]], Run],
        first_points: Sequence[Mapping[str, Any]],
        policy: Policy,
        describe: Callable[[TrialRecord, Run], dict[str, Any]],
        states: States | None = None,
    ) -> None:
        self.folder = folder
        self.states = states or InFolder()
        self.search = launch.search
        self.trials: dict[int, TrialRecord] = {}
        self.confirmed_seconds: dict[int, float] = {}
        self.make_run = make_run
        self._sampler, self._scheduler, self._seed = launch.sampler, launch.scheduler, launch.seed
        self._space = space
        self._policy = policy
        self.exploit_epochs = (
            exploit_epochs(launch.task, launch.scheduler.interval_epochs) if launch.scheduler.name == "pbt" else ()
        )
        self.describe = describe
        self._maximize = launch.search.direction == "maximize"
        self._devices = launch.cluster.workers_per_trial
        self._max_failures = launch.cluster.max_failures
        self._waiting: list[int] = []
        self._paused: set[int] = set()
        self._paused_before: set[int] = set()
        # totals over the trials, which are asked for at every step of the search
        self._num_ended, self._seconds = 0, 0.0
        self._seconds_before = session_seconds(folder.read_events())
        self._opened = time.monotonic()
        # what Optuna says of every trial, the events say too
        level = launch.debug.log_level if launch.debug.enabled else "WARNING"
        optuna.logging.set_verbosity(getattr(optuna.logging, level))
        self._study = open_study(folder.journal, self.search.direction)
        self._journal = journal_of(self._study)
        self._proposing = PausingStudy(self._study)
        self._table_written, self._table_seconds = -math.inf, 0.0
        points = self._points(first_points)
        self.has_fixed_points = launch.sampler.name == "grid"
        self.num_trials = len(points) if self.has_fixed_points else self.search.num_trials
        for point in points[len(self._frozen_trials()) :]:  # a crash may have come between two of them
            self._study.enqueue_trial(dict(point))
        self._bring_up_to_date()

    def _points(self, first_points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The trials that are known before any is run: the first ones, or with `sampler=grid` every point."""
        if self._sampler.name != "grid":
            return list(first_points)
        points = self._space.grid()
        return sorted(points, key=lambda point: point != first_points[0])  # stable: the default first

    # -------- what is asked of the books

    @property
    def num_ended(self) -> int:
        """Trials that ended for their own reason; an interrupted one will go on."""
        return self._num_ended

    @property
    def num_running(self) -> int:
        """Trials that have been handed out and have neither ended nor been interrupted or paused."""
        return len(self.trials) - self.num_ended - len(self._waiting) - len(self._paused)

    @property
    def is_over(self) -> bool:
        """Whether nothing will be handed out any more, whatever happens to what runs."""
        return self.num_ended >= self.num_trials or self.used_up is not None

    @property
    def best(self) -> TrialRecord | None:
        """The completed trial with the best value, the earlier of two equals."""
        return next(iter(self.completed), None)

    @property
    def completed(self) -> list[TrialRecord]:
        """The completed trials, the best first, the earlier of two equals before the other."""
        complete = [trial for trial in self.trials.values() if trial.state == "COMPLETE"]
        sign = -1 if self._maximize else 1
        return sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))

    @property
    def device_seconds(self) -> float:
        """Seconds of all workers of all trials and of the confirmation's runs."""
        return self._devices * (self._seconds + sum(self.confirmed_seconds.values()))

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
        """The trial to start now: one that was interrupted, else one that is promoted, else a new one.

        None while the study has enough. Where nothing runs any more that could promote a paused trial, all of them end.

        Raises:
            StorageError: if it cannot be written down.
        """
        with self._journal.step():
            return self._next_trial()

    def _next_trial(self) -> tuple[TrialRecord, Run] | None:
        while self.num_running + self.num_ended < self.num_trials and not self.used_up:
            if self._waiting:
                trial = self.trials[self._waiting[0]]
                self.folder.record("trial_resumed", trial=trial.number, epoch=trial.epoch)
                self._waiting.pop(0)
                trial.attempt += 1
            elif (promoted := self._policy.promoted()) is not None:
                trial = self.trials[promoted]
                self.folder.record("trial_promoted", trial=trial.number, epoch=trial.epoch)
                self._go_on(trial)
                if promoted in self._paused_before:  # it may have gone on before, of which a lost batch told
                    self._paused_before.remove(promoted)
                    self._catch_up(trial)
                    continue
            elif len(self.trials) < self.num_trials:
                self._proposing.sampler = make_sampler(self._sampler, seed=self._seed, number=len(self.trials))
                trial = self._start(self._proposing.ask())
            else:
                for number in () if self.num_running else sorted(self._paused):
                    self._end(self.trials[number], "PRUNED", "scheduler")
                return None
            run = self._feasible_run(trial)
            if run is not None:
                write_attempt(self.folder.trial(trial.number), trial.attempt)
                self.states.let(trial.attempt, trial.key)
                return trial, run
        return None

    def _feasible_run(self, trial: TrialRecord) -> Run | None:
        """A trial's run; None where its choices cannot go together, with which it has ended.

        Each was tried with the others' defaults before the study began; what two of them make together is seen here.
        """
        try:
            return self.make_run(trial.params)
        except ValueError as error:
            self.end(trial.number, "PRUNED", f"infeasible: {' '.join(str(error).split())}"[:MAX_REASON])
            return None

    def _start(self, asked: optuna.Trial) -> TrialRecord:
        params = self._space.ask(asked)
        self._journal.flush()  # the journal alone may know of a trial, the events never
        self.folder.record("trial_started", trial=asked.number, params=params)
        trial = self.trials[asked.number] = TrialRecord(asked.number, params)
        return trial

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; say whether the trial goes on. What does not has ended in the books, or is paused.

        Args:
            number: the trial.
            result: see trainables.trial.epochs.

        Raises:
            StorageError: if it cannot be written down.
        """
        with self._journal.step(flush=False):  # the event is on the disk, and what follows from it can be made again
            return self._report(self.trials[number], result)

    def _report(self, trial: TrialRecord, result: Mapping[str, Any]) -> bool:
        if trial.state != "RUNNING" or trial.number in self._paused:
            return False
        whole = bool(result["metrics"])  # else it names the last epoch before the one that failed
        self._take_in_saved(trial, before=result["epoch"] if whole else result["epoch"] + 1)
        if whole and result["epoch"] > trial.epoch and trial.decision == "go_on":
            self._take_in(trial, self._write_epoch(trial, result))
        else:  # it failed, or was computed a second time: that, too, took its time
            self._spent(trial, result["seconds"])
        if result["reason"] is not None:
            self.end(trial.number, "PRUNED", result["reason"])
        else:
            self._end_if_over(trial, finished=result["finished"] and trial.epoch == result["epoch"])
        return trial.state == "RUNNING" and trial.number not in self._paused

    def _end_if_over(self, trial: TrialRecord, *, finished: bool) -> None:
        """End a trial that has no epoch left, or that the policy ends; or pause it."""
        if finished and trial.value is None:
            self.end(trial.number, "PRUNED", f"non_finite: {self.search.metric} was never finite")
        elif finished or trial.decision == "complete":
            self.end(trial.number, "COMPLETE", None if finished else "plateau")
        elif trial.decision == "stop":
            self.end(trial.number, "PRUNED", "scheduler")
        elif trial.decision == "pause" and trial.reason is None:  # else it was interrupted once too often
            self.folder.record("trial_paused", trial=trial.number, epoch=trial.epoch)
            self._pause(trial)

    def _pause(self, trial: TrialRecord) -> None:
        """A trial's state stays, its process is free."""
        self._paused.add(trial.number)
        self._proposing.pause(trial.number)

    def _go_on(self, trial: TrialRecord) -> None:
        """A paused trial goes on, in another attempt."""
        self._paused.remove(trial.number)
        self._proposing.go_on(trial.number)
        trial.decision = "go_on"
        trial.attempt += 1

    def _write_epoch(self, trial: TrialRecord, result: Mapping[str, Any]) -> dict[str, Any]:
        return self.folder.record(
            "epoch",
            trial=trial.number,
            epoch=result["epoch"],
            stage=result["stage"],
            metrics={name: value for name, value in result["metrics"].items() if math.isfinite(value)},
            seconds=round(result["seconds"], 3),
            value=result["value"],
            best_epoch=result["best_epoch"],
            nodes=sorted({held["node"] for held in result.get("holds", ())}),
            **({} if result.get("reused") is None else {"reused": result["reused"]}),
        )

    def _take_in(self, trial: TrialRecord, event: Mapping[str, Any]) -> None:
        """An epoch that is written down: into the books, the journal and the policy."""
        trial.epoch, trial.stage, trial.metrics = event["epoch"], event["stage"], event["metrics"]
        trial.value, trial.best_epoch = event["value"], event["best_epoch"]
        self._spent(trial, event["seconds"])
        if trial.best_epoch == trial.epoch:
            trial.best_metrics = trial.metrics
        objective = trial.metrics.get(self.search.metric)
        if objective is None:  # it was not finite
            return
        trial.objective = objective
        frozen = self._frozen(trial)
        if not frozen.state.is_finished() and trial.epoch not in frozen.intermediate_values:
            self._study._storage.set_trial_intermediate_value(frozen._trial_id, trial.epoch, objective)
        trial.decision = self._policy.report(trial.number, trial.epoch, objective if self._maximize else -objective)

    def _spent(self, trial: TrialRecord, seconds: float) -> None:
        trial.seconds += seconds
        self._seconds += seconds

    def _ended(self, trial: TrialRecord, state: str, reason: str | None) -> None:
        self._num_ended += trial.state == "RUNNING"
        trial.state, trial.reason = state, reason
        self._paused.discard(trial.number)
        self._proposing.go_on(trial.number)
        self._policy.ended(trial.number)

    def exploit(self, number: int) -> tuple[TrialRecord, Run] | None:
        """Let a trial at the end of an interval take over a better one's weights, if it is among the worst.

        Returns:
            The trial and its new run, or None if it goes on as it is.

        Raises:
            StorageError: if it cannot be written down.
        """
        assert self._scheduler.name == "pbt"
        trial = self.trials[number]
        worth = {
            other.number: value if self._maximize else -value
            for other in self.trials.values()
            if other.state == "RUNNING"
            and (value := self._frozen(other).intermediate_values.get(trial.epoch)) is not None
        }
        draw = np.random.default_rng([self._seed, number, trial.epoch])
        donor = donor_for(number, worth, quantile=self._scheduler.quantile, draw=draw)
        if donor is None:
            return None
        params = explored(self.trials[donor].params, self._space, self._scheduler, draw)
        try:
            run = self.make_run(params)
        except ValueError:  # what was explored cannot go together: it goes on as it is
            return None
        # the donor goes on: its state of now is put aside before this is written down
        aside = self._put_aside(trial, len(trial.exploits) + 1)
        self.states.fetch(self.folder.trial(donor), self.trials[donor].key, LAST)
        if copy_state(self.folder.trial(donor), aside) >= run.task.num_epochs:  # nothing is left to go on with
            drop_state(aside)
            return None
        taken_over = {"epoch": trial.epoch, "donor": donor, "params": params}
        self.states.hand_over(aside, key_of(number, params, [*trial.exploits, taken_over]))
        self._changed(trial, self.folder.record("exploit", trial=number, donor=donor, epoch=trial.epoch, params=params))
        self._carry_out_exploit(trial)
        self.states.let(trial.attempt, trial.key)
        return trial, run

    def _put_aside(self, trial: TrialRecord, exploit: int) -> Path:
        """Where the state waits that a trial's first, second, ... exploit is to take over."""
        return self.folder.trial(trial.number).with_suffix(f".exploit_{exploit}")

    def _carry_out_exploit(self, trial: TrialRecord) -> None:
        """Go on from the state put aside for the exploit written down last, if it is still there; drop any other."""
        running = self.folder.trial(trial.number)
        wanted = self._put_aside(trial, len(trial.exploits))
        if (wanted / LAST).exists():
            copy_state(wanted, running)
        for left in running.parent.glob(f"{running.name}.exploit_*"):
            drop_state(left)  # its state first: what a crash leaves of it is not taken over again

    def _changed(self, trial: TrialRecord, event: Mapping[str, Any]) -> None:
        """A trial goes on from another's weights, with other choices; its best is one that these have made."""
        trial.params = event["params"]
        trial.value, trial.best_epoch, trial.best_metrics = None, None, {}
        trial.exploits.append({key: event[key] for key in ("epoch", "donor", "params")})

    def end(self, number: int, state: str, reason: str | None) -> None:
        """Write down how a trial ended, tell Optuna, keep its weights if they are among the best.

        A trial ends once: nothing happens to one that has ended, e.g. whose process fails while it is taken down; nor
        to one that is paused, which has none.

        Raises:
            StorageError: if it cannot be written down.
        """
        trial = self.trials[number]
        if trial.state == "RUNNING" and number not in self._paused:
            self._end(trial, state, reason)

    def _end(self, trial: TrialRecord, state: str, reason: str | None) -> None:
        ended = replace(trial, state=state, reason=reason)
        self.folder.record(
            "trial_ended",
            trial=trial.number,
            state=state,
            value=ended.told,
            reason=reason,
            epochs=trial.epoch,
            seconds=round(trial.seconds, 3),
        )
        self._ended(trial, state, reason)
        with self._journal.step():
            self._carry_out_end(trial)
        if self.num_ended >= self.num_trials or time.monotonic() - self._table_written > 50 * self._table_seconds:
            self.write_table()

    def interrupt(self, number: int, interruption: InterruptedTrial) -> None:
        """Take in that what a running trial ran on has failed: it is handed out again, unless that was once too often.

        Raises:
            StorageError: if it cannot be written down.
        """
        trial = self.trials[number]
        if trial.state != "RUNNING" or number in self._waiting or number in self._paused:
            return
        event = self.folder.record(
            "trial_interrupted",
            trial=number,
            epoch=trial.epoch,
            cause=interruption.cause,
            reason=interruption.reason,
            nodes=list(interruption.nodes),
            # a machine that goes is not the trial's doing, unless a trial takes one after the other down
            counts=interruption.cause in COUNTS or (interruption.cause == "node_lost" and trial.lost_at == trial.epoch),
        )
        self._take_in_interruption(trial, event)
        with self._journal.step():
            self._catch_up(trial)

    def _take_in_interruption(self, trial: TrialRecord, event: Mapping[str, Any]) -> None:
        trial.failures += bool(event["counts"])
        if event["cause"] == "node_lost":
            trial.lost_at = event["epoch"]
        if event["counts"] and trial.failures > self._max_failures:
            trial.reason = f"{event['cause']}, {trial.failures} times: {event['reason']}"[:MAX_REASON]

    def _carry_out_end(self, trial: TrialRecord) -> None:
        """What follows from `trial_ended`, in an order in which each step says that those before it are done."""
        running = self.folder.trial(trial.number)
        frozen = self._frozen(trial)
        if not frozen.state.is_finished():
            if trial.state == "COMPLETE":
                assert trial.best_epoch is not None
                weights = best_path(running, trial.best_epoch)
                self.states.fetch(running, trial.key, weights.name)
                retention.keep(
                    self.folder,
                    weights,
                    self.describe(trial, self.make_run(trial.params)),
                    keep_best=self.search.keep_best,
                    maximize=self._maximize,
                )
                self.states.kept()
            self._tell(trial, frozen)
        self._journal.flush()  # before what it was made from is gone
        drop_state(running)
        self.states.drop(trial.number)

    def _tell(self, trial: TrialRecord, frozen: FrozenTrial) -> None:
        storage = self._study._storage
        storage.set_trial_user_attr(frozen._trial_id, "epochs", trial.epoch)
        if trial.reason is not None:
            storage.set_trial_user_attr(frozen._trial_id, "reason", trial.reason)
        value = trial.told if trial.state == "COMPLETE" else None  # Optuna takes a pruned one's from what was reported
        self._study.tell(trial.number, value, state=TrialState[trial.state])

    def _frozen_trials(self) -> list[FrozenTrial]:
        """All trials of the journal, by number."""
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        return self._frozen_trials()[trial.number]

    def write_table(self) -> None:
        """trials.parquet: one row a trial. It follows from the events, so it may be behind while a search runs."""
        began = time.monotonic()
        trials = sorted(self.trials.values(), key=lambda trial: trial.number)
        names = dict.fromkeys(name for trial in trials for name in trial.params)
        columns = {
            "number": pa.array([trial.number for trial in trials], pa.int64()),
            "state": pa.array([trial.state for trial in trials], pa.string()),
            "value": pa.array([trial.told for trial in trials], pa.float64()),
            "epochs": pa.array([trial.epoch for trial in trials], pa.int64()),
            "seconds": pa.array([round(trial.seconds, 3) for trial in trials], pa.float64()),
            "reason": pa.array([trial.reason for trial in trials], pa.string()),
        }
        columns |= {name: pa.array(of_one_kind([trial.params.get(name) for trial in trials])) for name in names}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(columns), sink)
        write_atomically(self.folder.trials, sink.getvalue().to_pybytes(), flush=False)
        self._table_written = time.monotonic()
        self._table_seconds = self._table_written - began

    # -------- after a crash

    def _bring_up_to_date(self) -> None:
        """Put the events through the books and the policy again, then finish what was begun."""
        with self._journal.step():
            self._put_in_order()

    def _put_in_order(self) -> None:
        self._check_one_study()
        for left in filter(Path.is_file, self.folder.path.rglob(".*.partial")):  # that a killed driver was writing
            left.unlink()
        for event in self.folder.read_events():
            self._replay(event)
        for frozen in self._frozen_trials():
            if frozen.state == TrialState.WAITING:
                continue
            if frozen.number not in self.trials:
                self._start_again(frozen)
            trial = self.trials[frozen.number]
            if trial.state == "RUNNING":
                if trial.number not in self._paused:
                    self._catch_up(trial)
            elif not frozen.state.is_finished() or self.folder.trial(trial.number).exists():
                self._carry_out_end(trial)
        retention.arrange(self.folder, keep_best=self.search.keep_best, maximize=self._maximize)
        self.states.kept()
        self._paused_before = set(self._paused)
        # the states of confirmation runs are their own books' to delete
        to_go_on = self._paused.union(self._waiting)
        self.states.tidy([*to_go_on, *self.confirmed_seconds], self.trials.keys() - to_go_on)
        self.write_table()

    def _check_one_study(self) -> None:
        """Refuse a folder of which a part was lost or comes from elsewhere: what is missing cannot be made up."""
        events = list(self.folder.read_events())
        started, ended = (
            {event["trial"] for event in events if event["event"] == kind} for kind in ("trial_started", "trial_ended")
        )
        asked = {frozen.number for frozen in self._frozen_trials() if frozen.state != TrialState.WAITING}
        told = {frozen.number for frozen in self._frozen_trials() if frozen.state.is_finished()}
        for numbers, has, lacks in (
            (started - asked, self.folder.events, self.folder.journal),
            (told - ended, self.folder.journal, self.folder.events),
        ):
            if numbers:
                raise StudyError(
                    f"{lacks} has lost what {has.name} holds of trial {min(numbers)}: restore the file, or type "
                    "study_dir=DIR for a new study"
                )

    def _start_again(self, frozen: FrozenTrial) -> None:
        """Propose a trial that was asked for before the driver died and never written down."""
        self._proposing.sampler = make_sampler(self._sampler, seed=self._seed, number=frozen.number)
        asked = optuna.Trial(self._proposing, frozen._trial_id)
        for name, distribution in frozen.distributions.items():
            if name not in asked.relative_params:  # its draw is made again, so that the next one is the next one
                self._proposing.sampler.sample_independent(self._proposing, frozen, name, distribution)
        self._start(asked)

    def _replay(self, event: Mapping[str, Any]) -> None:
        kind, trial = event["event"], self.trials.get(event.get("trial", -1))
        if kind == "trial_started":
            self.trials[event["trial"]] = TrialRecord(event["trial"], event["params"])
        elif kind == "epoch" and trial is not None:
            self._take_in(trial, event)
        elif kind == "exploit" and trial is not None:
            self._changed(trial, event)
        elif kind == "trial_resumed" and trial is not None:
            trial.attempt += 1
        elif kind == "trial_paused" and trial is not None:
            self._pause(trial)
        elif kind == "trial_promoted" and trial is not None:
            self._promote_again(trial)
        elif kind == "trial_interrupted" and trial is not None:
            self._take_in_interruption(trial, event)
        elif kind == "trial_ended" and trial is not None:
            self._ended(trial, event["state"], event["reason"])
            self._spent(trial, event["seconds"] - trial.seconds)  # those of epochs that failed are in it, too
        elif kind in ("confirmation_started", "confirmation_epoch", "confirmation_ended"):
            number, ended = run_number(event["trial"], event["index"]), kind == "confirmation_ended"
            before = 0.0 if ended else self.confirmed_seconds.get(number, 0.0)  # its own seconds are of all epochs
            self.confirmed_seconds[number] = before + event.get("seconds", 0.0)

    def _promote_again(self, trial: TrialRecord) -> None:
        promoted = self._policy.promoted()
        if promoted != trial.number:
            other = "none" if promoted is None else f"trial {promoted}"
            raise StudyError(
                f"{self.folder.events} says that trial {trial.number} was promoted, and by what it says before it was "
                f"{other}: restore the file, or type study_dir=DIR for a new study"
            )
        self._go_on(trial)

    def _catch_up(self, trial: TrialRecord) -> None:
        """Take in what an interrupted trial saved but nobody wrote down; then end it, pause it, or let it go on."""
        self._carry_out_exploit(trial)
        self._take_in_saved(trial)
        run = self._feasible_run(trial)
        if run is not None:
            self._end_if_over(trial, finished=trial.epoch == run.task.num_epochs)
        if trial.state == "RUNNING" and trial.reason is not None:  # interrupted once too often
            self.end(trial.number, "FAIL", trial.reason)
        if trial.state == "RUNNING" and trial.number not in self._paused:
            self._waiting.append(trial.number)

    def _take_in_saved(self, trial: TrialRecord, *, before: float = math.inf) -> None:
        """Write down the epochs `before` one that the trial's saved state tells of and the books lack."""
        if trial.epoch + 1 >= before:
            return
        self.states.fetch(self.folder.trial(trial.number), trial.key, LAST)
        place = read_place(self.folder.trial(trial.number)) or {"history": [], "best": None}
        best = place["best"] or {"epoch": math.inf}
        for epoch in place["history"][trial.epoch :]:
            # a complete one whose process went on has the best of what it computed, and not that of the books
            if epoch["epoch"] >= before or trial.decision not in ("go_on", "complete"):
                return
            known = epoch["epoch"] >= best["epoch"]
            result = {
                **epoch,
                "seconds": 0.0,
                "value": best["value"] if known else trial.value,
                "best_epoch": best["epoch"] if known else trial.best_epoch,
            }
            self._take_in(trial, self._write_epoch(trial, result))


def run_number(trial: int, index: int) -> int:
    """The number of a confirmation run, from its trial and the index of its seed: 2000003 is trial 3's second one.

    No trial has one so large, so a run's state and its processes are told from all trials' by it.
    """
    return index * FIRST_RUN + trial


def of_one_kind(values: list[Any]) -> list[Any]:
    """Values of one parameter as a column can hold them: lists as JSON text, all as text where kinds are mixed."""
    plain = [encoded(value) for value in values]
    kinds = {type(value) for value in plain if value is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        return plain
    return [None if value is None else written(value) for value in plain]


def session_seconds(events: Iterable[Mapping[str, Any]]) -> float:
    """Seconds in which drivers ran a study, by its events: from each one's start to its last event."""
    total, last = 0.0, None
    for event in events:
        at = datetime.fromisoformat(event["time"]).timestamp()
        if event["event"] in ("test_fold_opened", "test_records_drawn", "preflight"):
            # also by a command of its own, days later
            continue
        if last is not None and event["event"] not in ("study_started", "study_resumed"):
            total += max(0.0, at - last)
        last = at
    return total
