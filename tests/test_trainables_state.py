import errno
import os
import shutil

import pytest
import torch

from trainables.classify import enter_finetune
from trainables.files import StorageError, write_tensors
from trainables.loops import train
from trainables.pretrain import enter_pretrain, fresh_encoder
from trainables.state import (
    LAST,
    SavedState,
    TrainState,
    copy_state,
    load_optimizer_tensors,
    optimizer_tensors,
    read_place,
)
from trainables.workers import Workers

ALONE = Workers()
SGD = ["task.pretrain.optimizer.name=sgd", "task.finetune.optimizer.name=sgd"]
VARIANTS = {
    "adamw": ([], (1, 2, 3)),  # interrupted in each stage, and at the boundary between them
    "sgd": ([*SGD, "task.pretrain.accumulation_steps=2", "task.finetune.clip_norm=0.5"], (1, 3)),
    "linprobe": (["task.finetune.mode=linprobe", "task.finetune.head_init=normal"], (2, 3)),
    # networks that follow, batch norm, a learnt temperature, schedules of rate and decay, views, hidden patches
    "jepa": (["model=jepa", "model.num_targets=1", "task.pretrain.start_lr=1e-4"], (1,)),
    "byol": (["model=byol", "model.momentum_start=0.9", "task.pretrain.final_weight_decay=0.4"], (1,)),
    "meclip": (["model=meclip", "task.finetune.pool=encoder"], (1,)),
    "signal_mae": (
        ["model=signal_mae", "task.finetune.pool=attention", "task.finetune.mask_t_ratio=0.5"],
        (3,),
    ),
}
"""What is typed, and the epochs after which the run is interrupted."""


def new_state():
    return TrainState("val/auroc", maximize=True)


def assert_same(first, second):
    """Two states are the same to the last bit."""
    assert (first.epoch, first.stage, first.stage_epoch) == (second.epoch, second.stage, second.stage_epoch)
    assert first.history == second.history
    assert first.best == second.best
    exactly = {"rtol": 0, "atol": 0}
    torch.testing.assert_close(first.best_weights, second.best_weights, **exactly)
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), **exactly)
    moments, others = (optimizer_tensors(state.optimizer, state.model) for state in (first, second))
    assert moments
    torch.testing.assert_close(moments, others, **exactly)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_where_an_unbroken_one_does(compose_run, tiny_recordings, tmp_path, variant):
    typed, interrupted = VARIANTS[variant]
    run, unbroken, folder = compose_run(*typed), new_state(), tmp_path / "run"
    for result in train(run, unbroken, tiny_recordings, ALONE):
        unbroken.save(folder)
        shutil.copytree(folder, tmp_path / f"epoch_{result['epoch']}")
    assert unbroken.epoch == 4
    for epoch in interrupted:
        torch.manual_seed(epoch)  # whatever the global generator says in the new process
        resumed = new_state()
        saved = SavedState.load(tmp_path / f"epoch_{epoch}")
        results = list(train(run, resumed, tiny_recordings, ALONE, saved=saved))
        assert [result["epoch"] for result in results] == list(range(epoch + 1, 5))
        assert_same(resumed, unbroken)


@pytest.fixture(scope="module")
def scratch_run(compose_run):
    return compose_run("task.stages=finetune", "task.finetune.mode=scratch", "task.finetune.head_init=normal")


@pytest.fixture
def trained(scratch_run, tiny_recordings, tmp_path):
    """A run, its state after one epoch, and where that was saved."""
    state = new_state()
    next(train(scratch_run, state, tiny_recordings, ALONE))
    state.save(tmp_path / "run")
    return scratch_run, state, tmp_path / "run"


def test_a_saved_state_is_read_back_whole(trained, tiny_recordings):
    run, state, folder = trained
    again = new_state()
    enter_finetune(run, again, fresh_encoder(run), tiny_recordings, ALONE, resumed=True)
    SavedState.load(folder).restore(again)
    assert_same(again, state)


def test_the_place_is_read_without_the_tensors(trained):
    _, state, folder = trained
    place = read_place(folder)
    assert place["epoch"] == 1
    assert place["stage"] == "finetune"
    assert place["history"] == state.history
    assert place["best"] == {"epoch": 1, "value": state.best.value, "metrics": state.best.metrics}


def test_where_nothing_was_saved_there_is_no_state(tmp_path):
    assert SavedState.load(tmp_path / "nowhere") is None
    assert read_place(tmp_path / "nowhere") is None


def best_files(folder):
    return sorted(path.name for path in folder.glob("best-*"))


