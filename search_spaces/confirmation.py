"""The books of a confirmation: the search's best trials, trained again with new seeds, and the choice among them.

They answer what `tuning.run_trials` asks of the ledger, and keep its rule: a change is written to the events first and
carried out then, and what is carried out may be carried out twice. Optuna never hears of a run (docs/confirmation.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from search_spaces.choice import Candidate, choose
from search_spaces.ledger import Ledger, TrialRecord, run_number
from trainables import retention
from trainables.checkpoint import DESCRIPTION, copy_weights, describe
from trainables.failures import COUNTS, MAX_REASON, Cause, InterruptedTrial
from trainables.files import writing_to
from trainables.retention import CONFIRMED
from trainables.settings import Run
from trainables.state import LAST, best_path, drop_state, read_place, write_attempt

CONFIRMATION = 101
"""First part of a place (trainables.seeds): what the randomness is for; no stage of a run has this number."""


@dataclass
class SeedRun(TrialRecord):
    """One more training of a trial.

    Attributes:
        trial: the number of the trial.
        index: which of its seeds this is, from 1 on.
        seed: of the run.
    """

    trial: int = 0
    index: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """What it is called where it is shown."""
        return f"trial {self.trial}, seed {self.index}"

    @property
    def gave_way(self) -> bool:
        """Whether it failed because what it ran on did so too often, and not for a reason of its own."""
        return self.state == "FAIL" and (self.reason or "").partition(",")[0] in get_args(Cause)


def confirmation_seed(seed: int, trial: int, index: int) -> int:
    """The seed of a confirmation run: 31 bits, never the search's own, no two of a trial equal.

    Args:
        seed: the study's.
        trial: the number of the trial.
        index: from 1 on.
    """
    used = [seed]
    draw = 0
    while len(used) <= index:
        drawn = np.random.SeedSequence(seed, spawn_key=(CONFIRMATION, trial, draw)).generate_state(1, np.uint32)[0]
        draw += 1
        if (candidate := int(drawn >> 1)) not in used:
            used.append(candidate)
    return used[index]


def under_seed(searched: Run, seed: int) -> Run:
    """A trial's run under another seed, on the recordings that the trial had.

    Args:
        searched: the trial's.
        seed: of the other.
    """
    subsample_seed = searched.seed if searched.data.subsample_seed is None else searched.data.subsample_seed
    data = searched.data.model_copy(update={"subsample_seed": subsample_seed})
    return searched.model_copy(update={"seed": seed, "data": data})


class Confirmation:
    """The books of one study's confirmation, kept by its one driver.

    Args:
        ledger: the study's; its trials are confirmed once all have ended.
        seed: the study's.
        max_failures: how often a run is tried again (cluster.max_failures).

    Raises:
        StorageError: if the books cannot be read or written.
        StudyError: if the model that was chosen is gone.
    """

    things = "confirmation runs"

    def __init__(self, ledger: Ledger, *, seed: int, max_failures: int) -> None:
        self.folder, self.states, self.search = ledger.folder, ledger.states, ledger.search
        self.trials: dict[int, SeedRun] = {}
        self.chosen: dict[str, Any] | None = None
        self._ledger = ledger
        self._seed = seed
        self._max_failures = max_failures
        self._maximize = ledger.search.direction == "maximize"
        self._waiting: list[int] = []
        for event in self.folder.read_events():
            self._replay(event)
        # a line that is typed again tries again what was interrupted too often, unless the choice has been made without
        self._again = set() if self._has_chosen else {run.number for run in self.trials.values() if run.gave_way}
        self._clear_for_another_try()
        for run in self.trials.values():
            if run.state == "RUNNING":
                self._catch_up(run)
            elif run.number not in self._again:
                self._carry_out_end(run)
        self._deliver()

    # -------- what is asked of the books

    @property
    def candidates(self) -> list[TrialRecord]:
        """The trials to confirm, the best first; none while the search has not ended."""
        if self._ledger.num_ended < self._ledger.num_trials:
            return []
        return self._ledger.completed[: self.search.confirm.top_k]

    @property
    def wanted(self) -> list[tuple[int, int]]:
        """Trial and index of every run, in the order in which they begin: seed by seed."""
        trials = [trial.number for trial in self.candidates]
        return [(trial, index) for index in range(1, self.search.confirm.seeds + 1) for trial in trials]

    @property
    def wanted_runs(self) -> list[SeedRun]:
        """Those of them that have begun."""
        return [self.trials[number] for run in self.wanted if (number := run_number(*run)) in self.trials]

    @property
    def num_trials(self) -> int:
        """How many runs there are to be."""
        return len(self.wanted)

    @property
    def num_ended(self) -> int:
        """How many of them have ended."""
        ended = {number for number, run in self.trials.items() if run.state != "RUNNING"}
        return len((ended - self._again) & {run_number(*run) for run in self.wanted})

    @property
    def num_left(self) -> int:
        """How many of them have not."""
        return self.num_trials - self.num_ended

    @property
    def num_running(self) -> int:
        """Runs that have been handed out and have neither ended nor been interrupted."""
        return sum(run.state == "RUNNING" for run in self.trials.values()) - len(self._waiting)

    @property
    def is_over(self) -> bool:
        """Whether nothing will be handed out any more."""
        return self.num_left == 0 or self.used_up is not None

    @property
    def best(self) -> TrialRecord | None:
        """The run with the best value; nothing is chosen by it."""
        complete = [run for run in self.trials.values() if run.state == "COMPLETE"]
        sign = -1 if self._maximize else 1
        return min(complete, key=lambda run: (sign * (run.value or 0.0), run.number), default=None)

    @property
    def device_seconds(self) -> float:
        """Seconds of all workers, those of the search's trials included."""
        return self._ledger.device_seconds

    @property
    def wall_seconds(self) -> float:
        """Seconds in which a driver ran this study."""
        return self._ledger.wall_seconds

    @property
    def used_up(self) -> str | None:
        """Which budget of the study is used up."""
        return self._ledger.used_up

    def write_table(self) -> None:
        """Nothing: the table is of trials."""

    # -------- what happens to a run

    def next_trial(self) -> tuple[TrialRecord, Run] | None:
        """The run to start now: one that was interrupted, else a new one; None where there is none or no budget.

        Raises:
            StorageError: if it cannot be written down.
        """
        if self.used_up:
            return None
        for trial, index in self.wanted:
            number = run_number(trial, index)
            if number in self._waiting:
                run = self.trials[number]
                self.folder.record("confirmation_resumed", trial=trial, index=index, epoch=run.epoch)
                self._waiting.remove(number)
                run.attempt += 1
            elif number not in self.trials or number in self._again:
                self._again.discard(number)
                seed = confirmation_seed(self._seed, trial, index)
                event = self.folder.record("confirmation_started", trial=trial, index=index, seed=seed)
                self._replay(event)
                run = self.trials[number]
            else:
                continue
            write_attempt(self.folder.trial(number), run.attempt)
            self.states.let(run.attempt, run.key)
            return run, self.run_of(run)
        return None

    def run_of(self, run: SeedRun) -> Run:
        """What a run trains."""
        return under_seed(self._ledger.make_run(run.params), run.seed)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take in an epoch's result; say whether the run goes on, which it does until its last epoch.

        Args:
            number: the run.
            result: see trainables.trial.epochs.

        Raises:
            StorageError: if it cannot be written down.
        """
        run = self.trials[number]
        if run.state != "RUNNING":
            return False
        whole = bool(result["metrics"])  # else it names the last epoch before the one that failed
        self._take_in_saved(run, before=result["epoch"] if whole else result["epoch"] + 1)
        if whole and result["epoch"] > run.epoch:
            self._take_in(run, self._write_epoch(run, result))
        else:  # it failed, or was computed a second time: that, too, took its time
            self._spend(run, result["seconds"])
        if result["reason"] is not None:
            self.end(number, "FAIL", result["reason"])
        else:
            self._end_if_over(run, finished=result["finished"] and run.epoch == result["epoch"])
        return run.state == "RUNNING"

    def _end_if_over(self, run: SeedRun, *, finished: bool) -> None:
        if finished and run.value is None:
            self.end(run.number, "FAIL", f"non_finite: {self.search.metric} was never finite")
        elif finished:
            self.end(run.number, "COMPLETE", None)

    def _write_epoch(self, run: SeedRun, result: Mapping[str, Any]) -> dict[str, Any]:
        return self.folder.record(
            "confirmation_epoch",
            trial=run.trial,
            index=run.index,
            epoch=result["epoch"],
            stage=result["stage"],
            metrics={name: value for name, value in result["metrics"].items() if math.isfinite(value)},
            seconds=round(result["seconds"], 3),
            value=result["value"],
            best_epoch=result["best_epoch"],
            nodes=sorted({held["node"] for held in result.get("holds", ())}),
        )

    def _take_in(self, run: SeedRun, event: Mapping[str, Any]) -> None:
        run.epoch, run.stage, run.metrics = event["epoch"], event["stage"], event["metrics"]
        run.value, run.best_epoch = event["value"], event["best_epoch"]
        if run.best_epoch == run.epoch:
            run.best_metrics = run.metrics
        self._spend(run, event["seconds"])

    def _spend(self, run: SeedRun, seconds: float) -> None:
        run.seconds += seconds
        self._ledger.confirmed_seconds[run.number] = run.seconds

    def end(self, number: int, state: str, reason: str | None) -> None:
        """Write down how a run ended, and keep its model; nothing happens to one that has ended.

        Raises:
            StorageError: if it cannot be written down.
        """
        run = self.trials[number]
        if run.state != "RUNNING":
            return
        # what a driver left there whose last batch was lost is of another ending of this run
        with writing_to(kept := retention.confirmed_path(self.folder, run.trial, run.index)):
            (kept / DESCRIPTION).unlink(missing_ok=True)
        self.folder.record(
            "confirmation_ended",
            trial=run.trial,
            index=run.index,
            state=state,
            value=run.value if state == "COMPLETE" else None,
            reason=reason,
            epochs=run.epoch,
            seconds=round(run.seconds, 3),
        )
        run.state, run.reason = state, reason
        self._carry_out_end(run)

    def interrupt(self, number: int, interruption: InterruptedTrial) -> None:
        """Take in that what a run ran on has failed: it is handed out again, unless that was once too often.

        Raises:
            StorageError: if it cannot be written down.
        """
        run = self.trials[number]
        if run.state != "RUNNING" or number in self._waiting:
            return
        event = self.folder.record(
            "confirmation_interrupted",
            trial=run.trial,
            index=run.index,
            epoch=run.epoch,
            cause=interruption.cause,
            reason=interruption.reason,
            nodes=list(interruption.nodes),
            counts=interruption.cause in COUNTS or (interruption.cause == "node_lost" and run.lost_at == run.epoch),
        )
        self._take_in_interruption(run, event)
        self._catch_up(run)

    def _take_in_interruption(self, run: SeedRun, event: Mapping[str, Any]) -> None:
        run.failures += bool(event["counts"])
        if event["cause"] == "node_lost":
            run.lost_at = event["epoch"]
        if event["counts"] and run.failures > self._max_failures:
            run.reason = f"{event['cause']}, {run.failures} times: {event['reason']}"[:MAX_REASON]

    def _carry_out_end(self, run: SeedRun) -> None:
        """What follows from `confirmation_ended`, in an order in which each step says that those before it are done."""
        running, kept = self.folder.trial(run.number), retention.confirmed_path(self.folder, run.trial, run.index)
        if run.state == "COMPLETE" and not (kept / DESCRIPTION).exists():
            assert run.best_epoch is not None
            weights = best_path(running, run.best_epoch)
            self.states.fetch(running, run.key, weights.name)
            if weights.exists():  # else somebody has deleted the model since: only a choice would need it
                self._keep(run, weights)
        # a driver killed after it kept the model may not have stored it; its folder of the run is then still here
        if run.state == "COMPLETE" and running.exists() and (kept / DESCRIPTION).exists():
            self.states.push(kept)
        drop_state(running)
        self.states.drop(run.number)

    def _keep(self, run: SeedRun, weights: Path) -> None:
        kept = retention.confirmed_path(self.folder, run.trial, run.index)
        copy_weights(weights, kept)
        description = self._ledger.describe(run, self.run_of(run))
        describe(kept, description | {"trial": run.trial, CONFIRMED: {"index": run.index, "seed": run.seed}})

    # -------- the choice

    @property
    def _has_chosen(self) -> bool:
        """Whether the choice that stands was made among these candidates with so many seeds."""
        if self.chosen is None or self.chosen["seeds"] != self.search.confirm.seeds:
            return False
        return {row["trial"] for row in self.chosen["ranking"]} == {trial.number for trial in self.candidates}

    def choose(self) -> bool:
        """Once all runs have ended: choose by their means, write it down, and make the choice the study's best_1.

        Returns:
            Whether there was one to choose; else a choice that was made earlier, of others, still stands.

        Raises:
            StorageError: if it cannot be written down.
        """
        if not self.search.confirm.top_k or self.num_left or not self.candidates:
            return False
        choice = choose([self._measured(trial) for trial in self.candidates], maximize=self._maximize)
        if choice is None:
            return False
        seed = confirmation_seed(self._seed, choice["trial"], choice["index"])
        wanted = {**choice, "seed": seed, "seeds": self.search.confirm.seeds}
        if self.chosen is None or any(self.chosen.get(key) != value for key, value in wanted.items()):
            self.chosen = self.folder.record("confirmation_chosen", **wanted)
        self._deliver()
        return True

    def _measured(self, trial: TrialRecord) -> Candidate:
        """A trial with the values of its runs, by index; None for one that failed."""
        assert trial.value is not None
        runs = [self.trials[run_number(trial.number, index + 1)] for index in range(self.search.confirm.seeds)]
        values = tuple(run.value if run.state == "COMPLETE" else None for run in runs)
        return Candidate(trial.number, trial.value, values)

    def _deliver(self) -> None:
        """Make the model that was chosen last best_1, unless it is."""
        if self.chosen is None:
            return
        retention.deliver(self.folder, self.chosen, keep_best=self.search.keep_best, maximize=self._maximize)

    # -------- after a crash

    def _replay(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "confirmation_chosen":
            self.chosen = dict(event)
        if not kind.startswith("confirmation_") or kind == "confirmation_chosen":
            return
        number = run_number(event["trial"], event["index"])
        if kind == "confirmation_started":
            params, before = self._ledger.trials[event["trial"]].params, self.trials.get(number)
            self.trials[number] = SeedRun(
                number, params, trial=event["trial"], index=event["index"], seed=event["seed"]
            )
            if before is not None:  # it begins anew, and a process of its first try must not save any more
                self.trials[number].attempt = before.attempt + 1
                self.trials[number].seconds = before.seconds
        run = self.trials[number]
        if kind == "confirmation_epoch":
            self._take_in(run, event)
        elif kind == "confirmation_resumed":
            run.attempt += 1
        elif kind == "confirmation_interrupted":
            self._take_in_interruption(run, event)
        elif kind == "confirmation_ended":
            run.state, run.reason, run.seconds = event["state"], event["reason"], event["seconds"]
            self._ledger.confirmed_seconds[number] = run.seconds

    def _clear_for_another_try(self) -> None:
        """Delete what is left of runs that are to begin anew, before their numbers are given out again."""
        if self._again:
            for number in self._again:
                drop_state(self.folder.trial(number))
            self.states.tidy((self._ledger.trials.keys() | self.trials.keys()) - self._again, ())

    def _catch_up(self, run: SeedRun) -> None:
        """Take in what an interrupted run saved but nobody wrote down; then end it, or let it go on."""
        self._take_in_saved(run)
        self._end_if_over(run, finished=run.epoch == self.run_of(run).task.num_epochs)
        if run.state == "RUNNING" and run.reason is not None:  # interrupted once too often
            self.end(run.number, "FAIL", run.reason)
        if run.state == "RUNNING":
            self._waiting.append(run.number)

    def _take_in_saved(self, run: SeedRun, *, before: float = math.inf) -> None:
        """Write down the epochs `before` one that the run's saved state tells of and the books lack."""
        if run.epoch + 1 >= before:
            return
        folder = self.folder.trial(run.number)
        self.states.fetch(folder, run.key, LAST)
        place = read_place(folder) or {"history": [], "best": None}
        best = place["best"] or {"epoch": math.inf}
        for epoch in place["history"][run.epoch :]:
            if epoch["epoch"] >= before:
                return
            known = epoch["epoch"] >= best["epoch"]
            result = {
                **epoch,
                "seconds": 0.0,
                "value": best["value"] if known else run.value,
                "best_epoch": best["epoch"] if known else run.best_epoch,
            }
            self._take_in(run, self._write_epoch(run, result))
