"""The books of a confirmation under simulated runs: killed at every instant, they lose nothing and choose the same."""

import io
import json
import math
import os
import shutil
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import launch
from search_spaces.choice import Candidate, choose, median_index
from search_spaces.confirmation import Confirmation, confirmation_seed
from search_spaces.ledger import FIRST_RUN, run_number
from search_spaces.no_choice import why_closed
from search_spaces.schema import ChoiceError
from tests.test_search_spaces_ledger import (
    METRIC,
    Snapshots,
    Trainer,
    check,
    events_of,
    journal_of,
    launch_of,
    open_ledger,
    outcome,
    run_search,
    weight,
)
from trainables.checkpoint import read_description
from trainables.failures import InterruptedTrial
from trainables.files import read_tensors
from trainables.state import PRETEXT
from trainables.study import StudyError

SEARCHED = ("scheduler=fifo", "search.num_trials=6")
CONFIRM = (*SEARCHED, "search.confirm.top_k=2", "search.confirm.seeds=3")


@pytest.fixture(autouse=True, scope="module")
def _nothing_waits_for_the_disk():
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)
    yield
    patch.undo()


class SeedTrainer(Trainer):
    """Behaves as the process of a run: its curve follows from its number, so each seed has one of its own."""

    def __init__(self, run, settings, folder, *, maximize=True, diverging=()):
        super().__init__(run, settings, folder, maximize=maximize)
        self.diverges = (run.trial, run.index) in diverging

    def epoch(self):
        if self.diverges and self.state.epoch == 1:
            result = {"epoch": 1, "stage": "finetune", "metrics": {}, "seconds": 1.0, "value": None}
            return {**result, "best_epoch": None, "finished": True, "reason": "non_finite: the loss is nan"}
        return super().epoch()


def open_confirmation(path, launch):
    return Confirmation(open_ledger(path, launch), seed=launch.seed, max_failures=launch.cluster.max_failures)


def confirm(path, launch, *, at_a_time=1, order=None, num_results=math.inf, faults=None, diverging=(), choosing=True):
    """Run what a confirmation hands out, and choose if all of it has ended; return its books."""
    confirmation = open_confirmation(path, launch)
    maximize = launch.search.direction == "maximize"
    running = {}
    while num_results > 0:
        while len(running) < at_a_time and (following := confirmation.next_trial()) is not None:
            run, settings_ = following
            folder = confirmation.folder.trial(run.number)
            running[run.number] = SeedTrainer(run, settings_, folder, maximize=maximize, diverging=diverging)
        assert confirmation.num_running == len(running)
        if not running:
            break
        number = int(order.choice(sorted(running))) if order else min(running)
        interruption = faults(confirmation.trials[number]) if faults else None
        if interruption is not None:
            if interruption.cause == "node_lost":
                running[number].epoch()
            confirmation.interrupt(number, interruption)
            del running[number]
            continue
        if not confirmation.report(number, running[number].epoch()):
            del running[number]
        num_results -= 1
    if choosing:
        confirmation.choose()
    return confirmation


def runs_of(path):
    """(trial, index) -> how the run ended."""
    return {(e["trial"], e["index"]): e for e in events_of(path) if e["event"] == "confirmation_ended"}


def timeless(event):
    return {key: value for key, value in event.items() if key not in ("time", "seconds")}


def choice_of(path):
    """The choice that stands, and everything that an interruption must not change."""
    chosen = [timeless(e) for e in events_of(path) if e["event"] == "confirmation_chosen"]
    return chosen, {key: timeless(event) for key, event in runs_of(path).items()}


def top(path, number):
    """The best completed trials by the search's own values."""
    complete = [row for row in outcome(path) if row["state"] == "COMPLETE"]
    return [row["number"] for row in sorted(complete, key=lambda row: (-row["value"], row["number"]))[:number]]


