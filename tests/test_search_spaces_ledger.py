"""The books of a study under a simulated search: killed at every instant, they lose nothing and count nothing twice."""

import errno
import functools
import json
import math
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend
from torch import nn

from search_spaces import journal
from search_spaces import ledger as ledger_module
from search_spaces.compose import compose_choices
from search_spaces.distributions import parse, run_with
from search_spaces.journal import Journal, open_study
from search_spaces.ledger import Ledger, of_one_kind, session_seconds
from search_spaces.schedulers import make_policy
from search_spaces.schema import checked
from trainables.checkpoint import read_description
from trainables.failures import InterruptedTrial
from trainables.files import StorageError, read_tensors
from trainables.state import SavedState, TrainState, read_attempt
from trainables.study import StudyError, StudyFolder
from trainables.trial import Assignment, refuse_superseded, result_of

METRIC = "val/auroc"
SHORT = ("task.pretrain.num_epochs=1", "task.finetune.num_epochs=3")
LONGER = ("task.finetune.num_epochs=6",)
ASHA = ("scheduler=asha", "scheduler.reduction_factor=2")
PLATEAU = ("scheduler=fifo", "scheduler.plateau_epochs=1", "scheduler.plateau_tolerance=0.02", *LONGER)
PROMOTING = ("scheduler=asha_promotion", "scheduler.reduction_factor=2", "scheduler.grace_epochs=3")
"""With a first rung that those who diverge or crash do not reach, who would else be ever the best of it."""


@pytest.fixture(autouse=True, scope="module")
def _nothing_waits_for_the_disk():
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)
    yield
    patch.undo()


@functools.cache
def launch_of(*typed):
    return checked(compose_choices(["search=stmem_ptbxl", "search.keep_best=2", *SHORT, *typed]).tree)


# -------- a search without Ray


def curve(number, epoch, params, *, maximize):
    """What a trial reports at an epoch: NaN where it diverges, None where its process crashes."""
    if number % 4 == 3 and epoch == 2:
        return math.nan
    if number % 5 == 4 and epoch == 2:
        return None
    promising = 0.2 * (number % 4 == 3 or number % 5 == 4)  # else it would be stopped before
    hopeless = 0.2 * (number % 7 == 2)
    noise = np.random.default_rng([number, epoch]).normal(scale=0.03)
    quality = 0.6 + 0.03 * epoch + promising - hopeless - abs(params.get("model.mask_ratio", 0.7) - 0.7) / 4 + noise
    return quality if maximize else -quality


class Trainer:
    """A trial's process: trains nothing, but saves and tells what one that trains would."""

    def __init__(self, trial, run, folder, *, maximize=True):
        self.number, self.params, self.task, self.folder = trial.number, trial.params, run.task, folder
        self.state = TrainState(METRIC, maximize=maximize)
        model = nn.Linear(1, 2, bias=False)  # where it stands, and who began it
        self.state.enter("pretrain", model, torch.optim.SGD(model.parameters()))
        with torch.no_grad():
            model.weight[1] = self.number
        saved = SavedState.load(folder)
        if saved is not None:
            saved.restore(self.state)

    def epoch(self):
        """The next epoch's result; None if the process crashes."""
        state, epoch = self.state, self.state.epoch + 1
        value = curve(self.number, epoch, self.params, maximize=self.state.maximize)
        if value is None:
            return None
        if math.isnan(value):
            return result_of(state, 1.0, finished=True, reason="non_finite: the loss is nan")
        state.stage = "pretrain" if epoch <= self.task.num_pretrain_epochs else "finetune"
        with torch.no_grad():
            state.model.weight[0] = weight(self.number, epoch)
        metrics = {METRIC: value, "ancestor": state.model.weight[1].item()}
        state.finish_epoch(metrics)
        if state.stage == self.task.stages or state.stage == "finetune":
            state.offer(metrics, state.model)
        state.save(self.folder)
        return result_of(state, 1.0, finished=epoch == self.task.num_epochs)


def weight(number, epoch):
    return number + epoch / 100


def open_ledger(path, launch):
    tree = launch.model_dump(mode="json", by_alias=True)
    space = parse(launch.space)

    def describe(trial, run):
        return {"trial": trial.number, "epoch": trial.best_epoch, "value": trial.value, "params": trial.params}

    return Ledger(
        StudyFolder(path),
        launch,
        space,
        make_run=functools.partial(run_with, launch),
        first_points=space.first_points(tree, launch.options),
        policy=make_policy(launch.scheduler, launch.task),
        describe=describe,
    )


def run_search(path, launch, *, at_a_time=1, order=None, num_results=math.inf, faults=None):
    """Open the books and run trials until there are enough, or `num_results` have come; return books and trainers.

    `faults` says of a trial's record what interrupts it now, if anything.
    """
    ledger = open_ledger(path, launch)
    maximize = launch.search.direction == "maximize"
    running = {}
    while num_results > 0:
        while len(running) < at_a_time and (following := ledger.next_trial()) is not None:
            trial, run = following
            running[trial.number] = Trainer(trial, run, ledger.folder.trial(trial.number), maximize=maximize)
        if not running:
            break
        number = int(order.choice(sorted(running))) if order else min(running)
        interruption = faults(ledger.trials[number]) if faults else None
        if interruption is not None:
            if interruption.cause == "node_lost":  # when the epoch was computed and saved, and not yet reported
                running[number].epoch()
            ledger.interrupt(number, interruption)
            del running[number]
            continue
        result = running[number].epoch()
        if result is None:
            ledger.end(number, "FAIL", "the process crashed")
        if result is None or not ledger.report(number, result):
            del running[number]
        num_results -= 1
    return ledger, running


# -------- what must hold of every study that ran to its end


def events_of(path):
    return list(StudyFolder(path).read_events())


def journal_of(path):
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path / "journal.log")))
    return optuna.load_study(study_name=journal.STUDY_NAME, storage=storage).get_trials()


def table_of(path):
    return pd.read_parquet(path / "trials.parquet")


