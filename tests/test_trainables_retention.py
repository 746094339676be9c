import itertools
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.checkpoint import DESCRIPTION, WEIGHTS
from trainables.files import StorageError
from trainables.retention import arrange, keep
from trainables.study import StudyFolder

VALUES = [0.6, 0.9, 0.5, 0.8, 0.9, 0.7]
"""Of the trials in the order in which they end; two are equal."""


class Crash(BaseException):
    """The process ends here."""


class Crashing:
    """Ends the process before its n-th change to the disk; a folder is then deleted in part."""

    def __init__(self, monkeypatch, before):
        self.changes, self.before = 0, before
        for name in ("rename", "replace", "unlink", "mkdir"):
            monkeypatch.setattr(Path, name, self._counted(getattr(Path, name)))
        monkeypatch.setattr(shutil, "rmtree", self._rmtree)

    def _count(self):
        self.changes += 1
        if self.changes > self.before:
            raise Crash

    def _counted(self, change):
        def counted(*arguments, **keywords):
            self._count()
            return change(*arguments, **keywords)

        return counted

    def _rmtree(self, folder):
        for path in sorted(folder.iterdir(), reverse=True):  # the weights first: the JSON must not outlive them
            path.unlink()
        self._count()
        folder.rmdir()


def weights_of(folder, trial):
    path = folder / f"weights_{trial}"
    path.write_text(f"weights of trial {trial}")
    return path


def keep_trial(study, weights, trial, value, *, keep_best=2, maximize=True):
    description = {"trial": trial, "value": value}
    keep(study, weights, description, keep_best=keep_best, maximize=maximize)


def whole(folder):
    return sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]


def found(study):
    """The trial of every checkpoint; each must hold its own weights and nothing else."""
    trials = {}
    for folder in study.checkpoints.iterdir():
        assert whole(folder)
        trial = json.loads((folder / DESCRIPTION).read_text())["trial"]
        assert (folder / WEIGHTS).read_text() == f"weights of trial {trial}"
        trials[folder.name] = trial
    return trials


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(0, 1, width=16), min_size=1, max_size=6),
    keep_best=st.integers(1, 4),
    maximize=st.booleans(),
    data=st.data(),
)
def test_the_best_trials_are_kept_by_rank_whatever_the_order_they_end_in(
    tmp_path_factory, values, keep_best, maximize, data
):
    folder = tmp_path_factory.mktemp("study")
    study = StudyFolder(folder / "study")
    for trial in data.draw(st.permutations(range(len(values)))):
        keep_trial(study, weights_of(folder, trial), trial, values[trial], keep_best=keep_best, maximize=maximize)
    ranked = sorted(range(len(values)), key=lambda trial: (-values[trial] if maximize else values[trial], trial))
    expected = {f"best_{rank}": trial for rank, trial in enumerate(ranked[:keep_best], start=1)}
    assert found(study) == expected | {"default": 0}


def test_putting_in_order_twice_changes_nothing(tmp_path):
    study = StudyFolder(tmp_path / "study")
    for trial, value in enumerate(VALUES):
        keep_trial(study, weights_of(tmp_path, trial), trial, value)
    expected = {"best_1": 1, "best_2": 4, "default": 0}
    assert found(study) == expected
    arrange(study, keep_best=2, maximize=True)
    assert found(study) == expected
    for trial in (4, 2, 0):  # kept second, not kept, and the default: as when the end of a trial is carried out again
        keep_trial(study, tmp_path / f"weights_{trial}", trial, VALUES[trial])
        assert found(study) == expected


