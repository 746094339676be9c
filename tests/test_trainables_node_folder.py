"""A trial's state in an object store: there before an epoch is reported, and all that the next process needs."""

import os
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainables.checkpoint import copy_checkpoint, describe, description_of
from trainables.failures import InterruptedTrial
from trainables.files import StorageError, read_tensors, write_tensors
from trainables.node_folder import PREFIX, Scratch, StateFolder, folder_held, own_folder, state_folder
from trainables.remote import RemoteFolder
from trainables.state import ATTEMPT, LAST, PRETEXT, SavedState, TrainState, best_path
from trainables.trial import Assignment, epochs
from trainables.workers import Workers


@pytest.fixture(autouse=True)
def _temporary(tmp_path, monkeypatch):
    (tmp_path / "node").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))


def assigned(run, store, tmp_path, remote):
    return Assignment(
        number=3,
        run=run,
        folder=tmp_path / "study" / "running" / "0003",
        store=store.path,
        metric="val/auroc",
        maximize=True,
        num_gpus=0.0,
        cpus_per_worker=1,
        remote=remote,
    )


def computed(assignment, *, until=None):
    results = []
    for result in (running := epochs(assignment, Workers.of_this_process(num_gpus=0.0))):
        results.append({key: value for key, value in result.items() if key != "seconds"})
        if result["epoch"] == until:
            break
    running.close()
    return results


def tensors_of(folder):
    return {path.name: read_tensors(path)[0] for path in sorted(folder.glob("*.safetensors"))}


def test_a_trial_that_goes_on_elsewhere_ends_bit_for_bit_as_an_unbroken_one(tiny_run, tiny_store, tmp_path, bucket):
    remote = f"{bucket}/study/running/0003-abc"
    unbroken = assigned(tiny_run, tiny_store, tmp_path, None)
    expected = computed(unbroken)
    assignment = Assignment.from_config(assigned(tiny_run, tiny_store, tmp_path, remote).to_config())
    parts = [computed(assignment, until=epoch) for epoch in (1, 3, None)]
    assert [*parts[0], *parts[1], *parts[2]] == expected
    (tmp_path / "end").mkdir()
    for name in RemoteFolder(remote).names():
        assert RemoteFolder(remote).download(name, tmp_path / "end" / name)
    left = tensors_of(unbroken.folder)
    del left[PRETEXT]  # what reconstructs is not kept in a store
    torch.testing.assert_close(tensors_of(tmp_path / "end"), left, rtol=0, atol=0)
    assert not any((tmp_path / "node").glob(f"{PREFIX}*"))


def test_an_epoch_is_in_the_store_before_it_is_reported(tiny_run, tiny_store, tmp_path, bucket):
    remote = RemoteFolder(f"{bucket}/running/0003-abc")
    assignment = assigned(tiny_run, tiny_store, tmp_path, remote.url)
    for result in epochs(assignment, Workers.of_this_process(num_gpus=0.0)):
        assert remote.download(LAST, tmp_path / "seen" / LAST)
        best = result["best_epoch"]
        names = [] if best is None else [best_path(Path(), best).name]
        assert remote.names() == [*names, LAST]
        for name in names:
            remote.download(name, tmp_path / "seen" / name)
        assert SavedState.load(tmp_path / "seen").epoch == result["epoch"]
    assert not assignment.folder.exists()


def test_a_store_that_fails_fails_the_epoch_and_leaves_nothing_on_the_node(
    tiny_run, tiny_store, tmp_path, bucket, monkeypatch
):
    def fail(self, source, name):
        raise StorageError("the store is away")

    monkeypatch.setattr(RemoteFolder, "upload", fail)
    assignment = assigned(tiny_run, tiny_store, tmp_path, f"{bucket}/running/0003-abc")
    with pytest.raises(StorageError, match="the store is away"):
        computed(assignment)
    assert not any((tmp_path / "node").glob(f"{PREFIX}*"))


def saved(folder, *, best):
    """A state whose best epoch is `best`."""
    state = TrainState("val/auroc", maximize=True)
    model = torch.nn.Linear(1, 1)
    state.enter("finetune", model, torch.optim.SGD(model.parameters()))
    for epoch in range(1, 5):
        state.finish_epoch({"val/auroc": float(epoch <= best) * epoch})
        state.offer({"val/auroc": float(epoch <= best) * epoch}, model)
        state.save(folder)
        yield epoch


class Watched:
    """A store that remembers the order of what it is asked."""

    def __init__(self):
        self.asked = []

    def upload(self, source, name):
        self.asked.append(f"put {name}")

    def delete(self, name):
        self.asked.append(f"delete {name}")


def test_the_best_weights_come_first_the_state_after_them_and_deletions_last(tmp_path):
    folder = StateFolder(tmp_path, Watched())
    for _ in saved(tmp_path, best=2):
        folder.saved()
    assert folder.remote.asked == [
        *("put best-0001.safetensors", "put last.safetensors"),
        *("put best-0002.safetensors", "put last.safetensors", "delete best-0001.safetensors"),
        *("put last.safetensors", "put last.safetensors"),
    ]


