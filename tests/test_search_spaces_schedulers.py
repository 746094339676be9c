"""Who is stopped when: each rule against a slow and plain one, and against the trials that it must leave alone."""

import functools
import statistics

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from search_spaces.compose import compose_choices
from search_spaces.schedulers import (
    EndingPlateaus,
    MedianStopping,
    NoStopping,
    PromotingHalving,
    SuccessiveHalving,
    exploit_epochs,
    make_policy,
    rungs_of,
)
from search_spaces.schema import checked

modest = settings(max_examples=40, deadline=None)


@functools.cache
def launch_of(*typed):
    return checked(compose_choices(["search=stmem_ptbxl", *typed]).tree)


@pytest.fixture(scope="module")
def task():
    return launch_of().task


def lasting(task, num_pretrain, num_finetune, stages="joint"):
    """The task with stages of so many epochs."""
    changed = {
        "pretrain": task.pretrain.model_copy(update={"num_epochs": num_pretrain}),
        "finetune": task.finetune.model_copy(update={"num_epochs": num_finetune}),
    }
    return task.model_copy(update={"stages": stages, **changed})


@st.composite
def interleaved_results(draw, num_epochs=9):
    """Results (trial, epoch, value) of several trials, each one's epochs in order; values repeat now and then."""
    curves = draw(st.lists(st.lists(st.integers(0, 6), max_size=num_epochs), max_size=8))
    places = draw(st.permutations([number for number, curve in enumerate(curves) for _ in curve]))
    epochs = [0] * len(curves)
    results = []
    for number in places:
        results.append((number, epochs[number] + 1, float(curves[number][epochs[number]])))
        epochs[number] += 1
    return results


def decisions(policy, results):
    """Whether each result lets its trial go on; a stopped trial reports no more."""
    stopped, told = set(), []
    for number, epoch, value in results:
        if number not in stopped:
            told.append((number, epoch, policy.report(number, epoch, value) == "go_on"))
            stopped |= set() if told[-1][-1] else {number}
    return told


