"""Trials that share a pre-training: bit for bit what each would have computed, whatever is deleted or damaged."""

import json
import logging
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

from trainables import pretrained
from trainables.files import read_tensors, write_tensors
from trainables.pretrained import Shelf, digest_of
from trainables.state import LAST, PRETEXT, read_place, write_attempt
from trainables.trial import Assignment, epochs
from trainables.workers import Workers

LARGE = 1e12


@pytest.fixture
def assigned(tiny_store, tmp_path):
    """Makes the assignment of a numbered trial, which shares its pre-training unless it is told not to."""

    def assigned(run, number, *, shares=True, max_bytes=LARGE):
        return Assignment(
            number=number,
            run=run,
            folder=tmp_path / "running" / f"{number:04d}",
            store=tiny_store.path,
            metric="val/auroc",
            maximize=True,
            num_gpus=0.0,
            cpus_per_worker=1,
            pretrained=tmp_path / "pretrained" if shares else None,
            max_kept_bytes=max_bytes,
        )

    return assigned


def results_of(assignment, *, until=None):
    """The results of a trial that is stopped after an epoch, or that ends."""
    results = []
    for result in (running := epochs(Assignment.from_config(assignment.to_config()), Workers())):
        results.append(result)
        if result["epoch"] == until:
            break
    running.close()
    return results


def told(results):
    """What does not depend on who computed it."""
    return [{key: value for key, value in one.items() if key not in ("seconds", "reused")} for one in results]


def tensors_of(folder):
    return {path.name: read_tensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "pretrained").rglob("*") if path.is_file())


@pytest.mark.parametrize("typed", [(), ("task.folds=2", "task.pretrain.num_epochs=1", "task.finetune.num_epochs=1")])
def test_a_trial_that_takes_a_pretraining_over_ends_bit_for_bit_as_one_that_computes_it(compose_run, assigned, typed):
    first, second = compose_run(*typed), compose_run("task.finetune.lr=2e-3", *typed)
    results_of(assigned(first, 1))
    anew = results_of(assigned(second, 2, shares=False))
    reusing = results_of(assigned(second, 3))
    num_epochs = second.task.pretrain.num_epochs
    assert [one["reused"] for one in anew] == [None] * len(anew)
    assert [one["reused"] for one in reusing] == [True] * num_epochs + [None] * second.task.finetune.num_epochs
    assert [one["seconds"] == 0 for one in reusing] == [one["reused"] is True for one in reusing]
    assert told(reusing) == told(anew)
    expected = tensors_of(assigned(second, 2).folder)
    assert PRETEXT in expected or typed
    torch.testing.assert_close(tensors_of(assigned(second, 3).folder), expected, rtol=0, atol=0)


def test_a_trial_goes_on_where_a_stopped_one_ended(compose_run, assigned, tmp_path):
    run = compose_run("task.pretrain.num_epochs=3")
    results_of(assigned(run, 1), until=2)
    assert kept(tmp_path) == ["epoch-0002.safetensors"]
    reusing = results_of(assigned(run, 2))
    assert [one["reused"] for one in reusing] == [True, True, False, None, None]
    assert kept(tmp_path) == ["epoch-0003.safetensors"]
    assert told(reusing) == told(results_of(assigned(run, 3, shares=False)))


def test_a_trial_that_is_stopped_while_it_takes_over_leaves_nothing_and_computes_nothing(tiny_run, assigned, tmp_path):
    results_of(assigned(tiny_run, 1), until=2)
    (first,) = results_of(assigned(tiny_run, 2), until=1)
    assert (first["epoch"], first["reused"], first["seconds"]) == (1, True, 0.0)
    assert read_place(assigned(tiny_run, 2).folder)["epoch"] == 2  # from which an interrupted one goes on
    assert [one["epoch"] for one in results_of(assigned(tiny_run, 2))] == [3, 4]


def test_an_interrupted_trial_goes_on_from_what_is_further(tiny_run, assigned):
    results_of(assigned(tiny_run, 1, shares=False), until=1)
    results_of(assigned(tiny_run, 2), until=2)
    going_on = results_of(assigned(tiny_run, 1))
    assert [(one["epoch"], one["reused"]) for one in going_on] == [(2, True), (3, None), (4, None)]
    assert told(going_on) == told(results_of(assigned(tiny_run, 3, shares=False)))[1:]


def test_a_trial_in_its_fine_tuning_takes_nothing_over(tiny_run, assigned):
    results_of(assigned(tiny_run, 1), until=2)
    results_of(assigned(tiny_run, 2), until=3)
    assert [(one["epoch"], one["reused"]) for one in results_of(assigned(tiny_run, 2))] == [(4, None)]


def test_a_given_up_attempt_takes_nothing_over(tiny_run, assigned, tmp_path):
    results_of(assigned(tiny_run, 1), until=2)
    assignment = replace(assigned(tiny_run, 2), attempt=1)
    write_attempt(assignment.folder, 2)
    with pytest.raises(Exception, match="attempt 1 was given up"):
        results_of(assignment)
    assert not (assignment.folder / LAST).exists()