@pytest.mark.parametrize(
    ("trial", "value", "expected"),
    [
        (3, 0.8, {"best_1": 1, "best_2": 3, "default": 0}),  # a new one among the best
        (3, 0.1, {"best_1": 1, "best_2": 0, "default": 0}),  # a new one that is not kept
        (0, 0.6, {"best_1": 1, "best_2": 0, "default": 0}),  # the default's end, carried out again
    ],
)
def test_a_crash_before_any_change_loses_nothing(tmp_path, monkeypatch, trial, value, expected):
    template = StudyFolder(tmp_path / "template")
    for number, kept in enumerate(VALUES[:3]):
        keep_trial(template, weights_of(tmp_path, number), number, kept)
    weights = weights_of(tmp_path, trial)
    for before in itertools.count():
        study = StudyFolder(tmp_path / f"study_{before}")
        shutil.copytree(template.path, study.path)
        crashed = False
        with monkeypatch.context() as patch:
            Crashing(patch, before)
            try:
                keep_trial(study, weights, trial, value)
            except Crash:
                crashed = True
        if crashed:  # the books are opened again: first all is put in order, then the trial's end is carried out again
            copy = StudyFolder(tmp_path / f"copy_{before}")
            shutil.copytree(study.path, copy.path)
            arrange(copy, keep_best=9, maximize=True)  # of what was being deleted, nothing passes for a checkpoint
            for folder in copy.checkpoints.glob("best_*"):
                assert whole(folder), f"after a crash before change {before}"
            arrange(study, keep_best=2, maximize=True)
            ranks = sorted(path.name for path in study.checkpoints.iterdir() if path.name != "default")
            assert ranks == ["best_1", "best_2"]
        keep_trial(study, weights, trial, value)
        assert found(study) == expected, f"after a crash before change {before}"
        if not crashed:
            break
    assert before > 10


def test_a_copy_that_was_never_finished_is_deleted(tmp_path):
    study = StudyFolder(tmp_path)
    keep_trial(study, weights_of(tmp_path, 1), 1, 0.5)
    unfinished = study.checkpoints / ".trial_0002"
    unfinished.mkdir()
    (unfinished / WEIGHTS).write_text("half")
    arrange(study, keep_best=2, maximize=True)
    assert found(study) == {"best_1": 1}


def test_what_a_killed_writer_left_in_a_checkpoint_goes_when_it_is_written_again(tmp_path):
    study = StudyFolder(tmp_path)
    keep_trial(study, weights_of(tmp_path, 0), 0, 0.5)
    (study.checkpoints / "default" / f".{WEIGHTS}.99999.partial").write_text("half")
    keep_trial(study, tmp_path / "weights_0", 0, 0.5)
    assert found(study) == {"best_1": 0, "default": 0}


def test_folders_of_a_user_stay_as_they_are(tmp_path):
    study = StudyFolder(tmp_path)
    keep_trial(study, weights_of(tmp_path, 1), 1, 0.5)
    (study.checkpoints / "notes").mkdir()
    shutil.copytree(study.checkpoints / "best_1", study.checkpoints / "a_copy")
    keep_trial(study, weights_of(tmp_path, 2), 2, 0.7)
    assert {path.name for path in study.checkpoints.iterdir()} == {"a_copy", "notes", "best_1", "best_2"}
    assert json.loads((study.checkpoints / "best_1" / DESCRIPTION).read_text())["trial"] == 2


def test_fewer_are_kept_when_fewer_are_wanted(tmp_path):
    study = StudyFolder(tmp_path)
    for trial, value in enumerate(VALUES):
        keep_trial(study, weights_of(tmp_path, trial), trial, value, keep_best=4)
    arrange(study, keep_best=1, maximize=True)
    assert found(study) == {"best_1": 1, "default": 0}


def test_nothing_is_kept_of_a_study_without_a_completed_trial(tmp_path):
    arrange(StudyFolder(tmp_path), keep_best=3, maximize=True)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_read_are_named_and_what_was_kept_stays(tmp_path):
    study = StudyFolder(tmp_path / "study")
    keep_trial(study, weights_of(tmp_path, 0), 0, 0.5)
    with pytest.raises(StorageError, match="gone cannot be read: No such file or directory"):
        keep_trial(study, tmp_path / "gone", 0, 0.5)
    assert found(study) == {"best_1": 0, "default": 0}


def test_a_read_only_disk_is_said_in_one_line(tmp_path, monkeypatch):
    study = StudyFolder(tmp_path)
    keep_trial(study, weights_of(tmp_path, 1), 1, 0.5)

    def refuse(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="the file system is read-only: choose another folder") as caught:
        keep_trial(study, weights_of(tmp_path, 2), 2, 0.7)
    assert "\n" not in str(caught.value)