@modest
@given(interleaved_results(), st.integers(2, 4), st.sets(st.integers(1, 9)))
def test_a_rung_lets_go_on_who_is_among_its_best_so_far(results, factor, rungs):
    seen = {rung: [] for rung in rungs}
    values = {(number, epoch): value for number, epoch, value in results}
    for number, epoch, goes_on in decisions(SuccessiveHalving(tuple(sorted(rungs)), factor), results):
        if epoch not in rungs:
            assert goes_on
            continue
        value = values[number, epoch]
        num_better = sum(other > value for other in seen[epoch])
        seen[epoch].append(value)
        num_kept = max(1, len(seen[epoch]) // factor)
        assert goes_on == (number == 0 or len(seen[epoch]) < factor or num_better < num_kept)


@modest
@given(interleaved_results(), st.integers(2, 4))
def test_nobody_is_stopped_before_a_rung_holds_enough_results(results, factor):
    num_at_rung = 0
    for _, epoch, goes_on in decisions(SuccessiveHalving((2,), factor), results):
        num_at_rung += epoch == 2
        assert goes_on or (epoch == 2 and num_at_rung >= factor)


@modest
@given(interleaved_results(), st.integers(1, 4), st.sets(st.integers(1, 9)))
def test_median_stopping_stops_whose_best_lies_below_the_median_of_the_others_means(results, min_trials, epochs):
    curves = {}
    values = {(number, epoch): value for number, epoch, value in results}
    for number, epoch, goes_on in decisions(MedianStopping(frozenset(epochs), min_trials), results):
        curves.setdefault(number, []).append(values[number, epoch])
        others = [curve[:epoch] for other, curve in curves.items() if other != number and len(curve) >= epoch]
        means = [sum(curve) / len(curve) for curve in others]
        may_stop = number != 0 and epoch in epochs and len(means) >= min_trials
        assert goes_on == (not may_stop or max(curves[number]) >= statistics.median(means))


def test_median_stopping_needs_no_value_of_a_trial_that_had_none_so_far():
    policy = MedianStopping(frozenset({2}), 1)
    policy.report(1, 5, 0.9)  # its metric was not finite before
    assert policy.report(2, 2, 0.1) == "go_on"


@pytest.mark.parametrize("policy", [SuccessiveHalving((1, 2), 2), MedianStopping(frozenset({1, 2}), 1)])
def test_the_default_configuration_is_never_stopped_but_is_compared_with(policy):
    assert policy.report(1, 1, 0.9) == "go_on"
    assert policy.report(0, 1, 0.1) == "go_on"
    assert policy.report(2, 1, 0.05) == "stop"
    assert policy.report(1, 2, 0.9) == "go_on"
    assert policy.report(0, 2, 0.1) == "go_on"


def published(rungs, results, promoted, factor):
    """Algorithm 2 of arXiv:1810.05934 in its own words: who goes on, and at which rung he stood."""
    for rung in reversed(rungs):
        ranked = sorted(results[rung], key=lambda number: -results[rung][number])  # equals stay as they came
        for number in ranked[: len(ranked) // factor]:
            if number not in promoted[rung]:
                return number, rung
    return None, None


@modest
@given(interleaved_results(), st.integers(2, 4), st.sets(st.integers(1, 9)), st.lists(st.booleans(), min_size=72))
def test_a_paused_trial_goes_on_as_the_published_algorithm_says(results, factor, rungs, asked):
    rungs = sorted(rungs)
    policy, seen, promoted = PromotingHalving(tuple(rungs), factor), {r: {} for r in rungs}, {r: set() for r in rungs}
    paused = set()
    for (number, epoch, value), is_free in zip(results, asked, strict=False):
        if number in paused:
            continue
        decision = policy.report(number, epoch, value)
        if epoch in rungs:
            seen[epoch][number] = value
            first, _ = published(rungs, seen, promoted, factor)
            assert decision == ("go_on" if number in (0, first) else "pause")
            (paused if decision == "pause" else promoted[epoch]).add(number)
        else:
            assert decision == "go_on"
        if is_free:
            expected, rung = published(rungs, seen, promoted, factor)
            assert policy.promoted() == expected
            if expected is not None:
                promoted[rung].add(expected)
                paused.remove(expected)


@modest
@given(interleaved_results(), st.integers(1, 4), st.integers(0, 2), st.integers(1, 4))
def test_a_trial_is_complete_once_its_best_has_stood_still(results, patience, tolerance, first_epoch):
    policy = EndingPlateaus(NoStopping(), first_epoch=first_epoch, num_epochs=patience, tolerance=tolerance)
    counted, over = {}, set()
    for number, epoch, value in results:
        if number in over:
            continue
        curve = counted.setdefault(number, [])
        curve += [value] if epoch >= first_epoch else []
        last, best = 0, float("-inf")
        for at, one in enumerate(curve):
            if one > best + tolerance:
                last, best = at, one
        stands_still = len(curve) - 1 - last >= patience
        assert policy.report(number, epoch, value) == ("complete" if stands_still and number != 0 else "go_on")
        over |= {number} if stands_still and number != 0 else set()


def test_who_is_stopped_or_waits_is_not_complete_and_a_promoted_one_may_be():
    policy = EndingPlateaus(PromotingHalving((2,), 2), first_epoch=1, num_epochs=1, tolerance=0.0)
    assert [policy.report(1, epoch, 0.5) for epoch in (1, 2)] == ["go_on", "pause"]
    assert policy.report(2, 2, 0.1) == "pause"
    assert policy.promoted() == 1
    assert policy.report(1, 3, 0.5) == "complete"
    policy.ended(1)
    assert policy.promoted() is None
    stopping = EndingPlateaus(SuccessiveHalving((2,), 2), first_epoch=1, num_epochs=1, tolerance=0.0)
    assert stopping.report(1, 2, 0.9) == "go_on"
    assert [stopping.report(2, epoch, 0.1) for epoch in (1, 2)] == ["go_on", "stop"]


@pytest.mark.parametrize("name", ["fifo", "asha", "asha_promotion", "median"])
def test_plateaus_end_where_they_are_asked_to_and_in_a_joint_trial_only_while_it_fine_tunes(task, name):
    assert not isinstance(make_policy(launch_of(f"scheduler={name}").scheduler, task), EndingPlateaus)
    lasts = ("task.pretrain.num_epochs=20", "task.finetune.num_epochs=20")  # rungs 10 and 20
    launch = launch_of(f"scheduler={name}", "scheduler.plateau_epochs=2", *lasts)
    policy = make_policy(launch.scheduler, launch.task)
    decisions_of = [policy.report(1, epoch, 0.5) for epoch in (6, 7, 8, 9, 21, 22, 23)]
    assert decisions_of == ["go_on"] * 6 + ["complete"]


def test_the_highest_rung_is_promoted_from_first():
    policy = PromotingHalving((1, 2), 2)
    assert [policy.report(number, 1, value) for number, value in ((1, 0.9), (2, 0.1))] == ["pause", "pause"]
    assert policy.promoted() == 1
    assert [policy.report(number, 1, value) for number, value in ((3, 0.8), (4, 0.0))] == ["pause", "pause"]
    assert policy.report(1, 2, 0.5) == "pause"
    assert policy.report(0, 2, 0.4) == "go_on"
    assert [policy.promoted() for _ in range(3)] == [1, 3, None]


def test_who_comes_as_the_next_to_go_on_goes_on_at_once():
    policy = PromotingHalving((1,), 2)
    assert policy.report(1, 1, 0.1) == "pause"
    assert policy.report(2, 1, 0.2) == "go_on"
    assert policy.promoted() is None


def test_who_has_ended_is_not_promoted_and_still_counts():
    policy = PromotingHalving((1,), 2)
    assert [policy.report(number, 1, value) for number, value in ((1, 0.5), (2, 0.4), (3, 0.3))] == ["pause"] * 3
    policy.ended(1)
    assert policy.promoted() is None
    policy.report(4, 1, 0.2)
    assert policy.promoted() == 2  # of four the best two


@pytest.mark.parametrize("name", ["asha", "asha_promotion", "median"])
@modest
@given(results=interleaved_results())
def test_the_same_results_give_the_same_decisions_again(task, name, results):
    scheduler, whole = launch_of(f"scheduler={name}").scheduler, lasting(task, 4, 6)
    assert decisions(make_policy(scheduler, whole), results) == decisions(make_policy(scheduler, whole), results)


@modest
@given(interleaved_results())
def test_without_a_rule_every_trial_goes_on(results):
    assert all(goes_on for _, _, goes_on in decisions(NoStopping(), results))


@modest
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(2, 5))
def test_no_rung_lies_in_the_first_fine_tuning_epoch_or_at_the_end(task, num_pretrain, num_finetune, grace, factor):
    joint = lasting(task, num_pretrain, num_finetune)
    rungs = rungs_of(joint, grace_epochs=grace, reduction_factor=factor)
    assert list(rungs) == sorted(set(rungs))
    assert num_pretrain + 1 not in rungs
    assert all(grace <= rung < joint.num_epochs for rung in rungs)
    geometric = [grace * factor**power for power in range(8) if grace * factor**power < joint.num_epochs]
    expected = [epoch + (epoch == num_pretrain + 1) for epoch in geometric]
    assert list(rungs) == sorted({epoch for epoch in expected if epoch < joint.num_epochs})


@modest
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["pretrain", "finetune"]))
def test_a_task_of_one_stage_has_its_rungs_where_they_are_asked_for(task, num_pretrain, num_finetune, stages):
    single = lasting(task, num_pretrain, num_finetune, stages)
    rungs = rungs_of(single, grace_epochs=1, reduction_factor=2)
    assert rungs == tuple(2**power for power in range(6) if 2**power < single.num_epochs)