def outcome(path):
    """All that an interruption must not change."""
    rows = table_of(path).drop(columns="seconds").to_dict("records")
    return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in rows]


def check(path, launch, num_trials):
    events, in_journal, table = events_of(path), journal_of(path), table_of(path)
    started = [event["trial"] for event in events if event["event"] == "trial_started"]
    ended = {event["trial"]: event for event in events if event["event"] == "trial_ended"}
    assert sorted(started) == sorted(ended) == list(range(num_trials))
    assert sum(event["event"] == "trial_ended" for event in events) == num_trials
    assert [trial.number for trial in in_journal] == table["number"].tolist() == list(range(num_trials))
    for trial, row in zip(in_journal, outcome(path), strict=True):
        end = ended[trial.number]
        epochs = [event for event in events if event["event"] == "epoch" and event["trial"] == trial.number]
        assert [event["epoch"] for event in epochs] == list(range(1, end["epochs"] + 1))
        assert trial.intermediate_values == {event["epoch"]: event["metrics"][METRIC] for event in epochs}
        assert trial.state.name == end["state"] == row["state"]
        assert trial.value == end["value"] == row["value"]
        assert trial.user_attrs.get("reason") == end["reason"] == row["reason"]
        assert trial.user_attrs["epochs"] == end["epochs"] == row["epochs"]
        assert all(row[name] == value for name, value in trial.params.items())
    check_decisions(events, ended, launch)
    check_checkpoints(path, launch, ended, events)
    assert [file for file in path.rglob("*") if file.suffix == ".partial" or ".lock" in file.name] == []
    assert not any((path / "running").iterdir())


def check_decisions(events, ended, launch):
    """The policy, shown what came in the order in which it came, decides what was decided."""
    policy = make_policy(launch.scheduler, launch.task)
    sign = 1 if launch.search.direction == "maximize" else -1
    stopped, waiting, paused, plateaus = {}, {}, {}, {}
    for event in events:
        kind, number = event["event"], event.get("trial")
        if kind == "epoch":
            assert number not in waiting
            decision = policy.report(number, event["epoch"], sign * event["metrics"][METRIC])
            plateaus.pop(number, None)  # a process that has lost its driver may compute one more epoch, and improve
            if decision in ("stop", "pause"):
                (stopped if decision == "stop" else waiting)[number] = event["epoch"]
            elif decision == "complete" and event["epoch"] < launch.task.num_epochs:
                plateaus[number] = event["epoch"]
        elif kind == "trial_paused":
            assert (number, event["epoch"]) in waiting.items()
            paused[number] = event["epoch"]
        elif kind == "trial_promoted":
            assert policy.promoted() == number
            assert paused.pop(number) == waiting.pop(number) == event["epoch"]
        elif kind == "trial_ended":
            if event["reason"] == "scheduler" and number in paused:
                stopped[number] = paused[number]
            waiting.pop(number, None)
            policy.ended(number)
    decided = {number: end["epochs"] for number, end in ended.items() if end["reason"] == "scheduler"}
    last = launch.task.num_epochs
    assert {number: epoch for number, epoch in stopped.items() if epoch < last} == decided
    assert plateaus == {number: end["epochs"] for number, end in ended.items() if end["reason"] == "plateau"}
    assert 0 not in decided


def check_checkpoints(path, launch, ended, events):
    """On disk are the best of the completed trials by rank, the default configuration's, and nothing else."""
    sign = -1 if launch.search.direction == "maximize" else 1
    complete = [number for number, end in ended.items() if end["state"] == "COMPLETE"]
    ranked = sorted(complete, key=lambda number: (sign * ended[number]["value"], number))[: launch.search.keep_best]
    expected = {f"best_{rank}": number for rank, number in enumerate(ranked, start=1)}
    expected |= {"default": 0} if 0 in complete else {}
    folders = sorted((path / "checkpoints").iterdir()) if complete else []
    assert {folder.name: read_description(folder)["trial"] for folder in folders} == expected
    for folder in folders:
        number = expected[folder.name]
        values = {e["epoch"]: e["metrics"][METRIC] for e in events if e["event"] == "epoch" and e["trial"] == number}
        first = launch.task.num_pretrain_epochs + 1 if launch.task.stages == "joint" else 1
        counted = {epoch: value for epoch, value in values.items() if epoch >= first}
        best = min(counted, key=lambda epoch: (sign * counted[epoch], epoch))
        assert read_description(folder)["value"] == ended[number]["value"] == counted[best]
        assert read_tensors(folder / "model.safetensors")[0]["weight"][0].item() == pytest.approx(weight(number, best))
        assert sorted(file.name for file in folder.iterdir()) == ["checkpoint.json", "model.safetensors"]


@pytest.mark.parametrize(
    "typed",
    [
        (*ASHA, "sampler=gp"),
        (*ASHA, "sampler=tpe"),
        (*PROMOTING, "sampler=gp"),
        (*PROMOTING, "search.direction=minimize", "sampler=random"),
        (*PLATEAU, "sampler=random"),
        ("scheduler=median", "scheduler.min_trials=1", "task.finetune.num_epochs=5", "sampler=random"),
        ("scheduler=fifo", "sampler=nsga2"),
        (*ASHA, "search.direction=minimize"),
        (*ASHA, "task=pretrain", "task.pretrain.num_epochs=5", "sampler=cmaes"),
    ],
)
@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_search_ends_with_books_that_agree(tmp_path, typed, at_a_time):
    launch = launch_of(*typed, "search.num_trials=9")
    ledger, _ = run_search(tmp_path, launch, at_a_time=at_a_time, order=np.random.default_rng(0))
    check(tmp_path, launch, 9)
    assert ledger.num_ended == 9
    seconds = sum(trial.seconds for trial in ledger.trials.values())
    again = open_ledger(tmp_path, launch)
    assert (again.num_ended, again.device_seconds) == (9, ledger.device_seconds) == (9, pytest.approx(seconds))
    ends = [(row["state"], row["reason"]) for row in outcome(tmp_path)]
    assert ("FAIL", "the process crashed") in ends
    assert ("PRUNED", "non_finite: the loss is nan") in ends
    assert (("PRUNED", "scheduler") in ends) == (launch.scheduler.name != "fifo")
    assert (("COMPLETE", "plateau") in ends) == (launch.scheduler.plateau_epochs is not None)


