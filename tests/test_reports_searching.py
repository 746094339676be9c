"""The search itself: its history, what was stopped and why, what it cost, when trials ran; from the events alone."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.folder import Epoch, Study, Trial
from reports.search.cost import cost
from reports.search.failures import failures
from reports.search.history import history
from reports.search.rungs import rungs_of, scheduling
from reports.search.searching import searching
from reports.search.timeline import timeline
from search_spaces import schedulers
from trainables.settings import Task

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(after, name, /, **said):
    return {"time": (START + timedelta(seconds=after)).isoformat(), "event": name} | said


def trial(number, values, *, state="COMPLETE", reason=None, seconds=None, params=None):
    curve = tuple(Epoch(epoch, "pretrain", value) for epoch, value in enumerate(values, start=1))
    last = values[-1] if values else None
    return Trial(number, state, last, len(values), seconds or 10.0 * len(values), reason, params or {}, curve)


def study_of(trials, events=(), *, best=None, **config):
    search = {"metric": "val/auroc", "direction": config.pop("direction", "maximize")}
    tree = {"search": search, "task": {"stages": "pretrain", "pretrain": {"num_epochs": 9}}} | config
    return Study("runs/s", tree, tuple(events), 0, tuple(trials), {} if best is None else {"trial": best}, {}, {})


def epoch(number, epoch, value, *, seconds=10.0, time=0.0, nodes=()):
    metrics = {"val/auroc": value}
    said = {"trial": number, "epoch": epoch, "metrics": metrics, "seconds": seconds, "nodes": list(nodes)}
    return at(time, "epoch", **said)


# -------- history


def test_the_best_so_far_is_of_completed_trials_and_follows_the_direction():
    trials = [
        trial(0, [0.6]),
        trial(1, [0.9], state="PRUNED", reason="scheduler"),
        trial(2, [0.5]),
        trial(3, [0.7]),
    ]
    assert [row["best_by_number"] for row in history(study_of(trials))["trials"]] == [0.6, 0.6, 0.6, 0.7]
    found = history(study_of(trials, direction="minimize"))["trials"]
    assert [row["best_by_number"] for row in found] == [0.6, 0.6, 0.5, 0.5]


def test_by_end_the_first_to_end_counts_first_and_device_hours_add_up_over_workers():
    events = [at(0, "study_started")]
    events += [at(7200, "trial_ended", trial=1), at(10800, "trial_ended", trial=0)]
    trials = [trial(0, [0.8], seconds=3600.0), trial(1, [0.6], seconds=1800.0)]
    late, early = history(study_of(trials, events, cluster={"workers_per_trial": 2}))["trials"]
    assert (early["ended_hours"], late["ended_hours"]) == (2.0, 3.0)
    assert (early["best_by_end"], late["best_by_end"]) == (0.6, 0.8)
    assert (early["device_hours"], late["device_hours"]) == (1.0, 3.0)


def test_device_hours_up_to_an_end_are_also_those_of_trials_that_wait():
    events = [at(0, "study_started"), epoch(0, 1, 0.5, seconds=3600.0), epoch(1, 1, 0.4, seconds=1800.0)]
    events += [at(20, "trial_ended", trial=0), at(30, "trial_ended", trial=1)]
    found = history(study_of([trial(0, [0.5], seconds=3600.0), trial(1, [0.4], seconds=2160.0)], events))["trials"]
    assert [row["device_hours"] for row in found] == [1.5, 1.6]


# -------- what was stopped

TASKS = st.builds(
    lambda stages, pretrain, finetune: {
        "stages": stages,
        "pretrain": {"num_epochs": pretrain},
        "finetune": {"num_epochs": finetune},
    },
    st.sampled_from(["joint", "pretrain", "finetune"]),
    st.integers(1, 20),
    st.integers(1, 20),
)


@settings(max_examples=150, deadline=None)
@given(TASKS, st.integers(1, 6), st.integers(2, 4))
def test_the_rungs_are_those_of_the_search(task, grace, factor):
    settings_of = {"name": "asha", "grace_epochs": grace, "reduction_factor": factor}
    found = rungs_of(study_of([], task=task, scheduler=settings_of))
    part = {key: Task.model_fields[key].annotation for key in ("pretrain", "finetune")}
    parts = {key: part[key].model_construct(num_epochs=task[key]["num_epochs"]) for key in part}
    whole = Task.model_construct(stages=task["stages"], **parts)
    assert tuple(found) == schedulers.rungs_of(whole, grace_epochs=grace, reduction_factor=factor)


def searched_by(policy, values, *, maximizes=True):
    """Trials of nine epochs, two at a time, each going on as the policy says; and the events of it."""
    events, ended, waiting = [], {}, list(enumerate(values))
    running = [waiting.pop(0), waiting.pop(0)]
    done = dict.fromkeys(range(len(values)), 0)
    while running:
        number, course = running.pop(0)
        done[number] += 1
        value = course[done[number] - 1]
        events.append(epoch(number, done[number], value))
        goes_on = policy.report(number, done[number], value if maximizes else -value) == "go_on"
        if goes_on and done[number] < 9:
            running.append((number, course))
            continue
        ended[number] = "COMPLETE" if goes_on else "PRUNED"
        if waiting:
            running.append(waiting.pop(0))
    trials = [
        trial(number, course[: done[number]], state=ended[number])
        if ended[number] == "COMPLETE"
        else trial(number, course[: done[number]], state="PRUNED", reason="scheduler")
        for number, course in enumerate(values)
    ]
    return trials, events


COURSES = st.lists(st.lists(st.floats(0, 1, width=16), min_size=9, max_size=9), min_size=4, max_size=20)


@settings(max_examples=60, deadline=None)
@given(COURSES, st.booleans())
def test_every_trial_that_asha_stopped_lay_below_the_threshold_that_it_met(values, maximizes):
    policy = schedulers.SuccessiveHalving((1, 3), 3)
    trials, events = searched_by(policy, values, maximizes=maximizes)
    of = {"name": "asha", "grace_epochs": 1, "reduction_factor": 3}
    study = study_of(trials, events, scheduler=of, direction="maximize" if maximizes else "minimize")
    found = scheduling(study)
    sign = 1 if maximizes else -1
    assert [row["trial"] for row in found["stopped"]] == [one.number for one in trials if one.state == "PRUNED"]
    assert all(sign * row["value"] < sign * row["needed"] for row in found["stopped"])
    for rung in found["rungs"]:
        assert rung["reached"] == sum(one.epochs >= rung["epoch"] for one in trials)
        for came in rung["came"]:
            below = came["threshold"] is not None and sign * came["value"] < sign * came["threshold"]
            assert came["stopped"] == (below and came["trial"] != 0)


def promoted_by(policy, values):
    """Trials of nine epochs, two at a time, with pauses, promotions and an end of all as the books have them."""
    events, done, waiting = [at(0, "study_started")], dict.fromkeys(range(len(values)), 0), list(range(len(values)))
    ended, running, paused = {}, [], set()

    def now():
        return float(len(events))

    while True:
        while len(running) < 2 and ((number := policy.promoted()) is not None or waiting):
            promoted = number is not None
            running.append(number if promoted else waiting.pop(0))
            paused.discard(running[-1])
            told = {"trial": running[-1], "epoch": done[running[-1]], "params": {}}
            events.append(at(now(), "trial_promoted" if promoted else "trial_started", **told))
        if not running:
            break
        number = running.pop(0)
        done[number] += 1
        events.append(epoch(number, done[number], values[number][done[number] - 1], time=now()))
        decision = policy.report(number, done[number], values[number][done[number] - 1])
        if done[number] == 9:
            ended[number] = "COMPLETE"
            events.append(at(now(), "trial_ended", trial=number))
        elif decision == "go_on":
            running.append(number)
        else:
            paused.add(number)
            events.append(at(now(), "trial_paused", trial=number, epoch=done[number]))
    events += [at(now(), "trial_ended", trial=number) for number in sorted(paused)]
    state = {number: {"state": "PRUNED", "reason": "scheduler"} for number in paused}
    trials = [trial(number, values[number][: done[number]], **state.get(number, {})) for number in done]
    return trials, events, {number: done[number] for number in paused}


@settings(max_examples=60, deadline=None)
@given(COURSES)
def test_with_promotion_who_went_on_was_among_the_best_of_his_rung_and_who_was_stopped_was_not(values):
    trials, events, stopped = promoted_by(schedulers.PromotingHalving((1, 3), 3), values)
    of = {"name": "asha_promotion", "grace_epochs": 1, "reduction_factor": 3}
    found = scheduling(study_of(trials, events, scheduler=of))
    for rung in found["rungs"]:
        came = {entry["trial"]: entry for entry in rung["came"]}
        assert {number for number, entry in came.items() if entry["stopped"]} == {
            number for number, last in stopped.items() if last == rung["epoch"]
        }
        assert all(entry["went_on"] != entry["stopped"] for entry in came.values())
        assert rung["went_on"] + rung["stopped"] == rung["reached"] == len(came)
        assert 0 not in came or came[0]["went_on"]
        if rung["last_threshold"] is not None:
            best = sorted((entry["value"] for entry in came.values()), reverse=True)[: len(came) // 3]
            assert rung["last_threshold"] == best[-1]
            assert {number for number, entry in came.items() if entry["value"] > best[-1]} <= {
                number for number, entry in came.items() if entry["went_on"]
            }
    assert all(row["needed"] is None or row["value"] <= row["needed"] for row in found["stopped"])
    promoted = [event for event in events if event["event"] == "trial_promoted"]
    assert [(row["trial"], row["epoch"]) for row in found["promotions"]] == [
        (event["trial"], event["epoch"]) for event in promoted
    ]
    hours = [row["running_hours"] for row in found["promotions"]]
    assert hours == sorted(hours)
    stays = [stay for lane in timeline(study_of(trials, events))["lanes"] for stay in lane["stays"]]
    assert sum(stay["ended_by"] == "paused" for stay in stays) == len(promoted) + len(stopped)
    assert sum(stay["epochs"] for stay in stays) == sum(one.epochs for one in trials)
    assert timeline(study_of(trials, events))["slots"] <= 2


def test_a_trial_that_waits_in_a_search_under_way_neither_went_on_nor_was_stopped():
    events = [at(0, "study_started"), *(epoch(number, 1, 0.5 - number / 10) for number in range(3))]
    events += [at(5, "trial_paused", trial=1, epoch=1), at(6, "trial_paused", trial=2, epoch=1)]
    trials = [trial(0, [0.5] * 9), *(trial(number, [0.5 - number / 10], state="RUNNING") for number in (1, 2))]
    of = {"name": "asha_promotion", "grace_epochs": 1, "reduction_factor": 3}
    (rung, _) = scheduling(study_of(trials, events, scheduler=of))["rungs"]
    assert (rung["reached"], rung["went_on"], rung["stopped"]) == (3, 1, 0)
    events.append(at(7, "trial_promoted", trial=1, epoch=1))
    (rung, _) = scheduling(study_of(trials, events, scheduler=of))["rungs"]
    assert rung["went_on"] == 2


@settings(max_examples=60, deadline=None)
@given(COURSES)
def test_every_trial_that_the_median_rule_stopped_lay_below_the_median(values):
    trials, events = searched_by(schedulers.MedianStopping(frozenset(range(2, 9)), 3), values)
    found = scheduling(study_of(trials, events, scheduler={"name": "median", "grace_epochs": 2, "min_trials": 3}))
    assert all(row["value"] < row["needed"] for row in found["stopped"])
    assert found["rungs"] == []


def test_what_was_saved_are_the_epochs_that_stopped_trials_had_left_at_the_usual_time_of_each():
    trials = [
        trial(0, [0.5] * 9),
        trial(1, [0.4] * 3, state="PRUNED", reason="scheduler"),
        trial(2, [0.4] * 2, state="PRUNED", reason="non_finite: nan"),
    ]
    events = [epoch(0, number, 0.5, seconds=3600.0) for number in range(1, 10)]
    found = scheduling(study_of(trials, events, scheduler={"name": "asha"}, cluster={"workers_per_trial": 2}))
    assert found["saved"] == {"epochs": 6, "epochs_run": 14, "device_hours": 12.0}
    third = found["epochs"][2]
    assert third == {"epoch": 3, "finished": 2, "completed": 0, "stopped": 1, "otherwise": 0}


def test_takeovers_of_population_based_training_are_counted_by_epoch():
    events = [at(0, "exploit", trial=1, donor=0, epoch=4), at(1, "exploit", trial=2, donor=0, epoch=2)]
    found = scheduling(study_of([trial(0, [0.5])], events, scheduler={"name": "pbt"}))
    assert found["exploits"] == [{"epoch": 2, "trials": 1}, {"epoch": 4, "trials": 1}]


# -------- failures


def test_failures_are_grouped_by_reason_without_what_the_scheduler_stopped():
    reasons = [
        ("FAIL", "RuntimeError: record 12 has 3 leads"),
        ("FAIL", "RuntimeError: record 907 has 3 leads"),
        ("PRUNED", "scheduler"),
        ("PRUNED", "non_finite: the loss is nan"),
        ("PRUNED", "infeasible: 5 does not divide 7"),
        ("FAIL", "node_lost, 4 times: gone"),
        ("FAIL", None),
    ]
    found = failures(study_of([trial(n, [0.5], state=s, reason=r) for n, (s, r) in enumerate(reasons)]))
    assert {(row["outcome"], row["reason"]): row["trials"] for row in found} == {
        ("failed", "RuntimeError: record … has … leads"): [0, 1],
        ("diverged", "the loss or the searched metric was not a number"): [3],
        ("infeasible", "the choices cannot go together"): [4],
        ("failed", "interrupted too often: a machine was lost"): [5],
        ("failed", "no reason was written down"): [6],
    }


# -------- cost


def test_device_hours_are_told_by_how_trials_ended_and_priced_where_there_is_a_price():
    trials = [
        trial(0, [0.5], seconds=7200.0),
        trial(1, [0.4], state="PRUNED", reason="scheduler", seconds=3600.0),
        trial(2, [0.4], state="FAIL", reason="ValueError: no", seconds=3600.0),
    ]
    config = {"cluster": {"workers_per_trial": 2}, "evaluate": {"cost_per_device_hour": 1.5, "currency": "CHF"}}
    found = cost(study_of(trials, **config))
    assert (found["device_hours"], found["cost"], found["currency"]) == (8.0, 12.0, "CHF")
    assert {row["outcome"]: (row["trials"], row["device_hours"], row["share"]) for row in found["rows"]} == {
        "complete": (1, 4.0, 0.5),
        "pruned": (1, 2.0, 0.25),
        "failed": (1, 2.0, 0.25),
    }
    free = cost(study_of(trials))
    assert (free["cost"], free["currency"]) == (None, None)


def test_time_beyond_the_epochs_of_a_trials_course_was_computed_again():
    events = [epoch(0, 1, 0.5, seconds=600.0), epoch(0, 2, 0.6, seconds=600.0)]
    assert cost(study_of([trial(0, [0.5, 0.6], seconds=1560.0)], events))["again"] == pytest.approx(0.1)


def test_runs_that_confirm_trials_have_their_own_row_and_their_own_stays():
    events = [at(0, "study_started"), at(0, "trial_started", trial=0), epoch(0, 1, 0.5, seconds=3600.0, time=3600)]
    events += [at(3600, "trial_ended", trial=0)]
    for index, begin in ((1, 3600), (2, 3600)):
        events.append(at(begin, "confirmation_started", trial=0, index=index, seed=index))
    for index, end in ((1, 5400), (2, 7200)):
        told = {"trial": 0, "index": index, "seconds": float(end - 3600)}
        events.append(at(end, "confirmation_epoch", epoch=1, nodes=[], **told))
    events.append(at(7200, "confirmation_ended", trial=0, index=1, seconds=1800.0))
    study = study_of([trial(0, [0.5], seconds=3600.0)], events)
    found = cost(study)
    assert found["device_hours"] == 2.5
    assert [(row["outcome"], row["trials"], row["device_hours"]) for row in found["rows"]] == [
        ("complete", 1, 1.0),
        ("confirmation", 2, 1.5),
    ]
    ran = timeline(study)
    assert ran["slots"] == 2
    assert {(stay["trial"], stay["run"]) for lane in ran["lanes"] for stay in lane["stays"]} == {
        (0, None),
        (0, 1),
        (0, 2),
    }


# -------- timeline


def two_slots():
    """Two trials at once on two nodes, one interrupted; the driver goes away for a day and comes back."""
    yield at(0, "study_started")
    yield at(0, "trial_started", trial=0)
    yield at(0, "trial_started", trial=1)
    yield epoch(0, 1, 0.5, seconds=1800, time=1800, nodes=["machine-a"])
    yield epoch(1, 1, 0.5, seconds=1800, time=1800, nodes=["machine-b"])
    yield at(2400, "trial_interrupted", trial=1, cause="node_lost", nodes=["machine-b"])
    yield at(3600, "trial_ended", trial=0)
    yield at(3600, "trial_resumed", trial=1)
    yield at(90_000, "test_fold_opened", model="best")
    yield at(100_000, "study_resumed")
    yield at(100_000, "trial_resumed", trial=1)
    yield epoch(1, 2, 0.5, seconds=1200, time=103_600, nodes=["machine-a"])
    yield at(103_600, "trial_ended", trial=1)


def test_time_runs_only_while_a_driver_does_and_stays_lie_side_by_side():
    found = timeline(study_of([trial(0, [0.5]), trial(1, [0.5, 0.5])], two_slots()))
    assert found["hours"] == 2.0
    assert found["breaks"] == [1.0]
    lanes = {
        lane["node"]: [(stay["trial"], stay["begin"], stay["end"]) for stay in lane["stays"]] for lane in found["lanes"]
    }
    assert lanes[1] == [(0, 0.0, 1.0), (1, 1.0, 2.0)]
    assert lanes[2] == [(1, 0.0, pytest.approx(2 / 3, abs=1e-6))]
    assert found["interruptions"] == 1


def test_used_held_and_idle_time_are_all_of_the_time_of_the_places():
    found = timeline(study_of([trial(0, [0.5]), trial(1, [0.5, 0.5])], two_slots()))
    assert found["slots"] == 2
    assert found["slot_hours"] == 3.0  # two places in the first session and one in the second, an hour each
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["shares"]["computing"] == pytest.approx((0.5 + 0.5 + 1 / 3) / 3)
    assert found["shares"]["idle"] == pytest.approx(1 - (1 + 2 / 3 + 1) / 3)


def test_no_machine_is_named(tmp_path):
    assert "machine-" not in json.dumps(searching(study_of([trial(0, [0.5])], two_slots()), {}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(1, 500), st.sampled_from(["a", "b", None])), max_size=30))
def test_stays_of_a_lane_never_overlap_and_there_are_no_more_lanes_than_needed(spans):
    events = [at(0, "study_started")]
    for number, (begin, length, node) in enumerate(spans):
        events.append(at(begin, "trial_started", trial=number))
        events.append(epoch(number, 1, 0.5, time=begin + length, nodes=[node] if node else []))
        events.append(at(begin + length, "trial_ended", trial=number))
    ordered = sorted(events, key=lambda event: event["time"])  # stable: an end comes after its epoch
    found = timeline(study_of([trial(number, [0.5]) for number in range(len(spans))], ordered))
    if not spans:
        assert found == {"reason": "the study’s events do not say when trials ran"}
        return
    for lane in found["lanes"]:
        ends = [0.0, *(stay["end"] for stay in lane["stays"])]
        assert all(stay["begin"] >= end - 1e-6 for stay, end in zip(lane["stays"], ends, strict=False))
    assert sum(len(lane["stays"]) for lane in found["lanes"]) == len(spans)


@pytest.mark.parametrize(
    "events",
    [
        (),
        [{"event": "epoch", "trial": 0, "epoch": 1, "metrics": {"val/auroc": 0.5}}],
        [{"event": "trial_started", "trial": 0}, {"event": "trial_ended", "trial": 0}],
        [at(0, "trial_ended", trial=7), {"time": "yesterday", "event": "epoch", "trial": 1, "epoch": 1}],
        [{"event": "exploit", "trial": 1}, at(5, "epoch", trial=0, epoch=1), at(9, "trial_interrupted", trial=0)],
    ],
)
def test_events_that_lack_what_others_have_do_not_stop_the_rest(events):
    whole = searching(study_of([trial(0, [0.5])], [], scheduler={"name": "fifo"}), {})
    for trials in ([], [trial(0, [0.5])], [trial(0, []), trial(1, [0.2], state="FAIL", reason=None)]):
        for name in ("asha", "asha_promotion", "median", "fifo", "pbt", "unknown"):
            found = searching(study_of(trials, events, scheduler={"name": name}), {})
            assert json.loads(json.dumps(found, allow_nan=False)).keys() == whole.keys()