def test_the_laptop_search_decides_in_both_stages_and_never_in_the_first_epoch_of_fine_tuning(task):
    shipped = launch_of("scale=laptop")
    assert make_policy(shipped.scheduler, shipped.task).rungs == (2, 5)
    assert rungs_of(lasting(task, 3, 3), grace_epochs=1, reduction_factor=3) == (1, 3)
    assert rungs_of(lasting(task, 2, 3), grace_epochs=1, reduction_factor=3) == (1, 4)


@pytest.mark.parametrize("name", ["asha", "asha_promotion"])
@pytest.mark.parametrize(
    ("typed", "rungs"),
    [
        ((), (33, 66)),
        (("scheduler.reduction_factor=3",), (15, 45)),
        (("scheduler.grace_epochs=5",), (5, 10, 20, 40, 80)),
    ],
    ids=["unset", "thirds", "given"],
)
def test_the_first_rung_of_a_long_trial_leaves_room_for_one_more_unless_it_is_given(name, typed, rungs):
    launch = launch_of(f"scheduler={name}", "task.pretrain.num_epochs=100", "task.finetune.num_epochs=30", *typed)
    assert launch.scheduler.grace_epochs == rungs[0]  # which a study's settings then say
    assert make_policy(launch.scheduler, launch.task).rungs == rungs


def test_the_first_rung_of_a_short_trial_is_its_first_epoch():
    launch = launch_of("scheduler=asha", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=3")
    assert make_policy(launch.scheduler, launch.task).rungs[0] == 1


@modest
@given(st.integers(1, 9), st.integers(1, 9), interleaved_results())
def test_no_scheduler_acts_on_the_first_fine_tuning_epoch_or_the_last(task, num_pretrain, num_finetune, results):
    joint = lasting(task, num_pretrain, num_finetune)
    assume(any(epoch == num_pretrain + 1 for _, epoch, _ in results))
    halving = [(f"scheduler={name}", "scheduler.reduction_factor=2") for name in ("asha", "asha_promotion")]
    for typed in (*halving, ("scheduler=median", "scheduler.min_trials=1")):
        for _, epoch, goes_on in decisions(make_policy(launch_of(*typed).scheduler, joint), results):
            assert goes_on or epoch not in (num_pretrain + 1, joint.num_epochs)


@pytest.mark.parametrize("name", ["fifo", "pbt"])
def test_these_schedulers_stop_no_trial(task, name):
    assert isinstance(make_policy(launch_of(f"scheduler={name}").scheduler, task), NoStopping)


def test_a_population_is_not_compared_on_a_new_head_nor_at_the_end(task):
    assert exploit_epochs(lasting(task, 3, 5), 2) == {2, 5, 6}
    assert exploit_epochs(lasting(task, 3, 5, "pretrain"), 1) == {1, 2}
    assert exploit_epochs(lasting(task, 0, 4, "finetune"), 2) == {2}