def check_confirmed(path, launch):
    """Every run of the best trials ended once, with all its epochs; best_1 is the median seed of the best mean."""
    confirm_ = launch.search.confirm
    candidates = top(path, confirm_.top_k)
    wanted = {(trial, index) for trial in candidates for index in range(1, confirm_.seeds + 1)}
    events = events_of(path)
    ended = [(e["trial"], e["index"]) for e in events if e["event"] == "confirmation_ended"]
    assert len(ended) == len(set(ended))
    assert wanted <= set(ended)
    for trial, index in ended:
        found = [
            event
            for event in events
            if event["event"] == "confirmation_epoch" and (event["trial"], event["index"]) == (trial, index)
        ]
        assert [event["epoch"] for event in found] == list(range(1, launch.task.num_epochs + 1))
        values = [e["metrics"][METRIC] for e in found if e["stage"] == "finetune"]
        assert runs_of(path)[trial, index]["value"] == max(values)
        kept = path / "checkpoints" / "confirmed" / f"trial_{trial:04d}_seed_{index}"
        described = read_description(kept)
        assert (described["trial"], described["confirmed"]["index"]) == (trial, index)
        best = 1 + [e["metrics"][METRIC] for e in found].index(max(values))
        saved = read_tensors(kept / "model.safetensors")[0]["weight"][0].item()
        assert saved == pytest.approx(weight(run_number(trial, index), best), rel=1e-6)
    means = {
        trial: statistics.fmean(runs_of(path)[trial, index]["value"] for index in range(1, confirm_.seeds + 1))
        for trial in candidates
    }
    best = max(candidates, key=lambda trial: (means[trial], -trial))
    values = sorted((runs_of(path)[best, index]["value"], index) for index in range(1, confirm_.seeds + 1))
    median = values[(len(values) - 1) // 2][1]
    delivered = read_description(path / "checkpoints" / "best_1")
    assert (delivered["trial"], delivered["confirmed"]["index"]) == (best, median)
    assert delivered["confirmed"]["mean"] == pytest.approx(means[best])
    assert delivered["value"] == runs_of(path)[best, median]["value"]
    files = [
        path / "checkpoints" / name / "model.safetensors" for name in ("best_1", f"confirmed/{kept_name(best, median)}")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    others = [trial for trial in top(path, 99) if trial != best][: launch.search.keep_best - 1]
    ranks = {f"best_{rank}": trial for rank, trial in enumerate(others, start=2)}
    assert {name: read_description(path / "checkpoints" / name)["trial"] for name in ranks} == ranks
    assert not any((path / "running").iterdir())
    assert [file for file in path.rglob("*") if file.suffix == ".partial"] == []


def kept_name(trial, index):
    return f"trial_{trial:04d}_seed_{index}"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A search that has ended; nothing is confirmed yet."""
    path = tmp_path_factory.mktemp("searched") / "study"
    run_search(path, launch_of(*CONFIRM))
    return path


@pytest.fixture
def study(tmp_path, searched):
    return shutil.copytree(searched, tmp_path / "study")


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_the_best_trials_are_trained_again_and_the_best_mean_is_delivered(study, at_a_time):
    launch = launch_of(*CONFIRM)
    confirmation = confirm(study, launch, at_a_time=at_a_time, order=np.random.default_rng(0))
    assert (confirmation.num_ended, confirmation.num_left, confirmation.is_over) == (6, 0, True)
    check_confirmed(study, launch)


def test_the_journal_the_table_and_the_sampler_never_hear_of_a_run(study):
    launch = launch_of(*CONFIRM)
    before = [(study / name).read_bytes() for name in ("journal.log",)], outcome(study)
    confirm(study, launch)
    assert before == ([(study / "journal.log").read_bytes()], outcome(study))
    longer = launch_of(*CONFIRM, "search.num_trials=8")
    without = shutil.copytree(study, study.parent / "without")
    keep = [event for event in events_of(study) if not event["event"].startswith("confirmation_")]
    (without / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in keep))
    for path in (study, without):
        run_search(path, longer)
    assert outcome(study) == outcome(without)
    assert len(journal_of(study)) == 8


def test_a_confirmation_killed_at_every_step_ends_as_the_unbroken_one(tmp_path, searched):
    launch = launch_of(*CONFIRM)
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "killed", wanted=range(0, 10_000, 7))
    shutil.copytree(searched, snapshots.path, dirs_exist_ok=True)
    with snapshots.watching():
        confirm(snapshots.path, launch)
    unbroken = choice_of(snapshots.path)
    check_confirmed(snapshots.path, launch)
    assert snapshots.num_steps > 200
    for killed in snapshots.taken:
        confirm(killed, launch)
        check_confirmed(killed, launch)
        assert choice_of(killed) == unbroken, killed.name
        shutil.rmtree(killed)


def test_the_choice_killed_at_any_step_is_carried_out_by_the_next_driver(tmp_path, study):
    launch = launch_of(*CONFIRM)
    confirm(study, launch, choosing=False)
    snapshots = Snapshots(tmp_path / "unbroken", tmp_path / "killed")
    shutil.copytree(study, snapshots.path, dirs_exist_ok=True)
    confirmation = open_confirmation(snapshots.path, launch)
    with snapshots.watching():
        confirmation.choose()
    assert snapshots.num_steps > 10
    for killed in snapshots.taken:
        written_down = any(event["event"] == "confirmation_chosen" for event in events_of(killed))
        open_confirmation(killed, launch if written_down else launch_of(*CONFIRM, "search.confirm.top_k=0"))
        assert ("confirmed" in read_description(killed / "checkpoints" / "best_1")) == written_down
        confirm(killed, launch)
        check_confirmed(killed, launch)
        assert len(choice_of(killed)[0]) == 1


@settings(max_examples=12, deadline=None)
@given(first=st.integers(0, 300), second=st.integers(0, 300), seed=st.integers(0, 99), orphan=st.booleans())
def test_a_confirmation_killed_twice_anywhere_ends_well(tmp_path_factory, searched, first, second, seed, orphan):
    launch = launch_of(*CONFIRM)
    order, tmp_path = np.random.default_rng(seed), tmp_path_factory.mktemp("study")
    folder = shutil.copytree(searched, tmp_path / "study")
    for number, step in enumerate((first, second)):
        snapshots = Snapshots(folder, tmp_path / f"killed_{number}", wanted=(step,))
        with snapshots.watching():
            confirm(folder, launch, at_a_time=2, order=order)
        if not snapshots.taken:  # it ended before
            break
        shutil.rmtree(folder)
        snapshots.taken[0].rename(folder)
        if orphan:  # a run's process that has not noticed yet computes one more epoch
            for saved in (folder / "running").glob("*/last.safetensors"):
                run_one_more_epoch(folder, launch, int(saved.parent.name))
    confirm(folder, launch, at_a_time=2, order=order)
    check_confirmed(folder, launch)


def run_one_more_epoch(folder, launch, number):
    confirmation_folder = folder / "running" / f"{number:04d}"
    index, trial = divmod(number, FIRST_RUN)
    params = next(e["params"] for e in events_of(folder) if e["event"] == "trial_started" and e["trial"] == trial)
    run = SimpleNamespace(number=number, params=params, trial=trial, index=index)
    trainer = SeedTrainer(run, launch.run, confirmation_folder)
    if trainer.state.epoch < launch.task.num_epochs:
        trainer.epoch()


def test_what_a_masked_method_reconstructs_with_lies_beside_the_model_that_is_delivered(study):
    def with_pretext(run):
        (study / "running" / f"{run.number:04d}" / PRETEXT).write_text(run.name)

    chosen = confirm(study, launch_of(*CONFIRM), faults=with_pretext).chosen
    kept = (study / "checkpoints" / "best_1" / PRETEXT).read_text()
    assert kept == f"trial {chosen['trial']}, seed {chosen['index']}"


def test_a_run_whose_machine_is_lost_goes_on_and_one_that_is_interrupted_too_often_fails_alone(study):
    first, second = top(study, 2)

    def faults(run):
        if run.epoch == 1 and (run.trial, run.index) == (first, 1):
            return InterruptedTrial("process_died", "it was killed", ("n1",))
        if run.epoch == 1 and (run.trial, run.index) == (second, 2):
            return InterruptedTrial("node_lost", "the machine is gone", ("n2",))
        return None

    launch = launch_of(*CONFIRM, "cluster.max_failures=1")
    confirm(study, launch, faults=faults)
    assert runs_of(study)[first, 1]["state"] == "FAIL"
    assert runs_of(study)[first, 1]["reason"] == "process_died, 2 times: it was killed"
    assert runs_of(study)[second, 2]["state"] == "COMPLETE"
    (chosen,) = choice_of(study)[0]
    assert chosen["trial"] == second  # the other one lacks a value
    assert chosen["ranking"][1]["mean"] is None


def test_a_trial_of_which_a_seed_diverged_is_not_chosen_and_where_all_are_none_is(study):
    first, second = top(study, 2)
    launch = launch_of(*CONFIRM)
    confirm(study, launch, diverging={(first, 2), (second, 3)})
    assert choice_of(study)[0] == []
    assert runs_of(study)[first, 2]["reason"] == "non_finite: the loss is nan"
    delivered = read_description(study / "checkpoints" / "best_1")
    assert delivered["trial"] == first
    assert "confirmed" not in delivered


def test_where_nothing_can_be_chosen_what_was_interrupted_is_tried_again_by_the_same_line_and_nothing_else(study):
    first, second = top(study, 2)
    launch = launch_of(*CONFIRM, "cluster.max_failures=1")

    def faults(run):
        if (run.trial, run.index) == (first, 1):
            return InterruptedTrial("storage", "the disk is full", ("n1",))
        return None

    confirmation = confirm(study, launch, faults=faults, diverging={(second, 2)})
    assert confirmation.choose() is False
    assert confirmation.is_over
    said = why_closed(confirmation._ledger, confirmation)
    assert f"(trial {first}, seed 1: storage, 2 times: the disk is full), so the test fold stays closed" in said
    assert "type the same line again to train anew what was interrupted too often" in said
    assert said.endswith(f"search.confirm.top_k=0 evaluates the search's best trial, {first}, unconfirmed")
    without = open_confirmation(study, launch_of(*SEARCHED))
    assert (without.is_over, without.next_trial()) == (True, None)
    again = open_confirmation(study, launch)
    assert (again.num_left, again.is_over) == (1, False)
    run, _ = again.next_trial()
    assert (run.trial, run.index, run.failures, run.epoch) == (first, 1, 0, 0)
    assert run.attempt > 2  # no process of the first try saves any more
    again = confirm(study, launch)  # killed before it had begun
    assert [e["trial"] for e in events_of(study) if e["event"] == "confirmation_ended"].count(second) == 3
    assert choice_of(study)[0][0]["trial"] == first
    assert open_confirmation(study, launch).device_seconds == pytest.approx(again.device_seconds)


def test_a_choice_that_was_made_without_an_interrupted_run_stands_until_more_is_asked_for(study):
    first, second = top(study, 2)
    launch = launch_of(*CONFIRM, "cluster.max_failures=0")

    def faults(run):
        died = (run.trial, run.index) == (first, 1)
        return InterruptedTrial("process_died", "it was killed", ("n1",)) if died else None

    assert confirm(study, launch, faults=faults).chosen["trial"] == second
    assert open_confirmation(study, launch).is_over
    assert confirm(study, launch).chosen["trial"] == second
    more = confirm(study, launch_of(*CONFIRM, "search.confirm.seeds=4"))
    assert [len(row["values"]) for row in more.chosen["ranking"] if row["mean"] is not None] == [4, 4]


def test_where_runs_failed_for_their_own_reasons_the_same_line_trains_nothing_and_more_trials_are_advised(study):
    first, second = top(study, 2)
    launch = launch_of(*CONFIRM)
    confirm(study, launch, diverging={(first, 2), (second, 3)})
    again = open_confirmation(study, launch)
    assert (again.is_over, again.next_trial(), again.choose()) == (True, None, False)
    assert "type a larger search.confirm.top_k to confirm more trials" in why_closed(again._ledger, again)


def test_the_test_fold_stays_closed_where_nothing_can_be_chosen(study, monkeypatch):
    first, second = top(study, 2)
    typed = launch_of(*CONFIRM)
    confirmation = confirm(study, typed, diverging={(first, 2), (second, 3)})
    monkeypatch.setattr("reports.evaluate.evaluate_study", lambda *_: pytest.fail("the test fold was opened"))
    monkeypatch.setattr("reports.report.build", lambda path, **_: path / "index.html")
    console = Console(file=io.StringIO(), soft_wrap=True)
    assert launch.finish(typed, confirmation._ledger, confirmation, confirmation.folder, None, console) == 1
    assert "non_finite: the loss is nan), so the test fold stays closed" in console.file.getvalue()


def test_a_budget_that_ends_before_the_search_says_how_to_confirm_what_there_is_and_that_works(study):
    longer = launch_of(*CONFIRM, "search.num_trials=50", "search.max_device_hours=0.0001")
    confirmation = open_confirmation(study, longer)
    said = why_closed(confirmation._ledger, confirmation)
    assert "6 of 50 trials have ended and none is confirmed before all have" in said
    assert "search.num_trials=6 and a larger search.max_device_hours to confirm those that have ended" in said
    chosen = confirm(study, launch_of(*CONFIRM, "search.num_trials=6", "search.max_device_hours=9")).chosen
    confirmation = open_confirmation(study, longer)
    assert confirmation.choose() is False
    evaluated = f"trial {chosen['trial']}, seed {chosen['index']}, which an earlier confirmation chose"
    said = why_closed(confirmation._ledger, confirmation)
    assert said.endswith(f"search.confirm.top_k=0 evaluates {evaluated}")


def test_more_seeds_go_on_with_what_is_there_and_fewer_count_only_theirs(study):
    two = launch_of(*CONFIRM, "search.confirm.seeds=2")
    confirm(study, two)
    check_confirmed(study, two)
    before = runs_of(study)
    confirm(study, launch_of(*CONFIRM))
    check_confirmed(study, launch_of(*CONFIRM))
    after = runs_of(study)
    assert before.items() <= after.items()
    assert len(after) == 6
    confirm(study, two)
    assert len(runs_of(study)) == 6
    assert choice_of(study)[0][-1] == choice_of(study)[0][0]  # of the same two seeds as at first


def test_a_search_that_is_extended_confirms_its_new_best_and_begins_none_before_it_has_ended(study):
    launch = launch_of(*CONFIRM)
    confirm(study, launch)
    longer = launch_of(*CONFIRM, "search.num_trials=12")
    assert open_confirmation(study, longer).next_trial() is None
    run_search(study, longer)
    assert "confirmed" in read_description(study / "checkpoints" / "best_1")  # until another one is chosen
    confirm(study, longer)
    check_confirmed(study, longer)
    check_without_delivered(study, longer)


def check_without_delivered(study, launch):
    """Nothing of the search's own books has been touched: with the delivered model out of the way, all is as ever."""
    ledger_only = study.parent / "ledger_only"
    shutil.copytree(study, ledger_only)
    chosen = read_description(ledger_only / "checkpoints" / "best_1")["trial"]
    assert (ledger_only / "checkpoints" / f".trial_{chosen:04d}").exists()
    shutil.rmtree(ledger_only / "checkpoints" / "best_1")
    shutil.rmtree(ledger_only / "checkpoints" / "confirmed")
    keep = [event for event in events_of(study) if not event["event"].startswith("confirmation_")]
    (ledger_only / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in keep))
    open_ledger(ledger_only, launch)
    check(ledger_only, launch, launch.search.num_trials)


def test_a_choice_stands_when_confirmation_is_no_longer_asked_for(study):
    confirm(study, launch_of(*CONFIRM))
    before = read_description(study / "checkpoints" / "best_1")
    off = launch_of(*SEARCHED, "search.num_trials=9")
    assert off.search.confirm.top_k == 0
    run_search(study, off)
    confirm(study, off)
    assert read_description(study / "checkpoints" / "best_1") == before


def test_the_time_of_the_runs_counts_against_the_budget_and_the_rest_waits_for_a_larger_one(study):
    seconds = open_ledger(study, launch_of(*CONFIRM)).device_seconds
    hours = (seconds + 5.5) / 3600  # a second an epoch
    launch = launch_of(*CONFIRM, f"search.max_device_hours={hours}")
    confirmation = confirm(study, launch)
    assert confirmation.used_up is not None
    assert (confirmation.num_left, confirmation.is_over, confirmation.chosen) == (4, True, None)
    again = open_ledger(study, launch)
    assert again.device_seconds == pytest.approx(seconds + 8)
    confirm(study, launch_of(*CONFIRM))
    check_confirmed(study, launch_of(*CONFIRM))


def test_a_model_that_was_chosen_and_is_gone_is_missed_and_one_that_was_not_is_not(study):
    launch = launch_of(*CONFIRM)
    chosen = confirm(study, launch).chosen
    shutil.rmtree(study / "checkpoints" / "confirmed")
    open_confirmation(study, launch)  # best_1 is there
    shutil.rmtree(study / "checkpoints" / "best_1")
    with pytest.raises(StudyError, match=rf"{kept_name(chosen['trial'], chosen['index'])} holds the model .* is gone"):
        open_confirmation(study, launch)


def test_a_run_is_the_trials_own_but_for_its_seed_and_keeps_the_trials_recordings(study):
    confirmation = open_confirmation(study, launch_of(*CONFIRM))
    record, run = confirmation.next_trial()
    searched = open_ledger(study, launch_of(*CONFIRM)).make_run(record.params)
    assert run.seed == confirmation_seed(searched.seed, record.trial, 1) != searched.seed
    assert run.data.subsample_seed == searched.seed
    same = run.model_copy(update={"seed": searched.seed, "data": searched.data})
    assert same == searched


def test_confirmation_is_no_part_of_a_studys_identity_and_is_refused_where_trials_cannot_be_trained_again():
    assert launch_of(*CONFIRM).identity() == launch_of(*SEARCHED).identity()
    with pytest.raises(ChoiceError, match=r"search.confirm.top_k must be 0 with scheduler=pbt.*got 2"):
        launch_of("scheduler=pbt", "search.confirm.top_k=2")
    with pytest.raises(ChoiceError, match="trial_seed goes with trial=N"):
        launch_of("command=train", "trial_seed=2")
    with pytest.raises(ChoiceError, match="trial goes with command=train"):
        launch_of("trial=2", "trial_seed=2")


@settings(deadline=None)
@given(seed=st.integers(0, 2**40), trial=st.integers(0, 500))
def test_no_seed_is_the_searchs_or_comes_twice_and_none_changes_when_there_are_more(seed, trial):
    drawn = [confirmation_seed(seed, trial, index) for index in range(1, 12)]
    assert seed not in drawn
    assert len(set(drawn)) == 11
    assert all(0 <= value < 2**31 for value in drawn)
    assert drawn[0] != confirmation_seed(seed, trial + 1, 1)


# -------- the choice itself


def test_the_mean_alone_decides_and_not_the_best_value_or_the_searchs():
    lucky, steady = Candidate(4, 0.99, (0.95, 0.60, 0.70)), Candidate(9, 0.80, (0.80, 0.78, 0.79))
    chosen = choose([lucky, steady], maximize=True)
    assert (chosen["trial"], chosen["index"], chosen["value"]) == (9, 3, 0.79)
    assert chosen["mean"] == pytest.approx(0.79)
    assert chosen["sd"] == pytest.approx(0.01)
    assert [row["trial"] for row in chosen["ranking"]] == [9, 4]
    assert choose([lucky, steady], maximize=False)["trial"] == 4


def test_of_equal_means_the_earlier_trial_is_chosen_and_of_one_seed_there_is_no_spread():
    chosen = choose([Candidate(7, 0.9, (0.5,)), Candidate(3, 0.8, (0.5,))], maximize=True)
    assert (chosen["trial"], chosen["index"], chosen["sd"]) == (3, 1, None)
    assert choose([Candidate(7, 0.9, (None, 0.5))], maximize=True) is None
    assert choose([], maximize=True) is None


@pytest.mark.parametrize(
    ("values", "maximize", "index"),
    [
        ((0.3, 0.1, 0.2), True, 3),
        ((0.4, 0.1, 0.2, 0.3), True, 3),  # the worse of 0.2 and 0.3
        ((0.4, 0.1, 0.2, 0.3), False, 4),
        ((0.2, 0.2, 0.2), True, 2),  # of equals in the order of their indices
        ((0.7,), False, 1),
    ],
)
def test_the_median_seed(values, maximize, index):
    assert median_index(values, maximize=maximize) == index


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=9), maximize=st.booleans())
def test_the_delivered_value_lies_where_a_sorted_list_has_it(values, maximize):
    found = values[median_index(values, maximize=maximize) - 1]
    wanted = statistics.median_low if maximize else statistics.median_high
    assert found == wanted(values)