# -------- killed at every instant


class Snapshots:
    """Copies a study's folder as it is before each of its driver's durable steps: what a kill there leaves.

    The steps are those that the operating system sees, and two kinds of half steps: a line of the events and a line of
    the journal that are cut off in the middle.
    """

    STEPS = ("replace", "rename", "unlink", "rmdir", "mkdir", "symlink", "fsync")

    def __init__(self, path, into, *, wanted=None, machine=False):
        self.path, self.into, self.wanted = path, into, wanted
        self.flushed = 0 if machine else None
        self.num_steps = 0
        self.taken = []
        self._copying = False
        path.mkdir(exist_ok=True)

    def take(self, torn=None):
        if self._copying:
            return
        step = self.num_steps
        self.num_steps += 1
        if self.wanted is not None and step not in self.wanted:
            return
        self._copying = True
        copy = self.into / f"{step:05d}"
        shutil.copytree(self.path, copy, symlinks=True)
        if self.flushed is not None and (copy / "journal.log").exists():
            os.truncate(copy / "journal.log", self.flushed)
        elif torn is not None:
            file, content = torn
            with (copy / file).open("ab") as target:
                target.write(content[: len(content) // 2])
        self.taken.append(copy)
        self._copying = False

    @contextmanager
    def watching(self):
        with pytest.MonkeyPatch.context() as patch:
            for name in self.STEPS:
                patch.setattr(os, name, self._announced(getattr(os, name)))
            record, append = StudyFolder.record, Journal.append_logs

            def recorded(folder, event, **values):
                self.take()
                self.take(torn=("events.jsonl", json.dumps({"event": event, **values}).encode()))
                return record(folder, event, **values)

            def appended(backend, logs):
                self.take()
                self.take(torn=("journal.log", json.dumps(logs[0]).encode()))
                return append(backend, logs)

            flush = Journal.flush

            def flushed(journal):
                flush(journal)
                if self.flushed is not None and not self._copying:
                    self.flushed = (self.path / "journal.log").stat().st_size

            patch.setattr(Journal, "flush", flushed)
            patch.setattr(StudyFolder, "record", recorded)
            patch.setattr(Journal, "append_logs", appended)
            yield

    def _announced(self, step):
        def announced(*arguments, **keywords):
            self.take()
            return step(*arguments, **keywords)

        return announced


def kills_of_a_search(tmp_path, launch, *, steps, at_a_time=1):
    """Folders as a kill before some of the steps leaves them, and the folder of the search that was not killed."""
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "killed", wanted=steps)
    with snapshots.watching():
        run_search(snapshots.path, launch, at_a_time=at_a_time, order=np.random.default_rng(1))
    return snapshots


@pytest.mark.parametrize(("scheduler", "num_trials", "step"), [(ASHA, 5, 11), ((*PROMOTING, *LONGER), 7, 17)])
def test_a_search_killed_at_every_so_many_steps_ends_as_the_unbroken_one(tmp_path, scheduler, num_trials, step):
    launch = launch_of(*scheduler, f"search.num_trials={num_trials}", "sampler.num_startup_trials=2")
    snapshots = kills_of_a_search(tmp_path, launch, steps=range(0, 10_000, step))
    assert snapshots.num_steps > 300
    promoted = [event["trial"] for event in events_of(snapshots.path) if event["event"] == "trial_promoted"]
    assert bool(promoted) == (scheduler != ASHA)
    unbroken = outcome(snapshots.path)
    check(snapshots.path, launch, num_trials)
    for killed in snapshots.taken:
        run_search(killed, launch)
        check(killed, launch, num_trials)
        assert outcome(killed) == unbroken, killed.name
        shutil.rmtree(killed)


def faults(trial):
    """Some lose their machine at the end of their second epoch, which one never saves; the process of another dies."""
    if trial.epoch != 1:
        return None
    if trial.number == 2:
        return InterruptedTrial("process_died", "it was killed", ("n1",))
    if trial.number % 2:
        return InterruptedTrial("node_lost", "the machine is gone", ("n2",))
    return None


def interruptions_of(path, number):
    return [e["cause"] for e in events_of(path) if e["event"] == "trial_interrupted" and e["trial"] == number]


FAILING = ("scheduler=fifo", "search.num_trials=5", "sampler.num_startup_trials=2", "cluster.max_failures=1")


def test_interrupted_trials_go_on_and_one_that_is_interrupted_too_often_fails_alone(tmp_path):
    launch = launch_of(*FAILING)
    run_search(tmp_path, launch, at_a_time=2, order=np.random.default_rng(0), faults=faults)
    check(tmp_path, launch, 5)
    rows = outcome(tmp_path)
    assert [row["state"] for row in rows] == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "FAIL"]
    assert interruptions_of(tmp_path, 1) == ["node_lost"]  # once: the epoch that nobody reported was in its state
    assert interruptions_of(tmp_path, 2) == ["process_died", "process_died"]
    assert rows[2]["epochs"] == 1
    assert rows[2]["reason"] == "process_died, 2 times: it was killed"
    assert (
        interruptions_of(tmp_path, 3) == ["node_lost"] * 3
    )  # the first does not count, the others at the same epoch do
    assert rows[3]["reason"] == "node_lost, 2 times: the machine is gone"


def test_an_interrupted_search_killed_at_every_ninth_step_ends_as_the_unbroken_one(tmp_path):
    launch = launch_of(*FAILING)
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "killed", wanted=range(0, 10_000, 9))
    with snapshots.watching():
        run_search(snapshots.path, launch, faults=faults)
    unbroken = outcome(snapshots.path)
    check(snapshots.path, launch, 5)
    assert sum(event["event"] == "trial_interrupted" for event in events_of(snapshots.path)) > 3
    for killed in snapshots.taken:
        run_search(killed, launch, faults=faults)
        check(killed, launch, 5)
        assert outcome(killed) == unbroken, killed.name
        shutil.rmtree(killed)