@pytest.mark.parametrize(
    ("typed", "equal"),
    [
        ("task.finetune.lr=3e-3", True),
        ("task.finetune.num_epochs=7", True),
        ("seed=1", False),
        ("model.mask_ratio=0.5", False),
        ("task.pretrain.lr=3e-3", False),
        ("task.pretrain.num_epochs=3", False),
        ("task.probe.l2=0.2", False),
        ("task.metrics=[AUROC]", False),
        ("data.max_train_patients=9", False),
    ],
)
def test_a_pretraining_is_told_by_all_that_it_depends_on(compose_run, tiny_run, tiny_recordings, typed, equal):
    same = digest_of(compose_run(typed), tiny_recordings) == digest_of(tiny_run, tiny_recordings)
    assert same == equal


def test_other_rows_and_other_code_make_another_pretraining(tiny_run, tiny_recordings, monkeypatch):
    here, split = digest_of(tiny_run, tiny_recordings), tiny_recordings.split
    fewer = replace(tiny_recordings, split=replace(split, train=split.train[:-1]))
    assert digest_of(tiny_run, fewer) != here
    monkeypatch.setattr(pretrained, "code_of_this_process", lambda: "another")
    assert digest_of(tiny_run, tiny_recordings) != here


def test_a_damaged_state_is_said_and_computed_again(tiny_run, assigned, tmp_path, caplog):
    results_of(assigned(tiny_run, 1), until=1)
    (state,) = (tmp_path / "pretrained").rglob("*.safetensors")
    state.unlink()
    state.write_bytes(b"not a state")
    with caplog.at_level(logging.WARNING):
        assert [one["reused"] for one in results_of(assigned(tiny_run, 2), until=1)] == [False]
    assert "a kept pre-training is computed again" in caplog.text
    assert [one["reused"] for one in results_of(assigned(tiny_run, 3), until=1)] == [True]


# -------- the shelf itself, with small files in the place of states


@pytest.fixture
def state(tmp_path):
    """Saves a made-up state of 4000 bytes at an epoch."""

    def state(epoch):
        path = tmp_path / "trial" / LAST
        history = [{"epoch": number, "stage": "pretrain", "metrics": {}} for number in range(1, epoch + 1)]
        place = {"epoch": epoch, "stage": "pretrain", "best": None, "history": history}
        write_tensors(path, {"epoch": torch.full((1000,), float(epoch))}, {"state": json.dumps(place)})
        return path

    return state


def test_what_was_not_used_for_longest_goes_first(tmp_path, state):
    shelves = {name: Shelf(tmp_path / "pretrained", name, 10_000) for name in "abc"}
    for at, name in enumerate("ab"):
        shelves[name].put(state(1), 1)
        os.utime(shelves[name].path, (at, at))
    os.utime(shelves["b"].path, (0, 0))  # b was made later and used earlier
    shelves["c"].put(state(1), 1)
    assert [name for name in "abc" if shelves[name].take_over(tmp_path / f"to_{name}")] == ["a", "c"]
    assert not shelves["b"].path.exists()


def test_a_limit_below_one_state_keeps_none(tmp_path, state):
    shelf = Shelf(tmp_path / "pretrained", "a", 100)
    shelf.put(state(1), 1)
    assert shelf.take_over(tmp_path / "to") == []
    assert state(1).exists()  # the trial's own is no part of it


def test_an_earlier_state_never_replaces_a_later_one(tmp_path, state):
    shelf = Shelf(tmp_path / "pretrained", "a", LARGE)
    shelf.put(state(3), 3)
    shelf.put(state(2), 2)
    assert [one["epoch"] for one in shelf.take_over(tmp_path / "to")] == [1, 2, 3]


def test_a_state_is_kept_without_being_written_again(tmp_path, state):
    shelf = Shelf(tmp_path / "pretrained", "a", LARGE)
    saved = state(1)
    shelf.put(saved, 1)
    shelf.put(saved, 1)
    assert saved.stat().st_nlink == 2
    assert not list(tmp_path.rglob(".*"))


def test_a_file_system_without_hard_links_gets_copies(tmp_path, state, monkeypatch):
    def refused(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    shelf = Shelf(tmp_path / "pretrained", "a", LARGE)
    shelf.put(saved := state(2), 2)
    assert saved.stat().st_nlink == 1
    assert [one["epoch"] for one in shelf.take_over(tmp_path / "to")] == [1, 2]
    assert not list(tmp_path.rglob(".*"))


def _put_and_take(folder, number, states, failures):
    try:
        for epoch, state in enumerate(states, start=1):
            # room for about two of them: the others are deleted under the hands of those who use them
            shelf = Shelf(folder / "pretrained", str((number + epoch) % 4), 9_000)
            shelf.put(state, epoch)
            target = folder / f"to_{number}_{epoch}"
            if history := shelf.take_over(target):
                assert read_place(target)["epoch"] == len(history)
                assert float(read_tensors(target / LAST)[0]["epoch"][0]) == len(history)
    except BaseException as error:
        failures.put(f"{type(error).__name__}: {error}")
        raise


def test_trials_that_put_and_delete_at_once_read_whole_states_or_none(tmp_path, state):
    states = []
    for epoch in range(1, 41):
        states.append(state(epoch).rename(tmp_path / f"state_{epoch}"))
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    workers = [context.Process(target=_put_and_take, args=(tmp_path, number, states, failures)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4, failures.get()
    left = [path for path in (tmp_path / "pretrained").rglob("*") if path.is_file()]
    assert all(read_tensors(path)[1] for path in left)
