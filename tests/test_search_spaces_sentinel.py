"""What a stopped trial leaves behind is seen, said and written down."""

import logging
import os
import subprocess
import sys

import psutil
import pytest

from search_spaces import sentinel as module
from search_spaces.sentinel import Sentinel
from trainables.study import StudyFolder


@pytest.fixture
def cluster(monkeypatch):
    """What of actors and placement groups is there, and which node is this machine."""
    there = {"actors": set(), "groups": set(), "hosts": {"here": module.socket.gethostname(), "there": "another"}}
    monkeypatch.setattr(module, "living", lambda actors: set(actors) & there["actors"])
    monkeypatch.setattr(module, "placement_groups", lambda: set(there["groups"]))
    monkeypatch.setattr(module, "hosts", lambda: there["hosts"])
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    return there


@pytest.fixture
def sentinel(tmp_path):
    return Sentinel(StudyFolder(tmp_path))


@pytest.fixture
def process():
    """A process that runs until it is killed."""
    running = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield running
    running.kill()
    running.stdin.close()
    running.wait()


def held(number, *, node="here", process=None, folder=None):
    pid = None if process is None else process.pid
    return {
        "actor": f"actor{number}",
        "node": node,
        "pid": 2**30 if pid is None else pid,
        "began": 0.0 if pid is None else psutil.Process(pid).create_time(),
        "placement_group": f"group{number}",
        "folder": folder,
    }


def recorded(sentinel):
    return [event for event in sentinel._study.read_events() if event["event"] == "released"]


def test_a_trial_whose_things_go_leaves_nothing(cluster, sentinel, process, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    cluster["actors"], cluster["groups"] = {"actor1"}, {"group1", "group_of_others"}
    with sentinel.watching():
        sentinel.holds(1, [held(1, process=process, folder=str(scratch))])
        assert sentinel.nodes_of(1) == {"here"}
        sentinel.stopped(1)
        assert sentinel.look()  # all is still there
        cluster["actors"], cluster["groups"] = set(), {"group_of_others"}
        scratch.rmdir()
        assert sentinel.look()  # the process is
        process.kill()
        process.wait()
    (event,) = recorded(sentinel)
    assert (event["stops"], event["gone"], event["left"]) == (1, 5, [])  # and the trial's folder in the study


@pytest.mark.parametrize("kind", ["actor", "placement_group", "process", "folder"])
def test_what_does_not_go_in_time_is_said_and_written_down(
    kind, cluster, sentinel, process, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    cluster["actors"] = {"actor1"} if kind == "actor" else set()
    cluster["groups"] = {"group1"} if kind == "placement_group" else set()
    mine = process if kind == "process" else None
    folder = str(tmp_path) if kind == "folder" else None
    with caplog.at_level(logging.WARNING, logger=module.__name__), sentinel.watching():
        sentinel.holds(1, [held(1, process=mine, folder=folder)])
        sentinel.stopped(1)
    (event,) = recorded(sentinel)
    assert len(event["left"]) == 1
    assert event["left"][0].startswith(f"{kind} ")
    assert "still there" in caplog.text


def test_a_process_that_the_next_trial_uses_again_has_time_until_the_search_ends(cluster, sentinel):
    cluster["actors"], cluster["groups"] = {"actor1"}, {"group1"}
    with sentinel.watching():
        sentinel.holds(1, [held(1)])
        sentinel.stopped(1, kept=True)
        assert not sentinel.look()
        sentinel.holds(2, [held(1)])
        sentinel.stopped(2)  # interrupted: Tune uses its process no more
        assert sentinel.look()
        cluster["actors"], cluster["groups"] = set(), set()
    assert recorded(sentinel)[0]["left"] == []


def test_the_workers_of_a_gang_must_go_with_their_trial_though_its_process_stays(cluster, sentinel):
    cluster["actors"], cluster["groups"] = {"actor1", "actor2"}, {"group1", "group2"}
    with sentinel.watching():
        sentinel.holds(1, [held(1), held(2)])
        sentinel.stopped(1, kept=True)
        assert sentinel.look()  # actor2 and group2 have still time to go
        cluster["actors"], cluster["groups"] = {"actor1"}, {"group1"}
        assert not sentinel.look()
        cluster["actors"], cluster["groups"] = set(), set()
    assert recorded(sentinel)[0]["left"] == []


@pytest.mark.parametrize("paused", [True, False])
def test_the_state_of_a_paused_trial_stays_and_that_of_an_ended_one_must_go(cluster, sentinel, monkeypatch, paused):
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    folder = sentinel._study.trial(1)
    folder.mkdir(parents=True)
    with sentinel.watching():
        sentinel.holds(1, [held(1)])
        sentinel.stopped(1, kept=True, paused=paused)
    assert recorded(sentinel)[0]["left"] == ([] if paused else [f"folder {folder} of the driver"])


def test_another_machines_processes_are_known_by_their_actors_alone(cluster, sentinel, process):
    with sentinel.watching():
        sentinel.holds(1, [held(1, node="there", process=process)])
        sentinel.stopped(1)
        assert not sentinel.look()


def test_a_process_with_the_number_of_one_that_has_ended_is_another(cluster, sentinel):
    mine = held(1) | {"pid": os.getpid(), "began": 1.0}
    with sentinel.watching():
        sentinel.holds(1, [mine])
        sentinel.stopped(1)
        assert not sentinel.look()


def test_an_interrupted_trial_keeps_its_state(cluster, sentinel):
    state = sentinel._study.trial(1)
    state.mkdir(parents=True)
    with sentinel.watching():
        sentinel.holds(1, [held(1)])
        sentinel.stopped(1)
    assert recorded(sentinel)[0]["left"] == []
    assert state.exists()


@pytest.mark.parametrize("seen", ["first", "second"])
def test_two_looks_at_a_time_count_what_is_gone_once(cluster, sentinel, monkeypatch, seen):
    cluster["actors"] = {"actor1"}
    sentinel.holds(1, [held(1)])
    sentinel.stopped(1)
    sees = sentinel._there

    def slow(wanted):
        """The look under way has seen what it sees, when another one begins and ends."""
        monkeypatch.setattr(sentinel, "_there", sees)
        before = sees(wanted)
        cluster["actors"] = set()
        sentinel.look()
        return before if seen == "first" else sees(wanted)

    monkeypatch.setattr(sentinel, "_there", slow)
    sentinel.look()
    found = sentinel.summary()
    sentinel.look()
    assert sentinel.summary()["gone"] == found["gone"] == 4  # actor, process, placement group and folder
    assert found["left"] == []