def test_only_a_trials_latest_attempt_may_save_and_none_once_it_has_ended(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    ledger, _ = run_search(tmp_path, launch, num_results=1)
    folder = ledger.folder.trial(0)
    assert read_attempt(folder) == 1
    ledger.interrupt(0, InterruptedTrial("node_lost", "the machine is gone"))
    trial, run = ledger.next_trial()
    assert (trial.number, trial.attempt, read_attempt(folder)) == (0, 2, 2)
    assignment = assignment_of(ledger, trial, run)
    refuse_superseded(assignment)
    with pytest.raises(InterruptedTrial, match="attempt 1 was given up, the latest is 2"):
        refuse_superseded(replace(assignment, attempt=1))
    ledger, _ = run_search(tmp_path, launch, num_results=0)  # another driver
    trial, _ = ledger.next_trial()
    assert trial.attempt == 3
    ledger.end(0, "FAIL", "for the test")
    with pytest.raises(InterruptedTrial, match="the latest is None"):
        refuse_superseded(replace(assignment, attempt=3))
    assert not folder.exists()


def assignment_of(ledger, trial, run):
    folder = ledger.folder.trial(trial.number)
    return Assignment(trial.number, run, folder, folder, METRIC, True, 0, 1, trial.attempt)


def test_a_trial_that_has_ended_or_waits_is_not_interrupted_again(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    ledger, _ = run_search(tmp_path, launch, num_results=5)
    assert [trial.state for trial in ledger.trials.values()] == ["COMPLETE", "RUNNING"]
    lost = InterruptedTrial("node_lost", "the machine is gone")
    before = len(events_of(tmp_path))
    ledger.interrupt(0, lost)
    assert len(events_of(tmp_path)) == before
    ledger.interrupt(1, lost)
    ledger.interrupt(1, lost)
    assert len(events_of(tmp_path)) == before + 1
    assert (ledger.num_running, ledger.is_over) == (0, False)


def test_a_machine_that_crashes_at_any_eleventh_step_loses_what_it_had_not_flushed_and_the_search_nothing(tmp_path):
    launch = launch_of(*FAILING)
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "crashed", wanted=range(0, 10_000, 11), machine=True)
    with snapshots.watching():
        run_search(snapshots.path, launch, faults=faults)
    unbroken = outcome(snapshots.path)
    for crashed in snapshots.taken:
        run_search(crashed, launch, faults=faults)
        check(crashed, launch, 5)
        assert outcome(crashed) == unbroken, crashed.name
        shutil.rmtree(crashed)


def test_a_kill_at_any_step_leaves_every_trial_a_whole_state_or_none(tmp_path):
    snapshots = kills_of_a_search(tmp_path, launch_of(*ASHA, "search.num_trials=3"), steps=None, at_a_time=2)
    states = [SavedState.load(folder) for killed in snapshots.taken for folder in killed.glob("running/*")]
    assert any(state is None for state in states)
    assert any(state is not None and state.best_weights for state in states)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "sampler"), [(ASHA, "gp"), (ASHA, "tpe"), (ASHA, "cmaes"), (ASHA, "nsga2"), (PROMOTING, "gp")]
)
@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_search_killed_at_any_step_ends_well(tmp_path, scheduler, sampler, at_a_time):
    launch = launch_of(*scheduler, "search.num_trials=8", f"sampler={sampler}")
    snapshots = kills_of_a_search(tmp_path, launch, steps=None, at_a_time=at_a_time)
    for killed in snapshots.taken:
        run_search(killed, launch, at_a_time=at_a_time, order=np.random.default_rng(2))
        check(killed, launch, 8)
        assert at_a_time > 1 or outcome(killed) == outcome(snapshots.path), killed.name
        shutil.rmtree(killed)


@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(0, 500),
    second=st.integers(0, 500),
    seed=st.integers(0, 99),
    orphan=st.booleans(),
    scheduler=st.sampled_from([ASHA, PROMOTING, PLATEAU]),
)
@example(first=12, second=325, seed=18, orphan=True, scheduler=PLATEAU)
@example(first=481, second=0, seed=33, orphan=True, scheduler=PLATEAU)
def test_a_search_killed_twice_anywhere_ends_well(tmp_path_factory, first, second, seed, orphan, scheduler):
    launch = launch_of(*scheduler, "search.num_trials=5")
    order, tmp_path = np.random.default_rng(seed), tmp_path_factory.mktemp("study")
    folder = tmp_path / "study"
    for number, step in enumerate((first, second)):
        snapshots = Snapshots(folder, tmp_path / f"killed_{number}", wanted=(step,))
        with snapshots.watching():
            _, running = run_search(folder, launch, at_a_time=2, order=order)
        if not snapshots.taken:  # it ended before
            break
        shutil.rmtree(folder)
        snapshots.taken[0].rename(folder)
        if orphan:  # a trial's process that has not noticed yet computes one more epoch
            saved = {int(file.parent.name) for file in (folder / "running").glob("*/last.safetensors")}
            ended = {event["trial"] for event in events_of(folder) if event["event"] == "trial_ended"}
            for number in sorted(saved - ended):  # one that has ended still waits for leave to go on
                run_one_more_epoch(folder, launch, number)
    run_search(folder, launch, at_a_time=2, order=order)
    check(folder, launch, 5)


def run_one_more_epoch(folder, launch, number):
    ran = {event["trial"]: event["params"] for event in events_of(folder) if event["event"] == "trial_started"}
    trial = SimpleNamespace(number=number, params=ran[number])
    trainer = Trainer(trial, launch.run, StudyFolder(folder).trial(number))
    if trainer.state.epoch < launch.task.num_epochs:
        trainer.epoch()