def test_only_the_best_epochs_weights_stay(trained):
    _, state, folder = trained
    assert best_files(folder) == ["best-0001.safetensors"]
    for value, kept in ((state.best.value - 0.1, 1), (1.5, 3)):
        metrics = {"val/auroc": value}
        state.finish_epoch(metrics)
        state.offer(metrics, state.model)
        state.save(folder)
        assert best_files(folder) == [f"best-{kept:04d}.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == ["best-0003.safetensors", LAST]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_save_that_is_cut_short_leaves_the_state_before(trained, monkeypatch, failing):
    _, state, folder = trained
    before = SavedState.load(folder)
    with torch.no_grad():
        state.model.head.weight.add_(1)
    state.finish_epoch({"val/auroc": 2.0})
    state.offer({"val/auroc": 2.0}, state.model)
    writes = iter(range(1, 10))

    def fsync(descriptor):
        if next(writes) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="the disk is full: free some space") as caught:
        state.save(folder)
    assert "\n" not in str(caught.value)
    after = SavedState.load(folder)
    assert (after.epoch, after.best, after.history) == (before.epoch, before.best, before.history)
    torch.testing.assert_close(after.best_weights, before.best_weights, rtol=0, atol=0)
    torch.testing.assert_close(after.tensors, before.tensors, rtol=0, atol=0)
    monkeypatch.undo()
    state.best_weights["head.bias"] += 1  # the epoch again, over what the crash left, not quite the same on a GPU
    state.save(folder)
    assert SavedState.load(folder).best.epoch == 2
    torch.testing.assert_close(SavedState.load(folder).best_weights, state.best_weights, rtol=0, atol=0)
    assert sorted(path.name for path in folder.iterdir()) == ["best-0002.safetensors", LAST]


@pytest.mark.parametrize(
    ("maximize", "values", "best"),
    [
        (True, [0.5, 0.7, 0.7, 0.6], 2),
        (False, [0.5, 0.3, 0.3, 0.4], 2),
        (True, [float("nan"), 0.2, float("inf")], 2),
        (True, [float("nan")], None),
    ],
)
def test_the_first_of_the_best_finite_epochs_is_kept(maximize, values, best):
    state = TrainState("val/auroc", maximize)
    model = torch.nn.Linear(1, 1)
    for epoch, value in enumerate(values, start=1):
        torch.nn.init.constant_(model.bias, epoch)
        state.finish_epoch({"val/auroc": value})
        state.offer({"val/auroc": value}, model)
    assert (None if state.best is None else state.best.epoch) == best
    if best is not None:
        assert state.best_weights["bias"].item() == best


def test_a_damaged_state_is_refused_in_one_line(trained):
    _, _, folder = trained
    content = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(content[: len(content) // 2])
    for read in (read_place, SavedState.load):
        with pytest.raises(
            StorageError, match=r"last\.safetensors cannot be read as safetensors .* restore it"
        ) as told:
            read(folder)
        assert "\n" not in str(told.value)


def test_tensors_that_are_no_state_are_refused(tmp_path):
    write_tensors(tmp_path / LAST, {"weight": torch.zeros(2)}, {})
    with pytest.raises(StorageError, match="holds no state of a run"):
        read_place(tmp_path)


def test_a_copied_state_is_the_one_that_was_saved_without_its_best_epoch(trained, tmp_path):
    _, state, folder = trained
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LAST).write_text("what the trial had before")
    assert copy_state(folder, tmp_path / "other") == state.epoch
    saved, copied = SavedState.load(folder), SavedState.load(tmp_path / "other")
    assert (copied.epoch, copied.stage, copied.stage_epoch) == (saved.epoch, saved.stage, saved.stage_epoch)
    assert copied.history == saved.history
    torch.testing.assert_close(copied.tensors, saved.tensors, rtol=0, atol=0)
    assert saved.best is not None
    assert (copied.best, copied.best_weights) == (None, {})


def test_what_is_no_state_is_not_copied(tmp_path):
    (tmp_path / LAST).write_bytes(b"no state")
    with pytest.raises(StorageError, match="cannot be read as safetensors"):
        copy_state(tmp_path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def finetuned(run, recordings, **changes):
    """The finetune stage just entered, with other choices."""
    stage = run.task.finetune.model_copy(update=changes)
    state = new_state()
    changed = run.model_copy(update={"task": run.task.model_copy(update={"finetune": stage})})
    enter_finetune(changed, state, fresh_encoder(run), recordings, ALONE, resumed=True)
    return state


def test_moments_stay_with_their_parameters_when_the_groups_change(trained, tiny_recordings):
    run, state, folder = trained
    other = finetuned(run, tiny_recordings, layer_decay=1.0)
    assert len(other.optimizer.param_groups) != len(state.optimizer.param_groups)
    SavedState.load(folder).restore(other)
    mine, theirs = dict(other.model.named_parameters()), dict(state.model.named_parameters())
    for name, parameter in theirs.items():
        for key, value in state.optimizer.state[parameter].items():
            assert torch.equal(other.optimizer.state[mine[name]][key], value), (name, key)
    assert {group["lr_scale"] for group in other.optimizer.param_groups} == {1.0}


def test_an_optimizer_begins_anew_with_another_ones_state(trained, tiny_recordings):
    run, _, folder = trained
    settings = run.task.finetune.optimizer.model_copy(update={"name": "sgd"})
    other = finetuned(run, tiny_recordings, optimizer=settings)
    SavedState.load(folder).restore(other)
    assert not other.optimizer.state


def test_moments_of_parameters_that_no_longer_learn_are_left_out(trained, tiny_recordings):
    run, _, folder = trained
    other = finetuned(run, tiny_recordings, mode="linprobe")
    SavedState.load(folder).restore(other)
    assert {name.partition(".")[2].partition(".")[2] for name in optimizer_tensors(other.optimizer, other.model)} == {
        "head.weight",
        "head.bias",
    }


def test_an_optimizer_without_a_step_has_nothing_to_save(tiny_run):
    state = new_state()
    enter_pretrain(tiny_run, state, ALONE)
    assert optimizer_tensors(state.optimizer, state.model) == {}
    load_optimizer_tensors(state.optimizer, state.model, {})
    assert not state.optimizer.state