def test_a_state_whose_best_weights_are_missing_is_refused(tmp_path, bucket):
    remote = RemoteFolder(f"{bucket}/running/0000-a")
    folder = StateFolder(tmp_path / "one", remote)
    next(saved(folder.path, best=4))
    folder.saved()
    remote.delete("best-0001.safetensors")
    with pytest.raises(StorageError, match=r"must hold best-0001.safetensors, of which its last.safetensors tells"):
        StateFolder(tmp_path / "two", remote).pull()


def test_the_encoder_to_start_from_comes_from_the_store(compose_run, tiny_recordings, tmp_path, bucket):
    run = compose_run("task=finetune", "task.finetune.mode=linprobe", f"task.encoder={tmp_path}/encoder")
    write_tensors(tmp_path / "encoder" / "model.safetensors", {"encoder.x": torch.ones(1)}, {})
    best = {"epoch": 1, "value": 0.5, "metrics": {}}
    describe(tmp_path / "encoder", description_of(run, tiny_recordings, best, "val/auroc"))
    for path in (tmp_path / "encoder").iterdir():
        RemoteFolder(f"{bucket}/study").upload(path, f"encoder/{path.name}")
    run = run.model_copy(update={"task": run.task.model_copy(update={"encoder": f"{bucket}/study/encoder"})})
    folder = StateFolder(tmp_path / "own", RemoteFolder(f"{bucket}/study/running/0000-a"))
    here = Path(folder.with_encoder(run).task.encoder)
    copy_checkpoint(here, tmp_path / "copy")  # it is a whole checkpoint
    assert here.is_relative_to(tmp_path / "own")
    RemoteFolder(f"{bucket}/study").delete("encoder/model.safetensors")
    with pytest.raises(StorageError, match="must hold model.safetensors of the encoder to start from"):
        folder.with_encoder(run)


def test_without_a_store_a_trial_works_in_the_studys_folder_and_nothing_is_made(tiny_run, tmp_path):
    with state_folder(tmp_path / "running", None) as folder:
        assert folder.path == tmp_path / "running"
        folder.saved()
        assert folder.with_encoder(tiny_run) is tiny_run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["node"]
    assert not any((tmp_path / "node").glob(f"{PREFIX}*"))


def test_folders_of_processes_that_were_killed_are_deleted_and_others_stay(tmp_path):
    mine, another = own_folder(), tmp_path / "node" / f"{PREFIX}another-host-1-x"
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    left = Path(str(mine).replace(f"-{os.getpid()}-", f"-{pid}-"))
    for folder in (left, another):
        folder.mkdir()
    new = own_folder()
    assert sorted((tmp_path / "node").iterdir()) == sorted([mine, new, another])
    assert new.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("in_store", [True, False])
def test_what_a_gang_leaves_behind_is_deleted_where_it_lies(tmp_path, bucket, in_store):
    for attempt in (1, 2):
        (tmp_path / "0000" / f"train-{attempt}").mkdir(parents=True)
        (tmp_path / "0000" / f"train-{attempt}" / "file").touch()
    remote = RemoteFolder(f"{bucket}/running/0000-a")
    remote.put("train-1/file", b"")
    remote.put("train-2/file", b"")
    remote.put(LAST, b"")
    Scratch.of(tmp_path / "0000", remote.url if in_store else None, 1).clear()
    assert remote.names() == [LAST, *([] if in_store else ["train-1/file"]), "train-2/file"]
    assert (tmp_path / "0000" / "train-1").exists() == in_store
    assert (tmp_path / "0000" / "train-2").exists()  # a gang that goes on with the trial has begun already


def test_a_pickle_in_the_place_of_a_state_is_refused_and_never_executed(tiny_run, tiny_store, tmp_path, bucket):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    remote = f"{bucket}/running/0003-abc"
    RemoteFolder(remote).put(LAST, pickle.dumps(Planted()))
    with pytest.raises(StorageError, match=r"last.safetensors cannot be read as safetensors"):
        computed(assigned(tiny_run, tiny_store, tmp_path, remote))
    assert not (tmp_path / "executed").exists()


def test_an_attempt_that_was_given_up_saves_nothing_more_to_the_store(tiny_run, tiny_store, tmp_path, bucket):
    remote = RemoteFolder(f"{bucket}/running/0003-abc")
    remote.put(ATTEMPT, b"1")
    assignment = replace(assigned(tiny_run, tiny_store, tmp_path, remote.url), attempt=1)
    running = epochs(assignment, Workers.of_this_process(num_gpus=0.0))
    assert next(running)["epoch"] == 1
    before = remote.get(LAST)
    remote.put(ATTEMPT, b"2")
    with pytest.raises(InterruptedTrial, match="attempt 1 was given up, the latest is 2"):
        next(running)
    remote.delete_under("")  # as where the trial has ended
    with pytest.raises(InterruptedTrial, match="attempt 1 was given up, the latest is None"):
        computed(assignment)
    assert before is not None
    assert remote.names() == []


def test_the_folder_of_this_process_is_said_to_be_held_while_it_is_there(tmp_path, bucket):
    remote = f"{bucket}/running/0003-abc"
    assert folder_held(None) == folder_held(remote) == {}
    with state_folder(tmp_path, remote) as folder:
        assert folder_held(remote) == {"folder": str(folder.path)}
        assert folder_held(None) == {}
    assert folder_held(remote) == {}