def test_a_grid_killed_while_it_is_queued_runs_each_of_its_points_once(tmp_path):
    launch = launch_of("space=none", "sampler=grid", "model.mask_ratio=0.75,0.5,0.6", "task.finetune.layer_decay=1,0.5")
    snapshots = kills_of_a_search(tmp_path, launch, steps=range(0, 40, 5))
    for study in (snapshots.path, *snapshots.taken):
        run_search(study, launch)
        check(study, launch, 6)
        points = table_of(study)[["model.mask_ratio", "task.finetune.layer_decay"]].to_numpy().tolist()
        assert sorted(points) == [[mask, decay] for mask in (0.5, 0.6, 0.75) for decay in (0.5, 1)]
        assert points[0] == [launch.model.arguments["mask_ratio"], launch.task.finetune.layer_decay]


@pytest.mark.parametrize("scheduler", [ASHA, PROMOTING])
def test_a_trial_whose_process_lost_its_state_begins_again_and_is_counted_once(tmp_path, scheduler):
    launch = launch_of(*scheduler, "search.num_trials=3")
    run_search(tmp_path, launch, num_results=3)
    shutil.rmtree(tmp_path / "running")
    run_search(tmp_path, launch)
    check(tmp_path, launch, 3)


def test_an_epoch_that_only_the_state_tells_of_is_taken_in_when_the_next_one_comes(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=1")
    ledger, running = run_search(tmp_path, launch, num_results=1)
    running[0].epoch()  # as by a process of the killed driver, after the books were opened again
    running[0].epoch()
    assert not ledger.report(0, running[0].epoch())
    check(tmp_path, launch, 1)
    assert table_of(tmp_path)["epochs"].tolist() == [4]


def test_a_trial_that_the_state_shows_to_be_stopped_is_not_taken_further(tmp_path):
    launch = launch_of(*ASHA, "search.num_trials=3")
    ledger, _ = run_search(tmp_path, launch, num_results=5)
    trial, run = ledger.next_trial()
    trainer = Trainer(trial, run, ledger.folder.trial(2))
    trainer.epoch()
    assert not ledger.report(2, trainer.epoch())
    assert (outcome(tmp_path)[2]["epochs"], outcome(tmp_path)[2]["reason"]) == (1, "scheduler")
    check(tmp_path, launch, 3)


def test_a_stopped_search_goes_on_with_the_same_trial_and_says_so(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=2")
    _, running = run_search(tmp_path, launch, num_results=6)
    assert list(running) == [1]
    ledger = open_ledger(tmp_path, launch)
    trial, run = ledger.next_trial()
    assert (trial.number, trial.epoch, trial.params) == (1, 2, running[1].params)
    assert run.task.pretrain.lr == trial.params["task.pretrain.lr"]
    assert {"event": "trial_resumed", "trial": 1, "epoch": 2}.items() <= events_of(tmp_path)[-1].items()
    assert ledger.next_trial() is None


@pytest.mark.parametrize("scheduler", [ASHA, PROMOTING])
def test_more_trials_can_be_asked_for_later(tmp_path, scheduler):
    run_search(tmp_path, launch_of(*scheduler, "search.num_trials=3"))
    longer = launch_of(*scheduler, "search.num_trials=6")
    run_search(tmp_path, longer)
    check(tmp_path, longer, 6)


def test_fewer_trials_than_were_begun_leave_the_others_interrupted(tmp_path):
    _, running = run_search(tmp_path, launch_of("scheduler=fifo", "search.num_trials=3"), at_a_time=3, num_results=3)
    assert len(running) == 3
    ledger, _ = run_search(tmp_path, launch_of("scheduler=fifo", "search.num_trials=2"), at_a_time=3)
    assert (ledger.num_ended, ledger.trials[2].state) == (2, "RUNNING")
    whole = launch_of("scheduler=fifo", "search.num_trials=3")
    run_search(tmp_path, whole)
    check(tmp_path, whole, 3)


def test_the_first_trial_is_the_default_configuration_and_runs_to_its_end(tmp_path):
    launch = launch_of(*ASHA, "search.num_trials=6", "search.direction=minimize")
    run_search(tmp_path, launch, at_a_time=3)
    first = outcome(tmp_path)[0]
    assert first["epochs"] == launch.task.num_epochs
    assert first["task.pretrain.lr"] == launch.task.pretrain.lr
    assert first["model.mask_ratio"] == launch.model.arguments["mask_ratio"]


def test_what_diverged_is_told_pruned_with_its_finite_values_and_what_crashed_is_told_failed(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=5")
    run_search(tmp_path, launch)
    diverged, crashed = journal_of(tmp_path)[3:]
    assert diverged.state == optuna.trial.TrialState.PRUNED
    assert diverged.intermediate_values == {1: curve(3, 1, diverged.params, maximize=True)}
    assert diverged.user_attrs == {"epochs": 1, "reason": "non_finite: the loss is nan"}
    assert crashed.state == optuna.trial.TrialState.FAIL
    assert crashed.user_attrs["reason"] == "the process crashed"


def test_a_metric_that_is_not_finite_is_left_out_of_the_events_and_never_ends_as_a_value(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=1")
    ledger = open_ledger(tmp_path, launch)
    ledger.next_trial()
    result = {"stage": "finetune", "seconds": 1.0, "value": None, "best_epoch": None, "reason": None}
    for epoch in range(1, 5):
        metrics = {METRIC: math.nan, "train/loss": math.inf, "train/lr": 0.1}
        goes_on = ledger.report(0, {**result, "epoch": epoch, "metrics": metrics, "finished": epoch == 4})
        assert goes_on == (epoch < 4)
    assert [event["metrics"] for event in events_of(tmp_path) if event["event"] == "epoch"] == [{"train/lr": 0.1}] * 4
    assert outcome(tmp_path)[0]["reason"] == f"non_finite: {METRIC} was never finite"
    assert ledger.best is None


def test_a_trial_ends_once(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=1")
    ledger, running = run_search(tmp_path, launch, num_results=3)
    last = running[0].epoch()
    assert not ledger.report(0, last)
    ledger.end(0, "FAIL", "its process failed while it was taken down")
    assert not ledger.report(0, last)
    check(tmp_path, launch, 1)


def test_choices_that_cannot_go_together_end_their_trial_and_not_the_search(tmp_path):
    launch = launch_of(
        "scheduler=fifo",
        "sampler=random",
        "search.num_trials=12",
        "seed=1",
        "task.finetune.min_lr=1e-4",
        "space.task.finetune.min_lr={log_uniform: [1.0e-5, 1.0e-3]}",  # each end goes with the default rate
        "space.task.finetune.lr={log_uniform: [1.0e-4, 1.1e-3]}",
    )
    run_search(tmp_path, launch, num_results=9)
    run_search(tmp_path, launch)
    check(tmp_path, launch, 12)
    infeasible = [row for row in outcome(tmp_path) if str(row["reason"]).startswith("infeasible: ")]
    assert infeasible
    assert {(row["state"], row["epochs"]) for row in infeasible} == {("PRUNED", 0)}
    assert infeasible[0]["reason"].startswith("infeasible: task.finetune: min_lr must not exceed the peak rate")
    assert all(row["task.finetune.min_lr"] > row["task.finetune.lr"] for row in infeasible)


# -------- trials that wait to be promoted


EARLY = (*PROMOTING[:2], "scheduler.grace_epochs=1")


def reported(ledger, *values):
    """Begin the next trial, or go on with one, and have it report these values; say which and whether it goes on."""
    trial, run = ledger.next_trial()
    trainer = Trainer(trial, run, ledger.folder.trial(trial.number))
    for value in values:
        goes_on = ledger.report(trial.number, trainer.epoch() | {"metrics": {METRIC: value}})
    return trial.number, goes_on


def test_a_paused_trial_gives_its_place_up_and_goes_on_from_its_state_before_a_new_one_begins(tmp_path):
    ledger = open_ledger(tmp_path, launch_of(*EARLY, "search.num_trials=6"))
    assert reported(ledger, 0.1, 0.1, 0.1, 0.1) == (0, False)  # the default configuration is not paused
    assert ledger.trials[0].state == "COMPLETE"
    assert reported(ledger, 0.9) == (1, True)  # the better of two
    assert reported(ledger, 0.8) == (2, False)
    assert (ledger.num_running, ledger.trials[2].is_paused, read_attempt(ledger.folder.trial(2))) == (1, True, 1)
    assert {"event": "trial_paused", "trial": 2, "epoch": 1}.items() <= events_of(tmp_path)[-1].items()
    assert reported(ledger, 0.0) == (3, False)  # one of four: the best two go on
    trial, run = ledger.next_trial()
    assert (trial.number, trial.attempt, trial.is_paused, read_attempt(ledger.folder.trial(2))) == (2, 2, False, 2)
    assert {"event": "trial_promoted", "trial": 2, "epoch": 1}.items() <= events_of(tmp_path)[-1].items()
    assert Trainer(trial, run, ledger.folder.trial(2)).state.epoch == 1
    assert ledger.next_trial()[0].number == 4
    assert journal_of(tmp_path)[3].state == optuna.trial.TrialState.RUNNING


def test_a_driver_killed_before_it_wrote_a_pause_down_pauses_the_trial_when_it_is_back(tmp_path):
    launch = launch_of(*EARLY, "search.num_trials=3")
    ledger = open_ledger(tmp_path, launch)
    reported(ledger, 0.5, 0.5, 0.5, 0.5)
    assert reported(ledger, 0.4) == (1, False)
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    assert '"trial_paused"' in lines[-1]
    (tmp_path / "events.jsonl").write_text("".join(lines[:-1]))
    again = open_ledger(tmp_path, launch)
    assert (again.trials[1].is_paused, again.num_running) == (True, 0)
    assert events_of(tmp_path)[-1]["event"] == "trial_paused"
    assert again.next_trial()[0].number == 2


def test_what_a_paused_trial_computed_in_a_lost_batch_is_taken_in_when_it_is_promoted_again(tmp_path):
    launch = launch_of(*EARLY, "search.num_trials=6")
    ledger = open_ledger(tmp_path, launch)
    for values in ((0.1,) * 4, (0.9,), (0.8,)):
        reported(ledger, *values)
    assert ledger.trials[2].is_paused
    for _ in range(3):  # it had been promoted and had run to its end, of which the books know nothing
        run_one_more_epoch(tmp_path, launch, 2)
    again = open_ledger(tmp_path, launch)
    assert (again.trials[2].is_paused, again.trials[2].epoch) == (True, 1)
    assert again.next_trial()[0].number == 1  # it ran when the driver was lost
    assert reported(again, 0.0) == (3, False)
    assert again.next_trial()[0].number == 4
    assert (again.trials[2].state, again.trials[2].epoch) == ("COMPLETE", 4)
    assert {"event": "trial_promoted", "trial": 2}.items() <= next(
        event for event in reversed(events_of(tmp_path)) if event["event"] == "trial_promoted"
    ).items()


def test_nothing_happens_to_a_paused_trial_whose_process_is_taken_down(tmp_path):
    ledger = open_ledger(tmp_path, launch_of(*EARLY, "search.num_trials=3"))
    reported(ledger, 0.5)
    reported(ledger, 0.4)
    before = len(events_of(tmp_path))
    ledger.interrupt(1, InterruptedTrial("node_lost", "the machine is gone"))
    ledger.end(1, "FAIL", "its process failed while it was taken down")
    assert not ledger.report(1, {"epoch": 2, "metrics": {METRIC: 0.9}, "finished": False, "reason": None})
    assert (len(events_of(tmp_path)), ledger.trials[1].is_paused) == (before, True)


def test_trials_wait_while_one_runs_and_end_when_none_can_promote_them_any_more(tmp_path):
    launch = launch_of(*EARLY, "search.num_trials=3")
    ledger = open_ledger(tmp_path, launch)
    first, run = ledger.next_trial()
    trainer = Trainer(first, run, ledger.folder.trial(0))
    for _ in range(3):
        assert ledger.report(0, trainer.epoch() | {"metrics": {METRIC: 0.9}})
    assert reported(ledger, 0.2) == (1, False)
    assert reported(ledger, 0.1) == (2, False)
    assert ledger.next_trial() is None
    assert (ledger.num_ended, ledger.is_over) == (0, False)  # one of three went on: the default configuration
    assert not ledger.report(0, trainer.epoch() | {"metrics": {METRIC: 0.9}})
    assert not ledger.is_over
    again = open_ledger(tmp_path, launch)  # as after Ctrl-C: they still wait
    assert (again.num_ended, again.num_running, again.is_over) == (1, 0, False)
    assert (again.folder.trial(1) / "last.safetensors").exists()
    assert again.next_trial() is None
    assert again.is_over
    assert [(row["state"], row["reason"], row["epochs"]) for row in outcome(tmp_path)] == [
        ("COMPLETE", None, 4),
        ("PRUNED", "scheduler", 1),
        ("PRUNED", "scheduler", 1),
    ]


def test_trials_that_wait_when_a_budget_is_used_up_go_on_with_a_larger_one(tmp_path):
    launch = launch_of(*EARLY, "search.num_trials=4", "search.max_device_hours=0.00166")  # six epochs of a second
    ledger, _ = run_search(tmp_path, launch)
    assert ledger.is_over
    assert [trial.is_paused for trial in ledger.trials.values()] == [False, True, True]
    longer = launch_of(*EARLY, "search.num_trials=4")
    run_search(tmp_path, longer)
    check(tmp_path, longer, 4)


def test_events_of_another_promotion_than_the_rules_are_refused(tmp_path):
    launch = launch_of(*PROMOTING, *LONGER, "search.num_trials=7")
    run_search(tmp_path, launch)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    at, promoted = next((at, line) for at, line in enumerate(lines) if '"trial_promoted"' in line)
    number = json.loads(promoted)["trial"]
    lines[at] = json.dumps(json.loads(promoted) | {"trial": 0})
    (tmp_path / "events.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(StudyError, match=rf"events.jsonl says that trial 0 was promoted.* was trial {number}: restore"):
        open_ledger(tmp_path, launch)


# -------- population-based training

POPULATION = ("scheduler=pbt", "scheduler.interval_epochs=1", "scheduler.quantile=0.5", "~space.model.mask_ratio")


def run_population(path, launch):
    """As PopulationScheduler has it: all trials at once, the one that is furthest behind next."""
    ledger = open_ledger(path, launch)
    running = {}
    while (following := ledger.next_trial()) is not None:
        trial, run = following
        running[trial.number] = Trainer(trial, run, ledger.folder.trial(trial.number))
    while running:
        number = min(running, key=lambda number: (ledger.trials[number].epoch, number))
        if not ledger.report(number, running[number].epoch()):
            del running[number]
        elif (exploit := ledger.exploit(number)) is not None:
            running[number] = Trainer(*exploit, ledger.folder.trial(number))


def check_ancestors(path):
    """Each epoch was computed from the weights that the exploits before it say."""
    ancestor, num_exploits = {}, 0
    for event in events_of(path):
        if event["event"] == "trial_started":
            ancestor[event["trial"]] = event["trial"]
        elif event["event"] == "exploit":
            ancestor[event["trial"]] = ancestor[event["donor"]]
            num_exploits += 1
        elif event["event"] == "epoch":
            assert event["metrics"]["ancestor"] == ancestor[event["trial"]]
    return num_exploits


def check_bests(path):
    """A trial's value is the best that came after its last exploit, and its checkpoint is that epoch's."""
    values = {}
    for event in events_of(path):
        if event["event"] == "exploit":
            values[event["trial"]] = {}
        elif event["event"] == "epoch" and event["stage"] == "finetune":
            values.setdefault(event["trial"], {})[event["epoch"]] = event["metrics"][METRIC]
        elif event["event"] == "trial_ended":
            assert event["value"] == max(values[event["trial"]].values())
    for folder in (path / "checkpoints").iterdir():
        description = read_description(folder)
        assert description["value"] == values[description["trial"]][description["epoch"]]


def test_a_population_killed_at_any_eighth_step_goes_on_from_the_weights_that_its_books_tell_of(tmp_path):
    launch = launch_of(*POPULATION, "search.num_trials=3")
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "killed", wanted=range(0, 10_000, 8))
    with snapshots.watching():
        run_population(snapshots.path, launch)
    assert check_ancestors(snapshots.path) >= 2
    check_bests(snapshots.path)
    unbroken = outcome(snapshots.path)
    assert {row["state"] for row in unbroken} == {"COMPLETE"}
    for killed in snapshots.taken:
        run_population(killed, launch)
        check_ancestors(killed)
        check_bests(killed)
        assert [row["state"] for row in outcome(killed)] == ["COMPLETE"] * 3
        assert not any((killed / "running").iterdir())
        shutil.rmtree(killed)


# -------- the folder


def test_a_lock_left_by_a_killed_driver_holds_nobody_up_even_after_the_study_has_moved(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=1")
    run_search(tmp_path / "before", launch, num_results=2)
    (tmp_path / "before" / "journal.log.lock").symlink_to(tmp_path / "before" / "journal.log")
    (tmp_path / "before").rename(tmp_path / "after")  # the link now leads nowhere
    run_search(tmp_path / "after", launch)
    check(tmp_path / "after", launch, 1)


def test_files_that_a_killed_driver_was_writing_are_put_away(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=1")
    run_search(tmp_path, launch)
    for folder in (tmp_path, tmp_path / "checkpoints" / "default"):
        (folder / ".model.safetensors.123.partial").write_bytes(b"half")
    (tmp_path / "checkpoints" / "default" / ".export.partial").mkdir()  # a folder is not its to put away
    open_ledger(tmp_path, launch)
    (tmp_path / "checkpoints" / "default" / ".export.partial").rmdir()
    check(tmp_path, launch, 1)


def test_a_full_disk_ends_in_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    launch = launch_of(*ASHA, "search.num_trials=3")

    def full(journal, lines):
        with open(journal._file_path, "ab") as file:
            file.write(b'{"op_code": 7, "wor')
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger, running = run_search(tmp_path, launch, num_results=2)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", full)
        with pytest.raises(StorageError, match=r"journal.log cannot be written: the disk is full: free some space"):
            ledger.report(0, running[0].epoch())
    run_search(tmp_path, launch)
    check(tmp_path, launch, 3)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def read_only(path, *arguments, **keywords):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(JournalFileBackend, "__init__", read_only)
    with pytest.raises(StorageError, match="journal.log cannot be written: the file system is read-only"):
        open_study(tmp_path / "journal.log", "maximize")


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("journal.log", "journal.log has lost what events.jsonl holds of trial 0"),
        ("events.jsonl", "events.jsonl has lost what journal.log holds of trial 0"),
    ],
)
def test_a_folder_that_lost_a_part_is_refused(tmp_path, lost, said):
    launch = launch_of(*ASHA, "search.num_trials=2")
    run_search(tmp_path, launch)
    (tmp_path / lost).unlink()
    with pytest.raises(StudyError) as caught:
        open_ledger(tmp_path, launch)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_journal_stays_whole_where_another_line_follows_a_torn_one(tmp_path):
    path = tmp_path / "journal.log"
    study = open_study(path, "maximize")
    study.ask()
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "stu')
    open_study(path, "maximize").ask()
    assert len(open_study(path, "maximize").trials) == 2
    assert isinstance(study._storage._backend, Journal)


def test_opening_a_study_again_says_nothing_and_adds_nothing_to_the_journal(tmp_path, capfd):
    launch = launch_of(*ASHA, "search.num_trials=2")
    run_search(tmp_path, launch)
    before = (tmp_path / "journal.log").read_bytes()
    run_search(tmp_path, launch)
    assert (tmp_path / "journal.log").read_bytes() == before
    assert capfd.readouterr() == ("", "")


def test_debugging_brings_optunas_own_words_back(tmp_path):
    open_ledger(tmp_path / "quiet", launch_of())
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    launch = launch_of().model_copy(update={"debug": launch_of("debug=default").debug})
    open_ledger(tmp_path / "loud", launch)
    assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@given(
    st.lists(
        st.none()
        | st.booleans()
        | st.integers(-9, 9)
        | st.floats(-1, 1)
        | st.text(max_size=3)
        | st.lists(st.integers()),
        min_size=1,
    )
)
def test_any_choices_make_a_column_of_one_kind(values):
    column = of_one_kind(values)
    assert len({type(value) for value in column} - {type(None), int, float}) <= 1
    assert [value is None for value in column] == [value is None for value in values]


def test_choices_of_any_kind_are_kept_in_the_table(tmp_path):
    choices = [
        "space.task.probe.max_train_records={choice: [null, 500]}",
        "space.data.standardize={choice: [lead, record]}",
    ]
    augmented = "space.model.transforms={choice: [[], [{_target_: data.transforms.Flip}]]}"
    launch = launch_of(*choices, augmented, "search.num_trials=6", "sampler=random")
    run_search(tmp_path, launch)
    check(tmp_path, launch, 6)
    assert set(table_of(tmp_path)["data.standardize"]) == {"lead", "record"}


# -------- budgets


def test_seconds_of_devices_add_up_over_sessions_and_end_the_search(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=9", "cluster.workers_per_trial=3")
    launch = launch.model_copy(update={"search": launch.search.model_copy(update={"max_device_hours": 18 / 3600})})
    first, _ = run_search(tmp_path, launch, num_results=4)
    assert (first.device_seconds, first.used_up) == (12.0, None)
    second, running = run_search(tmp_path, launch, num_results=2)
    assert second.device_seconds == 18.0
    assert second.used_up == "search.max_device_hours=0.005 is used up"
    assert list(running) == [1]
    assert second.next_trial() is None
    assert open_ledger(tmp_path, launch).next_trial() is None
    assert open_ledger(tmp_path, launch_of("scheduler=fifo", "search.num_trials=9")).next_trial()[0].number == 1


def test_the_seconds_of_an_epoch_that_diverged_count(tmp_path):
    launch = launch_of("scheduler=fifo", "search.num_trials=4")
    run_search(tmp_path, launch)
    assert table_of(tmp_path)["seconds"].tolist() == [4.0, 4.0, 4.0, 2.0]
    assert open_ledger(tmp_path, launch).device_seconds == 14.0


def test_hours_of_the_wall_clock_add_up_over_sessions(tmp_path, monkeypatch):
    launch = launch_of()
    launch = launch.model_copy(update={"search": launch.search.model_copy(update={"max_hours": 0.1})})
    events = [
        {"time": "2026-01-01T00:00:00.000+00:00", "event": "study_started"},
        {"time": "2026-01-01T00:05:00.000+00:00", "event": "study_interrupted"},
        {"time": "2026-01-02T00:00:00.000+00:00", "event": "study_resumed"},
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    now = 1000.0
    monkeypatch.setattr(ledger_module.time, "monotonic", lambda: now)
    ledger = open_ledger(tmp_path, launch)
    assert (ledger.wall_seconds, ledger.used_up) == (300.0, None)
    now += 60
    assert ledger.used_up == "search.max_hours=0.1 is used up"
    assert ledger.next_trial() is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 900)), max_size=20))
def test_the_time_between_two_sessions_does_not_count(steps):
    at, events, expected = 0, [], 0
    for starts, seconds in steps:
        at += seconds
        time = f"2026-01-01T{at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}+00:00"
        events.append({"time": time, "event": "study_resumed" if starts else "epoch"})
        expected += seconds if events[1:] and not starts else 0
    assert session_seconds(events) == expected
