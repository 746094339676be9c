import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainables.files import StorageError
from trainables.study import StudyError, StudyFolder

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from pathlib import Path
from trainables.study import StudyFolder
with StudyFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def study(tmp_path):
    return StudyFolder(tmp_path / "a study = mine")


def refused(function, *arguments, error=StudyError, **keywords):
    with pytest.raises(error) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def take(study):
    with study.locked():
        return True


def test_a_second_process_is_refused_until_the_first_is_killed(study):
    command = [sys.executable, "-c", HOLDER, str(study.path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            message = refused(take, study)
            who = f"process {holder.pid} on {socket.gethostname()} since 2"
            assert message.startswith(f"{study.path} is in use by {who}")
            assert message.endswith("wait for it, stop it, or type another study_dir=DIR")
        finally:
            holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
    assert take(study)


def test_a_lock_is_refused_to_the_same_process_too_and_freed_in_the_end(study):
    with study.locked():
        assert f"in use by process {os.getpid()} on" in refused(take, study)
    assert take(study)
    with pytest.raises(KeyError), study.locked():
        raise KeyError
    assert take(study)


def test_a_lock_that_cannot_be_taken_is_said_in_one_line(study, monkeypatch):
    def no_locks(*arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert "cannot be locked" in refused(take, study, error=StorageError)


def test_what_fails_while_the_lock_is_held_keeps_its_own_name(study):
    with pytest.raises(OSError, match="^mine$") as caught, study.locked():
        raise OSError("mine")
    assert not isinstance(caught.value, StorageError)


def test_events_are_read_in_the_order_of_their_recording(study):
    written = [study.record("epoch", trial=2, metrics={"val/auroc": 0.5 + number}) for number in range(3)]
    written.append(study.record("trial_ended", reason="überlauf\nzweite Zeile"))
    assert list(study.read_events()) == written
    assert len(study.events.read_text(encoding="utf-8").splitlines()) == 4
    assert set(written[0]) == {"time", "event", "trial", "metrics"}
    assert written[0]["time"].endswith("+00:00")


def test_a_study_without_events_has_none(study):
    assert list(study.read_events()) == []


@pytest.mark.parametrize("lost", range(1, 40, 3))
def test_a_line_that_a_crash_cut_off_is_left_out_and_the_next_is_whole(study, lost):
    first = study.record("study_started", version="ä" * 20)
    study.record("epoch", trial=0, note="ä" * 20)
    content = study.events.read_bytes()
    study.events.write_bytes(content[:-lost])
    torn = [] if lost > 1 else [json.loads(content.splitlines()[1])]  # only its newline is lost
    assert list(study.read_events()) == [first, *torn]
    later = study.record("epoch", trial=1)
    assert list(study.read_events()) == [first, *torn, later]


def test_an_event_cannot_hold_what_json_does_not_know(study):
    with pytest.raises(ValueError, match="not JSON compliant"):
        study.record("epoch", value=float("nan"))
    assert not study.events.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the device that is always full, here")
def test_a_full_disk_is_said_in_one_line(study):
    study.path.mkdir()
    study.events.symlink_to("/dev/full")
    full = "cannot be written: the disk is full: free some space, then type the same line again to go on"
    assert refused(study.record, "epoch", error=StorageError) == f"{study.events} {full}"


def test_a_read_only_disk_is_said_in_one_line(study, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    for attempt in (lambda: study.record("epoch"), lambda: take(study), lambda: study.write_configuration({})):
        assert "the file system is read-only: choose another folder" in refused(attempt, error=StorageError)


def test_a_configuration_is_read_back_as_it_was_written(study):
    tree = {"search": {"name": "stmem_ptbxl"}, "lr": 1e-5, "leads": ["II", "aVR"], "note": "ä", "none": None}
    study.write_configuration(tree)
    assert study.read_configuration() == tree
    assert list(tree) == list(study.read_configuration())


def test_a_folder_without_a_study_is_named(study):
    assert refused(study.read_configuration) == (
        f"{study.path} holds no study (no study.yaml): name one with study_dir=DIR"
    )


@pytest.mark.parametrize("content", [b"a: [1,", b"\xff\xfe\x00", b"- 1\n", b""])
def test_a_damaged_configuration_is_refused(study, content):
    study.path.mkdir()
    study.configuration.write_bytes(content)
    assert str(study.configuration) in refused(study.read_configuration)


def test_everything_of_a_study_lies_in_its_folder(study):
    places = [
        study.configuration,
        study.journal,
        study.events,
        study.trials,
        study.checkpoints,
        study.report,
        study.log,
        study.scratch,
        study.trial(7),
    ]
    assert len(set(places)) == len(places)
    assert all(place.is_relative_to(study.path) for place in places)
    assert study.trial(7) != study.trial(70)
